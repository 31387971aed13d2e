"""Susceptibility sources: spheres and tubes, several of which can form one object.

Lengths are mm, susceptibilities ppm relative to the surrounding tissue, positions world mm (RAS+).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bids_cmb.simulation.geometry import LESION_REGIONS

MICROBLEED = "microbleed"


@dataclass(frozen=True, eq=False)
class SusceptibilitySource:
    """A sphere, or a tube along a line, whose susceptibility differs from its surroundings.

    Attributes:
        kind: What it is; exactly ``microbleed`` is a lesion, all others are mimics or vessels.
        points: World mm, RAS+, (N, 3). One is a sphere, several are the centre line of a tube.
        radius: mm at each point, (N,).
        susceptibility_ppm: Relative to the surrounding tissue; negative is diamagnetic, as calcium.
        spin_fraction: Share of the spins inside that give signal, 0 to 1; 0 is black.
        r2star_hz: R2* inside minus that of the surrounding tissue, 1/s.
        object_id: Sources of one number form one object, as the spheres of an ovoid microbleed.
        region: Of `simulation.geometry.LESION_REGIONS` for microbleeds, else ``n/a``.
    """

    kind: str
    points: np.ndarray
    radius: np.ndarray
    susceptibility_ppm: float
    spin_fraction: float
    r2star_hz: float
    object_id: int = 0
    region: str = "n/a"

    @property
    def moment(self) -> float:
        """Strength of a sphere, Δχ·R³ in ppm mm³; of a tube, that of a sphere of its volume."""
        if len(self.points) == 1:
            return float(self.susceptibility_ppm * self.radius[0] ** 3)
        lengths = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        section = np.pi * (self.radius[1:] ** 2 + self.radius[:-1] ** 2) / 2
        return float(self.susceptibility_ppm * (lengths * section).sum() * 3 / (4 * np.pi))


def make_sphere(
    kind: str,
    position: np.ndarray,
    radius: float,
    susceptibility_ppm: float,
    spin_fraction: float,
    r2star_hz: float,
) -> SusceptibilitySource:
    """Make a sphere; `SusceptibilitySource` explains the arguments."""
    return SusceptibilitySource(
        kind,
        np.asarray(position)[None],
        np.array([radius]),
        susceptibility_ppm,
        spin_fraction,
        r2star_hz,
    )


def measure_reach(body: list[SusceptibilitySource]) -> float:
    """Measure how far an object drawn around the origin extends from there, in mm."""
    return max(
        float(np.linalg.norm(part.points, axis=1).max() + part.radius.max()) for part in body
    )


def translate(
    body: list[SusceptibilitySource], position: np.ndarray, region: str
) -> list[SusceptibilitySource]:
    """Translate an object drawn around the origin to its position, and name its region."""
    return [replace(part, points=part.points + position, region=region) for part in body]


def number_objects(bodies: Iterable[list[SusceptibilitySource]]) -> list[SusceptibilitySource]:
    """Number objects from 1 and return their sources in order."""
    return [
        replace(source, object_id=number)
        for number, body in enumerate(bodies, start=1)
        for source in body
    ]


def describe_objects(sources: Sequence[SusceptibilitySource]) -> list[dict]:
    """Describe each object: its kind, where its centre lies, how strong it is.

    Returns:
        Rows with the keys ``object_id``, ``kind``, ``region``, ``territory`` (lobar, deep,
        infratentorial or n/a), ``x_mm``, ``y_mm``, ``z_mm``, ``moment_ppm_mm3`` and ``extent_mm``.
    """
    bodies: dict[int, list[SusceptibilitySource]] = {}
    for source in sources:
        bodies.setdefault(source.object_id, []).append(source)
    return [_describe_object(parts) for parts in bodies.values()]


def _describe_object(parts: list[SusceptibilitySource]) -> dict:
    points = np.concatenate([part.points for part in parts])
    radius = np.concatenate([part.radius for part in parts])
    weight = [max(abs(part.moment), 1e-9) for part in parts]
    middle = np.average([part.points.mean(axis=0) for part in parts], axis=0, weights=weight)
    low, high = (points - radius[:, None]).min(axis=0), (points + radius[:, None]).max(axis=0)
    region = parts[0].region
    return {
        "object_id": parts[0].object_id,
        "kind": parts[0].kind,
        "region": region,
        "territory": LESION_REGIONS[region][1] if region in LESION_REGIONS else "n/a",
        **dict(zip(("x_mm", "y_mm", "z_mm"), middle.round(2).tolist(), strict=True)),
        "moment_ppm_mm3": round(sum(part.moment for part in parts), 4),
        "extent_mm": round(float((high - low).max()), 2),
    }
