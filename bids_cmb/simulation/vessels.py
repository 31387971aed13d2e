"""Veins, sinuses and arteries: their course, width and susceptibility.

A vessel cut across by a slice looks like a microbleed; only its position and what it continues into
tell them apart. Lengths are mm, positions world mm (RAS+).
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from bids_cmb.simulation.geometry import (
    BILATERAL_STRUCTURES,
    BRAINSTEM,
    GRID_MM,
    HeadGeometry,
    bilateral_codes,
    gradient_direction_at,
    interpolate_along,
    interpolate_at,
    normalize,
    project_to_level,
    random_walk_on_surface,
    sample_voxels,
)
from bids_cmb.simulation.lesion_priors import (
    SamplingContext,
    sample_integer,
    sample_log_uniform,
    sample_uniform,
)
from bids_cmb.simulation.sources import SusceptibilitySource


def sample_vessels(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample every vessel of a scan, one object each."""
    return [vessel for part in VESSEL_SAMPLERS for vessel in part(context)]


def _make_vein(
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


def _make_artery(
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


def _trim_paths(
    paths: np.ndarray, lengths: np.ndarray, good: np.ndarray, fewest: int = 3
) -> list[np.ndarray]:
    """Trim each path to its length in mm or to where it first leaves what is good for it."""
    ends = np.where(good.all(axis=1), good.shape[1], good.argmin(axis=1))
    ends = np.minimum(ends, np.ceil(lengths / GRID_MM).astype(int) + 1)
    return [path[:end] for path, end in zip(paths, ends, strict=True) if end >= fewest]


def _smooth_polyline(
    context: SamplingContext, waypoints: Sequence[np.ndarray], sway: float = 0.6
) -> np.ndarray:
    """Smooth a line through waypoints, each moved a little, with a point every 1.5 mm."""
    corners = np.array(waypoints) + sway * context.rng.standard_normal((len(waypoints), 3))
    covered = np.append(0, np.linalg.norm(np.diff(corners, axis=0), axis=1).cumsum())
    lengths = np.linspace(0, covered[-1], max(3, round(covered[-1] / GRID_MM)))
    line = np.column_stack([np.interp(lengths, covered, axis) for axis in corners.T])
    return ndimage.gaussian_filter1d(line, 2.0, axis=0, mode="nearest")


def _mirror_to_world(context: SamplingContext, *places: Sequence[float]) -> list[list[np.ndarray]]:
    """Convert positions along the head's axes, left and mirrored right, to world mm."""
    return [
        [context.geometry.to_world(side * right, front, top) for right, front, top in places]
        for side in (-1, 1)
    ]


# --- Veins and vessels of the surface -------------------------------------------------------------


def _sample_pial_vessels(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample small vessels along the sulci, some in their depth, some at the edge of the cortex."""
    priors, rng, geometry = context.priors["vessels"]["pial vessel"], context.rng, context.geometry
    number = sample_integer(rng, priors["number"])
    near = geometry.csf_mask & (geometry.pial_depth.data > -2.5)
    starts = np.concatenate(
        [
            sample_voxels(
                rng, geometry, near & (geometry.shell_depth.data > 6), number - number // 3
            ),
            sample_voxels(rng, geometry, near, number // 3),
        ]
    )
    level = rng.uniform(-1.2, 0.1, number)
    starts = project_to_level(geometry.pial_depth, starts, level)
    paths = random_walk_on_surface(
        rng,
        geometry.pial_depth,
        starts,
        normalize(rng.standard_normal(starts.shape)),
        level=level,
        steps=round(priors["length_mm"][1] / GRID_MM),
        wobble=priors["wobble"],
    )
    good = np.abs(interpolate_along(geometry.pial_depth, paths) - level[:, None]) < 1.5
    lengths = rng.uniform(*priors["length_mm"], number)
    return [
        _make_artery(context, "pial vessel", run, priors["radius_mm"])
        if rng.random() < priors["arterial"]
        else _make_vein(context, "pial vessel", run, taper=0.6)
        for run in _trim_paths(paths, lengths, good)
    ]


def _sample_sinuses_and_cortical_veins(
    context: SamplingContext,
) -> list[list[SusceptibilitySource]]:
    """Sample the sinuses along the outer shell, and the cortical veins that drain into them."""
    priors, rng, geometry = (
        context.priors["vessels"]["cortical vein"],
        context.rng,
        context.geometry,
    )
    sagittal, confluence = _trace_sagittal_sinus(context)
    transverse = [_trace_transverse_sinus(context, side, confluence) for side in (-1, 1)]
    number = sample_integer(rng, priors["number"])
    over = geometry.csf_mask & (geometry.shell_depth.data > 1.5) & (geometry.shell_depth.data < 8)
    high = (geometry.coordinates[..., 2] > -15) & (np.abs(geometry.coordinates[..., 0]) > 12)
    starts = sample_voxels(rng, geometry, over & high, number)
    ends = np.concatenate([sagittal, *transverse])
    goal = np.linalg.norm(starts[:, None] - ends, axis=2).argmin(axis=1)
    targets = ends[np.clip(goal + rng.integers(-12, 13, number), 0, len(ends) - 1)]
    paths = random_walk_on_surface(
        rng,
        geometry.pial_depth,
        project_to_level(geometry.pial_depth, starts, -1.0),
        normalize(targets - starts),
        level=-1.0,
        steps=round(priors["length_mm"][1] / GRID_MM),
        wobble=priors["wobble"],
        targets=targets,
    )
    nearest = np.linalg.norm(paths - targets[:, None], axis=2).argmin(axis=1)
    good = np.arange(paths.shape[1]) <= nearest[:, None]  # beyond, they would circle around it
    lengths = rng.uniform(*priors["length_mm"], number)
    veins = [
        _make_vein(context, "cortical vein", run[::-1], taper=0.5)
        for run in _trim_paths(paths, lengths, good)
    ]
    return [
        _make_vein(context, "superior sagittal sinus", sagittal[::-1], taper=0.5),
        *(_make_vein(context, "transverse sinus", line, taper=0.9) for line in transverse),
        *veins,
    ]


def _trace_sagittal_sinus(context: SamplingContext) -> tuple[np.ndarray, np.ndarray]:
    """Trace the midline of the outer shell from front to back, and the confluence at its end."""
    geometry = context.geometry
    middle = geometry.to_world(0, -5, 20)
    angles = np.radians(np.arange(-5, 225, 1.5))
    ways = np.column_stack([0 * angles, np.cos(angles), np.sin(angles)]) @ geometry.axes
    rays = middle + ways[:, None] * np.arange(1, 140.0)[:, None]
    inside = interpolate_along(geometry.shell_depth, rays) > 2.5
    outermost = inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)
    line = rays[np.arange(len(rays)), outermost]
    below = (interpolate_at(geometry.tentorium_distance, line) < 0) & (angles > np.pi * 0.75)
    end = int(below.argmax()) if below.any() else len(line) - 1
    line = ndimage.gaussian_filter1d(line[: end + 1], 2.0, axis=0, mode="nearest")
    return line, line[-1]


def _trace_transverse_sinus(
    context: SamplingContext, side: int, confluence: np.ndarray
) -> np.ndarray:
    """Trace the outer shell where cerebrum and cerebellum are equally far, from the confluence."""
    geometry = context.geometry
    edge = (np.abs(geometry.shell_depth.data - 2) < 2) & (
        np.abs(geometry.tentorium_distance.data) < 3
    )
    right, front, _ = geometry.to_head(confluence)
    across, along = (
        side * (geometry.coordinates[..., 0] - right),
        geometry.coordinates[..., 1] - front,
    )
    edge &= (across > 3) & (along > -15) & (along < 45)
    places = geometry.codes.world(np.argwhere(edge))
    bins, behind = (across[edge] // 6).astype(int), along[edge]
    corners = []
    for bin_index in np.unique(bins):  # the hindmost: further on, tentorium and petrous bone meet
        in_bin = bins == bin_index
        corners.append(places[in_bin & (behind < behind[in_bin].min() + 5)].mean(axis=0))
    line = _smooth_polyline(
        context, [confluence, *corners] if corners else [confluence] * 3, sway=0.3
    )
    return np.concatenate([line[:1], project_to_level(geometry.shell_depth, line[1:], 2.0)])


def _sample_medullary_veins(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample straight thin veins through the white matter, upright on the ventricular wall."""
    priors, rng, geometry = (
        context.priors["vessels"]["medullary vein"],
        context.rng,
        context.geometry,
    )
    number = sample_integer(rng, priors["number"])
    white = np.isin(geometry.codes.data, bilateral_codes("white")) & (geometry.pial_depth.data > 6)
    beside = (
        white & (geometry.ventricle_distance.data > 0.5) & (geometry.ventricle_distance.data < 8)
    )
    starts = sample_voxels(rng, geometry, beside & (geometry.coordinates[..., 2] > -5), number)
    ways = normalize(
        gradient_direction_at(geometry.ventricle_distance, starts) + 0.3 * geometry.axes[2]
    )
    runs = _walk_through_tissue(context, priors, starts, ways, pia_mm=2.5, ventricle_mm=0)
    return [_make_vein(context, "medullary vein", run, taper=0.6) for run in runs]


def _walk_through_tissue(
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
    return _trim_paths(paths, rng.uniform(*priors["length_mm"], len(starts)), good)


def _sample_deep_veins(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample septal, thalamostriate and internal cerebral veins, vein of Galen, straight sinus."""
    geometry = context.geometry
    _, confluence = _trace_sagittal_sinus(context)
    galen = [geometry.to_world(0, *place) for place in ((-14, 3), (-20, 2), (-25, 6))]
    bodies = []
    for side in _mirror_to_world(context, (2, 19, 5), (2, 6, 8), (1.5, -6, 6), (1, -14, 3)):
        bodies.append(
            _make_vein(context, "internal cerebral vein", _smooth_polyline(context, side))
        )
    for side in _mirror_to_world(context, (6, 36, 8), (2, 28, 10), (2, 19, 5)):
        bodies.append(_make_vein(context, "septal vein", _smooth_polyline(context, side)))
    for side in _mirror_to_world(context, (19, -8, 14), (15, 4, 13), (10, 14, 9), (3, 19, 5)):
        line = project_to_level(geometry.ventricle_distance, _smooth_polyline(context, side), 0.3)
        bodies.append(_make_vein(context, "thalamostriate vein", line))
    bodies.append(_make_vein(context, "vein of Galen", _smooth_polyline(context, galen)))
    bodies.append(
        _make_vein(context, "straight sinus", _smooth_polyline(context, [galen[-1], confluence]))
    )
    return bodies


# --- Arteries -------------------------------------------------------------------------------------


def _sample_arteries(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample the basilar artery, the circle of Willis and the branches from it, as flow voids."""
    priors, geometry = context.priors["vessels"]["artery"], context.geometry
    stems = [_trace_basilar_artery(context)]
    wide = geometry.csf_mask & (geometry.pial_depth.data < -1)
    for side in (-1, 1):
        tip = _find_nearest_voxel(geometry, wide, (9 * side, 19, -22))
        stems.append(
            _find_path_in_csf(
                context, tip, _find_nearest_voxel(geometry, wide, (40 * side, 20, -16))
            )
        )
    for side in _mirror_to_world(
        context, (9, 18, -22), (3, 26, -20), (2, 46, -8), (2, 52, 10), (2, 36, 32)
    ):
        stems.append(
            project_to_level(geometry.pial_depth, _smooth_polyline(context, side, 1.0), -0.8)
        )
    branches = []
    for stem, side in zip(stems[1:3], (-1, 1), strict=True):
        branches += _sample_branches(context, stem[-1], (0.4 * side, -0.7, 0.6))
        branches += _sample_branches(context, stems[0][-1], (side, -0.3, 0.1), number=1)
    return [
        *(_make_artery(context, "artery", line, priors["stem_mm"]) for line in stems),
        *(_make_artery(context, "artery", line, priors["branch_mm"]) for line in branches),
    ]


def _find_path_in_csf(context: SamplingContext, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Find the shortest path between two positions that avoids tissue, smoothed, (N, 3)."""
    geometry = context.geometry
    ends = np.rint(geometry.codes.index(np.array([start, end]))).astype(int)
    low = np.maximum(ends.min(axis=0) - 8, 0)
    box = tuple(map(slice, low, ends.max(axis=0) + 9))
    toll = 1 + 10 * np.clip(1 + geometry.pial_depth.data[box], 0, 1)  # none 1 mm from the tissue
    first, last = np.ravel_multi_index(
        tuple(np.minimum(ends - low, np.array(toll.shape) - 1).T), toll.shape
    )
    _, before = dijkstra(_build_graph(toll), indices=first, return_predecessors=True)
    way = [last]
    while way[-1] != first:
        way.append(before[way[-1]])
    line = geometry.codes.world(np.column_stack(np.unravel_index(way[::-1], toll.shape)) + low)
    return ndimage.gaussian_filter1d(line, 1.0, axis=0, mode="nearest")


def _build_graph(toll: np.ndarray) -> csr_array:
    """Build a graph of voxels: neighbours by face or edge, weighted by the toll of both."""
    number = np.arange(toll.size).reshape(toll.shape)
    steps = [step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]
    links = []
    for step in steps:
        here = tuple(
            slice(max(-k, 0), n - max(k, 0)) for k, n in zip(step, toll.shape, strict=True)
        )
        there = tuple(
            slice(max(k, 0), n - max(-k, 0)) for k, n in zip(step, toll.shape, strict=True)
        )
        cost = np.linalg.norm(step) * (toll[here] + toll[there])
        links.append([number[here].ravel(), number[there].ravel(), cost.ravel()])
    start, end, cost = (np.concatenate(part) for part in zip(*links, strict=True))
    graph = csr_array((cost, (start, end)), shape=(toll.size, toll.size))
    return graph + graph.T


def _find_nearest_voxel(
    geometry: HeadGeometry, mask: np.ndarray, place: Sequence[float]
) -> np.ndarray:
    """Find the voxel of a mask nearest to a position along the head's axes, world mm."""
    away = geometry.distance_to(place, mask)
    return geometry.codes.world(np.array(np.unravel_index(away.argmin(), away.shape)))


def _trace_basilar_artery(context: SamplingContext) -> np.ndarray:
    """Trace the basilar artery upwards in the fluid before the brainstem."""
    geometry = context.geometry
    stem = (geometry.codes.data == BRAINSTEM) & (np.abs(geometry.coordinates[..., 0]) < 5)
    places = geometry.coordinates[stem]
    top = np.percentile(places[:, 2], 95)
    heights = np.linspace(top - 30, top - 8, 7)
    fronts = [
        places[np.abs(places[:, 2] - height) < 4, 1].max(initial=-10) + 2 for height in heights
    ]
    corners = [geometry.to_world(0, *place) for place in zip(fronts, heights, strict=True)]
    return project_to_level(geometry.pial_depth, _smooth_polyline(context, corners), -1.8)


def _sample_branches(
    context: SamplingContext, start: np.ndarray, way: Sequence[float], number: int | None = None
) -> list[np.ndarray]:
    priors, rng = context.priors["vessels"]["artery"], context.rng
    number = number or sample_integer(rng, priors["branches"])
    starts = start + 3 * rng.standard_normal((number, 3))
    ways = normalize(np.array(way) @ context.geometry.axes + 0.4 * rng.standard_normal((number, 3)))
    paths = random_walk_on_surface(
        rng,
        context.geometry.pial_depth,
        project_to_level(context.geometry.pial_depth, starts, -1.0),
        ways,
        level=-1.0,
        steps=round(priors["length_mm"][1] / GRID_MM),
        wobble=priors["wobble"],
    )
    good = np.ones(paths.shape[:2], bool)
    return _trim_paths(paths, rng.uniform(*priors["length_mm"], number), good)


def _sample_perforators(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample thin flow voids that fan upwards through the lentiform nuclei."""
    priors, rng, geometry = context.priors["vessels"]["perforator"], context.rng, context.geometry
    bodies = []
    for side in (0, 1):
        codes = [*BILATERAL_STRUCTURES["putamen"][side], *BILATERAL_STRUCTURES["pallidum"][side]]
        starts = sample_voxels(
            rng,
            geometry,
            np.isin(geometry.codes.data, codes),
            sample_integer(rng, priors["number"]),
        )
        ways = np.array([(2 * side - 1) * 0.4, 0, 1]) @ geometry.axes
        ways = normalize(ways + 0.25 * rng.standard_normal(starts.shape))
        runs = _walk_through_tissue(context, priors, starts - 4 * ways, ways)
        bodies += [_make_artery(context, "perforator", run, priors["radius_mm"]) for run in runs]
    return bodies


def _sample_striate_veins(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample thin veins up through the lentiform nuclei, some of them through microbleeds."""
    priors, rng, geometry = (
        context.priors["vessels"]["striate vein"],
        context.rng,
        context.geometry,
    )
    if not priors["number"][1]:
        return []
    bled = context.deep_bleeds[rng.random(len(context.deep_bleeds)) < priors["through_bleeds"]]
    nuclei = np.isin(geometry.codes.data, bilateral_codes("putamen", "pallidum"))
    number = sample_integer(rng, priors["number"])
    starts = np.concatenate([sample_voxels(rng, geometry, nuclei, number), bled])
    right = np.sign(geometry.to_head(starts)[:, :1])
    ways = normalize(
        geometry.axes[2] + 0.4 * right * geometry.axes[0] + 0.3 * rng.standard_normal(starts.shape)
    )
    behind = rng.uniform(1, 8, (len(starts), 1))
    runs = _walk_through_tissue(context, priors, starts - behind * ways, ways)
    return [_make_vein(context, "striate vein", run, taper=0.6) for run in runs]


VESSEL_SAMPLERS = (
    _sample_sinuses_and_cortical_veins,
    _sample_pial_vessels,
    _sample_medullary_veins,
    _sample_deep_veins,
    _sample_arteries,
    _sample_perforators,
    _sample_striate_veins,
)
