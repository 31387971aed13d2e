"""The scan that an interactive page carries: the same places, small enough, no lesion lost."""

import base64
import hashlib
import json
import re
from importlib import resources

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_cmb.imaging.volume import Volume
from bids_cmb.report import viewer
from bids_cmb.report.viewer import CANDIDATE, LESION, draw_rings, write_view, write_viewer


@pytest.fixture
def scan(blank, rng):
    """An oblique, flipped, anisotropic scan with one dark voxel that is a lesion."""
    data = rng.normal(100, 1, blank.shape).astype(np.float32)
    brain, labels = np.zeros(blank.shape, bool), np.zeros(blank.shape, np.uint16)
    brain[8:-8, 8:-8, 4:-4] = True
    data[21, 33, 15], labels[21, 33, 15] = 5, 1
    place = blank.world(np.array([21, 33, 15]))
    return *(Volume(part, blank.affine) for part in (data, brain, labels)), place


def parts_of(path):
    """What the page gets."""
    return json.loads(re.fullmatch(r"window\.bids_cmb_view=(.*);\n", path.read_text())[1])


def unpacked(path, tmp_path):
    """Its images, as nibabel reads them."""
    parts, found = parts_of(path), {}
    for name in ("scan", "lesions"):
        file = tmp_path / f"{name}.nii.gz"
        file.write_bytes(base64.b64decode(parts[name]))
        found[name] = nib.load(file)
    return found


@pytest.mark.parametrize("most", [10**7, 2000])
def test_a_dark_lesion_lies_where_it_lay_and_is_marked_on_finer_and_coarser_grids(
    scan, tmp_path, monkeypatch, most
):
    monkeypatch.setattr(viewer, "MAX_VOXELS", most)
    image, brain, labels, place = scan
    write_view(tmp_path / "view.js", image, brain, [labels], image)
    image, marks = unpacked(tmp_path / "view.js", tmp_path).values()
    assert image.get_data_dtype() == np.uint8
    assert np.prod(image.shape) <= most
    assert image.shape == marks.shape
    at = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), place)).astype(int)
    grey = np.asarray(image.dataobj)
    ring = np.argwhere(np.asarray(marks.dataobj))
    assert not (ring == at).all(axis=1).any()  # nothing covers the lesion
    np.testing.assert_allclose(ring.mean(axis=0), at, atol=1)
    assert (ring[:, 2].min(), ring[:, 2].max()) == pytest.approx((at[2], at[2]), abs=1)
    assert grey[tuple(at)] == grey.min() or most < 10**7
    assert np.median(grey) > 200


@pytest.mark.parametrize("radius", [0, 3, 9])
def test_a_candidate_has_a_ring_of_dashes_where_a_lesion_has_a_whole_one(radius):
    """Discs of three sizes: seen from the middle, a whole ring is in all directions, dashes not."""
    i, j = np.ogrid[:64, :64]
    centres = (20, 20), (40, 43)
    discs = [np.hypot(i - x, j - y)[..., None] <= radius for x, y in centres]
    rings = draw_rings([discs[0] * np.uint16(1), discs[1] * np.uint16(7)])
    for code, (x, y), disc in zip((LESION, CANDIDATE), centres, discs, strict=True):
        assert not rings[disc].any()
        at_i, at_j, _ = np.nonzero(rings == code)
        away = np.hypot(at_i - x, at_j - y)
        assert away.min() > radius + 0.5
        assert away.max() <= radius + 3.5
        around = np.sort(np.degrees(np.arctan2(at_j - y, at_i - x)))
        gaps = np.diff([*around, around[0] + 360])
        widest = 45 if radius == 0 else 20  # eight voxels are all of the smallest ring
        assert (gaps.round() > widest).sum() == (4 if code == CANDIDATE else 0)


def test_what_is_a_lesion_has_its_ring_where_a_candidate_is_near():
    lesion, candidate = np.zeros((2, 24, 24, 1), np.uint16)
    lesion[10:12, 10:12], candidate[14:16, 10:12] = 1, 1
    alone, both = draw_rings([lesion]), draw_rings([lesion, candidate])
    free = ~ndimage.binary_dilation(candidate > 0)  # a ring covers no candidate
    np.testing.assert_array_equal((both == LESION)[free], (alone == LESION)[free])
    assert not both[(lesion > 0) | (candidate > 0)].any()


@pytest.mark.parametrize("order", ["ijk", "kij"])
def test_a_slice_has_the_number_under_which_it_is_stored(scan, tmp_path, order):
    """On an oblique, flipped grid, also where slices are not the last axis of the file."""
    image, brain, labels, place = scan
    axes = [order.index(axis) for axis in "ijk"]
    affine = image.affine[:, [*("ijk".index(axis) for axis in order), 3]]
    stored = Volume(image.data.transpose(["ijk".index(axis) for axis in order]), affine)
    write_view(tmp_path / "view.js", image, brain, [labels], stored)
    slices = parts_of(tmp_path / "view.js")["slices"]
    assert slices["count"] == image.shape[2] == stored.shape[axes[2]]
    assert slices["first"] + np.dot(slices["step"], place) == pytest.approx(15 + 1)


def test_the_viewer_is_the_one_that_was_named_and_its_licence_lies_beside_it(tmp_path):
    write_viewer(tmp_path)
    home = tmp_path / "code" / "niivue"
    digest = hashlib.sha256((home / "niivue.umd.js").read_bytes()).hexdigest()
    assert digest in resources.files("bids_cmb").joinpath("resources/niivue/README.md").read_text()
    assert "BSD 2-Clause License" in (home / "LICENSE").read_text()
    written = (home / "niivue.umd.js").stat().st_mtime_ns
    write_viewer(tmp_path)
    assert (home / "niivue.umd.js").stat().st_mtime_ns == written
