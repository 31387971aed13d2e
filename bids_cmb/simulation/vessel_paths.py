"""Lines that vessels follow, in world mm (RAS+), and sources made of them."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bids_cmb.simulation.geometry import GRID_MM, interpolate_along, random_walk_on_surface
from bids_cmb.simulation.lesion_priors import SamplingContext, sample_log_uniform, sample_uniform
from bids_cmb.simulation.sources import SusceptibilitySource


def make_vein(
    context: SamplingContext, kind: str, points: np.ndarray, *, taper: float = 1.0
) -> list[SusceptibilitySource]:
    """Make one vein; ``taper`` is its last radius as a share of its first."""
    priors = context.priors["vessels"][kind]
    chi = context.venous_ppm + context.priors["blood"]["spread"] * context.rng.standard_normal()
    radius = sample_log_uniform(context.rng, priors["radius_mm"]) * np.linspace(
        1, taper, len(points)
    )
    r2star = context.priors["r2star_per_ppm"] * abs(chi)
    return [
        SusceptibilitySource(
            kind, points, radius, chi, sample_uniform(context.rng, priors["water"]), r2star
        )
    ]


def make_artery(
    context: SamplingContext, kind: str, points: np.ndarray, limits: Sequence[float]
) -> list[SusceptibilitySource]:
    """Make a flow void: black, and no field of its own."""
    radius = sample_log_uniform(context.rng, limits) * np.linspace(1, 0.6, len(points))
    priors = context.priors["vessels"]["perforator" if kind == "perforator" else "artery"]
    return [
        SusceptibilitySource(
            kind, points, radius, 0.0, sample_uniform(context.rng, priors["water"]), 0.0
        )
    ]


def trim_paths(
    paths: np.ndarray, lengths: np.ndarray, good: np.ndarray, fewest: int = 3
) -> list[np.ndarray]:
    """Trim each path to its length in mm or to where it first leaves what is good for it."""
    ends = np.where(good.all(axis=1), good.shape[1], good.argmin(axis=1))
    ends = np.minimum(ends, np.ceil(lengths / GRID_MM).astype(int) + 1)
    return [path[:end] for path, end in zip(paths, ends, strict=True) if end >= fewest]


def smooth_polyline(
    context: SamplingContext, waypoints: Sequence[np.ndarray], sway: float = 0.6
) -> np.ndarray:
    """Smooth a line through waypoints, each moved a little, with a point every 1.5 mm."""
    corners = np.array(waypoints) + sway * context.rng.standard_normal((len(waypoints), 3))
    covered = np.append(0, np.linalg.norm(np.diff(corners, axis=0), axis=1).cumsum())
    lengths = np.linspace(0, covered[-1], max(3, round(covered[-1] / GRID_MM)))
    line = np.column_stack([np.interp(lengths, covered, axis) for axis in corners.T])
    return ndimage.gaussian_filter1d(line, 2.0, axis=0, mode="nearest")


def mirror_to_world(context: SamplingContext, *places: Sequence[float]) -> list[list[np.ndarray]]:
    """Convert positions along the head's axes, left and mirrored right, to world mm."""
    return [
        [context.geometry.to_world(side * right, front, top) for right, front, top in places]
        for side in (-1, 1)
    ]


def walk_through_tissue(
    context: SamplingContext, priors: dict, starts: np.ndarray, ways: np.ndarray, *,
    pia_mm: float = 1, ventricle_mm: float = 1,
) -> list[np.ndarray]:  # fmt: skip
    """Walk freely from each start, until the pia or a ventricle is nearer than given."""
    rng, geometry = context.rng, context.geometry
    steps = round(priors["length_mm"][1] / GRID_MM)
    paths = random_walk_on_surface(rng, None, starts, ways, steps=steps, wobble=priors["wobble"])
    good = (interpolate_along(geometry.pial_depth, paths) > pia_mm) & (
        interpolate_along(geometry.ventricle_distance, paths) > ventricle_mm
    )
    return trim_paths(paths, rng.uniform(*priors["length_mm"], len(starts)), good)
