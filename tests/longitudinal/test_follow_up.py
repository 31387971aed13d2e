"""What became of a lesion, by what shows of it at each visit; the classes of the label."""

import pytest

from bids_cmb.longitudinal.evidence import EvidenceRule, Reading, judge
from bids_cmb.longitudinal.follow_up import classify_aria_h, compare_readings, judge_course

STATES = {"s": "seen", "f": "faint", "u": "uncertain", "a": "absent", "n": "not comparable"}


def readings(letters):
    return {number: Reading(STATES[letter]) for number, letter in enumerate(letters)}


@pytest.mark.parametrize(
    ("letters", "change"),
    [
        ("as", "new"), ("sa", "not seen again"), ("ss", "persistent"), ("fs", "persistent"),
        ("us", "uncertain"), ("ns", "not comparable"), ("sn", "not comparable"), ("fa", None),
    ],
)  # fmt: skip
def test_two_visits_are_compared_by_what_shows_at_each(letters, change):
    assert compare_readings(readings(letters), 0, 1) == change


def test_a_lesion_that_comes_back_is_not_new_and_not_lost():
    assert compare_readings(readings("sas"), 1, 2) == "uncertain"
    assert compare_readings(readings("sas"), 0, 1) == "uncertain"
    assert compare_readings(readings("aass"), 1, 2) == "new"


def test_a_visit_that_could_not_be_aligned_is_compared_with_none():
    assert compare_readings({0: Reading("seen")}, 0, 1) is None


@pytest.mark.parametrize(
    ("letters", "course"),
    [
        ("ass", "new"), ("ans", "new"), ("sfs", "persistent"), ("ssa", "not seen again"),
        ("asa", "uncertain"), ("sas", "uncertain"), ("uss", "uncertain"), ("sn", "not comparable"),
    ],
)  # fmt: skip
def test_the_course_over_all_visits(letters, course):
    assert judge_course(readings(letters)) == course


@pytest.mark.parametrize(
    ("probability", "contrast", "state"),
    [
        (0.0, 0.1, "absent"),  # nothing there
        (0.9, 0.9, "faint"),  # just under the threshold, and as dark: the same thing
        (0.9, 0.3, "uncertain"),  # the detector saw something that the image hardly shows
        (0.0, 0.9, "uncertain"),  # as dark before, whatever the detector thought of it
        (1.1, 0.1, "faint"),  # another lesion's extent reaches here
    ],
)
def test_a_lesion_is_absent_only_where_both_probability_and_image_say_so(
    probability, contrast, state
):
    assert judge(probability, contrast, EvidenceRule()) == state


def test_classes_of_new_microbleeds_are_those_of_the_label():
    """Mild 1 to 4, moderate 5 to 9, severe 10 and more."""
    numbers = (0, 1, 4, 5, 9, 10, 60)
    classes = ["none", "mild", "mild", "moderate", "moderate", "severe", "severe"]
    assert list(map(classify_aria_h, numbers)) == classes
