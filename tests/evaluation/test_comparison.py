"""Two detectors on the same scans, from files to the differences between them."""

import json

import pandas as pd
import pytest
from labelled import write_side

from bids_cmb.cli.commands import main
from bids_cmb.evaluation.comparison import FILES, compare_detectors
from bids_cmb.evaluation.evaluate import compute_evaluation
from bids_cmb.evaluation.options import EvaluationOptions

TRUTH = {"a": [(0, 4), (40, 44)], "b": [(0, 4)], "c": [], "d": [(0, 4)]}
FIRST = {"a": [(0, 4), (20, 24)], "b": [(0, 4)], "c": [(0, 4)]}
SECOND = {"a": [(0, 4), (40, 44)], "b": [(0, 4)], "c": [], "d": []}
SURE = {"first": {"a": [0.9, 0.8], "b": [0.7], "c": [0.6]}, "second": {"a": [0.8, 0.2], "b": [0.7]}}


@pytest.fixture
def three(tmp_path, blank):
    """Two detectors and the truth on disk; the first left sub-d out."""
    for name, sides in (("first", FIRST), ("second", SECOND)):
        columns = {label: {"probability_max": sure} for label, sure in SURE[name].items()}
        write_side(tmp_path / name, "swi", sides, blank, columns=columns)
    write_side(tmp_path / "truth", "truth", TRUTH, blank)
    return tmp_path / "first", tmp_path / "second", tmp_path / "truth"


def test_differences_are_those_counted_by_hand(three, tmp_path):
    asked = EvaluationOptions(draws=40)
    result = compare_detectors(*three, tmp_path / "out", options=asked, thresholds=(0.5, 0.1))
    assert result.missing == ("sub-d",)
    of = {name: (one, other, more.value) for name, (one, other, more) in result.figures.items()}
    assert of["f1"] == (pytest.approx(4 / 7), 1, pytest.approx(3 / 7))
    assert of["sensitivity"] == (pytest.approx(2 / 3), 1, pytest.approx(1 / 3))
    assert of["fp_per_scan"] == (pytest.approx(2 / 3), 0, pytest.approx(-2 / 3))
    # In sub-a 1st and 2nd against 1st and never, of two found ones 3rd; in sub-b 1st.
    assert of["rank_mean"] == (pytest.approx(5 / 3), pytest.approx(4 / 3), pytest.approx(-1 / 3))
    more = result.figures["f1"][2]
    assert more.low < more.value < more.high
    scans = result.scans.set_index("scan")
    assert scans["differ"].to_dict() == {"sub-a": "yes", "sub-b": "no", "sub-c": "yes"}
    lesions = result.lesions.set_index(["scan", "index"])
    outcomes = lesions.loc[
        ("sub-a", 2), ["outcome_first", "outcome_second", "rank_first", "rank_second"]
    ]
    assert outcomes.tolist() == ["missed", "found", 3, 2]


def test_either_side_has_the_figures_of_its_own_evaluation(three, tmp_path):
    result = compare_detectors(*three, tmp_path / "out", options=EvaluationOptions(draws=0))
    (three[1] / "sub-d").rename(tmp_path / "aside")
    for at in (0, 1):
        alone = compute_evaluation(three[at], three[2], EvaluationOptions(draws=0)).figures
        for name in ("f1", "best_f1", "sensitivity_at_0.5_fp", "subject_f1_median", "count_mae"):
            assert result.figures[name][at] == pytest.approx(alone[name].value), name


def test_the_command_writes_and_prints_the_differences(three, tmp_path, capsys):
    words = ["compare", *map(str, three), str(tmp_path / "out"), "--bootstrap", "20"]
    assert main([*words, "--threshold", "0.5", "0.1", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert "3 scans, 2 of which differ: sub-a, sub-c." in printed.out
    assert "f1                              0.571    1.000      +0.429  [" in printed.out
    assert "sub-d: not predicted by both; it is in no figure." in printed.err
    before = [(tmp_path / "out" / name).read_bytes() for name in FILES]
    report = json.loads(before[0])
    assert report["figures"]["f1"]["difference"] == 0.4286
    assert (report["first"], report["second"], report["truth"]) == ("first", "second", "truth")
    assert (report["thresholds"], report["seed"]) == ([0.5, 0.1], 3)
    assert [row["scan"] for row in report["scans_that_differ"]] == ["sub-a", "sub-c"]
    figures = pd.read_csv(tmp_path / "out" / "figures.tsv", sep="\t").set_index("figure")
    assert figures.loc["sensitivity", "difference"] == pytest.approx(1 / 3, abs=1e-4)
    assert main([*words, "--threshold", "0.5", "0.1", "--seed", "3"]) == 1
    assert "needs an empty folder or --overwrite" in capsys.readouterr().err
    assert main([*words, "--threshold", "0.5", "0.1", "--seed", "3", "--overwrite"]) == 0
    assert before == [(tmp_path / "out" / name).read_bytes() for name in FILES]


def test_what_cannot_be_compared_is_refused_in_a_sentence(three, tmp_path, blank, capsys):
    words = ["compare", *map(str, three), str(tmp_path / "out")]
    assert main([*words, "--threshold", "0.1", "0.2", "0.3"]) == 1
    assert "one probability for both detectors or one for each; found 3" in capsys.readouterr().err
    assert main([*words, "--threshold", "7"]) == 1
    assert "`threshold` must lie between 0 and 1; found 7" in capsys.readouterr().err
    other = write_side(tmp_path / "other", "swi", {"d": []}, blank)
    assert main(["compare", str(three[0]), str(other), *words[3:]]) == 1
    assert "two detectors need a scan in common" in capsys.readouterr().err
