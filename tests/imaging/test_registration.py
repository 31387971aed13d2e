"""A T1w image is brought onto a scan of the same head; the truth is how the head was moved."""

from functools import lru_cache

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat
from phantoms import T1W, T2STAR, painted

from bids_cmb.anatomy.mni_fit import format_itk_affine
from bids_cmb.imaging import registration
from bids_cmb.imaging.registration import load_transform, measure_rotation_deg, register
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.tissue_properties import is_brain

NODDED = from_matvec(euler2mat(0.2, -0.06, 0.12), [18, -25, 30])  # between two sessions
THIN = from_matvec(euler2mat(0.15, -0.1, 0.1) @ np.diag([-1.5, 1.5, 2.0]), [90, -120, -70])
THICK = from_matvec(euler2mat(-0.1, 0.1, 0.1) @ np.diag([1.2, -1.2, 4.0]), [-90, 100, -75])
GRIDS = {"thin": (THIN, (120, 145, 72)), "thick": (THICK, (150, 175, 34))}


@pytest.fixture(scope="module")
def head(made_up):
    """Every second voxel of a made-up head."""
    labels = made_up.labels
    return Volume(labels.data[::2, ::2, ::2], labels.affine @ np.diag([2, 2, 2, 1]))


@pytest.fixture(scope="module")
def t1w(head):
    """The head as it lies, on a sagittal grid that runs backwards."""
    turned = np.array([[0, 0, 1.7], [-1.7, 0, 0], [0, -1.7, 0]])
    affine = from_matvec(turned, head.world(np.array([1, head.shape[1] - 1, head.shape[2] - 1])))
    shape = tuple(int(n * 2 / 1.7) for n in np.array(head.shape)[[1, 2, 0]])
    image = painted(head, T1W, affine, shape, np.random.default_rng(1))
    return image, resampled_brain(head, image)


def resampled_brain(codes, image):
    inside = Volume(is_brain(codes.data).astype(np.uint8), codes.affine)
    return Volume(resample(inside, image.affine, image.shape, order=0).data > 0, image.affine)


def scanned(head, motion, grid):
    """The head moved and scanned, and its brain on the grid."""
    affine, shape = GRIDS[grid]
    affine = from_matvec(np.eye(3), motion[:3, 3]) @ affine
    codes = Volume(head.data, motion @ head.affine)
    image = painted(codes, T2STAR, affine, shape, np.random.default_rng(2))
    return image, resampled_brain(codes, image)


@pytest.fixture(scope="module")
def onto(head, t1w):
    """The T1w image registered to the moved head's scan on a grid, once."""

    @lru_cache
    def registered(grid):
        return register(*t1w, *scanned(head, NODDED, grid))

    return registered


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize(
    ("grid", "most"), [pytest.param("thin", 1.5, marks=pytest.mark.slow), ("thick", 3.0)]
)
def test_landmarks_are_brought_to_where_they_are_in_the_scan(head, onto, grid, most):
    found = onto(grid)
    places = head.world(np.argwhere(is_brain(head.data))[::997])
    apart = apply_affine(found.to_scan, places) - apply_affine(NODDED, places)
    assert np.linalg.norm(apart, axis=1).max() < most
    assert found.after > found.before
    assert measure_rotation_deg(found.to_scan) == pytest.approx(measure_rotation_deg(NODDED), abs=1)


def test_the_same_images_give_the_same_bytes(head, t1w, monkeypatch):
    """Also of few voxels that are drawn by chance: the coarsest images are enough for that."""
    monkeypatch.setattr(registration, "MAX_SAMPLES", 3000)
    monkeypatch.setattr(registration, "PYRAMID_MM", registration.PYRAMID_MM[:1])
    monkeypatch.setattr(registration, "MASK_MARGINS_MM", registration.MASK_MARGINS_MM[:1])
    scan = scanned(head, NODDED, "thick")
    once, again = (register(*t1w, *scan) for _ in range(2))
    assert not np.array_equal(once.to_scan, np.eye(4))
    assert again.to_scan.tobytes() == once.to_scan.tobytes()


@pytest.mark.usefixtures("few_samples")
def test_headers_that_agree_are_believed(head, t1w):
    found = register(*t1w, *scanned(head, np.eye(4), "thick"))
    assert np.array_equal(found.to_scan, np.eye(4))
    assert found.after == found.before > 0


def test_without_a_brain_nothing_is_registered(t1w, blank):
    nothing = Volume(np.zeros(blank.shape, bool), blank.affine)
    with pytest.raises(ValueError, match="must show a brain; found one without"):
        register(*t1w, blank, nothing)


def test_what_we_write_simpleitk_reads_and_maps_places_of_the_scan_to_the_t1w_image(tmp_path, rng):
    """ITK's places are LPS, and its transforms go from what stays to what moves."""
    path = tmp_path / "sub-01_from-T1w_to-orig_mode-image_xfm.txt"
    path.write_text(format_itk_affine(NODDED))
    signs = np.array([-1, -1, 1])
    read = sitk.ReadTransform(str(path))
    for place in rng.uniform(-80, 80, (5, 3)):
        scan = apply_affine(NODDED, place)
        back = np.array(read.TransformPoint((scan * signs).tolist())) * signs
        np.testing.assert_allclose(back, place, atol=1e-5)
    np.testing.assert_allclose(load_transform(path), NODDED, atol=1e-6)


@pytest.mark.parametrize("ending", ["txt", "tfm", "mat", "h5"])
def test_the_users_transform_is_read_in_every_format_of_itk(tmp_path, ending):
    euler = sitk.Euler3DTransform((10.0, -20.0, 5.0), 0.1, -0.2, 0.05, (3.0, 4.0, -6.0))
    whole = euler if ending == "mat" else sitk.CompositeTransform([sitk.AffineTransform(3), euler])
    path = tmp_path / f"from-T1w_to-orig_xfm.{ending}"
    sitk.WriteTransform(whole, str(path))
    to_scan = load_transform(path)
    signs = np.array([-1, -1, 1])
    for place in ((0.0, 0.0, 0.0), (50.0, -70.0, 20.0)):
        t1w = np.array(euler.TransformPoint(place)) * signs
        np.testing.assert_allclose(apply_affine(to_scan, t1w), np.array(place) * signs, atol=1e-5)


def test_a_transform_that_cannot_serve_is_refused_by_name(tmp_path):
    path = tmp_path / "xfm.txt"
    path.write_text("1 0 0 0\n0 1 0 0\n")
    with pytest.raises(ValueError, match=r"xfm\.txt: a transform in ITK's format is expected"):
        load_transform(path)
    bent = tmp_path / "bent.h5"
    spline = sitk.BSplineTransformInitializer(sitk.Image([100] * 3, sitk.sitkUInt8), [4] * 3)
    spline.SetParameters(np.random.default_rng(1).uniform(-20, 20, 1029).tolist())
    sitk.WriteTransform(spline, str(bent))
    with pytest.raises(ValueError, match=r"bent\.h5: a linear transform is expected"):
        load_transform(bent)
    flat = sitk.AffineTransform(3)
    flat.SetMatrix([1, 0, 0, 0, 1, 0, 0, 0, 1e-3])
    sitk.WriteTransform(flat, str(path))
    with pytest.raises(ValueError, match=r"xfm\.txt: a transform must keep all three dimensions"):
        load_transform(path)
