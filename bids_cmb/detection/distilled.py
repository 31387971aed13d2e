"""The design `distilled`: a network that is to miss nothing, then a student that tells apart.

After Sundaresan et al. 2023, doi:10.3389/fninf.2023.1204186: the candidate network is shown how
dark a voxel is and how radially symmetric its surround; what it finds hangs together in spots; a
student that learnt from a teacher gives each spot its chance. Rules of size, shape and place are
those of all lesions here (`lesions.measure`, `bids.tables`): flags, and nothing is taken away in
silence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import expit

from bids_cmb.detection.outputs import Evidence
from bids_cmb.detection.radial_symmetry import radial_symmetry
from bids_cmb.imaging.preprocessing import (
    Grid,
    Preprocessed,
    dilate_brain,
    preprocess,
    resample_to_scan,
)
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import CONNECTIVITY_26
from bids_cmb.networks.inference import ModelOptions, load_patch_model, predict_in_slabs
from bids_cmb.networks.model_cards import locate_weights

SIDE = 24  # voxels of the student's patch, along each axis
FLUID = 2.0  # brain medians: what is as bright or brighter has no darkness
STRONGEST = 99.9  # percentile of the brain's symmetry that becomes 1
MULTIPLE = (4, 4, 4)  # voxels that the sides of an image for the candidate network must divide by
MOST_VOXELS = 1_250_000  # at once, for the candidate network: with the overlap about 1 GB
OVERLAP = 16  # voxels of its slabs: what lies further off does not reach its answer
SHARE = 0.25  # of a voxel of the scan that a spot must fill
AT_ONCE = 64  # patches

Ask = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Seen:
    """A scan as the networks see it.

    Attributes:
        channels: Darkness and symmetry, 0 to 1, float32, (X, Y, Z, 2).
        brain: bool, on the same grid.
    """

    channels: np.ndarray
    brain: Volume


@dataclass(frozen=True, eq=False)
class Spot:
    """What hangs together in the answer of the candidate network.

    Attributes:
        centre: The voxel nearest to its centre of chance, (3,).
        voxels: Those of at least half its highest chance, (N, 3).
        top: Its highest chance.
    """

    centre: np.ndarray
    voxels: np.ndarray
    top: float


def distilled(
    image: Volume, brain: Volume, card: Mapping, models: ModelOptions
) -> tuple[Volume, Evidence]:
    """Find spots and ask the student about each.

    Args:
        image: T2*-weighted magnitude or SWI, as it came.
        brain: True inside the brain, on the grid of ``image``.
        card: With the members ``candidates`` and ``student`` and, in ``parameters``,
            ``candidate_threshold`` and ``most_candidates``.
        models: Where the weights lie, and how exactly they compute.

    Returns:
        The student's chance at the voxels of each spot, float32, on the grid of ``image``; and no
        evidence but that.

    Raises:
        ValueError: If weights are not those of the card, or the image cannot be scaled.
    """
    members = {member["name"]: member for member in card["members"]}
    find, judge = (
        load_patch_model(
            members[part],
            locate_weights(card["name"], members[part], models.folder),
            precision=models.precision,
        )
        for part in ("candidates", "student")
    )
    seen = look(preprocess(image, brain, Grid.from_card(members["candidates"]["grid"])))
    asked = card["parameters"]
    spots = find_spots(
        candidate_chance(find, seen),
        threshold=asked["candidate_threshold"],
        most=asked["most_candidates"],
    )
    return painted(spots, judged(judge, seen.channels, spots), seen.brain, image), Evidence()


def look(fed: Preprocessed) -> Seen:
    """The two channels of a scan on the networks' grid, its brain's median 1."""
    inside = dilate_brain(fed.brain)
    stacked = channels(fed.image.data, symmetry(fed), inside)
    return Seen(stacked, fed.brain)


def channels(image: np.ndarray, symmetric: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """What the networks are shown, (X, Y, Z, 2): darkness and symmetry, 0 outside.

    Args:
        image: In brain medians, (X, Y, Z).
        symmetric: As `symmetry` gives it.
        inside: The brain and its surface, bool. Not where the image is above 0, as the published
            code has it: the middle of a microbleed may be 0.
    """
    dark = np.clip(1 - image.astype(np.float32) / FLUID, 0, 1)
    return np.stack([dark * inside, symmetric * inside], axis=-1).astype(np.float32)


def symmetry(fed: Preprocessed) -> np.ndarray:
    """Fast radial symmetry of dark spots, float32, (X, Y, Z), most of it between 0 and 1.

    Radii in mm, in slices, as `detection.radial_symmetry` computes it; divided by the strongest of
    the scan, less the last thousandth, and nothing above 1.
    """
    strength = radial_symmetry(fed.image, fed.brain).data
    top = np.percentile(strength[fed.brain.data], STRONGEST)
    return np.clip(strength / top, 0, 1) if top > 0 else strength


def candidate_chance(ask: Ask, seen: Seen) -> np.ndarray:
    """The candidate network's chance of microbleed at every voxel, 0 outside the brain.

    The network is asked about the whole brain or about overlapping slabs of it, not about tiles
    with seams.
    """

    def chance(images: np.ndarray) -> np.ndarray:
        logits = ask(images)[0]
        return expit(logits[..., 1] - logits[..., 0])

    odd = -np.array(seen.brain.shape) % MULTIPLE
    padded = np.pad(seen.channels, [*((0, more) for more in odd), (0, 0)])
    found = predict_in_slabs(chance, MULTIPLE, padded, MOST_VOXELS, OVERLAP)
    kept = found[tuple(map(slice, seen.brain.shape))]
    return np.where(seen.brain.data, kept, 0).astype(np.float32)


def find_spots(chance: np.ndarray, *, threshold: float, most: int) -> list[Spot]:
    """What hangs together above a threshold, by face, edge or corner; the likeliest first.

    Args:
        chance: 0 to 1, (X, Y, Z).
        threshold: Lowest chance that counts.
        most: Spots at most.
    """
    pieces, _ = ndimage.label(chance >= threshold, structure=CONNECTIVITY_26)
    spots = []
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        values = np.where(pieces[box] == number, chance[box], 0)
        start, top = np.array([side.start for side in box]), float(values.max())
        centre = ndimage.center_of_mass(values) + start
        voxels = np.argwhere(values >= max(threshold, top / 2)) + start
        spots.append(Spot(np.rint(centre).astype(int), voxels, top))
    return sorted(spots, key=lambda spot: (-spot.top, *spot.centre))[:most]


def judged(ask: Ask, stacked: np.ndarray, spots: Sequence[Spot]) -> np.ndarray:
    """The student's chance that each spot is a microbleed, float32, (N,)."""
    half = SIDE // 2
    padded = np.pad(stacked, [(half, half)] * 3 + [(0, 0)])
    chances = [np.zeros(0, np.float32)]
    for first in range(0, len(spots), AT_ONCE):
        patches = [
            padded[tuple(slice(at, at + SIDE) for at in spot.centre)]
            for spot in spots[first : first + AT_ONCE]
        ]
        logits = ask(np.stack(patches))
        chances.append(expit(logits[:, 1] - logits[:, 0]).astype(np.float32))
    return np.concatenate(chances)


def painted(spots: Sequence[Spot], chances: Sequence[float], grid: Volume, like: Volume) -> Volume:
    """Each spot's chance at its voxels, on the grid of the scan ``like``.

    A chance stays what it is to the edge of its spot: where the spot fills a voxel of the scan in
    part, the part decides whether the voxel is the spot's, and does not make it less likely.
    """
    share, chance = (np.zeros(grid.shape, np.float32) for _ in range(2))
    for spot, said in zip(spots, chances, strict=True):
        share[tuple(spot.voxels.T)] = 1
        chance[tuple(spot.voxels.T)] = said
    part = resample_to_scan(Volume(share, grid.affine), like).data
    whole = resample_to_scan(Volume(chance, grid.affine), like).data
    data = np.where(part >= SHARE, whole / np.maximum(part, SHARE), 0)
    return Volume(np.clip(data, 0, 1).astype(np.float32), like.affine)
