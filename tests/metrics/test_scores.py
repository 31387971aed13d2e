"""The figures, counted by hand and by the program."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bids_cmb.metrics.agreement import measure_count_agreement
from bids_cmb.metrics.bootstrap import compare_figures, compute_figures
from bids_cmb.metrics.intervals import (
    compute_rates,
    count_interval,
    f1_interval,
    proportion_interval,
)
from bids_cmb.metrics.matching import RULES, match_one_to_one, match_overlap, match_valdo
from bids_cmb.metrics.scores import (
    ScanMatches,
    compute_froc,
    compute_metrics,
    make_scan_matches,
    rank_lesions,
)


def on_a_line(*x):
    """Points at these mm along one axis."""
    return np.array([[mm, 0.0, 0.0] for mm in x]).reshape(-1, 3)


def case(subject, found, truth, probability=None, unsure=()):
    sure = np.ones(len(found)) if probability is None else np.array(probability, float)
    doubtful = np.isin(np.arange(len(truth)), unsure)
    return ScanMatches(subject, sure, cdist(on_a_line(*found), on_a_line(*truth)), doubtful)


CASES = [  # by hand: hits 2 + 0 + 0, false alarms 1 + 2 + 0, misses 1 + 0 + 1, lesions 3 + 0 + 1
    case("sub-1", [0, 20, 99], [0, 20, 50], [0.9, 0.6, 0.3]),
    case("sub-2", [0, 20], [], [0.8, 0.2]),
    case("sub-3", [], [5]),
]


def test_figures_are_those_counted_by_hand():
    metrics = compute_metrics(CASES, match_valdo)
    assert (metrics.scans, metrics.lesions, metrics.found) == (3, 4, 5)
    assert (metrics.hits, metrics.false_alarms, metrics.misses) == (2, 3, 2)
    assert metrics.sensitivity == 2 / 4
    assert metrics.precision == 2 / 5
    assert metrics.f1 == 4 / 9
    assert metrics.fp_per_scan == 1
    assert metrics.fp_per_lesion == 3 / 4


def test_a_threshold_leaves_out_what_lies_below_it():
    metrics = compute_metrics(CASES, match_valdo, threshold=0.6)
    assert (metrics.hits, metrics.false_alarms, metrics.misses) == (2, 1, 2)


def test_a_tie_counts_two_hits_but_one_lesion():
    metrics = compute_metrics([case("sub-1", [-1, 1], [0])], match_valdo)
    assert (metrics.hits, metrics.misses, metrics.sensitivity) == (2, 0, 1)


def test_unsure_lesions_are_in_no_figure():
    metrics = compute_metrics([case("sub-1", [0, 20], [0, 21, 50], unsure=[1, 2])], match_valdo)
    assert (metrics.lesions, metrics.found, metrics.hits) == (1, 1, 1)
    assert (metrics.false_alarms, metrics.misses, metrics.f1) == (0, 0, 1)


def test_what_is_not_defined_is_nan():
    healthy = compute_metrics([case("sub-1", [], [])], match_valdo)
    assert np.isnan([healthy.sensitivity, healthy.precision, healthy.f1]).all()
    assert healthy.fp_per_scan == 0
    assert np.isnan(compute_metrics([case("sub-1", [0], [])], match_valdo).fp_per_lesion)
    assert compute_metrics([case("sub-1", [], [0])], match_valdo).f1 == 0


def test_the_froc_follows_the_threshold_down():
    curve = compute_froc(CASES, match_valdo)
    assert curve.threshold.tolist() == [np.inf, 0.9, 0.8, 0.6, 0.3, 0.2]
    assert curve.metrics.sensitivity.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(curve.metrics.fp_per_scan, [0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(curve.metrics.f1, [0, 2 / 5, 1 / 3, 4 / 7, 1 / 2, 4 / 9])


def test_sensitivity_is_read_where_false_alarms_are_affordable():
    curve = compute_froc(CASES, match_valdo)
    assert curve.sensitivity_at(0.3) == 0.25
    assert curve.sensitivity_at(1 / 3) == 0.5
    assert curve.threshold[curve.best()] == 0.6
    read = compute_figures(CASES, match_valdo, threshold=0, seed=0, draws=0)
    assert read["sensitivity_at_0.5_fp"].value == 0.5
    assert read["best_f1"].value == pytest.approx(4 / 7)
    assert read["best_f1_fp_per_scan"].value == pytest.approx(1 / 3)


def test_a_froc_without_any_finding_is_one_point():
    curve = compute_froc([case("sub-1", [], [0])], match_valdo)
    assert curve.threshold.tolist() == [np.inf]
    assert curve.sensitivity_at(8) == 0


@pytest.mark.parametrize("name", RULES)
def test_every_point_of_the_froc_is_the_score_at_its_threshold(name, rng):
    cases = [
        ScanMatches(
            f"sub-{n}",
            rng.uniform(size=8).round(1),
            np.maximum(rng.uniform(-20, 9, (8, n)), 0),
            np.arange(n) == 2,
        )
        for n in range(5)
    ]
    curve = compute_froc(cases, RULES[name])
    for k, threshold in enumerate(curve.threshold):
        alone = compute_metrics(cases, RULES[name], threshold=threshold)
        assert curve.metrics.hits[k] == alone.hits
        assert curve.metrics.false_alarms[k] == alone.false_alarms
        assert curve.metrics.misses[k] == alone.misses
        assert curve.metrics.found[k] == alone.found


def test_the_median_subject_is_one_with_lesions():
    read = compute_figures(CASES, match_valdo, threshold=0, seed=0, draws=0)
    # By hand: sensitivity 2/3, undefined, 0; F1 4/6, left out, 0; false alarms 1, 2, 0
    assert read["subject_sensitivity_median"].value == pytest.approx(1 / 3)
    assert read["subject_f1_median"].value == pytest.approx(1 / 3)
    assert read["subject_f1_q1"].value == pytest.approx(1 / 6)
    assert read["subject_f1_q3"].value == pytest.approx(1 / 2)
    assert read["subject_precision_median"].value == pytest.approx(1 / 3)
    assert read["subject_fp_per_scan_median"].value == 1


def test_scans_of_one_subject_are_added_before_its_median():
    cases = [case("sub-1", [0], [0]), case("sub-1", [], [0]), case("sub-2", [], [0])]
    read = compute_figures(cases, match_valdo, threshold=0, seed=0, draws=0)
    assert read["subject_sensitivity_median"].value == 0.25


def test_counts_agree_as_counted_by_hand():
    agreed = measure_count_agreement(np.array([3.0, 2, 0]), np.array([3.0, 0, 1]))
    assert agreed["count_mae"] == 1
    assert agreed["count_bias"] == pytest.approx(1 / 3)
    # Burden classes 2, 2, 0 and 2, 0, 1: squares apart 0 + 4 + 1 = 5; by chance
    # (2·(0 + 4 + 1) + 1·(4 + 0 + 1)) / 3 = 5
    assert agreed["burden_kappa"] == pytest.approx(0)


def test_intervals_repeat_with_their_seed_and_hold_the_figure():
    cases = [case(f"sub-{n}", [0, 20], [0, 20] if n % 3 else [0, 50]) for n in range(20)]
    spans = [
        compute_figures(cases, match_valdo, threshold=0.5, seed=n, draws=200) for n in (1, 1, 2)
    ]
    assert repr(spans[0]) == repr(spans[1]) != repr(spans[2])
    of = spans[0]["sensitivity"]
    assert of.low < of.value < of.high


def test_intervals_are_as_wide_as_a_binomial_says():
    found = [True, True, False, True] * 25  # 75 of 100 subjects, one lesion each
    cases = [case(f"sub-{n}", [0] if hit else [], [0]) for n, hit in enumerate(found)]
    of = compute_figures(cases, match_valdo, threshold=0, seed=0, draws=1000)["sensitivity"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 100)
    assert (of.low, of.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.015)
    hits = np.array(found, float)[:, None]
    (alone,) = compute_rates(hits, np.ones_like(hits), seed=0, draws=1000)
    assert alone == of


def test_scans_of_one_subject_are_drawn_together():
    """Two subjects, alike, of 200 scans each: drawn apart, single scans would tell of a spread."""
    alike = [case(name, [0] if n % 2 else [], [0]) for name in "ab" for n in range(200)]
    of = compute_figures(alike, match_valdo, threshold=0, seed=0, draws=50)
    assert (of["count_bias"].value, of["count_bias"].low, of["count_bias"].high) == (-0.5,) * 3
    exact = proportion_interval(200, 400)
    assert (of["sensitivity"].low, of["sensitivity"].high) == pytest.approx(exact)


def test_one_subject_gives_no_interval():
    of = compute_figures([case("a", [0], [0])], match_overlap, threshold=0, seed=0, draws=50)
    assert np.isnan([of["fp_per_scan"].low, of["fp_per_scan"].high]).all()
    (of,) = compute_rates(np.array([[1.0], [0.0]]), np.array([[2.0], [0.0]]), seed=0, draws=50)
    assert of.value == 0.5
    assert np.isnan(of.low)


def test_a_figure_that_is_never_defined_has_no_interval():
    cases = [case("a", [], []), case("b", [], [])]
    spans = compute_figures(cases, match_one_to_one, threshold=0, seed=0, draws=20)
    assert np.isnan([spans["f1"].low, spans["f1"].high]).all()
    assert spans["fp_per_scan"].low == 0
    assert spans["fp_per_scan"].high == pytest.approx(-np.log(0.025) / 2)  # none in two scans


def test_exact_intervals_are_those_of_the_textbooks():
    # None and all of n: 1 - 0.025^(1/n) and its mirror; Clopper & Pearson's 4 of 10, Garwood's 3.
    assert proportion_interval(0, 5) == pytest.approx((0, 1 - 0.025 ** (1 / 5)))
    assert proportion_interval(5, 5) == pytest.approx((0.025 ** (1 / 5), 1))
    assert proportion_interval(4, 10) == pytest.approx((0.1216, 0.7376), abs=1e-4)
    assert count_interval(3, 1) == pytest.approx((0.6187, 8.7673), abs=1e-4)
    assert count_interval(0, 5) == pytest.approx((0, -np.log(0.025) / 5))
    low = 0.025 ** (1 / 5)
    assert f1_interval(5, 0) == pytest.approx((2 * low / (1 + low), 1))
    assert np.isnan([*proportion_interval(0, 0), *count_interval(1, 0), *f1_interval(0, 0)]).all()


def test_five_subjects_who_agree_still_leave_an_interval():
    """Precision 1.00 [1.00, 1.00] and no false alarm for sure, of five scans, is too good."""
    of = compute_figures(
        [case(f"sub-{n}", [0], [0]) for n in range(5)], match_valdo, threshold=0, seed=0, draws=100
    )
    for name in ("sensitivity", "precision", "sensitivity_at_1_fp"):
        assert (of[name].low, of[name].high) == pytest.approx((0.025 ** (1 / 5), 1)), name
    assert 0.6 < of["f1"].low < of["f1"].high == 1
    assert 0.6 < of["best_f1"].low < 1
    assert (of["fp_per_scan"].low, of["fp_per_scan"].high) == pytest.approx((0, 0.738), abs=1e-3)
    one, none = np.ones((5, 1)), np.zeros((5, 1))
    (alarms,) = compute_rates(none, one, seed=0, draws=100, bare=count_interval)
    assert alarms.high == of["fp_per_scan"].high


def ranks_of(found, truth, probability, unsure=(), rule=match_valdo):
    return rank_lesions(case("sub-1", found, truth, probability, unsure), rule)


@pytest.mark.parametrize("rule", [match_valdo, match_one_to_one])
def test_true_lesions_rank_among_what_was_found_in_their_scan(rule):
    # Read 0.9 (false), 0.8 (hit on 20), 0.6 (false), 0.3 (hit on 0); nothing near 90.
    ranks = ranks_of([50, 20, 70, 0], [0, 20, 90], [0.9, 0.8, 0.6, 0.3], rule=rule)
    assert (ranks.candidates, ranks.false_alarms) == (4, 2)
    assert ranks.rank.tolist() == [4, 2, 5]
    assert ranks.false_above.tolist() == [2, 1, 2]
    assert ranks.auc().tolist() == [0, 0.5, 0]
    of = compute_figures(
        [case("sub-1", [50, 20, 70, 0], [0, 20, 90], [0.9, 0.8, 0.6, 0.3])],
        rule, threshold=0, seed=0, draws=0,
    )  # fmt: skip
    assert (of["rank_median"].value, of["rank_mean"].value) == (4, pytest.approx(11 / 3))
    assert of["false_above_median"].value == 2
    assert of["rank_auc"].value == pytest.approx(1 / 6)


def test_equal_probabilities_share_their_rank_and_half_an_auc():
    ranks = ranks_of([0, 30, 60, 90], [0], [0.5, 0.5, 0.5, 0.1])
    assert ranks.rank.tolist() == [2]  # first, second or third
    assert ranks.false_above.tolist() == [1]
    assert ranks.auc().tolist() == pytest.approx([2 / 3])


def test_a_lesion_ranks_by_the_likeliest_that_hits_it_and_doubles_are_false():
    """A clear find at 2 mm and a faint one at 1 mm: with all listed, the faint one is the hit."""
    ranks = ranks_of([2, 1, 50], [0], [0.9, 0.2, 0.5])
    assert (ranks.rank.tolist(), ranks.false_above.tolist()) == ([1], [0])
    assert (ranks.candidates, ranks.false_alarms) == (3, 2)
    assert ranks.auc().tolist() == [1]


def test_what_is_set_aside_is_not_read():
    ranks = ranks_of([20, 0, 50], [0, 20], [0.9, 0.8, 0.7], unsure=[1])
    assert (ranks.lesions.tolist(), ranks.rank.tolist(), ranks.candidates) == ([0], [1], 2)


def test_without_false_alarms_what_is_found_ranks_above_all_and_what_is_not_below():
    assert ranks_of([0], [0, 50], [0.9]).auc().tolist() == [1, 0]
    nothing = ranks_of([], [0], [])
    assert (nothing.rank.tolist(), nothing.auc().tolist()) == ([1], [0])
    assert len(ranks_of([0], [], [0.9]).rank) == 0


def test_the_auc_is_that_of_all_pairs_of_a_hit_and_a_false_alarm(rng):
    for _ in range(20):
        probability = rng.uniform(size=12).round(1)
        found = [*range(0, 120, 20), *range(1000, 1060, 10)]  # six hits, six false
        true = [*range(0, 120, 20), 500]  # and one that nothing is near
        ranks = ranks_of(found, true, probability)
        hits, false = probability[:6], probability[6:]
        pairs = [np.mean((hit > false) + (hit == false) / 2) for hit in hits]
        assert ranks.auc().tolist() == pytest.approx([*pairs, 0])


def test_sensitivity_for_large_lesions_is_read_at_the_same_threshold():
    """2.5 mm and more is large; what a reader is not sure of, or has no diameter, is not."""
    scan = case("sub-1", [0, 20, 40, 70, 90], [0, 20, 40, 60], [0.9, 0.7, 0.2, 0.5, 0.4], [3])
    diameter = np.array([2.5, 2.4, 6.0, 6.0])
    scan = ScanMatches("sub-1", scan.probability, scan.between, scan.uncertain, diameter)
    of = compute_figures([scan, case("sub-2", [], [7])], match_valdo, threshold=0, seed=0, draws=0)
    assert (of["lesions_large"].value, of["misses_large"].value) == (2, 0)
    assert of["sensitivity_at_0.5_fp"].value == 2 / 4  # at 0.5: one false alarm in two scans
    assert of["sensitivity_large_at_0.5_fp"].value == 1 / 2
    assert of["sensitivity_large"].value == 1
    assert of["best_f1_threshold"].value == 0.7


def test_the_best_f1_of_nothing_has_no_threshold():
    of = compute_figures([case("sub-1", [], [0])], match_valdo, threshold=0, seed=0, draws=0)
    assert (of["best_f1"].value, np.isnan(of["best_f1_threshold"].value)) == (0, True)


def lists(name, found, truth, scores, unsure=()):
    """A case of plain lists, as whoever has candidates in hand would give them."""
    candidates = [((x, 1.0, -2.0), score_) for x, score_ in zip(found, scores, strict=True)]
    lesions = [((x, 1.0, -2.0), 3.0, at not in unsure) for at, x in enumerate(truth)]
    return make_scan_matches(candidates, lesions, name=name)


def test_plain_lists_of_candidates_give_the_same_figures():
    by_lists = [
        lists("sub-1", [0, 20, 99], [0, 20, 50], [0.9, 0.6, 0.3]),
        lists("sub-2", [0, 20], [], [0.8, 0.2]),
        lists("sub-3", [], [5], []),
    ]
    read, of = (compute_figures(cases, match_valdo, threshold=0.5, seed=0, draws=20)
                for cases in (CASES, by_lists))  # fmt: skip
    same = [name for name in read if "large" not in name]
    assert repr([read[name] for name in same]) == repr([of[name] for name in same])
    with pytest.raises(ValueError, match="sub-1: lesions need positions of three finite numbers"):
        make_scan_matches([], [((1, 2), 3.0, True)], name="sub-1")
    with pytest.raises(ValueError, match="sub-1: every candidate needs a score; found NaN"):
        make_scan_matches([((1, 2, 3), np.nan)], [], name="sub-1")


def test_scores_need_not_be_probabilities():
    scores = np.array([0.9, 0.6, 0.3])
    odds = np.log(scores / (1 - scores))
    one, other = (
        compute_figures([lists("sub-1", [0, 20, 99], [0, 20, 50], by)], match_valdo,
                threshold=-np.inf, seed=0, draws=0)
        for by in (scores, odds)
    )  # fmt: skip
    assert other.pop("best_f1_threshold").value == pytest.approx(np.log(0.6 / 0.4))
    one.pop("best_f1_threshold")
    assert repr(one) == repr(other)


def test_two_detectors_differ_by_what_one_counts_by_hand():
    first = [
        lists("sub-1", [0, 60, 80], [0, 20], [0.5, 0.9, 0.8]),
        lists("sub-2", [0, 60], [0], [0.9, 0.2]),
    ]
    second = [
        lists("sub-1", [0, 20, 60], [0, 20], [0.9, 0.8, 0.1]),
        lists("sub-2", [0, 60], [0], [0.9, 0.2]),
    ]
    of = compare_figures(first, second, match_valdo, thresholds=(0.6, 0.6), seed=0, draws=60)
    # At 0.6: 1 hit, 2 false, 2 missed against 3 hits.
    assert of["f1"][:2] == (pytest.approx(2 / 6), 1)
    assert of["f1"][2].value == pytest.approx(4 / 6)
    assert of["sensitivity_at_0.5_fp"][:2] == (1 / 3, 1)
    # Never found is 4th of 3 in both; false alarms above: 2, then both, 0; held against 2, 1.
    assert of["rank_mean"][:2] == (pytest.approx((3 + 4 + 1) / 3), pytest.approx((1 + 2 + 1) / 3))
    assert of["rank_auc"][:2] == (pytest.approx((0 + 0 + 1) / 3), 1)
    assert of["rank_auc"][2].low == 0 < of["rank_auc"][2].value < of["rank_auc"][2].high == 1
    assert of["f1"][2].low == 0  # sub-2 drawn twice: no difference


def test_a_longer_list_of_false_alarms_at_the_end_is_no_better_ranking():
    short = [lists(f"sub-{n}", [0, 50], [0, 20], [0.5, 0.9]) for n in range(4)]
    long = [lists(f"sub-{n}", [0, 50, 70, 90, 110], [0, 20], [0.5, 0.9, 0.1, 0.1, 0.1])
            for n in range(4)]  # fmt: skip
    of = compare_figures(short, long, match_valdo, thresholds=(0, 0), seed=0, draws=20)
    for name in ("rank_mean", "rank_median", "rank_auc", "false_above_median"):
        assert of[name][2].value == 0, name


def test_a_detector_equals_itself():
    of = compare_figures(CASES, CASES, match_valdo, thresholds=(0, 0), seed=1, draws=100)
    defined = [each[2] for each in of.values() if not np.isnan(each[0])]
    assert defined
    for each in defined:
        assert (each.value, each.low, each.high) == (0, 0, 0)


def test_scans_that_are_not_the_same_are_not_compared():
    one, other = case("sub-1", [0], [0]), case("sub-1", [0], [0, 9])
    with pytest.raises(ValueError, match="on the same scans and true lesions; found sub-1 beside"):
        compare_figures([one], [other], match_valdo, thresholds=(0, 0), seed=0, draws=0)
