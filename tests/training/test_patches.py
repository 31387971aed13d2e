"""What a network in training is shown: patches, with lesions where the scan has them."""

import numpy as np
import pytest

from bids_cmb.imaging.grid import Grid
from bids_cmb.training.patches import (
    PatchSampling,
    augment_intensity,
    sample_batch,
    sample_patch,
)
from bids_cmb.training.reference_labels import UNCERTAIN
from bids_cmb.training.scan_files import find_training_scans
from bids_cmb.training.scan_loading import TrainingScan, load_training_scan

GRID = Grid(spacing=(1, 1, 1), margin=4, intensity="brain-median")


@pytest.fixture
def scan(lessons):
    return lessons(1)


def test_a_possible_lesion_is_unsure_and_weighs_nothing(scan, rng):
    (paths,) = find_training_scans(scan)
    case = load_training_scan(paths, GRID)
    assert (case.labels == UNCERTAIN).any()
    only_second = {**case.sampling_centres, "lesion": case.sampling_centres["lesion"][1:]}
    drawing = PatchSampling((16, 16, 16), {"lesion": 1.0})
    about = TrainingScan(case.name, case.image, case.labels, case.loss_mask, only_second)
    _, truth = sample_patch([about], drawing, rng)
    assert (truth[..., 1] == 0).any()
    assert not truth[..., 0][truth[..., 1] == 0].any()


def test_patches_around_lesions_hold_their_lesion(scan, rng):
    (paths,) = find_training_scans(scan)
    case = load_training_scan(paths, GRID)
    first = TrainingScan(
        case.name,
        case.image,
        case.labels,
        case.loss_mask,
        {"lesion": case.sampling_centres["lesion"][:1]},
    )
    for _ in range(20):
        image, truth = sample_patch([first], PatchSampling((24, 24, 24), {"lesion": 1.0}), rng)
        assert image.shape == (24, 24, 24, 1)
        lesion = truth[..., 0] > 0
        assert lesion.any()
        assert image[..., 0][lesion].mean() < image[..., 0][~lesion & (truth[..., 1] > 0)].mean()


def test_what_is_far_from_the_brain_weighs_nothing(scan):
    (paths,) = find_training_scans(scan)
    case = load_training_scan(paths, GRID)
    assert not case.loss_mask.all()
    spacing = 1.0
    assert case.loss_mask.sum() * spacing**3 > (case.image > 0.5).sum()


def test_the_same_seed_draws_the_same_batch(scan):
    (paths,) = find_training_scans(scan)
    case = load_training_scan(paths, GRID)
    drawing = PatchSampling((16, 16, 8), {"lesion": 0.5, "any": 0.5}, swaps=False)
    one, same, other = (
        sample_batch([case], drawing, np.random.default_rng(seed), size=3) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one[0], same[0])
    np.testing.assert_array_equal(one[1], same[1])
    assert (one[0] != other[0]).any()
    assert one[0].shape == (3, 16, 16, 8, 1)
    assert one[1].shape == (3, 16, 16, 8, 2)


@pytest.mark.parametrize("grain", [0.0, 2.0])
def test_noise_of_interpolated_pixels_is_as_strong_and_hangs_together(grain):
    drawing = PatchSampling((64, 64, 8), {"any": 1.0}, (1, 1), (1, 1), noise=0.1, grain=grain)
    alike, strength = [], []
    for seed in range(20):
        plain = np.ones((64, 64, 8, 1), np.float32)
        noise = augment_intensity(plain, drawing, np.random.default_rng(seed))[..., 0] - 1
        alike.append(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1])
        strength.append(noise.std())
        between = np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]
        assert abs(between) < 0.1  # slices are measured one by one
    assert max(strength) == pytest.approx(0.1, rel=0.15)
    assert np.max(alike) == pytest.approx(0.9 if grain else 0, abs=0.1)
