"""A dilated mask holds what is near it, and nothing else."""

import numpy as np
import pytest
from scipy import ndimage

from bids_cmb.imaging.dilation import dilate


@pytest.mark.parametrize("radius", [0.5, 3.0, 6.9])
def test_it_is_all_within_the_distance_in_anisotropic_voxels(rng, radius):
    mask = np.zeros((30, 24, 12), bool)
    mask[rng.integers(4, 18, 20), rng.integers(0, 9, 20), rng.integers(5, 12, 20)] = True
    spacing = np.array([0.9, 1.5, 3.0])
    away = ndimage.distance_transform_edt(~mask, spacing)
    np.testing.assert_array_equal(dilate(mask, radius, spacing), away <= radius)
    np.testing.assert_array_equal(
        dilate(mask, radius, 2.0), ndimage.distance_transform_edt(~mask, 2.0) <= radius
    )


def test_an_empty_mask_stays_empty():
    assert not dilate(np.zeros((5, 4, 3), bool), 3.0, np.ones(3)).any()
