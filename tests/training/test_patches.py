"""What a network in training is shown: patches, with lesions where the scan has them."""

import numpy as np
import pytest

from bids_cmb.imaging.grid import Grid
from bids_cmb.training.patches import (
    PatchSampling,
    augment_intensity,
    number_lesions,
    sample_batch,
    sample_patch,
)
from bids_cmb.training.reference_labels import LESION, UNCERTAIN
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


def test_lesions_of_a_patch_have_numbers_of_their_own_also_where_they_touch(rng):
    shape = (40, 36, 20)
    lesions = [
        np.argwhere(np.ones((3, 3, 2))) + (10, 10, 6),
        np.argwhere(np.ones((3, 3, 2))) + (13, 10, 6),  # touches the first
        np.argwhere(np.ones((4, 4, 3))) + (30, 28, 15),
    ]
    labels, image = np.zeros(shape, np.uint8), np.ones(shape, np.float16)
    for number, voxels in enumerate(lesions):
        labels[tuple(voxels.T)] = LESION if number < 2 else UNCERTAIN
        image[tuple(voxels.T)] = 0.1 * (number + 1)  # so the image tells which is which
    scan = TrainingScan("made", image, labels, np.ones(shape, bool), {"lesion": lesions[:2]})
    sampling = PatchSampling((20, 20, 8), {"lesion": 1.0}, (1, 1), (1, 1), noise=0)
    seen = set()
    for _ in range(30):
        picture, truth = sample_patch([scan], sampling, rng, numbered=True)
        number = truth[..., 2]
        np.testing.assert_array_equal(number > 0, truth[..., 0] > 0)
        for one in np.unique(number[number > 0]):
            brightness = np.unique(picture[..., 0][number == one])
            assert len(brightness) == 1
            seen.add((int(one), round(float(brightness[0]), 1)))
    assert {(1, 0.1), (2, 0.2)} <= seen <= {(1, 0.1), (2, 0.2), (1, 0.2)}


def test_a_patch_beyond_the_edge_of_its_scan_numbers_what_is_in_it():
    lesions = [np.array([[0, 0, 0], [1, 0, 0]]), np.array([[9, 9, 9]])]
    numbers = number_lesions(lesions, np.array([-2, -2, -2]), (4, 4, 4))
    assert {tuple(voxel): numbers[tuple(voxel)] for voxel in np.argwhere(numbers)} == {
        (2, 2, 2): 1, (3, 2, 2): 1,
    }  # fmt: skip
