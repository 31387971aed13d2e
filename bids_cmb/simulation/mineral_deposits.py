"""Deposits of calcium and iron, and the choroid plexus: grains where heads have them."""

from collections.abc import Sequence

import numpy as np

from bids_cmb.simulation.geometry import (
    BILATERAL_STRUCTURES,
    GRID_MM,
    HeadGeometry,
    is_tissue,
    sample_voxels,
)
from bids_cmb.simulation.lesion_priors import (
    SamplingContext,
    sample_integer,
    sample_log_uniform,
    sample_uniform,
)
from bids_cmb.simulation.sources import SusceptibilitySource, make_sphere
from bids_cmb.simulation.tissue_properties import CHOROID, CSF


def sample_grains(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample every kind of grain that this scan has, each grain an object of its own."""
    bodies = []
    for kind, priors in context.priors["grains"].items():
        if context.rng.random() < priors["share"]:
            for mask in GRAIN_MASKS[kind](context.geometry):
                number = sample_integer(context.rng, priors["number"])
                places = sample_voxels(context.rng, context.geometry, mask, number)
                bodies += [[_sample_grain(context, kind, place)] for place in places]
    return bodies


def _sample_grain(context: SamplingContext, kind: str, place: np.ndarray) -> SusceptibilitySource:
    priors, rng = context.priors["grains"][kind], context.rng
    chi = sample_uniform(rng, priors["chi_ppm"])
    r2star = context.priors["r2star_per_ppm"] * abs(chi)
    radius = sample_log_uniform(rng, priors["radius_mm"])
    return make_sphere(kind, place, radius, chi, sample_uniform(rng, priors["water"]), r2star)


def _restrict_to_ball(
    geometry: HeadGeometry, mask: np.ndarray, place: Sequence[float], radius: float
) -> np.ndarray:
    """Restrict a mask to a ball around a place along the head's axes, or to its nearest voxels."""
    away = geometry.distance_to(place, mask)
    return away <= max(radius, float(away.min()) + GRID_MM)


def _atrium_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    plexus = np.isin(geometry.codes.data, CHOROID)
    where = plexus if plexus.any() else geometry.ventricle_distance.data < 0
    return [_restrict_to_ball(geometry, where, (side * 24, -22, 2), 9) for side in (-1, 1)]


def _pineal_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    return [_restrict_to_ball(geometry, np.ones(geometry.codes.shape, bool), (0, -14, -3), 3)]


def _falx_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    middle = (np.abs(geometry.coordinates[..., 0]) < 1.5) & (geometry.coordinates[..., 2] > 20)
    deep = (
        (geometry.shell_depth.data > 3)
        & (geometry.shell_depth.data < 28)
        & (geometry.codes.data == CSF)
    )
    return [middle & deep]


def _pallidum_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    return [np.isin(geometry.codes.data, codes) for codes in BILATERAL_STRUCTURES["pallidum"]]


def _dentate_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    masks = []
    for codes in BILATERAL_STRUCTURES["cerebellum"]:
        mask = np.isin(geometry.codes.data, codes) & (geometry.pial_depth.data > 3)
        place = geometry.coordinates[np.isin(geometry.codes.data, codes[:1])].mean(axis=0) * (
            0.85,
            1,
            1,
        )
        masks.append(_restrict_to_ball(geometry, mask, place, 5))
    return masks


def _midbrain_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    tissue = is_tissue(geometry.codes.data)
    places = ((5, -3, -17), (10, -1, -20))  # red nucleus, substantia nigra
    return [
        _restrict_to_ball(geometry, tissue, (side * right, front, top), 1.5)
        for side in (-1, 1)
        for right, front, top in places
    ]


GRAIN_MASKS = {
    "choroid plexus": _atrium_masks,
    "choroid calcification": _atrium_masks,
    "pineal calcification": _pineal_masks,
    "falx calcification": _falx_masks,
    "pallidal calcification": _pallidum_masks,
    "pallidal iron": _pallidum_masks,
    "dentate iron": _dentate_masks,
    "midbrain iron": _midbrain_masks,
}
