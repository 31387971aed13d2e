"""What is less likely than a lesion is listed apart, and never as one."""

import numpy as np
import pytest

from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions import candidates
from bids_cmb.lesions.candidates import find_candidates
from bids_cmb.lesions.measure import DetectionMap, Thresholds, find_lesions
from bids_cmb.lesions.table import is_candidate, make_lesion_row

SPOTS = {(20, 30, 10): 0.9, (40, 30, 10): 0.5, (30, 45, 20): 0.2, (12, 12, 24): 0.05}
COUNTED, LIKELY, UNLIKELY, _ = SPOTS


@pytest.fixture
def probability(blank):
    """Squares of 3 x 3 voxels, the first in a halo of 0.3, on an oblique, flipped grid."""
    data = blank.data.copy()
    x, y, z = COUNTED
    data[x - 3 : x + 4, y - 3 : y + 4, z] = 0.3
    for (x, y, z), value in SPOTS.items():
        data[x - 1 : x + 2, y - 1 : y + 2, z] = value
    return Volume(data, blank.affine)


def find(probability, *, threshold=0.1, min_volume=0.0, **more):
    image = Volume(100 * (1 - probability.data), probability.affine)
    brain = Volume(np.ones(probability.shape, bool), probability.affine)
    detected = DetectionMap(probability, **more)
    labels, lesions = find_lesions(detected, image, brain, Thresholds(0.7, 0.8))
    return labels, lesions, find_candidates(
        detected, image, brain, labels, threshold=threshold, min_volume=min_volume
    )  # fmt: skip


def test_candidates_are_what_lies_below_and_touches_no_lesion(probability):
    """The halo of the lesion is part of it; what the lower threshold misses is not listed."""
    labels, [lesion], listed = find(probability)
    places = [probability.world(np.array(spot)) for spot in (LIKELY, UNLIKELY)]
    assert [found.centre for found in listed.lesions] == [pytest.approx(at) for at in places]
    assert [found.probability_max for found in listed.lesions] == pytest.approx([0.5, 0.2])
    assert lesion.centre == pytest.approx(probability.world(np.array(COUNTED)))
    assert listed.n_omitted == 0
    assert not (labels.data.astype(bool) & listed.labels.data.astype(bool)).any()
    for found in listed.lesions:
        assert (listed.labels.data == found.index).sum() == 9


def test_no_candidate_is_counted_and_none_has_the_index_of_a_lesion(probability):
    _, lesions, listed = find(probability)
    rows = [make_lesion_row(found) for found in (*lesions, *listed.lesions)]
    assert [row["index"] for row in rows] == [1, 2, 3]
    assert [row["included"] for row in rows] == ["yes", "no", "no"]
    assert [is_candidate(row) for row in rows] == [False, True, True]
    assert [row["name"] for row in rows] == ["CMB001", "candidate002", "candidate003"]


def test_the_most_likely_are_listed_and_the_number_of_the_others_is_known(probability, monkeypatch):
    monkeypatch.setattr(candidates, "MAX_CANDIDATES", 1)
    _, _, listed = find(probability)
    assert [found.probability_max for found in listed.lesions] == [0.5]
    assert listed.n_omitted == 1
    assert set(np.unique(listed.labels.data)) == {0, 2}


def test_a_candidate_that_touches_a_lesion_is_listed_if_the_detector_tells_them_apart(probability):
    instances = (probability.data > 0.1).astype(np.uint16)
    x, y, z = COUNTED
    probability.data[x + 2 : x + 4, y - 1 : y + 2, z] = 0.4
    instances[x + 2 : x + 4, y - 1 : y + 2, z] = 2
    _, _, apart = find(probability, instances=Volume(instances, probability.affine))
    assert [found.probability_max for found in apart.lesions] == pytest.approx([0.4])
    _, _, together = find(probability)
    assert [found.probability_max for found in together.lesions] == pytest.approx([0.5, 0.2])


def test_specks_and_empty_maps_have_no_candidates(probability, blank):
    _, _, listed = find(probability, min_volume=9 * probability.voxel_volume + 0.1)
    assert not listed.lesions
    assert not listed.n_omitted
    _, _, listed = find(blank)
    assert not listed.lesions
    assert not listed.labels.data.any()
