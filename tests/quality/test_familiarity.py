"""A scan against those that the networks were trained on."""

import numpy as np
import pytest

from bids_cmb.imaging.volume import Volume
from bids_cmb.quality.familiarity import (
    BINS,
    MEASURE_NAMES,
    compare_with_training_set,
    compute_histogram,
    load_training_reference,
    measure_intensities,
    measure_scan,
)


@pytest.fixture
def scan(blank, rng):
    """Noise of 5 about 100 in an oblique grid of 0.5 x 0.5 x 2 mm; a tenth 40, a fifth 200."""
    data = np.zeros(blank.shape)
    data[8:40, 8:48, 6:26] = rng.normal(100, 5, (32, 40, 20))
    data[8:40, 8:48, 6:8], data[8:40, 8:48, 8:12] = 40, 200
    return Volume(data.astype(np.float32), blank.affine), Volume(data > 0, blank.affine)


def test_measures_are_those_of_the_phantom(scan):
    image, brain = scan
    found = measure_scan(image, brain, measure_intensities(image, brain))
    assert found.keys() == MEASURE_NAMES.keys()
    assert found["in_plane_voxel_size_mm"] == pytest.approx(0.5)
    assert found["slice_spacing_mm"] == pytest.approx(2)
    assert found["brain_ml"] == pytest.approx(32 * 40 * 20 * 0.5 / 1000)
    assert found["dark_percent"] == pytest.approx(10, abs=0.01)
    assert found["bright_percent"] == pytest.approx(20, abs=0.01)


def test_measures_and_histogram_do_not_depend_on_the_scale_of_intensity(scan):
    image, brain = scan
    louder = Volume(image.data * 7, image.affine)
    assert measure_scan(louder, brain, measure_intensities(louder, brain)) == pytest.approx(
        measure_scan(image, brain, measure_intensities(image, brain)), rel=1e-3
    )
    assert compute_histogram(measure_intensities(louder, brain)) == pytest.approx(
        compute_histogram(measure_intensities(image, brain)), abs=0.1
    )
    assert sum(compute_histogram(measure_intensities(image, brain))) == pytest.approx(100, abs=0.1)
    assert len(compute_histogram(measure_intensities(image, brain))) == len(BINS) - 1


def test_a_scan_in_their_midst_is_no_stranger_and_one_beyond_them_is(scan):
    image, brain = scan
    known = load_training_reference()["measures"]
    middle = {name: values[5] for name, values in known.items()}
    assert all(row["percentile"] == 50 or row["low"] == row["high"] or not row["outside"]
               for row in compare_with_training_set(middle))  # fmt: skip
    odd = {
        row["name"]: row["outside"]
        for row in compare_with_training_set({**middle, "slice_spacing_mm": 12.0})
    }
    assert [name for name, outside in odd.items() if outside] == ["slice spacing, mm"]
    assert any(
        row["outside"]
        for row in compare_with_training_set(
            measure_scan(image, brain, measure_intensities(image, brain))
        )
    )  # a brain of 13 ml
