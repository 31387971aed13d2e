"""Found against true lesions, counted by hand and by the program."""

import numpy as np
import pandas as pd
import pytest

from bids_cmb.evaluation import (
    Case,
    bootstrap,
    froc,
    match_one_to_one,
    match_valdo,
    read_cases,
    read_found,
    read_truth,
    score,
    summary,
)

NOWHERE = np.empty((0, 3))


def on_a_line(*x):
    """Points at these mm along one axis."""
    return np.array([[mm, 0.0, 0.0] for mm in x]).reshape(-1, 3)


def case(subject, found, truth, probability=None):
    sure = np.ones(len(found)) if probability is None else np.array(probability, float)
    return Case(subject, on_a_line(*found), sure, on_a_line(*truth))


def told(match):
    return match.partner.tolist(), match.missed.tolist()


@pytest.mark.parametrize(
    ("what", "found", "truth", "valdo", "one_to_one"),
    [
        ("touching lesions, each with its own found one",
         [0.4, 1.8], [0, 2], ([0, 1], [False, False]), ([0, 1], [False, False])),
        ("one found between two true ones counts for the nearer",
         [1.2], [0, 2], ([1], [True, False]), ([1], [True, False])),
        ("two found at one true: the nearer hits, the other is a false alarm",
         [-3, 1], [0], ([-1, 0], [False]), ([-1, 0], [False])),
        ("two found equally near: by VALDO both hit, of partners there is one",
         [-1, 1], [0], ([0, 0], [False]), ([0, -1], [False])),
        ("two found nearest to the same of two: only one-to-one gives each its own",
         [0.5, 1.5], [1, 5], ([0, 0], [False, True]), ([0, 1], [False, False])),
        ("no truth: all false alarms", [0, 9], [], ([-1, -1], []), ([-1, -1], [])),
        ("nothing found: all missed", [], [0, 9], ([], [True, True]), ([], [True, True])),
        ("neither", [], [], ([], []), ([], [])),
        ("exactly 5 mm apart: no pair by VALDO, a pair one-to-one",
         [5], [0], ([-1], [True]), ([0], [False])),
        ("a hand's breadth apart: no pair", [80], [0], ([-1], [True]), ([-1], [True])),
    ],
)  # fmt: skip
def test_pairs_are_those_counted_by_hand(what, found, truth, valdo, one_to_one):
    found, truth = on_a_line(*found), on_a_line(*truth)
    assert told(match_valdo(found, truth)) == valdo, what
    partner, missed = told(match_one_to_one(found, truth))
    assert missed == one_to_one[1], what
    assert sorted(partner) == sorted(one_to_one[0]), what  # of equals either may be the partner


def test_one_to_one_finds_as_many_partners_as_can_be():
    # The nearest pair (1, 1.5) alone would leave both others without; two longer pairs are better.
    found, truth = on_a_line(1, 6), on_a_line(-3.5, 1.5)
    assert told(match_one_to_one(found, truth)) == ([0, 1], [False, False])


def test_distances_are_taken_in_three_dimensions():
    found = np.array([[3.0, 3.0, 3.0]])  # 5.2 mm from the origin
    assert told(match_valdo(found, np.zeros((1, 3)))) == ([-1], [True])
    assert told(match_valdo(found * 0.9, np.zeros((1, 3)))) == ([0], [False])


CASES = [  # by hand: hits 2 + 0 + 0, false alarms 1 + 2 + 0, misses 1 + 0 + 1, lesions 3 + 0 + 1
    case("sub-1", [0, 20, 99], [0, 20, 50], [0.9, 0.6, 0.3]),
    case("sub-2", [0, 20], [], [0.8, 0.2]),
    case("sub-3", [], [5]),
]


def test_figures_are_those_counted_by_hand():
    metrics = score(CASES)
    assert (metrics.scans, metrics.lesions) == (3, 4)
    assert (metrics.hits, metrics.false_alarms, metrics.misses) == (2, 3, 2)
    assert metrics.sensitivity == 2 / 4
    assert metrics.precision == 2 / 5
    assert metrics.f1 == 4 / 9
    assert metrics.fp_per_scan == 1


def test_a_threshold_leaves_out_what_lies_below_it():
    metrics = score(CASES, threshold=0.6)
    assert (metrics.hits, metrics.false_alarms, metrics.misses) == (2, 1, 2)


def test_a_tie_counts_two_hits_but_one_lesion():
    metrics = score([case("sub-1", [-1, 1], [0])])
    assert (metrics.hits, metrics.misses, metrics.sensitivity) == (2, 0, 1)


def test_what_is_not_defined_is_nan():
    healthy = score([case("sub-1", [], [])])
    assert np.isnan([healthy.sensitivity, healthy.precision, healthy.f1]).all()
    assert healthy.fp_per_scan == 0
    assert np.isnan(score([case("sub-1", [0], [])]).sensitivity)
    assert score([case("sub-1", [], [0])]).f1 == 0


def test_the_froc_follows_the_threshold_down():
    curve = froc(CASES)
    assert curve.threshold.tolist() == [np.inf, 0.9, 0.8, 0.6, 0.3, 0.2]
    assert curve.metrics.sensitivity.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(curve.metrics.fp_per_scan, [0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(curve.metrics.f1, [0, 2 / 5, 1 / 3, 4 / 7, 1 / 2, 4 / 9])


def test_sensitivity_is_read_where_false_alarms_are_affordable():
    curve = froc(CASES)
    assert curve.sensitivity_at(0.3) == 0.25
    assert curve.sensitivity_at(1 / 3) == 0.5
    assert curve.sensitivity_at(0.5) == 0.5
    assert curve.threshold[curve.best()] == 0.6
    figures = summary(score(CASES), curve)
    assert figures["sensitivity_at_0.5_fp"] == 0.5
    assert figures["best_f1"] == pytest.approx(4 / 7)
    assert figures["best_f1_fp_per_scan"] == pytest.approx(1 / 3)


def test_a_froc_without_any_finding_is_one_point():
    curve = froc([case("sub-1", [], [0])])
    assert curve.threshold.tolist() == [np.inf]
    assert curve.sensitivity_at(8) == 0


def test_every_point_of_the_froc_is_the_score_at_its_threshold():
    rng = np.random.default_rng(5)
    cases = [
        Case(f"sub-{n}", rng.uniform(0, 30, (8, 3)), rng.uniform(size=8).round(1),
             rng.uniform(0, 30, (n, 3)))
        for n in range(5)
    ]  # fmt: skip
    for rule in (match_valdo, match_one_to_one):
        curve = froc(cases, rule=rule)
        for k, threshold in enumerate(curve.threshold):
            alone = score(cases, threshold=threshold, rule=rule)
            assert curve.metrics.hits[k] == alone.hits
            assert curve.metrics.false_alarms[k] == alone.false_alarms
            assert curve.metrics.misses[k] == alone.misses


def test_intervals_repeat_with_their_seed_and_hold_the_figure():
    cases = [case(f"sub-{n}", [0, 20], [0, 20] if n % 3 else [0, 50]) for n in range(20)]
    spans = bootstrap(cases, threshold=0.5, seed=1, draws=200)
    assert spans == bootstrap(cases, threshold=0.5, seed=1, draws=200)
    assert spans != bootstrap(cases, threshold=0.5, seed=2, draws=200)
    low, high = spans["sensitivity"]
    assert low < score(cases).sensitivity < high
    assert spans.keys() == summary(score(cases), froc(cases)).keys()


def test_intervals_are_as_wide_as_a_binomial_says():
    found = [True, True, False, True] * 25  # 75 of 100 subjects, one lesion each
    cases = [case(f"sub-{n}", [0] if hit else [], [0]) for n, hit in enumerate(found)]
    low, high = bootstrap(cases, threshold=0, seed=0, draws=4000)["sensitivity"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 100)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.01)


def test_scans_of_one_subject_are_drawn_together():
    alike = [case("sub-1", [0], [0]), case("sub-1", [], [0])]
    assert bootstrap(alike, threshold=0, seed=0, draws=50)["sensitivity"] == (0.5, 0.5)


def test_a_figure_that_is_never_defined_has_no_interval():
    spans = bootstrap([case("sub-1", [], [])], threshold=0, seed=0, draws=20)
    assert np.isnan(spans["f1"]).all()
    assert spans["fp_per_scan"] == (0, 0)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(" ", "\t"), encoding="utf-8")
    return path


def lesions(folder, name, text="x_mm y_mm z_mm prob_max\n1 2 3 0.8\n"):
    return write(folder / name, text)


def test_a_table_of_coordinates_is_read_per_scan(tmp_path):
    truth = read_truth(
        write(tmp_path / "t.tsv", "subject cmb x_mm y_mm z_mm\n"
              "sub-2 0 -1.5 2 3\n1 0 4 5 6\nsub-2 1 7 8 9\nsub-3 0 n/a n/a n/a\n")
    )  # fmt: skip
    assert list(truth) == [("sub-2", ""), ("sub-1", ""), ("sub-3", "")]
    assert truth["sub-2", ""].tolist() == [[-1.5, 2, 3], [7, 8, 9]]
    assert truth["sub-3", ""].shape == (0, 3)


def test_sessions_keep_their_lesions_apart(tmp_path):
    truth = read_truth(
        write(tmp_path / "t.tsv", "participant_id session_id x_mm y_mm z_mm\n"
              "sub-1 ses-a 1 1 1\nsub-1 b 2 2 2\n")
    )  # fmt: skip
    assert truth["sub-1", "ses-a"].tolist() == [[1, 1, 1]]
    assert truth["sub-1", "ses-b"].tolist() == [[2, 2, 2]]


def test_a_lesion_table_is_read_and_may_be_empty(tmp_path):
    found, probability = read_found(lesions(tmp_path, "a.tsv"))
    assert (found.tolist(), probability.tolist()) == ([[1, 2, 3]], [0.8])
    found, probability = read_found(lesions(tmp_path, "b.tsv", "x_mm y_mm z_mm prob_max\n"))
    assert (found.shape, probability.shape) == ((0, 3), (0,))


def test_an_output_folder_becomes_one_case_per_scan(tmp_path):
    lesions(tmp_path, "sub-1/anat/sub-1_space-orig_seg-CMB_desc-T2starw_dseg.tsv")
    lesions(tmp_path, "sub-2/ses-a/anat/sub-2_ses-a_space-orig_seg-CMB_desc-swi_dseg.tsv")
    lesions(tmp_path, "sub-2/ses-b/anat/sub-2_ses-b_space-orig_seg-CMB_desc-swi_dseg.tsv")
    lesions(tmp_path, "sub-1/anat/sub-1_space-orig_seg-aseg_dseg.tsv")
    truth = write(tmp_path / "t.tsv", "participant_id session_id x_mm y_mm z_mm\n"
                  "sub-1 n/a 1 2 3\nsub-2 ses-b 9 9 9\n")  # fmt: skip
    cases = read_cases(tmp_path, truth)
    assert [(c.subject, len(c.found), c.truth.tolist()) for c in cases] == [
        ("sub-1", 1, [[1, 2, 3]]), ("sub-2", 1, []), ("sub-2", 1, [[9, 9, 9]]),
    ]  # fmt: skip


def test_an_output_folder_without_lesion_tables_is_refused(tmp_path):
    truth = write(tmp_path / "t.tsv", "subject x_mm y_mm z_mm\nsub-1 1 2 3\n")
    with pytest.raises(ValueError, match=r"lesion tables .* are needed; found none"):
        read_cases(tmp_path, truth)


def test_a_scan_of_the_truth_that_was_not_run_is_said(tmp_path):
    lesions(tmp_path, "sub-1/anat/sub-1_seg-CMB_desc-T2starw_dseg.tsv")
    truth = write(tmp_path / "t.tsv", "subject x_mm y_mm z_mm\nsub-1 1 2 3\nsub-7 1 2 3\n")
    with pytest.raises(ValueError, match="found none for sub-7"):
        read_cases(tmp_path, truth)


def test_two_tables_for_one_scan_of_the_truth_are_said(tmp_path):
    lesions(tmp_path, "sub-1/anat/sub-1_seg-CMB_desc-T2starw_dseg.tsv")
    lesions(tmp_path, "sub-1/anat/sub-1_seg-CMB_desc-swi_dseg.tsv")
    truth = write(tmp_path / "t.tsv", "subject x_mm y_mm z_mm\nsub-1 1 2 3\n")
    with pytest.raises(ValueError, match="needs one lesion table; found several for sub-1"):
        read_cases(tmp_path, truth)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("subject x_mm y_mm\nsub-1 1 2\n", "t.tsv: the columns .* are needed; z_mm not among"),
        ("x_mm y_mm z_mm\n1 2 3\n", "participant_id not among"),
        ("subject x_mm y_mm z_mm\nsub-1 1 n/a 3\n", "or n/a for all three; line 2 has only some"),
        ("subject x_mm y_mm z_mm\nsub-1 1 two 3\n", "must be numbers; .*two"),
    ],
)
def test_a_truth_that_cannot_be_read_is_said(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_truth(write(tmp_path / "t.tsv", text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x_mm y_mm z_mm\n1 2 3\n", "prob_max not among x_mm, y_mm, z_mm"),
        ("x_mm y_mm z_mm prob_max\n1 2 3 .5\n1 2 3 n/a\n", "prob_max; line 3 has not"),
        ("x_mm y_mm z_mm prob_max\n1 2 3 high\n", "must be numbers; .*high"),
    ],
)
def test_a_lesion_table_that_cannot_be_read_is_said(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_found(lesions(tmp_path, "a.tsv", text))


def test_numbers_survive_the_way_through_pandas(tmp_path):
    table = pd.DataFrame({"x_mm": [0.1], "y_mm": [-1e-3], "z_mm": [12.345], "prob_max": [1]})
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    found, probability = read_found(tmp_path / "a.tsv")
    assert found.tolist() == [[0.1, -1e-3, 12.345]]
    assert probability.tolist() == [1]
