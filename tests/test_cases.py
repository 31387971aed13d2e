"""What a network in training is shown: patches of scans, with lesions where the scan has them."""

from pathlib import Path

import numpy as np
import pytest

from bids_cmb.cases import (
    LESION,
    UNSURE,
    Case,
    Drawing,
    Paths,
    batch,
    draw,
    find_cases,
    read_case,
)
from bids_cmb.preprocessing import Grid

GRID = Grid(spacing=(1, 1, 1), margin=4, intensity="brain-median")


@pytest.fixture
def scan(lessons):
    return lessons(1)


def test_a_scan_is_found_with_its_truth(scan):
    (paths,) = find_cases(scan)
    assert paths.subject == "sub-01"
    assert paths.lesions.name.endswith("seg-CMB_desc-truth_dseg.nii.gz")
    assert paths.brain is not None
    assert paths.mimics is None


def test_a_dataset_may_be_named_from_where_one_is(scan, monkeypatch):
    monkeypatch.chdir(scan.parent)
    assert find_cases(Path(scan.name)) == find_cases(scan)


def test_data_without_a_truth_are_refused(scan, tmp_path):
    with pytest.raises(ValueError, match="a truth needs label maps of microbleeds"):
        find_cases(scan, tmp_path / "nowhere")


def test_lesions_lie_where_the_scan_is_dark(scan):
    (paths,) = find_cases(scan)
    case = read_case(paths, GRID)
    dark = case.image[case.truth == LESION]
    assert dark.size >= 5
    assert np.median(dark) < 0.6  # of the brain's median; spots of 2 mm slices, seen at 1 mm
    assert np.median(case.image[case.heard & (case.truth == 0)]) > 0.9


def test_a_possible_lesion_is_unsure_and_weighs_nothing(scan, rng):
    (paths,) = find_cases(scan)
    case = read_case(paths, GRID)
    assert (case.truth == UNSURE).any()
    only_second = {**case.centres, "lesion": case.centres["lesion"][1:]}
    drawing = Drawing((16, 16, 16), {"lesion": 1.0})
    about = Case(case.name, case.image, case.truth, case.heard, only_second)
    _, truth = draw([about], drawing, rng)
    assert (truth[..., 1] == 0).any()
    assert not truth[..., 0][truth[..., 1] == 0].any()


def test_patches_around_lesions_hold_their_lesion(scan, rng):
    (paths,) = find_cases(scan)
    case = read_case(paths, GRID)
    first = Case(
        case.name, case.image, case.truth, case.heard, {"lesion": case.centres["lesion"][:1]}
    )
    for _ in range(20):
        image, truth = draw([first], Drawing((24, 24, 24), {"lesion": 1.0}), rng)
        assert image.shape == (24, 24, 24, 1)
        lesion = truth[..., 0] > 0
        assert lesion.any()
        assert image[..., 0][lesion].mean() < image[..., 0][~lesion & (truth[..., 1] > 0)].mean()


def test_what_is_far_from_the_brain_weighs_nothing(scan):
    (paths,) = find_cases(scan)
    case = read_case(paths, GRID)
    assert not case.heard.all()
    spacing = 1.0
    assert case.heard.sum() * spacing**3 > (case.image > 0.5).sum()


def test_without_a_brain_truth_the_brain_is_found(scan):
    (paths,) = find_cases(scan)
    bare = Paths(paths.name, paths.image, paths.lesions, None, None, None)
    with pytest.raises(ValueError, match="No brain was found"):  # 40 ml are no brain
        read_case(bare, GRID)


def test_the_same_seed_draws_the_same_batch(scan):
    (paths,) = find_cases(scan)
    case = read_case(paths, GRID)
    drawing = Drawing((16, 16, 8), {"lesion": 0.5, "any": 0.5}, swaps=False)
    one, same, other = (
        batch([case], drawing, np.random.default_rng(seed), size=3) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one[0], same[0])
    np.testing.assert_array_equal(one[1], same[1])
    assert (one[0] != other[0]).any()
    assert one[0].shape == (3, 16, 16, 8, 1)
    assert one[1].shape == (3, 16, 16, 8, 2)
