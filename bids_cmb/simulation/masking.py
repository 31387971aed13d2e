"""Masks of simulated scans: the brain, and what defacing and skull stripping leave."""

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.labels import SULCUS_HALF_WIDTH_MM
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.acquisition import AcquisitionModel
from bids_cmb.simulation.background import FIELD_GRID_MM, TISSUE_GRID_MM
from bids_cmb.simulation.noise import smooth_noise
from bids_cmb.simulation.tissue_properties import CSF, is_brain

DEPTH_OFFSET_MM = 99.0


def make_brain_mask(acquisition: AcquisitionModel) -> Volume:
    """Make a mask of brain and ventricles with the narrow sulci between, on the scan's grid."""
    inside = is_brain(acquisition.labels.data).view(np.uint8)
    wide = round(2 * SULCUS_HALF_WIDTH_MM / TISSUE_GRID_MM) + 1
    closed = ndimage.minimum_filter(ndimage.maximum_filter(inside, wide), wide)
    closed = resample(
        Volume(closed, acquisition.labels.affine),
        acquisition.grid.affine,
        acquisition.grid.shape,
        order=0,
    )
    return Volume(closed.data > 0, acquisition.grid.affine)


def simulate_masking(
    rng: np.random.Generator, acquisition: AcquisitionModel, brain: Volume, masking: str
) -> np.ndarray:  # fmt: skip
    """Mask the scan: nothing, the face, or all but a careless brain mask.

    Args:
        rng: Source of chance.
        acquisition: Labels and grid.
        brain: From `make_brain_mask`.
        masking: ``whole``, ``masked`` (the face) or ``stripped``.

    Returns:
        Where the scan is not blank, bool, on the grid of the scan.
    """
    if masking == "whole":
        return np.ones(brain.shape, bool)
    if masking == "stripped":
        depth = _compute_depth(acquisition.labels)
        depth.data[:] += 0.7 * smooth_noise(rng, depth.shape, tuple(15.0 / depth.spacing))
        # Beyond the tissues the depth is 0, which is outside whatever the mask.
        return resample(depth, brain.affine, brain.shape).data > DEPTH_OFFSET_MM + rng.uniform(
            -0.5, 2.5
        )
    wave = smooth_noise(rng, brain.shape, tuple(15.0 / brain.spacing))
    y = np.arange(brain.shape[1])[:, None] * brain.spacing[1]
    z = np.arange(brain.shape[2]) * brain.spacing[2]
    inside = np.argwhere(brain.data)[::50] * brain.spacing
    front, floor = np.percentile(inside[:, 1], 99.5), np.percentile(inside[:, 2], 40)
    # What defaces an image cuts along a plane that leans forwards above the eyes.
    lean = np.where(z > floor, rng.uniform(0.8, 1.5), rng.uniform(0.3, 0.8))
    return (y < front + rng.uniform(2, 9) + lean * (z - floor) + 1.5 * wave) | brain.data


def _compute_depth(labels: Volume) -> Volume:
    """Compute the depth below the surface of the fluid plus `DEPTH_OFFSET_MM`, coarse, in mm."""
    step = round(FIELD_GRID_MM / TISSUE_GRID_MM)
    codes = labels.data[::step, ::step, ::step]
    inside = ndimage.binary_opening(is_brain(codes) | (codes == CSF))
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    affine = labels.affine @ np.diag([step, step, step, 1])
    return Volume((FIELD_GRID_MM * depth + DEPTH_OFFSET_MM).astype(np.float32), affine)
