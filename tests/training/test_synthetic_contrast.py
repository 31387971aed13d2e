"""Painted heads: any contrast, and truths that stay with their anatomy."""

import numpy as np
import pytest

from bids_cmb.anatomy.labels import LEFT, NO_SIDE, RIGHT, build_class_table
from bids_cmb.imaging.grid import Grid
from bids_cmb.training.scan_files import ScanFiles
from bids_cmb.training.synthetic_contrast import (
    Subject,
    degrade,
    load_subject,
    paint_labels,
    sample_batch,
    sample_patch,
)

CLASSES = [{"codes": [0]}, {"codes": [2, 41]}, {"codes": [3, 42]}, {"codes": [16]}]


def codes_of_a_head():
    """Right and left white matter in cortex, around a brainstem; 60 x 60 x 60 mm."""
    x, y, z = np.indices((60, 60, 60)) - 29.5
    away = np.sqrt(x**2 + y**2 + z**2)
    codes = np.where(away < 26, np.where(x > 0, 42, 3), 0)
    codes = np.where(away < 20, np.where(x > 0, 41, 2), codes)
    return np.where(away < 6, 16, codes).astype(np.uint16)


def test_each_code_has_the_class_and_the_side_of_its_structure():
    known = build_class_table(CLASSES)
    assert known.count == 4
    assert list(known.classes[[0, 2, 41, 3, 42, 16, 999]]) == [0, 1, 1, 2, 2, 3, 0]
    assert list(known.sides[[2, 41, 16, 0]]) == [LEFT, RIGHT, NO_SIDE, NO_SIDE]


def test_left_and_right_of_a_structure_have_nearly_one_shade(rng):
    codes = codes_of_a_head()
    for _ in range(5):
        image = paint_labels(codes, rng)
        left, right = np.median(image[codes == 2]), np.median(image[codes == 41])
        assert abs(left - right) < 0.12 * max(left, right) + 1e-6


def test_contrasts_differ(rng):
    codes = codes_of_a_head()
    ratios = [
        np.median(image[codes == 3]) / np.median(image[codes == 2])
        for image in (paint_labels(codes, rng) for _ in range(12))
    ]
    assert min(ratios) < 0.95
    assert max(ratios) > 1.05


def test_thick_slices_mix_what_lies_one_above_the_other(rng):
    image = np.zeros((20, 20, 40), np.float32)
    image[..., 20:] = 1
    profiles = [degrade(image, rng).mean((0, 1)) for _ in range(20)]
    steps = [abs(np.diff(profile)).max() for profile in profiles]
    assert min(steps) < 0.4  # some are blurred over several mm
    assert all(np.isfinite(profile).all() for profile in profiles)


def test_truth_lies_on_its_anatomy_also_mirrored(rng):
    codes, known = codes_of_a_head(), build_class_table(CLASSES)
    for _ in range(10):
        image, truth = sample_patch(Subject(codes, None), known, (56, 56, 56), rng)
        assert image.shape == (56, 56, 56)
        assert truth.shape == (56, 56, 56, 2)
        left = np.argwhere(truth[..., 1] == LEFT)[:, 0].mean()
        right = np.argwhere(truth[..., 1] == RIGHT)[:, 0].mean()
        assert left < right  # RAS+: x grows to the right, whether mirrored or not


def test_a_scan_is_cut_together_with_its_codes(rng):
    codes = codes_of_a_head()
    scan = Subject(codes, (codes == 41).astype(np.float16) + 0.01)
    image, truth = sample_patch(scan, build_class_table(CLASSES), (48, 48, 48), rng)
    bright = image > 0.5 * image.max()
    white_of_one_side = (truth[..., 0] == 1) & (truth[..., 1] != NO_SIDE)
    assert (bright & white_of_one_side).sum() > 0.95 * bright.sum()


def test_the_same_seed_paints_the_same():
    subject, known = Subject(codes_of_a_head(), None), build_class_table(CLASSES)
    one, same = (
        sample_batch([subject], known, (32, 32, 32), np.random.default_rng(3), size=2)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one[0], same[0])
    np.testing.assert_array_equal(one[1], same[1])


def test_a_scan_without_structures_teaches_no_anatomy(tmp_path):
    paths = ScanFiles("sub-01", tmp_path / "sub-01_swi.nii.gz", None, None, None, None)
    with pytest.raises(ValueError, match=r"sub-01_swi.nii.gz: anatomy is learnt from a truth"):
        load_subject(paths, Grid())
