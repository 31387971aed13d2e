"""Several sessions of one person: the same head in another position, and its microbleeds change.

Between two sessions microbleeds come and some fade; whatever else is dark stays. The head lies
still in the world of the simulation and the slices are laid anew; then the whole scan is moved, so
that the head has another position in the scanner. B0 keeps its direction in the head, which a few
degrees hardly change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.lesion_priors import sample_uniform, start_sampling
from bids_cmb.simulation.microbleeds import sample_further_microbleeds
from bids_cmb.simulation.protocols import Protocol, sample_protocol
from bids_cmb.simulation.simulate import Person, SimulatedScan
from bids_cmb.simulation.sources import MICROBLEED, SusceptibilitySource

MAX_TURN_DEG, MAX_SHIFT_MM = 8.0, 15.0  # of a head between sessions, about and along each axis
NOTHING_NEW_PROBABILITY = 0.25
MEAN_FURTHER_NEW = 1.5  # beyond the first, if there is a new one
FADE_PROBABILITY = 0.06  # of a microbleed, from one session to the next
FADED_SHARE = (0.0, 0.3)  # of its susceptibility that a faded one keeps
POSITION_COLUMNS = ("x_mm", "y_mm", "z_mm")


@dataclass(frozen=True)
class Change:
    """Changes of a person's microbleeds between two sessions.

    Attributes:
        new: Object numbers of those that came.
        faded: Of those that faded.
    """

    new: tuple[int, ...] = ()
    faded: tuple[int, ...] = ()


def change_microbleeds(
    rng: np.random.Generator, person: Person, priors: dict
) -> tuple[Person, Change]:
    """Let time pass: some microbleeds fade, new ones come.

    Args:
        rng: Source of chance.
        person: At the session before.
        priors: Of the lesions, from `simulation.lesion_priors.load_priors`.

    Returns:
        The same person later, objects with the numbers that they had, and what changed.
    """
    bodies = _group_microbleeds(person.sources)
    faded = {number for number in bodies if rng.random() < FADE_PROBABILITY}
    kept = [
        _fade(source, sample_uniform(rng, FADED_SHARE)) if source.object_id in faded else source
        for source in person.sources
    ]
    nothing = rng.random() < NOTHING_NEW_PROBABILITY
    count = 0 if nothing else 1 + int(rng.poisson(MEAN_FURTHER_NEW))
    context = start_sampling(rng, priors, person.geometry)
    places = [body[0].points.mean(axis=0) for body in bodies.values()]
    came = sample_further_microbleeds(context, count, places)
    first = 1 + max((source.object_id for source in person.sources), default=0)
    numbered = [
        replace(source, object_id=number)
        for number, body in enumerate(came, start=first)
        for source in body
    ]
    change = Change(tuple(range(first, first + len(came))), tuple(sorted(faded)))
    return replace(person, sources=[*kept, *numbered]), change


def _group_microbleeds(
    sources: Sequence[SusceptibilitySource],
) -> dict[int, list[SusceptibilitySource]]:
    bodies: dict[int, list[SusceptibilitySource]] = {}
    for source in sources:
        if source.kind == MICROBLEED:
            bodies.setdefault(source.object_id, []).append(source)
    return bodies


def _fade(source: SusceptibilitySource, share: float) -> SusceptibilitySource:
    """Fade a source: less iron, and the water comes back."""
    return replace(
        source,
        susceptibility_ppm=share * source.susceptibility_ppm,
        r2star_hz=share * source.r2star_hz,
        spin_fraction=1 - share * (1 - source.spin_fraction),
    )


def sample_motion(rng: np.random.Generator) -> np.ndarray:
    """Sample the motion of a head since the session before, world mm to world mm, (4, 4)."""
    turn = euler2mat(*np.radians(rng.uniform(-MAX_TURN_DEG, MAX_TURN_DEG, 3)))
    return from_matvec(turn, rng.uniform(-MAX_SHIFT_MM, MAX_SHIFT_MM, 3))


def move_scan(scan: SimulatedScan, motion: np.ndarray) -> SimulatedScan:
    """Move a scan with all that is known of it; voxels keep their values.

    Args:
        scan: To move.
        motion: World mm to world mm, rigid, (4, 4).
    """
    moved = {
        name: Volume(volume.data, motion @ volume.affine)
        for name, volume in vars(scan).items()
        if isinstance(volume, Volume)
    }
    tables = {
        name: [_move_row(row, motion) for row in getattr(scan, name)]
        for name in ("lesion_table", "mimic_table")
    }
    return replace(scan, **moved, **tables)


def _move_row(row: dict, motion: np.ndarray) -> dict:
    place = apply_affine(motion, [float(row[name]) for name in POSITION_COLUMNS])
    return row | dict(zip(POSITION_COLUMNS, place.round(2).tolist(), strict=True))


def choose_other_protocol(
    rng: np.random.Generator, first: Protocol, others: Sequence[Protocol]
) -> Protocol:
    """Choose another protocol of the same contrast: of ``others``, or a random one without any.

    Args:
        rng: Source of chance.
        first: Of the first session.
        others: To choose from.

    Returns:
        ``first`` if none of ``others`` has its contrast.
    """
    if others:
        like = [
            other for other in others if other.contrast == first.contrast and other != first
        ] or [first]
        return like[rng.integers(len(like))]
    while True:
        protocol = sample_protocol(rng)
        if protocol.contrast == first.contrast:
            return protocol
