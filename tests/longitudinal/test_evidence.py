"""Evidence for a lesion at the same place of another scan; the truth is where spots were put."""

from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import apply_affine
from sessions import SPOT_MM, TURNED, scanned

from bids_cmb.imaging.volume import Volume
from bids_cmb.longitudinal.evidence import EvidenceRule, locate_place, read_evidence
from bids_cmb.longitudinal.visits import Visit, VisitImages

HERE, BESIDE = (20.0, 10.0, 5.0), (20.0, 10.0, 27.0)
RULE = EvidenceRule()


def visit(contrast="T2starw", slices=4.0, echo_ms=20.0):
    row = {
        "threshold": 0.4,
        "slice_spacing_mm": slices,
        "field_strength_t": 3.0,
        "echo_time_ms": echo_ms,
    }
    return Visit(Path("x"), {"Microbleeds": row}, (), {}, contrast)


def images(spots, motion=None, *, probability=0.0, **about):
    """A scan, its brain, and a probability and labels at its spots."""
    image = scanned(4, spots, motion=motion, **about)
    motion = np.eye(4) if motion is None else motion
    world = image.world(np.argwhere(np.ones(image.shape))).reshape(*image.shape, 3)
    labels, chances = np.zeros(image.shape, np.uint16), np.zeros(image.shape, np.float32)
    for number, spot in enumerate(spots, start=1):
        near = np.linalg.norm(world - apply_affine(motion, spot), axis=-1) < SPOT_MM
        labels[near], chances[near] = number, probability
    brain = Volume(image.data > 0, image.affine)
    return VisitImages(image, brain, Volume(chances, image.affine), Volume(labels, image.affine))


def row(place):
    return {"index": "1", "equivalent_diameter_mm": "5.0"} | dict(
        zip(("x_mm", "y_mm", "z_mm"), map(str, place), strict=True)
    )


@pytest.fixture(scope="module")
def place():
    return locate_place(images([HERE]), row(HERE))


def read(place, other, second=None, **more):
    return read_evidence(place, TURNED, other, (visit(), second or visit()), RULE, **more)


def test_a_place_where_nothing_is_dark_and_nothing_likely_is_absent(place):
    reading = read(place, images([BESIDE], TURNED, noise=2))
    assert reading.state == "absent"
    assert reading.contrast_share < 0.2


def test_a_lesion_just_below_the_threshold_shows_faintly(place):
    reading = read(place, images([HERE], TURNED, noise=2, probability=0.35))
    assert reading.state == "faint"
    assert reading.probability == pytest.approx(0.35)
    assert reading.contrast_share > 0.7


def test_a_place_as_dark_as_the_lesion_is_not_called_absent_whatever_the_detector_says(place):
    assert read(place, images([HERE], TURNED, noise=2)).state == "uncertain"


def test_what_another_lesion_shows_does_not_count_for_this_one(place):
    close = (HERE[0] + 3.5, *HERE[1:])
    other = images([close], TURNED, noise=2, probability=0.9)
    assert read(place, other).probability == pytest.approx(0.9)
    assert read(place, other, taken={1}).probability < 0.9


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (visit(contrast="swi"), "other contrast"),
        (visit(slices=8.0), "much coarser slices"),
        (visit(echo_ms=8.0), "much weaker T2* weighting"),
    ],
)
def test_absence_in_a_scan_that_shows_less_is_not_comparable(place, second, reason):
    reading = read(place, images([], TURNED, noise=2), second)
    assert (reading.state, reading.reason) == ("not comparable", reason)


def test_presence_in_a_scan_that_shows_less_counts_all_the_same(place):
    other = images([HERE], TURNED, noise=2, probability=0.35)
    assert read(place, other, visit(slices=8.0)).state == "faint"


def test_a_place_beyond_the_field_of_view_is_not_comparable(place):
    whole = images([], TURNED, noise=2)
    end = int(whole.image.index(apply_affine(TURNED, HERE))[2]) - 2
    parts = (
        Volume(volume.data[:, :, :end], volume.affine)
        for volume in (whole.image, whole.brain, whole.probability, whole.labels)
    )
    reading = read(place, VisitImages(*parts))
    assert (reading.state, reading.reason) == ("not comparable", "outside the field of view")


def test_a_place_that_is_masked_is_not_comparable(place):
    whole = images([], TURNED, noise=2)
    index = np.rint(whole.image.index(apply_affine(TURNED, HERE))).astype(int)
    around = tuple(slice(k - 6, k + 7) for k in index)
    whole.image.data[around], whole.brain.data[around] = 0, False
    reading = read(place, whole)
    assert (reading.state, reading.reason) == ("not comparable", "outside the brain mask")
