"""Arteries as flow voids: basilar artery, circle of Willis, its branches, and perforators."""

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
    normalize,
    project_to_level,
    random_walk_on_surface,
    sample_voxels,
)
from bids_cmb.simulation.lesion_priors import SamplingContext, sample_integer
from bids_cmb.simulation.sources import SusceptibilitySource
from bids_cmb.simulation.vessel_paths import (
    make_artery,
    mirror_to_world,
    smooth_polyline,
    trim_paths,
    walk_through_tissue,
)


def sample_arteries(context: SamplingContext) -> list[list[SusceptibilitySource]]:
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
    for side in mirror_to_world(
        context, (9, 18, -22), (3, 26, -20), (2, 46, -8), (2, 52, 10), (2, 36, 32)
    ):
        stems.append(
            project_to_level(geometry.pial_depth, smooth_polyline(context, side, 1.0), -0.8)
        )
    branches = []
    for stem, side in zip(stems[1:3], (-1, 1), strict=True):
        branches += _sample_branches(context, stem[-1], (0.4 * side, -0.7, 0.6))
        branches += _sample_branches(context, stems[0][-1], (side, -0.3, 0.1), number=1)
    return [
        *(make_artery(context, "artery", line, priors["stem_mm"]) for line in stems),
        *(make_artery(context, "artery", line, priors["branch_mm"]) for line in branches),
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
    return project_to_level(geometry.pial_depth, smooth_polyline(context, corners), -1.8)


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
    return trim_paths(paths, rng.uniform(*priors["length_mm"], number), good)


def sample_perforators(context: SamplingContext) -> list[list[SusceptibilitySource]]:
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
        runs = walk_through_tissue(context, priors, starts - 4 * ways, ways)
        bodies += [make_artery(context, "perforator", run, priors["radius_mm"]) for run in runs]
    return bodies
