"""All vessels of a scan: veins, sinuses and arteries, and the small vessels on the pia.

A vessel cut across by a slice looks like a microbleed; only its position and what it continues into
tell them apart.
"""

import numpy as np

from bids_cmb.simulation.arteries import sample_arteries, sample_perforators
from bids_cmb.simulation.geometry import (
    GRID_MM,
    interpolate_along,
    normalize,
    project_to_level,
    random_walk_on_surface,
    sample_voxels,
)
from bids_cmb.simulation.lesion_priors import SamplingContext, sample_integer
from bids_cmb.simulation.sources import SusceptibilitySource
from bids_cmb.simulation.veins import (
    sample_deep_veins,
    sample_medullary_veins,
    sample_sinuses_and_cortical_veins,
    sample_striate_veins,
)
from bids_cmb.simulation.vessel_paths import make_artery, make_vein, trim_paths


def sample_vessels(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample every vessel of a scan, one object each."""
    return [vessel for part in VESSEL_SAMPLERS for vessel in part(context)]


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
        make_artery(context, "pial vessel", run, priors["radius_mm"])
        if rng.random() < priors["arterial"]
        else make_vein(context, "pial vessel", run, taper=0.6)
        for run in trim_paths(paths, lengths, good)
    ]


VESSEL_SAMPLERS = (
    sample_sinuses_and_cortical_veins,
    _sample_pial_vessels,
    sample_medullary_veins,
    sample_deep_veins,
    sample_arteries,
    sample_perforators,
    sample_striate_veins,
)
