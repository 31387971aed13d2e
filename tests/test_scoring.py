"""The figures, counted by hand and by the program."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bids_cmb.matching import RULES, match_one_to_one, match_overlap, match_valdo
from bids_cmb.scoring import Case, count_agreement, figures, froc, rate, score


def on_a_line(*x):
    """Points at these mm along one axis."""
    return np.array([[mm, 0.0, 0.0] for mm in x]).reshape(-1, 3)


def case(subject, found, truth, probability=None, unsure=()):
    sure = np.ones(len(found)) if probability is None else np.array(probability, float)
    doubtful = np.isin(np.arange(len(truth)), unsure)
    return Case(subject, sure, cdist(on_a_line(*found), on_a_line(*truth)), doubtful)


CASES = [  # by hand: hits 2 + 0 + 0, false alarms 1 + 2 + 0, misses 1 + 0 + 1, lesions 3 + 0 + 1
    case("sub-1", [0, 20, 99], [0, 20, 50], [0.9, 0.6, 0.3]),
    case("sub-2", [0, 20], [], [0.8, 0.2]),
    case("sub-3", [], [5]),
]


def test_figures_are_those_counted_by_hand():
    metrics = score(CASES, match_valdo)
    assert (metrics.scans, metrics.lesions, metrics.found) == (3, 4, 5)
    assert (metrics.hits, metrics.false_alarms, metrics.misses) == (2, 3, 2)
    assert metrics.sensitivity == 2 / 4
    assert metrics.precision == 2 / 5
    assert metrics.f1 == 4 / 9
    assert metrics.fp_per_scan == 1
    assert metrics.fp_per_lesion == 3 / 4


def test_a_threshold_leaves_out_what_lies_below_it():
    metrics = score(CASES, match_valdo, threshold=0.6)
    assert (metrics.hits, metrics.false_alarms, metrics.misses) == (2, 1, 2)


def test_a_tie_counts_two_hits_but_one_lesion():
    metrics = score([case("sub-1", [-1, 1], [0])], match_valdo)
    assert (metrics.hits, metrics.misses, metrics.sensitivity) == (2, 0, 1)


def test_unsure_lesions_are_in_no_figure():
    metrics = score([case("sub-1", [0, 20], [0, 21, 50], unsure=[1, 2])], match_valdo)
    assert (metrics.lesions, metrics.found, metrics.hits) == (1, 1, 1)
    assert (metrics.false_alarms, metrics.misses, metrics.f1) == (0, 0, 1)


def test_what_is_not_defined_is_nan():
    healthy = score([case("sub-1", [], [])], match_valdo)
    assert np.isnan([healthy.sensitivity, healthy.precision, healthy.f1]).all()
    assert healthy.fp_per_scan == 0
    assert np.isnan(score([case("sub-1", [0], [])], match_valdo).fp_per_lesion)
    assert score([case("sub-1", [], [0])], match_valdo).f1 == 0


def test_the_froc_follows_the_threshold_down():
    curve = froc(CASES, match_valdo)
    assert curve.threshold.tolist() == [np.inf, 0.9, 0.8, 0.6, 0.3, 0.2]
    assert curve.metrics.sensitivity.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(curve.metrics.fp_per_scan, [0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(curve.metrics.f1, [0, 2 / 5, 1 / 3, 4 / 7, 1 / 2, 4 / 9])


def test_sensitivity_is_read_where_false_alarms_are_affordable():
    curve = froc(CASES, match_valdo)
    assert curve.sensitivity_at(0.3) == 0.25
    assert curve.sensitivity_at(1 / 3) == 0.5
    assert curve.threshold[curve.best()] == 0.6
    read = figures(CASES, match_valdo, threshold=0, seed=0, draws=0)
    assert read["sensitivity_at_0.5_fp"].value == 0.5
    assert read["best_f1"].value == pytest.approx(4 / 7)
    assert read["best_f1_fp_per_scan"].value == pytest.approx(1 / 3)


def test_a_froc_without_any_finding_is_one_point():
    curve = froc([case("sub-1", [], [0])], match_valdo)
    assert curve.threshold.tolist() == [np.inf]
    assert curve.sensitivity_at(8) == 0


@pytest.mark.parametrize("name", RULES)
def test_every_point_of_the_froc_is_the_score_at_its_threshold(name, rng):
    cases = [
        Case(
            f"sub-{n}",
            rng.uniform(size=8).round(1),
            np.maximum(rng.uniform(-20, 9, (8, n)), 0),
            np.arange(n) == 2,
        )
        for n in range(5)
    ]
    curve = froc(cases, RULES[name])
    for k, threshold in enumerate(curve.threshold):
        alone = score(cases, RULES[name], threshold=threshold)
        assert curve.metrics.hits[k] == alone.hits
        assert curve.metrics.false_alarms[k] == alone.false_alarms
        assert curve.metrics.misses[k] == alone.misses
        assert curve.metrics.found[k] == alone.found


def test_the_median_subject_is_one_with_lesions():
    read = figures(CASES, match_valdo, threshold=0, seed=0, draws=0)
    # By hand: sensitivity 2/3, undefined, 0; F1 4/6, left out, 0; false alarms 1, 2, 0
    assert read["subject_sensitivity_median"].value == pytest.approx(1 / 3)
    assert read["subject_f1_median"].value == pytest.approx(1 / 3)
    assert read["subject_f1_q1"].value == pytest.approx(1 / 6)
    assert read["subject_f1_q3"].value == pytest.approx(1 / 2)
    assert read["subject_precision_median"].value == pytest.approx(1 / 3)
    assert read["subject_fp_per_scan_median"].value == 1


def test_scans_of_one_subject_are_added_before_its_median():
    cases = [case("sub-1", [0], [0]), case("sub-1", [], [0]), case("sub-2", [], [0])]
    read = figures(cases, match_valdo, threshold=0, seed=0, draws=0)
    assert read["subject_sensitivity_median"].value == 0.25


def test_counts_agree_as_counted_by_hand():
    agreed = count_agreement(np.array([3.0, 2, 0]), np.array([3.0, 0, 1]))
    assert agreed["count_mae"] == 1
    assert agreed["count_bias"] == pytest.approx(1 / 3)
    # Burden classes 2, 2, 0 and 2, 0, 1: squares apart 0 + 4 + 1 = 5; by chance
    # (2·(0 + 4 + 1) + 1·(4 + 0 + 1)) / 3 = 5
    assert agreed["burden_kappa"] == pytest.approx(0)


def test_intervals_repeat_with_their_seed_and_hold_the_figure():
    cases = [case(f"sub-{n}", [0, 20], [0, 20] if n % 3 else [0, 50]) for n in range(20)]
    spans = [figures(cases, match_valdo, threshold=0.5, seed=n, draws=200) for n in (1, 1, 2)]
    assert repr(spans[0]) == repr(spans[1]) != repr(spans[2])
    of = spans[0]["sensitivity"]
    assert of.low < of.value < of.high


def test_intervals_are_as_wide_as_a_binomial_says():
    found = [True, True, False, True] * 25  # 75 of 100 subjects, one lesion each
    cases = [case(f"sub-{n}", [0] if hit else [], [0]) for n, hit in enumerate(found)]
    of = figures(cases, match_valdo, threshold=0, seed=0, draws=1000)["sensitivity"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 100)
    assert (of.low, of.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.015)
    hits = np.array(found, float)[:, None]
    (alone,) = rate(hits, np.ones_like(hits), seed=0, draws=1000)
    assert alone == of


def test_scans_of_one_subject_are_drawn_together():
    alike = [case(name, [0] if hit else [], [0]) for name in "ab" for hit in (True, False)]
    of = figures(alike, match_valdo, threshold=0, seed=0, draws=50)["sensitivity"]
    assert (of.value, of.low, of.high) == (0.5, 0.5, 0.5)


def test_one_subject_gives_no_interval():
    of = figures([case("a", [0], [0])], match_overlap, threshold=0, seed=0, draws=50)
    assert np.isnan([of["fp_per_scan"].low, of["fp_per_scan"].high]).all()
    (of,) = rate(np.array([[1.0], [0.0]]), np.array([[2.0], [0.0]]), seed=0, draws=50)
    assert of.value == 0.5
    assert np.isnan(of.low)


def test_a_figure_that_is_never_defined_has_no_interval():
    cases = [case("a", [], []), case("b", [], [])]
    spans = figures(cases, match_one_to_one, threshold=0, seed=0, draws=20)
    assert np.isnan([spans["f1"].low, spans["f1"].high]).all()
    assert (spans["fp_per_scan"].low, spans["fp_per_scan"].high) == (0, 0)
