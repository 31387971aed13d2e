"""What the cohort's page tells, counted by hand."""

import numpy as np

from bids_cmb.report.cohort import (
    bin_counts,
    bin_diameters,
    compare_reviewed,
    find_outliers,
    summarize_strata,
)

ROWS = [
    {"participant_id": f"sub-{at}", "n_cmb": count, "slice_spacing_mm": thick, "brain_ml": ml}
    for at, (count, thick, ml) in enumerate(
        zip([0, 0, 1, 12, 3, 0, 0, 2], [1, 1, 2, 2, 5.5, 5.5, 5.5, None],
            [1100, 1110, 1120, 1130, 1140, 1150, 1160, 600], strict=True)
    )
]  # fmt: skip


def test_every_scan_and_every_lesion_has_its_bar():
    bars = dict(bin_counts([*ROWS, {"n_cmb": None}]))
    assert (bars["0"], bars["1"], bars["2"], bars["3"], bars["10 or more"]) == (4, 1, 1, 1, 1)
    assert sum(bars.values()) == len(ROWS)
    sizes = dict(bin_diameters([0.5, 1, 2.2, 2.9, 11]))
    assert (sizes["0 to 1"], sizes["1 to 2"], sizes["2 to 3"], sizes["10 and more"]) == (1, 1, 2, 1)


def test_counts_stand_by_slice_and_site():
    sites = {"site": {f"sub-{at}": "B" if at < 2 else "A" for at in range(7)}}
    rows = summarize_strata(ROWS, sites)
    slices = [(row["class"], row["scans"], row["median"]) for row in rows if row["by"] == "slices"]
    assert slices == [("up to 1 mm", 2, 0), ("1 to 2 mm", 2, 6.5), ("above 5 mm", 3, 0),
                      ("not known", 1, 2)]  # fmt: skip
    by_site = {row["class"]: row["scans"] for row in rows if row["by"] == "site"}
    assert by_site == {"A": 5, "B": 2, "not known": 1}


def test_the_scan_that_lies_far_from_the_others_is_odd():
    """Median 1125, deviations 5 5 15 15 25 25 35 525: median 20, so 525 / 29.7 = 17.7."""
    (one,) = [one for one in find_outliers(ROWS) if one["measure"] == "brain, ml"]
    assert one["row"]["participant_id"] == "sub-7"
    assert one["score"] == 17.7
    assert not find_outliers(ROWS[:7])  # too few to say


def test_even_cohorts_have_nothing_odd():
    same = [{"participant_id": "sub-1", "brain_ml": 1000} for _ in range(20)]
    assert find_outliers(same) == []
    drawn = np.random.default_rng(1).normal(1200, 100, 200)
    spread = [{"participant_id": "sub-1", "brain_ml": ml} for ml in np.clip(drawn, 900, 1500)]
    assert find_outliers(spread) == []


def test_a_hair_off_is_not_odd_however_alike_the_others_are():
    cut = [{"participant_id": "sub-1", "fov_truncation_percent": x} for x in [0.0] * 20 + [0.1, 30]]
    (one,) = find_outliers(cut)
    assert one["value"] == 30


def test_classes_before_and_after_review_are_counted_by_hand():
    """One scan loses its only lesion, one is not reviewed, of one the place of a lesion is lost."""
    rows = [
        {"burden": "1", "pattern": "strictly deep",
         "reviewed_by": "A", "burden_reviewed": "0", "pattern_reviewed": "none"},
        {"burden": "1", "pattern": "strictly lobar"},
        {"burden": "1", "pattern": "strictly lobar",
         "reviewed_by": "A", "burden_reviewed": "2 to 4", "pattern_reviewed": None},
    ]  # fmt: skip
    found = {
        (one["by"], one["class"]): (one["before"], one["after"]) for one in compare_reviewed(rows)
    }
    assert found == {
        ("burden", "0"): (0, 1),
        ("burden", "1"): (3, 1),
        ("burden", "2 to 4"): (0, 1),
        ("pattern", "none"): (0, 1),
        ("pattern", "not known"): (0, 1),
        ("pattern", "strictly deep"): (1, 0),
        ("pattern", "strictly lobar"): (2, 1),
    }
