"""What is looked up on another grid lies where it lay."""

import nibabel as nib
import numpy as np
import pytest
from grids import oblique
from nibabel.affines import from_matvec
from nibabel.processing import resample_from_to

from bids_cmb.imaging.cropping import crop
from bids_cmb.imaging.resampling import resample, resample_like, transfer_labels
from bids_cmb.imaging.volume import Volume

SHAPE = (14, 12, 6)


AFFINE = oblique()  # flipped and anisotropic too
OTHER = (18, 9, 11), oblique((0.4, -0.8, 1.4), degrees=-15, origin=(25.0, -40.0, 11.0))


@pytest.fixture
def data(rng):
    return rng.uniform(-5, 300, SHAPE).astype(np.float32)


@pytest.mark.parametrize(
    ("order", "mode"), [(0, "grid-constant"), (1, "grid-constant"), (3, "constant")]
)
def test_resampling_is_what_nibabel_does(data, order, mode):
    shape, affine = OTHER
    got = resample(Volume(data, AFFINE), affine, shape, order=order)
    image = nib.Nifti1Image(data, AFFINE)
    expected = resample_from_to(image, OTHER, order=order, mode=mode).get_fdata()
    np.testing.assert_allclose(got.data, expected, atol=1e-4)
    np.testing.assert_array_equal(got.affine, affine)
    assert 0.02 < (expected != 0).mean() < 0.98


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_resampling_along_the_same_axes_is_what_nibabel_does(data, axes):
    """In any order and direction, finer and coarser, beyond the edges on both sides."""
    steps = np.zeros((3, 3))
    steps[axes, range(3)] = (0.37, -1.9, 0.8)
    shape = (60, 9, 17)
    first = np.where(steps.sum(axis=1) < 0, np.array(SHAPE) + 0.6, -1.3)
    affine = AFFINE @ from_matvec(steps, first)
    got = resample(Volume(data, AFFINE), affine, shape)
    expected = resample_from_to(
        nib.Nifti1Image(data, AFFINE), (shape, affine), order=1, mode="grid-constant"
    ).get_fdata()
    np.testing.assert_allclose(got.data, expected, atol=1e-3)
    assert got.data.dtype == np.float32
    assert 0.02 < (expected == 0).mean() < 0.98


def test_linear_resampling_is_exact_on_a_ramp_and_0_outside():
    ramp = Volume(np.fromfunction(lambda i, j, k: 2 * i - j + 5 * k, SHAPE), AFFINE)
    shape, affine = OTHER
    got = resample(ramp, affine, shape)
    where = np.argwhere(np.ones(shape))
    i, j, k = index = ramp.index(got.world(where)).T
    last = np.array(SHAPE)[:, None] - 1
    inside = ((index >= 0) & (index <= last)).all(axis=0)
    outside = ((index <= -1) | (index >= last + 1)).any(axis=0)
    values = got.data.reshape(-1)
    np.testing.assert_allclose(values[inside], (2 * i - j + 5 * k)[inside], atol=1e-4)
    assert not values[outside].any()
    assert inside.any()
    assert outside.any()
    assert got.data.dtype == np.float32


def test_a_thick_slice_reaches_half_its_thickness_beyond_its_centre():
    thick = Volume(np.ones((4, 4, 4), np.uint8), np.diag([1, 1, 4, 1]))
    thin = np.diag([1.0, 1.0, 1.0, 1.0])
    thin[2, 3] = -3.5
    got = resample(thick, thin, (4, 4, 20), order=0)
    assert got.data[0, 0].tolist() == [0, 0] + [1] * 16 + [0, 0]


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.int32, np.float32])
def test_the_nearest_voxel_keeps_its_type_and_its_value(rng, kind):
    labels = rng.integers(0, 2 if kind is bool else 99, SHAPE).astype(kind)
    got = resample(Volume(labels, AFFINE), *OTHER[::-1], order=0)
    assert got.data.dtype == kind
    assert set(np.unique(got.data)) <= set(np.unique(labels)) | {0}


@pytest.mark.parametrize("order", [0, 1])
def test_a_part_of_the_same_grid_is_cut_out_unchanged_to_its_edge(data, order):
    part = AFFINE @ from_matvec(np.eye(3), (3, 0, 0))
    got = resample(Volume(data, AFFINE), part, (11, 12, 6), order=order)
    np.testing.assert_allclose(got.data, data[3:], rtol=1e-5, atol=1e-4)


def test_resampling_like_itself_touches_nothing(data):
    volume = Volume(data, AFFINE)
    assert resample_like(volume, Volume(np.zeros(SHAPE), AFFINE + 1e-6)) is volume
    shape, affine = OTHER
    other = resample_like(volume, Volume(np.zeros(shape), affine))
    np.testing.assert_array_equal(other.data, resample(volume, affine, shape).data)


@pytest.mark.parametrize("order", ["C", "F"])
def test_labels_on_a_coarser_turned_grid_lose_no_lesion_and_lie_where_they_lay(rng, order):
    """Single voxels, as small as lesions get, on a grid of twice the size with its axes turned."""
    affine = from_matvec(np.array([[0.5, 0.1, 0], [-0.1, 0.5, 0], [0, 0, -2.0]]), [3, -20, 40])
    data = np.zeros((40, 36, 12), np.float32, order=order)
    voxels = rng.permutation(np.argwhere(np.ones((9, 8, 5))))[:30] * [4, 4, 2] + 2
    data[tuple(voxels.T)] = np.arange(1, 31)
    turned = affine @ np.array([[0, -2.0, 0, 38], [2, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    like = Volume(np.zeros((18, 20, 12)), turned)
    found = transfer_labels(Volume(data, affine), like)
    assert found.shape == like.shape
    for label, voxel in enumerate(voxels, start=1):
        (place,) = np.argwhere(found == label)
        away = like.world(place) - Volume(data, affine).world(voxel)
        assert np.linalg.norm(away) < 0.8  # half the diagonal of its slice


def test_a_box_of_a_volume_lies_where_it_lay(rng):
    volume = Volume(rng.random((6, 7, 8)), from_matvec(np.diag([-1.0, 2, 3]), [5, 6, 7]))
    part = crop(volume, np.array([1, 2, 3]), np.array([5, 7, 6]))
    assert np.array_equal(part.data, volume.data[1:5, 2:7, 3:6])
    assert part.world(np.zeros(3)) == pytest.approx(volume.world(np.array([1, 2, 3])))
