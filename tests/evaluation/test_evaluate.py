"""Found against true lesions, from files to figures; five small cases by hand for every rule."""

import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from labelled import NAME, write_side
from scipy import ndimage

from bids_cmb.cli.commands import main
from bids_cmb.evaluation.annotations import POSITION_COLUMNS, LesionAnnotations
from bids_cmb.evaluation.errors_by_class import LESION_COLUMNS, classify_size
from bids_cmb.evaluation.evaluate import compute_evaluation, evaluate
from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.evaluation.outputs import FILES
from bids_cmb.evaluation.pairing import pair_annotations
from bids_cmb.imaging.nifti import save
from bids_cmb.imaging.volume import Volume
from bids_cmb.metrics.matching import RULES

# Along the first axis of the grid, in voxels of 0.5 mm: where lesions lie, from and to (excluded).
FIVE = {  # what is found, what is true
    "touching": ([(0, 4), (4, 8)], [(0, 4), (4, 8)]),
    "oneontwo": ([(2, 8)], [(0, 4), (4, 8)]),  # middles 2.25 against 0.75 and 2.75 mm
    "twoonone": ([(0, 2), (5, 8)], [(0, 8)]),  # 0.25 and 3.0 against 1.75 mm
    "notruth": ([(0, 4), (40, 44)], []),
    "nothing": ([], [(0, 4), (40, 44)]),
}
BY_HAND = {  # hits, false alarms, misses of each of the five
    "valdo": [(2, 0, 0), (1, 0, 1), (1, 1, 0), (0, 2, 0), (0, 0, 2)],
    "overlap": [(2, 0, 0), (2, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 2)],
    "one-to-one": [(2, 0, 0), (1, 0, 1), (1, 1, 0), (0, 2, 0), (0, 0, 2)],
}
POOLED_BY_HAND = {  # over 7 true lesions and 7 found ones in 5 scans
    "valdo": {
        "sensitivity": 4 / 7, "precision": 4 / 7, "f1": 4 / 7, "fp_per_scan": 3 / 5,
        "fp_per_lesion": 3 / 7,
        "subject_sensitivity_median": 3 / 4,  # of 1, 1/2, 1, –, 0
        "subject_precision_median": 3 / 4,  # of 1, 1, 1/2, 0, –
        "subject_f1_median": 2 / 3,  # of 1, 2/3, 2/3, –, 0
        "subject_fp_per_scan_median": 0,  # of 0, 0, 1, 2, 0
        "sensitivity_at_0.5_fp": 0, "sensitivity_at_1_fp": 4 / 7,  # all or nothing: one probability
        "best_f1": 4 / 7, "best_f1_fp_per_scan": 3 / 5,
        "count_mae": 6 / 5, "count_bias": 0,  # found 2 1 2 2 0, true 2 2 1 0 2
        # Classes 2 1 2 2 0 and 2 2 1 0 2, apart 0 + 1 + 1 + 4 + 4 = 10; all pairs of any two
        # scans 3·5 + 4 + 13 = 32, of which a fifth by chance
        "burden_kappa": 1 - 10 / 6.4,
        # Sums of squares: scans 1.4 (4), raters 0 (1), rest 5 (4): (.35 - 1.25) / (1.6 - .5)
        "count_icc": -0.9 / 1.1,
    },
    "overlap": {
        "sensitivity": 5 / 7, "precision": 5 / 7, "f1": 5 / 7, "fp_per_scan": 2 / 5,
        "fp_per_lesion": 2 / 7,
        "subject_sensitivity_median": 1, "subject_precision_median": 1, "subject_f1_median": 1,
        "subject_fp_per_scan_median": 0,
        "sensitivity_at_0.5_fp": 5 / 7, "sensitivity_at_1_fp": 5 / 7,
        "best_f1": 5 / 7, "best_f1_fp_per_scan": 2 / 5,
        "count_mae": 6 / 5, "count_bias": 0, "burden_kappa": 1 - 10 / 6.4,
        "count_icc": -0.9 / 1.1,
    },
}  # fmt: skip
POOLED_BY_HAND["one-to-one"] = POOLED_BY_HAND["valdo"]


@pytest.fixture
def five(tmp_path, blank):
    """The five cases on disk, on an oblique grid: (predictions, truth)."""
    found, true = ({label: case[at] for label, case in FIVE.items()} for at in (0, 1))
    return (
        write_side(tmp_path / "found", "swi", found, blank),
        write_side(tmp_path / "truth", "truth", true, blank),
    )


def counts_of(result):
    """Hits, false alarms and misses of each scan, from the table of lesions."""
    table = {}
    for name, lesions in result.lesions.groupby("scan"):
        outcome = lesions["outcome"].value_counts()
        table[name.removeprefix("sub-")] = [outcome.get("false alarm", 0), outcome.get("missed", 0)]
    return table


@pytest.mark.parametrize("rule", RULES)
def test_five_small_cases_are_as_counted_by_hand(five, rule):
    result = compute_evaluation(*five, EvaluationOptions(match=rule, draws=0))
    by_hand = dict(zip(FIVE, BY_HAND[rule], strict=True))
    assert counts_of(result) == {name: [fa, miss] for name, (_, fa, miss) in by_hand.items()}
    figures = {name: figure.value for name, figure in result.figures.items()}
    totals = np.sum(BY_HAND[rule], axis=0).tolist()
    assert [figures["hits"], figures["false_alarms"], figures["misses"]] == totals
    assert (figures["scans"], figures["lesions"], figures["found"]) == (5, 7, 7)
    for name, value in POOLED_BY_HAND[rule].items():
        assert figures[name] == pytest.approx(value), name


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("label", FIVE)
def test_each_case_alone_has_the_figures_counted_by_hand(five, rule, label):
    found, truth = (side / f"sub-{label}" for side in five)
    result = compute_evaluation(found, truth, EvaluationOptions(match=rule, draws=0))
    hits, alarms, misses = dict(zip(FIVE, BY_HAND[rule], strict=True))[label]
    lesions = len(FIVE[label][1])
    nan = float("nan")
    expected = {
        "sensitivity": (lesions - misses) / lesions if lesions else nan,
        "precision": hits / (hits + alarms) if hits + alarms else nan,
        "f1": 2 * hits / (2 * hits + alarms + misses),
        "fp_per_scan": alarms,
        "fp_per_lesion": alarms / lesions if lesions else nan,
        "count_mae": abs(len(FIVE[label][0]) - lesions),
    }
    said = {name: result.figures[name].value for name in expected}
    assert said == pytest.approx(expected, nan_ok=True)


def by_brute_force(found, truth, rule):
    """Hits, false alarms and misses of boxes of voxels, without a line of the package's."""
    near = {
        (f, t): abs(sum(found[f]) - sum(truth[t])) / 4  # middles in mm of half-millimetre voxels
        for f, t in itertools.product(range(len(found)), range(len(truth)))
    }
    if rule == "overlap":
        meet = {
            (f, t)
            for f, t in near
            if set(range(*found[f])) & set(range(*truth[t]))
        }  # fmt: skip
        hit = {t for _, t in meet}
        return len(hit), len(found) - len({f for f, _ in meet}), len(truth) - len(hit)
    if rule == "valdo":
        picks = {}
        for f in range(len(found)):
            nearest = min(range(len(truth)), key=lambda t, f=f: near[f, t], default=None)
            if nearest is not None and near[f, nearest] < 5 - 1e-6:
                picks.setdefault(nearest, []).append(near[f, nearest])
        hits = sum(np.isclose(rivals, min(rivals), atol=1e-5).sum() for rivals in picks.values())
        return hits, len(found) - hits, len(truth) - len(picks)
    most = 0
    for size in range(min(len(found), len(truth)), 0, -1):
        ways = itertools.product(
            itertools.combinations(range(len(found)), size),
            itertools.permutations(range(len(truth)), size),
        )
        if any(
            all(near[pair_annotations] <= 5 for pair_annotations in zip(*way, strict=True))
            for way in ways
        ):
            most = size
            break
    return most, len(found) - most, len(truth) - most


@pytest.mark.parametrize("rule", RULES)
def test_the_figures_agree_with_an_independent_count(tmp_path, blank, rule, rng):
    sides = [{}, {}]
    for label, side in itertools.product("abcdefgh", sides):
        cuts = np.sort(rng.choice(np.arange(60), 2 * rng.integers(0, 5), replace=False)).tolist()
        side[label] = list(zip(cuts[::2], cuts[1::2], strict=True))
    found, truth = sides
    write_side(tmp_path / "found", "swi", found, blank)
    write_side(tmp_path / "truth", "truth", truth, blank)
    result = compute_evaluation(
        tmp_path / "found", tmp_path / "truth", EvaluationOptions(match=rule, draws=0)
    )
    counted = np.array([by_brute_force(found[label], truth[label], rule) for label in found])
    hits, alarms, misses = counted.sum(axis=0)
    said = {name: figure.value for name, figure in result.figures.items()}
    assert (said["hits"], said["false_alarms"], said["misses"]) == (hits, alarms, misses)
    assert said["f1"] == pytest.approx(2 * hits / (2 * hits + alarms + misses))
    apart = [len(found[label]) - len(truth[label]) for label in found]
    assert said["count_mae"] == pytest.approx(np.mean(np.abs(apart)))


def as_valdo_counts(found, truth, spacing):
    """True and false positives, and true lesions nobody picked, of two masks, by VALDO's steps.

    1. 26-connected components; 2. their centres of mass, index times voxel size; 3. of every
    found one the distances below 5 mm are eligible, the nearest true one is picked, none is a
    false positive; 4. of those that picked the same, the nearest are true positives, others false.
    """
    touching = np.ones((3, 3, 3))
    centres = []
    for mask in (found, truth):
        pieces, count = ndimage.label(mask, touching)
        middles = [np.argwhere(pieces == piece).mean(axis=0) for piece in range(1, count + 1)]
        centres.append([np.round(middle * spacing, 9) for middle in middles])
    picks = {}
    for at, place in enumerate(centres[0]):
        away = [round(float(np.sqrt(((place - true) ** 2).sum())), 6) for true in centres[1]]
        eligible = [mm for mm in away if mm < 5]
        if eligible:
            picks.setdefault(away.index(min(eligible)), []).append((min(eligible), at))
    hits = {at for rivals in picks.values() for mm, at in rivals if mm == min(rivals)[0]}
    return len(hits), len(centres[0]) - len(hits), len(centres[1]) - len(picks)


def test_masks_are_counted_as_the_organisers_of_valdo_do_it(tmp_path, blank, rng):
    """Made clusters on a coarse lattice, so that many distances are equal, on an oblique grid."""
    spacing = np.linalg.norm(blank.affine[:3, :3], axis=0)
    counted, names = [], []
    for number in range(10):
        corner = rng.integers(8, 40, 3) // [1, 1, 2]
        masks = np.zeros((2, *blank.shape), bool)
        for mask, count in zip(masks, rng.integers(1, 6, 2), strict=True):
            for step in rng.integers(0, 4, (count, 2)):
                place = corner + [2 * step[0], 2 * step[1], 0]
                mask[place[0], place[1], place[2]] = True
        for side, mask in zip(("found", "truth"), masks, strict=True):
            name = f"sub-{number:02}_label-CMB_mask.nii.gz"
            (tmp_path / side).mkdir(exist_ok=True)
            save(Volume(mask, blank.affine), tmp_path / side / name, dtype=np.uint8)
        counted.append(as_valdo_counts(*masks, spacing))
        names.append(f"sub-{number:02}")
    result = compute_evaluation(tmp_path / "found", tmp_path / "truth", EvaluationOptions(draws=0))
    outcomes = result.lesions.groupby("scan")["outcome"].value_counts().unstack(fill_value=0)
    ours = outcomes.loc[names, ["hit", "false alarm", "missed"]].to_numpy().tolist()
    assert ours == [list(each) for each in counted]
    hits, lesions = np.array(counted)[:, 0], result.scans["lesions"].to_numpy()
    misses = np.array(counted)[:, 2]
    assert (hits > lesions - misses).any()  # there are ties that hit twice,
    assert (np.array(counted)[:, 1] > 0).any()  # false ones and missed ones
    assert (misses > 0).any()


def test_masks_tables_and_coordinates_give_the_same_figures(five, tmp_path, blank):
    found, truth = five
    by_table = compute_evaluation(found, truth, EvaluationOptions(draws=0)).figures
    for path in found.rglob("*.tsv"):
        path.unlink()
    assert repr(compute_evaluation(found, truth, EvaluationOptions(draws=0)).figures) == repr(
        by_table
    )
    rows = []
    for label, (_, ranges) in FIVE.items():
        middles = [blank.world(np.array([(a + b - 1) / 2, 10.5, 5])) for a, b in ranges]
        rows += [(f"sub-{label}", *middle) for middle in middles or [(None, None, None)]]
    sheet = pd.DataFrame(rows, columns=["subject", "x_mm", "y_mm", "z_mm"])
    sheet.to_csv(tmp_path / "points.tsv", sep="\t", index=False, na_rep="n/a")
    of_points = compute_evaluation(
        found, tmp_path / "points.tsv", EvaluationOptions(draws=0)
    ).figures
    assert repr(of_points) == repr(by_table)


def test_a_scan_that_failed_is_listed_as_missing_and_one_without_truth_too(five, capsys, tmp_path):
    found, truth = five
    (found / "sub-touching").rename(found / "other")
    for path in (truth / "sub-notruth").rglob("*_dseg.*"):
        path.unlink()
    (found / "other" / "anat" / "sub-touching_space-orig_seg-CMB_desc-swi_dseg.tsv").unlink()
    (found / "other" / "anat" / "sub-touching_space-orig_seg-CMB_desc-swi_dseg.nii.gz").unlink()
    out = tmp_path / "out"
    assert main(["evaluate", str(found), str(truth), str(out), "--bootstrap", "0"]) == 0
    said = capsys.readouterr()
    assert "3 scans, sensitivity 0.400" in said.out
    assert "sub-touching: no prediction; it is in no figure but those of all scans." in said.err
    assert "Counting 1 scan without a prediction as if nothing had been found there: " in said.out
    assert "sub-notruth: no truth; it is in no figure." in said.err
    report = json.loads((out / "metrics.json").read_text())
    assert (report["missing"], report["without_truth"]) == (["sub-touching"], ["sub-notruth"])
    assert "sub-touching" in (out / "evaluation.html").read_text()
    metrics = pd.read_csv(out / "metrics.tsv", sep="\t")
    of = metrics[metrics["by"] == "all"].set_index("figure")["value"]
    assert of[["missing_scans", "missing_lesions"]].tolist() == [1, 2]
    # Without it 2 hits, 1 false alarm, 3 misses; with it 2 more misses
    assert of[["sensitivity", "f1"]].tolist() == pytest.approx([2 / 5, 4 / 8])
    assert of[["sensitivity_all_scans", "f1_all_scans"]].tolist() == pytest.approx(
        [2 / 7, 4 / 10], abs=1e-4
    )


def test_every_lesion_stands_in_the_table_with_its_fate(five):
    lesions = compute_evaluation(*five, EvaluationOptions(draws=0)).lesions
    assert tuple(lesions.columns) == LESION_COLUMNS
    assert len(lesions) == 14
    of = lesions[lesions["scan"] == "sub-twoonone"].set_index(["set", "index"])
    assert of["outcome"].to_dict() == {
        ("true", 1): "found", ("found", 1): "false alarm", ("found", 2): "hit",
    }  # fmt: skip
    assert of.loc[("true", 1), ["partner", "distance_mm"]].tolist() == pytest.approx([2, 1.25])
    assert of.loc[("found", 2), ["partner", "distance_mm"]].tolist() == pytest.approx([1, 1.25])
    both = compute_evaluation(*five, EvaluationOptions(match="overlap", draws=0)).lesions
    true = both[(both["scan"] == "sub-oneontwo") & (both["set"] == "true")]
    assert true["partner"].tolist() == [1, 1]
    assert true["distance_mm"].tolist() == pytest.approx([1.5, 0.5])


def test_a_threshold_sets_found_lesions_aside_but_not_from_the_froc(tmp_path, blank):
    columns = {"a": {"probability_max": [0.9, 0.4]}}
    found = write_side(tmp_path / "f", "swi", {"a": [(0, 4), (40, 44)]}, blank, columns=columns)
    truth = write_side(tmp_path / "t", "truth", {"a": [(0, 4)]}, blank)
    result = compute_evaluation(found, truth, EvaluationOptions(threshold=0.5, draws=0))
    assert result.figures["f1"].value == 1
    assert result.curve.threshold.tolist() == [np.inf, 0.9, 0.4]
    assert result.lesions["outcome"].tolist() == ["found", "hit", "below threshold"]


def test_the_whole_froc_and_the_ranks_show_what_a_low_threshold_listed(tmp_path, blank):
    columns = {"a": {"probability_max": [0.9, 0.4, 0.05]}, "b": {"probability_max": [0.6, 0.3]}}
    found = write_side(
        tmp_path / "f", "swi",
        {"a": [(0, 4), (30, 34), (50, 54)], "b": [(0, 4), (40, 44)]}, blank, columns=columns,
    )  # fmt: skip
    truth = write_side(
        tmp_path / "t", "truth", {"a": [(0, 4), (50, 54)], "b": [(20, 24), (40, 44)]}, blank,
        columns={label: {"diameter_mm": [2.4, 3.0]} for label in "ab"},
    )  # fmt: skip
    result = evaluate(
        found, truth, tmp_path / "out", options=EvaluationOptions(threshold=0.7, draws=10)
    )
    of = {name: figure.value for name, figure in result.figures.items()}
    assert result.curve.threshold.tolist() == [np.inf, 0.9, 0.6, 0.4, 0.3, 0.05]
    assert (of["best_f1"], of["best_f1_threshold"]) == (pytest.approx(6 / 9), 0.05)
    assert of["sensitivity_at_0.5_fp"] == 1 / 4
    assert of["sensitivity_large_at_0.5_fp"] == 0
    assert of["sensitivity_at_1_fp"] == 3 / 4
    lesions = result.lesions[result.lesions["set"] == "true"]
    assert lesions["rank"].tolist() == [1, 3, 3, 2]  # of 3 and of 2, the last but one never found
    assert lesions["false_above"].tolist() == [0, 1, 1, 1]
    assert (of["rank_median"], of["rank_auc"]) == (2.5, 1 / 4)
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["figures"].keys() >= {"rank_median", "rank_auc", "best_f1_threshold"}
    assert "when the findings of its scan are reviewed" in report["definitions"]["rank_median"]
    assert set(report["definitions"]) & set(report["figures"]) > {"rank_auc", "f1", "best_f1"}
    text = (tmp_path / "out" / "evaluation.html").read_text()
    assert "Rank of a true lesion, median" in text
    assert "Sensitivity at 0.5 false per scan, 2.5 mm and more" in text


def test_a_froc_of_many_false_alarms_is_drawn_to_its_end(tmp_path, blank):
    many = [(at, at + 1) for at in range(0, 60, 2)]
    found = write_side(tmp_path / "f", "swi", {"a": many}, blank)
    truth = write_side(tmp_path / "t", "truth", {"a": []}, blank)
    write_side(tmp_path / "t", "truth", {"a": [(0, 1)]}, blank)
    evaluate(found, truth, tmp_path / "out", options=EvaluationOptions(draws=0))
    text = (tmp_path / "out" / "evaluation.html").read_text()
    points = re.search(r'class="curve" points="([^"]+)"', text).group(1).split()
    assert float(points[-1].split(",")[0]) == pytest.approx(420 - 14)  # 29 false: the right edge
    assert ">16</text>" in text


NOTHING = pd.DataFrame(columns=[*POSITION_COLUMNS, "index"])


def scan_marks(**entities):
    """A scan in which nothing is marked."""
    return LesionAnnotations(entities, NOTHING)


def test_pairing_scans_looks_at_each_of_them_few_times(monkeypatch):
    """2000 participants of two sessions: not every prediction against every truth."""
    looks = []
    real = LesionAnnotations.may_match
    monkeypatch.setattr(
        LesionAnnotations, "may_match", lambda one, other: looks.append(1) or real(one, other)
    )
    names = [{"sub": f"{n:04}", "ses": ses} for n in range(2000) for ses in "12"]
    found = [scan_marks(**name) for name in names]
    truth = [scan_marks(**name) for name in reversed(names)][:-1]
    pairs, missing, rest = pair_annotations(found, truth)
    assert len(looks) <= 2 * len(names)
    assert all(one.entities == other.entities for one, other in pairs)
    assert (len(pairs), missing, rest) == (3999, [], [found[0]])


def test_what_does_not_say_whose_it_is_fits_any_scan():
    pairs, _, _ = pair_annotations([scan_marks()], [scan_marks(sub="a")])
    assert len(pairs) == 1
    pairs, _, _ = pair_annotations([scan_marks(sub="a")], [scan_marks()])
    assert len(pairs) == 1
    with pytest.raises(
        ValueError, match="sub-a_acq-x: a scan of the truth needs one prediction; found 2"
    ):
        pair_annotations([scan_marks(run="1"), scan_marks(sub="a")], [scan_marks(sub="a", acq="x")])


@pytest.mark.parametrize("word", [{"visible": ["yes", "no"]}, {"certainty": ["definite", "unseen"],
    "included": ["yes", "no"]}, {"ignore": ["0", "1"]}])  # fmt: skip
def test_lesions_that_none_can_be_sure_of_are_set_aside_unless_asked(tmp_path, blank, word):
    found = write_side(tmp_path / "f", "swi", {"a": [(0, 4), (40, 44)], "b": []}, blank)
    true = {"a": [(0, 4), (40, 44)], "b": [(0, 4), (40, 44)]}
    truth = write_side(tmp_path / "t", "truth", true, blank, columns={"a": word, "b": word})
    for rule in RULES:
        figures = compute_evaluation(found, truth, EvaluationOptions(match=rule, draws=0)).figures
        assert (figures["lesions"].value, figures["found"].value) == (2, 1)
        assert (figures["hits"].value, figures["false_alarms"].value) == (1, 0)
        assert figures["misses"].value == 1
        figures = compute_evaluation(
            found, truth, EvaluationOptions(match=rule, uncertain="include", draws=0)
        ).figures
        assert (figures["lesions"].value, figures["hits"].value) == (4, 2)
        assert figures["misses"].value == 2


def test_found_lesions_that_the_app_does_not_count_are_not_counted(tmp_path, blank):
    columns = {"a": {"included": ["yes", "no"]}}
    found = write_side(tmp_path / "f", "swi", {"a": [(0, 4), (40, 44)]}, blank, columns=columns)
    truth = write_side(tmp_path / "t", "truth", {"a": [(0, 4)]}, blank)
    for rule in RULES:
        assert (
            compute_evaluation(found, truth, EvaluationOptions(match=rule, draws=0))
            .figures["f1"]
            .value
            == 1
        )


def broken_down(result, by):
    table = result.breakdown[result.breakdown["by"] == by]
    return table.pivot_table(index="class", columns="figure", values="value", sort=False)


def test_figures_are_broken_down_by_size_place_protocol_and_mimic(tmp_path, blank):
    truth = write_side(
        tmp_path / "raw" / "derivatives" / "truth", "truth",
        {"a": [(0, 4), (40, 44)], "b": [(0, 4)], "c": []}, blank,
        columns={"a": {"diameter_mm": [2, 6], "territory": ["deep", "lobar"]},
                 "b": {"diameter_mm": [2.4], "territory": ["lobar"]}},
    )  # fmt: skip
    found = write_side(
        tmp_path / "found", "swi", {"a": [(0, 4), (20, 24), (58, 60)], "b": [], "c": [(0, 4)]},
        blank, columns={label: {"diameter_mm": 3} for label in "ac"},
    )  # fmt: skip
    (tmp_path / "raw" / "participants.tsv").write_text(
        "participant_id\tprotocol\nsub-a\tGE 4 mm\nsub-b\tSWI 3T\nsub-c\tSWI 3T\n"
    )
    mimics = NAME.replace("seg-CMB", "seg-mimics").format("a", "a", "truth")
    volume = np.zeros(blank.shape, np.uint16)
    volume[20:24, 5:20, 5] = 3  # a vein through the false alarm, its middle 1 mm off
    save(Volume(volume, blank.affine), truth / f"{mimics}.nii.gz", dtype=np.uint16)
    (truth / f"{mimics}.tsv").write_text("index\tkind\n3\tvein\n4\tcalcification\n")

    result = compute_evaluation(found, truth, EvaluationOptions(draws=0))
    size = broken_down(result, "size")
    assert size.loc["under 2.5 mm", ["lesions", "misses", "sensitivity"]].tolist() == [2, 1, 0.5]
    assert size.loc["2.5 to 5 mm", ["lesions", "false_alarms"]].tolist() == [0, 3]
    assert size.loc["5 to 10 mm", "sensitivity"] == 0
    place = broken_down(result, "territory")
    assert place.loc["deep", "sensitivity"] == 1
    assert place.loc["lobar", "sensitivity"] == 0
    assert place.loc["unknown", "false_alarms"] == 3
    protocol = broken_down(result, "protocol")
    assert protocol.loc["GE 4 mm", ["scans", "sensitivity", "fp_per_scan"]].tolist() == [1, 0.5, 2]
    assert protocol.loc["GE 4 mm", "f1"] == pytest.approx(2 / 5)
    assert protocol.loc["SWI 3T", ["scans", "false_alarms", "fp_per_scan"]].tolist() == [2, 1, 0.5]
    mimic = broken_down(result, "mimic")  # sub-c has none labelled, so its alarm is not in it
    assert mimic.loc["vein", ["labelled", "false_alarms", "share"]].tolist() == [1, 1, 0.5]
    assert mimic.loc["calcification", ["labelled", "false_alarms"]].tolist() == [1, 0]
    assert mimic.loc["none", "false_alarms"] == 1
    alarms = result.lesions[result.lesions["outcome"] == "false alarm"]
    assert alarms["mimic"].tolist() == ["vein", "none", None]
    assert alarms["mimic_mm"].tolist()[0] <= 0.5


def test_a_protocol_is_told_by_the_apps_own_sidecar(five):
    found, truth = five
    for label in FIVE:
        marker = found / f"sub-{label}/anat/sub-{label}_space-orig_label-CMB_desc-swi_mask.json"
        known = {"field_strength_t": 1.5, "echo_time_ms": 40.0, "slice_spacing_mm": None}
        marker.write_text(json.dumps({"Microbleeds": known}))
    assert set(compute_evaluation(found, truth, EvaluationOptions(draws=0)).scans["protocol"]) == {
        "1.5 T, 40 ms"
    }


@pytest.mark.parametrize(
    ("diameter", "name"),
    [(2.49, "under 2.5 mm"), (2.5, "2.5 to 5 mm"), (5, "5 to 10 mm"), (10, "10 mm and more"),
     (np.nan, "unknown")],
)  # fmt: skip
def test_sizes_have_their_lower_bound(diameter, name):
    assert classify_size(diameter) == name


class Balanced(HTMLParser):
    """Counts open elements; every one that was opened must be closed in turn."""

    open_ones = ()
    seen = ()

    def handle_starttag(self, tag, attrs):
        """Opened."""
        self.seen += ((tag, dict(attrs)),)
        if tag != "meta":
            self.open_ones += (tag,)

    def handle_startendtag(self, tag, attrs):
        """Opened and closed at once."""
        self.seen += ((tag, dict(attrs)),)

    def handle_endtag(self, tag):
        """Closed."""
        assert self.open_ones[-1] == tag
        self.open_ones = self.open_ones[:-1]


def test_the_page_is_whole_needs_no_network_and_trusts_no_name(tmp_path, blank):
    evil = {"a": {"region": ["<script>alert(1)</script>"]}}
    truth = write_side(tmp_path / "t&t", "truth", {"a": [(0, 4)]}, blank, columns=evil)
    found = write_side(tmp_path / "f", "swi", {"a": [(0, 4)], "b": []}, blank)
    evaluate(found, truth, tmp_path / "out", options=EvaluationOptions(draws=20))
    text = (tmp_path / "out" / "evaluation.html").read_text("utf-8")
    page = Balanced()
    page.feed(text)
    assert page.open_ones == ()
    assert not [tag for tag, _ in page.seen if tag in ("script", "link", "img", "iframe")]
    assert not re.findall(r"https?://|url\(|@import", text)
    assert "&lt;script&gt;" in text
    assert "t&amp;t" in text
    assert sum(tag == "svg" for tag, _ in page.seen) >= 4
    numbers = [float(n) for n in re.findall(r'(?:cx|cy|x|y|width)="([-\d.]+)"', text)]
    assert np.isfinite(numbers).all()


def test_a_page_of_healthy_scans_is_whole_too(tmp_path, blank):
    found = write_side(tmp_path / "f", "swi", {"a": [], "b": []}, blank)
    truth = write_side(tmp_path / "t", "truth", {"a": [], "b": []}, blank)
    evaluate(found, truth, tmp_path / "out", options=EvaluationOptions(draws=20))
    page = Balanced()
    page.feed((tmp_path / "out" / "evaluation.html").read_text("utf-8"))
    assert page.open_ones == ()
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["figures"]["sensitivity"] == {"value": None, "low": None, "high": None}
    assert report["figures"]["fp_per_scan"]["value"] == 0
    assert (tmp_path / "out" / "lesions.tsv").read_text() == "\t".join(LESION_COLUMNS) + "\n"


def test_the_same_evaluation_writes_the_same_bytes(five, tmp_path):
    for folder in ("one", "two"):
        evaluate(*five, tmp_path / folder, options=EvaluationOptions(seed=3, draws=30))
    for name in FILES:
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two
        assert str(tmp_path).encode() not in one
    report = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert (report["predictions"], report["truth"]) == ("found", "truth")
    assert report["figures"]["f1"]["value"] == 0.5714
    curve = pd.read_csv(tmp_path / "one" / "froc.tsv", sep="\t")
    assert curve.round(3).to_dict("list") == {
        "threshold": [1], "sensitivity": [0.571], "fp_per_scan": [0.6], "precision": [0.571],
        "f1": [0.571],
    }  # fmt: skip


def test_the_door_compares_and_says_the_figures(five, tmp_path, capsys):
    words = ["evaluate", *map(str, five), str(tmp_path / "out"), "--match", "overlap"]
    assert main([*words, "--bootstrap", "10", "--seed", "2"]) == 0
    assert "sensitivity 0.714, precision 0.714, f1 0.714, fp_per_scan 0.400." in (
        capsys.readouterr().out
    )
    assert main(words) == 1
    assert "needs an empty folder or --overwrite; found files" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--bootstrap", "0"]) == 0


def test_one_mask_is_held_against_one_mask_whatever_they_are_called(five, tmp_path):
    found, truth = (next(side.rglob("*oneontwo*.nii.gz")) for side in five)
    for path, name in ((found, "mine_dseg.nii.gz"), (truth, "theirs_dseg.nii.gz")):
        path.rename(tmp_path / name)
    result = compute_evaluation(
        tmp_path / "mine_dseg.nii.gz", tmp_path / "theirs_dseg.nii.gz", EvaluationOptions(draws=0)
    )
    assert (result.figures["hits"].value, result.figures["misses"].value) == (1, 1)


def test_nothing_in_common_is_refused(five, blank, tmp_path):
    other = write_side(tmp_path / "o", "truth", {str(n): [] for n in range(5)}, blank)
    with pytest.raises(
        ValueError,
        match=r"a scan in common; found sub-nothing_swi, .* here and sub-0, .* 2 more in",
    ):
        compute_evaluation(five[0], other, EvaluationOptions())


def test_lesions_of_two_spaces_are_refused(five, tmp_path):
    sheet = tmp_path / "t.tsv"  # as if world millimetres were written in micrometres
    sheet.write_text("subject\tx_mm\ty_mm\tz_mm\ntouching\t40000\t-60000\t-30000\n")
    with pytest.raises(ValueError, match=r"sub-touching: .* one space, world mm; .* mm apart"):
        compute_evaluation(five[0], sheet, EvaluationOptions())


def test_two_predictions_of_one_scan_are_refused(tmp_path, blank):
    found = write_side(tmp_path / "f", "swi", {"a": [(0, 4)]}, blank)
    write_side(found, "T2starw", {"a": [(0, 4)]}, blank)
    truth = write_side(tmp_path / "t", "truth", {"a": [(0, 4)]}, blank)
    with pytest.raises(ValueError, match=r"sub-a: a scan of the truth needs one prediction; "
                                         r"found 2: .*T2starw.* and .*swi"):  # fmt: skip
        compute_evaluation(found, truth, EvaluationOptions())


def test_two_contrasts_of_a_participant_are_two_scans(tmp_path, blank):
    found, truth = tmp_path / "f", tmp_path / "t"
    for desc, ranges in (("swi", [(0, 4)]), ("T2starw", [(0, 4), (40, 44)])):
        write_side(found, desc, {"a": ranges}, blank)
        write_side(truth, desc, {"a": ranges}, blank)
    result = compute_evaluation(found, truth, EvaluationOptions(draws=0))
    assert result.scans["scan"].tolist() == ["sub-a_T2starw", "sub-a_swi"]
    assert (result.scans["found"].tolist(), result.scans["lesions"].tolist()) == ([2, 1], [2, 1])
    assert result.figures["f1"].value == 1


@pytest.mark.parametrize("word", ["desc", "Sources"])
def test_a_scan_is_never_held_against_the_truth_of_another_contrast(tmp_path, blank, word):
    found = write_side(tmp_path / "f", "T2starw", {"a": [(0, 4)]}, blank)
    truth = write_side(tmp_path / "t", "swi" if word == "desc" else "truth", {"a": []}, blank)
    if word == "Sources":
        [table] = truth.rglob("*.tsv")
        source = {"Sources": ["bids::sub-a/anat/sub-a_swi.nii.gz"]}
        table.with_suffix(".json").write_text(json.dumps(source))
    with pytest.raises(ValueError, match="in common; found sub-a_T2starw here and sub-a_swi in"):
        compute_evaluation(found, truth, EvaluationOptions())

    write_side(found, "desc-nothing", {"b": [(0, 4)]}, blank)
    write_side(truth, "truth", {"b": [(0, 4)]}, blank)
    result = compute_evaluation(found, truth, EvaluationOptions(draws=0))
    assert result.scans["scan"].tolist() == ["sub-b"]
    assert (result.missing, result.without_truth) == (("sub-a_swi",), ("sub-a_T2starw",))


def test_the_truth_of_one_contrast_takes_the_prediction_of_that_contrast(tmp_path, blank):
    found = write_side(tmp_path / "f", "swi", {"a": [(0, 4)]}, blank)
    write_side(found, "T2starw", {"a": []}, blank)
    truth = write_side(tmp_path / "t", "swi", {"a": [(0, 4)]}, blank)
    result = compute_evaluation(found, truth, EvaluationOptions(draws=0))
    assert result.figures["hits"].value == 1
    assert result.without_truth == ("sub-a_T2starw",)


def test_one_prediction_of_two_scans_is_refused(tmp_path, blank):
    found = write_side(tmp_path / "f", "swi", {"a": [(0, 4)]}, blank)
    sheet = tmp_path / "t.tsv"
    sheet.write_text("subject\tsession\tx_mm\ty_mm\tz_mm\na\t1\t1\t2\t3\na\t2\t1\t2\t3\n")
    with pytest.raises(ValueError, match="sub-a: a prediction needs one scan of the truth; found"):
        compute_evaluation(found, sheet, EvaluationOptions())


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            EvaluationOptions(match="dice"),
            "`match` must be one of valdo, overlap, one-to-one; found 'dice'",
        ),
        (
            EvaluationOptions(uncertain="drop"),
            "`uncertain` must be one of ignore, include; found 'drop'",
        ),
        (EvaluationOptions(threshold=50), "`threshold` must lie between 0 and 1; found 50"),
        (EvaluationOptions(draws=-1), "must be 0 or more; found -1 and 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(five, asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        compute_evaluation(*five, asked)
