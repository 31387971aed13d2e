"""Dilation of masks by a distance."""

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.cropping import find_box


def dilate(mask: np.ndarray, radius_mm: float, spacing: np.ndarray | float) -> np.ndarray:
    """Dilate a mask by a distance between voxel centres; nothing is measured far from it.

    Args:
        mask: bool, (X, Y, Z); an empty one stays empty.
        radius_mm: How far.
        spacing: mm between voxels, (3,), or along all axes.

    Returns:
        bool, (X, Y, Z).
    """
    dilated = np.zeros(mask.shape, bool)
    if mask.any():
        box = find_box(mask, np.floor_divide(radius_mm, spacing).astype(int) + 1)
        dilated[box] = ndimage.distance_transform_edt(~mask[box], spacing) <= radius_mm
    return dilated
