"""What a head holds that a scan may show: balls and tubes, several of which can be one body.

Lengths are mm, susceptibilities ppm against the tissue around, positions world mm (RAS+).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bids_cmb.simulation.geometry import REGIONS

MICROBLEED = "microbleed"


@dataclass(frozen=True, eq=False)
class Source:
    """A ball, or a tube along a line, that differs magnetically from what surrounds it.

    Attributes:
        kind: What it is; exactly ``microbleed`` is a lesion, all others are not.
        points: World mm, RAS+, shape (N, 3). One: a ball. Several: a tube through them.
        radius: mm at each point, shape (N,).
        chi: ppm against the tissue around; below 0 is diamagnetic, as calcium.
        water: Share of the spins within that give signal, 0 to 1; 0 is black.
        r2star: Relaxation within beyond that of the tissue around, 1/s.
        body: Sources of one number are parts of one thing, as the balls of an ovoid microbleed.
        region: Where it was put, in the words of ``REGIONS`` for microbleeds.
    """

    kind: str
    points: np.ndarray
    radius: np.ndarray
    chi: float
    water: float
    r2star: float
    body: int = 0
    region: str = "n/a"

    @property
    def moment(self) -> float:
        """Strength of a ball, chi·R³ in ppm mm³; of a tube, that of a ball of its volume."""
        if len(self.points) == 1:
            return float(self.chi * self.radius[0] ** 3)
        lengths = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        section = np.pi * (self.radius[1:] ** 2 + self.radius[:-1] ** 2) / 2
        return float(self.chi * (lengths * section).sum() * 3 / (4 * np.pi))


def ball(
    kind: str, place: np.ndarray, radius: float, chi: float, water: float, r2star: float
) -> Source:
    """A ball; what its numbers mean is said at `Source`."""
    return Source(kind, np.asarray(place)[None], np.array([radius]), chi, water, r2star)


def reach(body: list[Source]) -> float:
    """How far a body that was drawn around 0 reaches from there, in mm."""
    return max(
        float(np.linalg.norm(part.points, axis=1).max() + part.radius.max()) for part in body
    )


def moved(body: list[Source], place: np.ndarray, region: str) -> list[Source]:
    """A body that was drawn around 0, put where it belongs."""
    return [replace(part, points=part.points + place, region=region) for part in body]


def numbered(bodies: Iterable[list[Source]]) -> list[Source]:
    """The sources of bodies in their order, those of the first with number 1."""
    return [
        replace(source, body=number)
        for number, body in enumerate(bodies, start=1)
        for source in body
    ]


def truth_rows(sources: Sequence[Source]) -> list[dict]:
    """One row for each body: what it is, where its middle lies, how strong it is.

    Returns:
        With the keys ``body``, ``kind``, ``region``, ``territory`` (lobar, deep, infratentorial or
        n/a), ``x_mm``, ``y_mm``, ``z_mm``, ``moment_ppm_mm3`` and ``extent_mm``.
    """
    bodies: dict[int, list[Source]] = {}
    for source in sources:
        bodies.setdefault(source.body, []).append(source)
    return [_truth_row(parts) for parts in bodies.values()]


def _truth_row(parts: list[Source]) -> dict:
    points = np.concatenate([part.points for part in parts])
    radius = np.concatenate([part.radius for part in parts])
    weight = [max(abs(part.moment), 1e-9) for part in parts]
    middle = np.average([part.points.mean(axis=0) for part in parts], axis=0, weights=weight)
    low, high = (points - radius[:, None]).min(axis=0), (points + radius[:, None]).max(axis=0)
    region = parts[0].region
    return {
        "body": parts[0].body,
        "kind": parts[0].kind,
        "region": region,
        "territory": REGIONS[region][1] if region in REGIONS else "n/a",
        **dict(zip(("x_mm", "y_mm", "z_mm"), middle.round(2).tolist(), strict=True)),
        "moment_ppm_mm3": round(sum(part.moment for part in parts), 4),
        "extent_mm": round(float((high - low).max()), 2),
    }
