"""An image lies in the world where its affine says."""

import numpy as np
import pytest
from grids import oblique
from nibabel.affines import apply_affine

from bids_cmb.imaging.volume import Volume

SHAPE = (14, 12, 6)


AFFINE = oblique()  # flipped and anisotropic too


def test_index_and_world_are_each_others_way_back(rng):
    volume = Volume(np.zeros(SHAPE), AFFINE)
    index = rng.uniform(-5, 20, (30, 3))
    np.testing.assert_allclose(volume.index(volume.world(index)), index, atol=1e-9)
    np.testing.assert_allclose(volume.world(index[0]), apply_affine(AFFINE, index[0]))
    np.testing.assert_allclose(volume.world(np.zeros(3)), AFFINE[:3, 3])


def test_the_nearest_voxel_is_within_half_a_voxel_or_outside(rng):
    volume = Volume(np.zeros(SHAPE), AFFINE)
    index = rng.integers(-2, np.array(SHAPE) + 2, (200, 3))
    voxels, inside = volume.nearest_voxels(volume.world(index + rng.uniform(-0.49, 0.49, (200, 3))))
    np.testing.assert_array_equal(voxels, index)
    assert inside.tolist() == [
        all(0 <= i < n for i, n in zip(each, SHAPE, strict=True)) for each in index
    ]
    assert 0 < inside.sum() < 200


@pytest.mark.parametrize(
    "middle", [(7.3, 6.1, 2.6), (0.2, 11.4, 5.0), (-3.0, 6.0, 2.0), (900, 0, 0)]
)
def test_a_ball_holds_the_voxels_within_its_radius_and_no_other(middle):
    volume = Volume(np.arange(np.prod(SHAPE)).reshape(SHAPE), AFFINE)
    index = np.stack(np.indices(SHAPE), axis=-1)
    away = np.linalg.norm((index - middle) * volume.spacing, axis=-1)
    box, near = volume.find_ball(volume.world(np.array(middle)), 2.5)
    assert sorted(volume.data[box][near]) == sorted(volume.data[away <= 2.5])


def test_sizes_are_in_millimetres():
    volume = Volume(np.zeros(SHAPE), AFFINE)
    np.testing.assert_allclose(volume.spacing, (0.5, 0.6, 3.0))
    assert volume.voxel_volume == pytest.approx(0.9)
    assert volume.shape == SHAPE


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((0.5, 0.5, 3), 2), ((4, 0.9, 0.9), 0), ((1, 2, 1), 1), ((1, 1, 1), 2), ((1, 1.0001, 1), 2)],
)
def test_slices_are_stacked_along_the_largest_voxels(spacing, axis):
    assert Volume(np.zeros(SHAPE), oblique(spacing)).slice_axis == axis


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.95, 0.9, 0.9), (0.9, 0.94, 0.9)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_slices_of_a_scan_of_cubes_are_axial_however_it_is_stored(spacing, order):
    """As by a 3D sequence that was acquired sagittally."""
    affine = oblique(spacing)[:, [*order, 3]]
    assert Volume(np.zeros(SHAPE), affine).slice_axis == order.index(2)
