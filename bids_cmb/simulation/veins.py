"""Veins and sinuses: dural sinuses, cortical, medullary, deep and striate veins."""

import numpy as np
from scipy import ndimage

from bids_cmb.simulation.geometry import (
    GRID_MM,
    bilateral_codes,
    gradient_direction_at,
    interpolate_along,
    interpolate_at,
    normalize,
    project_to_level,
    random_walk_on_surface,
    sample_voxels,
)
from bids_cmb.simulation.lesion_priors import SamplingContext, sample_integer
from bids_cmb.simulation.sources import SusceptibilitySource
from bids_cmb.simulation.vessel_paths import (
    make_vein,
    mirror_to_world,
    smooth_polyline,
    trim_paths,
    walk_through_tissue,
)


def sample_sinuses_and_cortical_veins(context: SamplingContext) -> list[list[SusceptibilitySource]]:
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
        make_vein(context, "cortical vein", run[::-1], taper=0.5)
        for run in trim_paths(paths, lengths, good)
    ]
    return [
        make_vein(context, "superior sagittal sinus", sagittal[::-1], taper=0.5),
        *(make_vein(context, "transverse sinus", line, taper=0.9) for line in transverse),
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
    line = smooth_polyline(
        context, [confluence, *corners] if corners else [confluence] * 3, sway=0.3
    )
    return np.concatenate([line[:1], project_to_level(geometry.shell_depth, line[1:], 2.0)])


def sample_medullary_veins(context: SamplingContext) -> list[list[SusceptibilitySource]]:
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
    runs = walk_through_tissue(context, priors, starts, ways, pia_mm=2.5, ventricle_mm=0)
    return [make_vein(context, "medullary vein", run, taper=0.6) for run in runs]


def sample_deep_veins(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample septal, thalamostriate and internal cerebral veins, vein of Galen, straight sinus."""
    geometry = context.geometry
    _, confluence = _trace_sagittal_sinus(context)
    galen = [geometry.to_world(0, *place) for place in ((-14, 3), (-20, 2), (-25, 6))]
    bodies = []
    for side in mirror_to_world(context, (2, 19, 5), (2, 6, 8), (1.5, -6, 6), (1, -14, 3)):
        bodies.append(make_vein(context, "internal cerebral vein", smooth_polyline(context, side)))
    for side in mirror_to_world(context, (6, 36, 8), (2, 28, 10), (2, 19, 5)):
        bodies.append(make_vein(context, "septal vein", smooth_polyline(context, side)))
    for side in mirror_to_world(context, (19, -8, 14), (15, 4, 13), (10, 14, 9), (3, 19, 5)):
        line = project_to_level(geometry.ventricle_distance, smooth_polyline(context, side), 0.3)
        bodies.append(make_vein(context, "thalamostriate vein", line))
    bodies.append(make_vein(context, "vein of Galen", smooth_polyline(context, galen)))
    bodies.append(
        make_vein(context, "straight sinus", smooth_polyline(context, [galen[-1], confluence]))
    )
    return bodies


def sample_striate_veins(context: SamplingContext) -> list[list[SusceptibilitySource]]:
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
    runs = walk_through_tissue(context, priors, starts - behind * ways, ways)
    return [make_vein(context, "striate vein", run, taper=0.6) for run in runs]
