"""Lesions that are no microbleeds: siderosis, lacunes, haemorrhages and cavernomas."""

from collections.abc import Callable, Sequence

import numpy as np

from bids_cmb.simulation.geometry import (
    GRID_MM,
    LESION_REGIONS,
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
from bids_cmb.simulation.sources import SusceptibilitySource, make_sphere, translate


def sample_siderosis(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample superficial siderosis: lines of iron side by side along a few gyri."""
    priors, rng, geometry = context.priors["siderosis"], context.rng, context.geometry
    if rng.random() >= priors["share"]:
        return []
    over = (
        (np.abs(geometry.pial_depth.data) < GRID_MM)
        & (geometry.coordinates[..., 2] > 0)
        & (geometry.shell_depth.data < 20)
    )
    return [
        _sample_siderosis_sheet(context, priors, start)
        for start in sample_voxels(
            rng,
            geometry,
            over & (geometry.ventricle_distance.data > 15),
            sample_integer(rng, priors["number"]),
        )
    ]


def _sample_siderosis_sheet(
    context: SamplingContext, priors: dict, start: np.ndarray
) -> list[SusceptibilitySource]:
    rng, pia = context.rng, context.geometry.pial_depth
    lines = sample_integer(rng, priors["lines"])
    starts = project_to_level(pia, start + rng.standard_normal((lines, 3)), 0.0)
    ways = normalize(rng.standard_normal(3) + 0.1 * rng.standard_normal((lines, 3)))
    steps = round(sample_uniform(rng, priors["length_mm"]) / GRID_MM)
    paths = random_walk_on_surface(rng, pia, starts, ways, level=0.0, steps=steps, wobble=0.1)
    chi, water = sample_uniform(rng, priors["chi_ppm"]), sample_uniform(rng, priors["water"])
    r2star = context.priors["r2star_per_ppm"] * chi
    radius = rng.uniform(*priors["radius_mm"], (lines, 1)) * np.ones(steps + 1)
    return [
        SusceptibilitySource("siderosis", path, width, chi, water, r2star)
        for path, width in zip(paths, radius, strict=True)
    ]


def _sample_rim(
    context: SamplingContext, kind: str, radius: float, chi_ppm: Sequence[float], number: int = 4
) -> list[SusceptibilitySource]:
    """Sample a rim of iron around the origin: rings on a sphere, each at its own slant."""
    rng = context.rng
    chi = sample_uniform(rng, chi_ppm)
    turn = np.linspace(0, 2 * np.pi, max(13, round(2 * np.pi * radius / GRID_MM)))
    circle = np.column_stack([np.cos(turn), np.sin(turn)])
    rings = []
    for _ in range(number):
        plane = np.linalg.qr(rng.standard_normal((3, 2)))[0].T
        width = np.full(len(turn), sample_uniform(rng, (0.2, 0.5)))
        points = radius * circle @ plane
        r2star = context.priors["r2star_per_ppm"] * chi
        rings.append(SusceptibilitySource(kind, points, width, chi, 0.3, r2star))
    return rings


def _sample_deep_voxels(context: SamplingContext, number: int, room: float) -> np.ndarray:
    """Sample white matter and deep grey ``room`` mm from fluid, or as far as the head has."""
    geometry = context.geometry
    tissue = np.isin(geometry.codes.data, [*LESION_REGIONS["basal ganglia"][0], 2, 10, 41, 49])
    depth = np.where(
        tissue, np.minimum(geometry.pial_depth.data, geometry.ventricle_distance.data), 0
    )
    return sample_voxels(context.rng, geometry, depth > min(room, 0.8 * float(depth.max())), number)


def _sample_lacunes(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample lacunes: small cavities full of fluid, some with a dark rim."""
    priors, rng = context.priors["lacune"], context.rng
    if rng.random() >= priors["share"]:
        return []
    bodies = []
    for place in _sample_deep_voxels(
        context, sample_integer(rng, priors["number"]), priors["radius_mm"][1]
    ):
        radius = sample_uniform(rng, priors["radius_mm"])
        # Fluid relaxes more slowly than the tissue around it: less than none beyond.
        body = [make_sphere("lacune", np.zeros(3), radius, 0.0, 1.0, -12.0)]
        if rng.random() < priors["rimmed"]:
            body += _sample_rim(context, "lacune", radius, priors["rim_chi_ppm"])
        bodies.append(translate(body, place, "n/a"))
    return bodies


def _large_lesion_sampler(
    kind: str,
) -> Callable[[SamplingContext], list[list[SusceptibilitySource]]]:
    """Return a sampler of large bleeds: lobules of different age, and a rim."""

    def drawn(context: SamplingContext) -> list[list[SusceptibilitySource]]:
        priors, rng = context.priors[kind], context.rng
        if rng.random() >= priors["share"]:
            return []
        bodies = []
        for place in _sample_deep_voxels(
            context, sample_integer(rng, priors["number"]), priors["radius_mm"][0]
        ):
            radius = sample_log_uniform(rng, priors["radius_mm"])
            body = [
                _sample_lobule(context, kind, radius) for _ in range(sample_integer(rng, (3, 7)))
            ]
            body += _sample_rim(context, kind, radius, priors["rim_chi_ppm"], number=6)
            bodies.append(translate(body, place, "n/a"))
        return bodies

    return drawn


def _sample_lobule(context: SamplingContext, kind: str, radius: float) -> SusceptibilitySource:
    priors, rng = context.priors[kind], context.rng
    lobule_radius = radius * sample_uniform(rng, (0.4, 0.65))
    place = (
        normalize(rng.standard_normal(3)) * (radius - lobule_radius) * sample_uniform(rng, (0.5, 1))
    )
    chi = sample_uniform(rng, priors["chi_ppm"])
    r2star = context.priors["r2star_per_ppm"] * abs(chi) / 4
    return make_sphere(
        kind, place, lobule_radius, chi, sample_uniform(rng, priors["water"]), r2star
    )


LARGE_LESION_SAMPLERS = (
    _large_lesion_sampler("haemorrhage"),
    _large_lesion_sampler("cavernoma"),
    _sample_lacunes,
)
