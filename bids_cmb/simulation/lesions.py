"""Microbleeds and everything that mimics them: positions, shapes and strengths.

Whatever shape and strength a microbleed can have, something labelled otherwise must have too; only
its position and what it continues into may tell them apart. So microbleeds and dots on the pia, in
fluid and on the outer shell come from one function, and vessels are cut to overlap with both.
"""

from dataclasses import replace

import numpy as np

from bids_cmb.simulation.geometry import GRID_MM, HeadGeometry, project_to_level, sample_voxels
from bids_cmb.simulation.lesion_priors import SamplingContext, sample_integer, start_sampling
from bids_cmb.simulation.microbleeds import sample_microbleeds, sample_spot
from bids_cmb.simulation.mineral_deposits import sample_grains
from bids_cmb.simulation.other_lesions import LARGE_LESION_SAMPLERS, sample_siderosis
from bids_cmb.simulation.sources import SusceptibilitySource, number_objects, translate
from bids_cmb.simulation.vessels import sample_vessels

DEEP_NUCLEI = ("basal ganglia", "pallidum")  # regions that striate veins run through


def sample_sources(
    rng: np.random.Generator, priors: dict, geometry: HeadGeometry
) -> list[SusceptibilitySource]:
    """Sample all susceptibility sources of one scan: microbleeds, mimics and vessels.

    Args:
        rng: Source of chance.
        priors: From `simulation.lesion_priors.load_priors`.
        geometry: The head, from `simulation.geometry.measure_geometry`.

    Returns:
        The microbleeds first. The sources of one object share its number, from 1.
    """
    context = start_sampling(rng, priors, geometry)
    spots = _sample_spots(context)
    deep = [spot[0].points[0] for spot in spots if spot[0].region in DEEP_NUCLEI]
    return number_objects(
        [
            *spots,
            *sample_vessels(replace(context, deep_bleeds=np.reshape(deep, (-1, 3)))),
            *sample_grains(context),
            *sample_siderosis(context),
        ]
    )


def _sample_spots(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample microbleeds, then dots in proportion, then lacunes and large bleeds; no vessels."""
    damage = [body for part in LARGE_LESION_SAMPLERS for body in part(context)]
    lesions = sample_microbleeds(context, damage)
    return [*lesions, *_sample_dots(context, len(lesions)), *damage]


def _sample_dots(context: SamplingContext, lesions: int) -> list[list[SusceptibilitySource]]:
    """Sample dots of the shape and strength of microbleeds, placed where none can lie."""
    priors, rng, geometry = context.priors["dots"], context.rng, context.geometry
    wanted = sum(sample_integer(rng, priors["per_lesion"]) for _ in range(lesions))
    kinds = rng.choice(
        list(priors["shares"]), max(wanted, priors["fewest"]), p=list(priors["shares"].values())
    )
    dots = []
    for kind, number in zip(*np.unique(kinds, return_counts=True), strict=True):
        for place in DOT_SAMPLERS[str(kind)](rng, geometry, int(number)):
            dots.append(translate(sample_spot(context, str(kind)), place, "n/a"))
    return dots


def _sample_sulci(rng: np.random.Generator, geometry: HeadGeometry, number: int) -> np.ndarray:
    narrow = (
        geometry.csf_mask
        & (geometry.pial_depth.data < -GRID_MM / 2)
        & (geometry.pial_depth.data > -3)
    )
    return sample_voxels(rng, geometry, narrow & (geometry.shell_depth.data > 4), number)


def _sample_cisterns(rng: np.random.Generator, geometry: HeadGeometry, number: int) -> np.ndarray:
    wide = geometry.csf_mask & (geometry.pial_depth.data < -1.5) & (geometry.shell_depth.data > 3)
    low = (geometry.coordinates[..., 2] < -8) & (np.abs(geometry.coordinates[..., 0]) < 30)
    return sample_voxels(rng, geometry, wide & low, number)


def _sample_ventricles(rng: np.random.Generator, geometry: HeadGeometry, number: int) -> np.ndarray:
    return sample_voxels(rng, geometry, geometry.ventricle_distance.data < -GRID_MM / 3, number)


def _sample_pia(rng: np.random.Generator, geometry: HeadGeometry, number: int) -> np.ndarray:
    near = (np.abs(geometry.pial_depth.data) < GRID_MM) & geometry.csf_mask
    places = sample_voxels(rng, geometry, near, number)
    return project_to_level(geometry.pial_depth, places, rng.uniform(-0.5, 0.2, len(places)))


def _sample_shell(rng: np.random.Generator, geometry: HeadGeometry, number: int) -> np.ndarray:
    near = geometry.csf_mask & (np.abs(geometry.shell_depth.data) < 2 * GRID_MM)
    places = sample_voxels(rng, geometry, near, number)
    return project_to_level(geometry.shell_depth, places, rng.uniform(0, 1.5, len(places)))


DOT_SAMPLERS = {
    "sulcus dot": _sample_sulci,
    "cistern dot": _sample_cisterns,
    "ventricle dot": _sample_ventricles,
    "pial dot": _sample_pia,
    "shell dot": _sample_shell,
}
