"""Benchmarks compute what they say; measuring takes hours and is no test."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from grids import OBLIQUE

from bids_cmb.evaluation.annotations import POSITION_COLUMNS, LesionAnnotations, Mimics
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import DetectionMap, Thresholds, find_lesions
from bids_cmb.metrics.scores import COUNT_NAMES
from bids_cmb.simulation.lesion_priors import load_priors
from bids_cmb.simulation.protocols import load_presets
from bids_cmb.training import operating_points

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SHARED = ("benchmarks.measurements",)
SCRIPTS = [
    name
    for path in sorted(BENCHMARKS.rglob("*.py"))
    for name in [".".join(path.relative_to(ROOT).with_suffix("").parts)]
    if path.name != "__init__.py" and name not in SHARED
]
PAGES = [BENCHMARKS / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def load(monkeypatch):
    """Import a module of benchmarks by its name there."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def definition():
    return json.loads((BENCHMARKS / "simulated.json").read_text("utf-8"))


def read_commands():
    """Every command of a benchmark in the pages: page, module, words, values in brackets too."""
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text("utf-8"))
        for module, words in re.findall(r"python -m (benchmarks[\w.]+)([^`\n|]*)", text):
            yield page.relative_to(ROOT).as_posix(), module, shlex.split(words.partition(" #")[0])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_how_it_is_run(script, load, monkeypatch, capsys):
    module = load(script.removeprefix("benchmarks."))
    assert f"python -m {script}" in module.__doc__
    monkeypatch.setattr("sys.argv", [script, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main()
    text = " ".join(capsys.readouterr().out.split())
    assert module.__doc__.partition("\n")[0] in text


def test_every_command_of_the_pages_is_that_of_a_script(load):
    commands = list(read_commands())
    assert {module for _, module, _ in commands} == set(SCRIPTS)
    for page, module, words in commands:
        parser = load(module.removeprefix("benchmarks.")).make_parser()
        flags = set(re.findall(r"--[\w-]+", parser.format_help()))
        for action in parser._actions:
            for part in (action.choices if isinstance(action.choices, dict) else {}).values():
                flags |= set(re.findall(r"--[\w-]+", part.format_help()))
        for word in words:
            assert not word.startswith("--") or word == "--" or word in flags, f"{page}: {words}"


def test_the_readme_names_every_result_file():
    named = re.findall(
        r"`([\w*-]+\.(?:json|tsv|md))`", (BENCHMARKS / "README.md").read_text("utf-8")
    )
    kept = set((BENCHMARKS / "results").iterdir())
    matched = {path for pattern in named for path in (BENCHMARKS / "results").glob(pattern)}
    assert not kept - {
        path.with_suffix(suffix) for path in matched for suffix in (".json", ".tsv", ".md")
    }


# --- Counting -------------------------------------------------------------------------------------


@pytest.fixture
def truth():
    """Four true lesions: a small one, an uncertain one, one that cannot be seen, a large one."""
    rows = [[0, 0, 0, 2, False], [30, 0, 0, 2, True], [0, 30, 0, 2, False], [60, 0, 0, 3, False]]
    table = pd.DataFrame(rows, columns=[*POSITION_COLUMNS, "diameter_mm", "uncertain"])
    table["included"] = [True, True, False, True]
    return LesionAnnotations({"sub": "01"}, table)


def test_uncertain_and_unseen_lesions_are_neither_found_nor_missed(load, truth):
    measurements = load("measurements")
    centres = np.array([[0, 1, 0], [30, 0, 1], [0, 30, 1], [90, 0, 0]], float)
    counts = dict(zip(COUNT_NAMES, measurements.count_detections(centres, truth), strict=True))
    assert counts == {
        "scans": 1, "lesions": 2, "found": 2, "hits": 1, "false_alarms": 1, "misses": 1,
        "lesions_large": 1, "misses_large": 1,
    }  # fmt: skip
    nothing = measurements.count_detections(np.zeros((0, 3)), truth)
    assert dict(zip(COUNT_NAMES, nothing, strict=True))["misses"] == 2


def test_a_map_is_cut_as_the_app_cuts_it(load, blank, rng):
    measurements = load("measurements")
    peaks = np.where(rng.random(blank.shape) < 0.02, rng.random(blank.shape), 0)
    grid = Volume(np.ones(blank.shape, np.float32), blank.affine)
    brain = Volume(np.ones(blank.shape, bool), blank.affine)
    least = 2 * grid.voxel_volume
    cuts = measurements.cut_map(peaks.astype(np.float32), grid, least)
    for threshold in (0.05, 0.5, 0.9):
        _, lesions = find_lesions(
            DetectionMap(Volume(peaks.astype(np.float32), blank.affine)), grid, brain,
            Thresholds(threshold, definite=1, min_volume=least),
        )  # fmt: skip
        centres, highest = cuts[threshold]
        order = np.lexsort(centres.T)
        expected = np.array([lesion.centre for lesion in lesions]).reshape(-1, 3)
        places = np.lexsort(expected.T)
        np.testing.assert_allclose(centres[order], expected[places], atol=1e-3)
        np.testing.assert_allclose(
            highest[order], np.array([lesion.probability_max for lesion in lesions])[places]
        )
    assert len(cuts[0.05][0]) > len(cuts[0.9][0])


def test_figures_of_thresholds_pool_the_scans(load, truth):
    measurements = load("measurements")
    levels = len(measurements.THRESHOLDS)
    hit = measurements.count_detections(np.zeros((1, 3)), truth)
    false = measurements.count_detections(np.full((1, 3), 200.0), truth)
    point, *_, last = measurements.tabulate_thresholds(
        [np.tile(hit, (levels, 1)), np.tile(false, (levels, 1))]
    )
    assert point == {
        "threshold": 0.05, "sensitivity": 0.25, "sensitivity_large": 0, "false_per_scan": 0.5,
        "f1": round(2 / (2 + 1 + 3), 3),
    }  # fmt: skip
    assert last["threshold"] == 0.99
    empty = LesionAnnotations({"sub": "02"}, truth.lesions[:0])
    counts = measurements.count_detections(np.zeros((0, 3)), empty)
    assert measurements.tabulate_thresholds([np.tile(counts, (levels, 1))])[0]["f1"] is None


def test_the_cost_of_a_command_is_that_of_its_largest_process(load):
    measurements = load("measurements")
    large = "b'1' * 600_000_000"
    code = f'import subprocess, sys; subprocess.run([sys.executable, "-c", "{large}"])'
    cost = measurements.measure_command([sys.executable, "-c", code])
    assert cost.peak_mb > 550
    assert 0 < cost.seconds < 60
    with pytest.raises(SystemExit, match="failed with exit code 3"):
        measurements.measure_command([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_calibration_makes_probabilities_the_chances_of_a_hit(load, rng):
    operating_points = load("accuracy.operating_points")
    probability = rng.uniform(0.05, 0.95, 4000)
    chance = 1 / (1 + np.exp(-(0.5 * np.log(probability / (1 - probability)) - 1)))
    centres = np.column_stack([np.arange(4000) * 20.0, np.zeros((4000, 2))])
    hit = rng.random(4000) < chance
    table = pd.DataFrame(centres[hit], columns=POSITION_COLUMNS)
    table = table.assign(diameter_mm=2.0, uncertain=False, included=True)
    scan = operating_points.make_candidates(
        centres, probability, LesionAnnotations({"sub": "01"}, table)
    )
    fitted = operating_points.calibrate_candidates([scan])
    assert fitted["slope"] == pytest.approx(0.5, abs=0.1)
    assert fitted["offset"] == pytest.approx(-1, abs=0.1)


# --- One script each ------------------------------------------------------------------------------


def test_the_definition_names_protocols_and_laws_that_exist(definition):
    assert set(definition["protocols"]) <= set(load_presets())
    assert definition["lesion_priors"] == ["default", "other"]
    assert load_priors("default") != load_priors("other")


def test_every_protocol_comes_equally_often_and_each_time_with_another_head(definition, load):
    turns = load("simulated").assign_protocols(definition["protocols"], definition["scans"])
    heads = definition["anatomy"]
    met = {(name, heads[at % len(heads)]) for at, name in enumerate(turns)}
    assert len(met) == min(len(turns), len(definition["protocols"]) * len(heads))
    assert len({turns.count(name) for name in definition["protocols"]}) == 1


def test_only_the_named_heads_are_used(load, tmp_path):
    link_heads = load("simulated").link_heads
    anatomy, chosen = tmp_path / "anatomy", tmp_path / "chosen"
    for folder in (anatomy, chosen):
        folder.mkdir()
    for name in ("head_01.nii.gz", "head_16.nii.gz"):
        (anatomy / name).touch()
    link_heads(["head_16.nii.gz"], anatomy, chosen)
    assert [path.name for path in chosen.iterdir()] == ["head_16.nii.gz"]
    with pytest.raises(SystemExit, match=r"needs head_16.*, head_17.*; head_17\S* not found"):
        link_heads(["head_16.nii.gz", "head_17.nii.gz"], anatomy, chosen)


def test_a_gates_threshold_is_the_highest_that_keeps_enough_slices(load):
    gate = load("ablations.gate")
    scans = [SimpleNamespace(slices=[0.9] * 60), SimpleNamespace(slices=[0.8] * 38 + [0.4567, 0.1])]
    assert gate.choose_threshold(scans, 0.98) == 0.8  # two of a hundred may be lost
    assert gate.choose_threshold(scans, 0.99) == 0.456
    assert gate.choose_threshold(scans, 1.0) == 0.1


def test_an_ideal_reader_accepts_what_is_true_and_marks_what_is_missed(load):
    fine_tuning = load("accuracy.fine_tuning")
    true = [[0, 0, 0, False], [30, 0, 0, True], [60, 0, 0, False], [0, 60, 0, False]]
    table = pd.DataFrame(true, columns=[*POSITION_COLUMNS, "uncertain"])
    table["included"] = [True, False, True, False]  # the last one cannot be seen
    found = [[1, 0, 0], [31, 0, 0], [90, 0, 0]]
    rows = [
        {"index": at, **dict(zip(POSITION_COLUMNS, place, strict=True))}
        for at, place in enumerate(found, start=1)
    ]
    lines = fine_tuning.give_verdicts(rows, LesionAnnotations({"sub": "01"}, table))
    assert [line["verdict"] for line in lines] == [
        "accept",
        "unsure",
        "reject",
        "missed",
        "complete",
    ]
    assert [lines[3][axis] for axis in POSITION_COLUMNS] == [60, 0, 0]


def test_detectors_agree_where_lesions_touch_or_lie_near_and_nowhere_else(load):
    fusion = load("ablations.fusion")
    grid = Volume(np.zeros((60, 20, 8), np.float32), np.diag([-1.0, 1, 2, 1]))
    maps = np.zeros((3, 60, 20, 8), np.float32)
    maps[0, 4:14, 5, 4], maps[1, 12:20, 5, 4] = 0.9, 0.5  # share voxels, centres 7 mm apart
    maps[0, 30, 5, 4], maps[2, 30, 7, 4] = 0.8, 0.6  # 2 mm apart
    maps[1, 45, 5, 4], maps[2, 45, 5, 6] = 0.7, 0.7  # 4 mm apart
    maps[0, 55, 15, 4] = 0.2  # below the threshold
    cuts = [fusion.cut_lesions(chance, grid, 0.3, 1.0) for chance in maps]
    size, centres, tops = fusion.merge_lesions(cuts)
    found = sorted(
        zip(size.tolist(), (-centres[:, 0]).round(2).tolist(), tops.round(3).tolist(), strict=True)
    )
    assert found == [(1, 45.0, 0.7), (1, 45.0, 0.7), (2, 12.0, 0.7), (2, 30.0, 0.7)]
    size, _, _ = fusion.merge_lesions([fusion.cut_lesions(maps[0] * 0, grid, 0.3, 1.0)] * 2)
    assert len(size) == 0


def test_a_rule_is_judged_on_scans_that_did_not_choose_its_threshold(load):
    fusion = load("ablations.fusion")
    levels = len(fusion.THRESHOLDS)
    counts = np.zeros((4, levels, 8))
    counts[..., :2] = 1  # a scan, a lesion
    counts[..., 5] = 1  # missed
    counts[::2, 3], counts[1::2, 7] = ([1, 1, 1, 1, 0, 0, 0, 0],) * 2  # hits at one level only
    picked, thresholds = fusion.hold_out(counts)
    assert thresholds == sorted([fusion.THRESHOLDS[3], fusion.THRESHOLDS[7]])
    assert picked[:, 3].sum() == 0  # the other half's level finds nothing here
    figures = fusion.summarize(picked, thresholds)
    assert (figures["sensitivity"], figures["f1"], figures["false_per_scan"]) == (0, 0, 0)
    found = counts[np.arange(4), [3, 7, 3, 7]]
    assert fusion.compare_f1(found, picked) == {"f1": 1, "low": 1, "high": 1}
    assert fusion.compare_f1(found, found) == {"f1": 0, "low": 0, "high": 0}


def test_anchors_are_the_middles_of_a_known_mixture(rng, load):
    cascade = load("ablations.cascade")
    known = np.array([[3, 3], [6, 7], [14, 12], [20, 20]])
    sizes = np.concatenate([size + rng.uniform(-0.5, 0.5, (200, 2)) for size in known])
    anchors = cascade.cluster_anchors(rng.permutation(sizes), 4)
    np.testing.assert_allclose(anchors, known, atol=0.15)
    assert cascade.measure_fit(sizes, anchors) > 0.85
    with pytest.raises(ValueError, match="must not be more than boxes, 3; found 4"):
        cascade.cluster_anchors(sizes[:3], 4)


def test_the_surest_suspects_hold_the_lesions_that_have_one_near(load):
    cascade = load("ablations.cascade")
    true = [[0, 0, 0, False], [30, 0, 0, False], [60, 0, 0, True], [90, 0, 0, False]]
    marks = LesionAnnotations(
        {"sub": "01"}, pd.DataFrame(true, columns=[*POSITION_COLUMNS, "uncertain"])
    )
    places = np.array([[0, 4, 0], [0, 0, 2], [30, 0, 6], [90, 0, 1]], float)
    best = cascade.find_best_confidence(places, np.array([0.3, 0.9, 0.8, 0.2]), marks)
    np.testing.assert_array_equal(best, [0.9, 0, 0.2])  # 6 mm off is off; the unsure is not asked
    rows = [(np.array([0.3, 0.9, 0.8, 0.2]), best), (np.array([0.7]), np.array([0.7]))]
    assert cascade.compute_recall(rows, 1) == 1 / 4  # two suspects: 0.9 and 0.8
    assert cascade.compute_recall(rows, 2) == 2 / 4
    assert cascade.compute_recall(rows, 50) == 3 / 4
    nobody = cascade.find_best_confidence(np.zeros((0, 3)), np.zeros(0), marks)
    np.testing.assert_array_equal(nobody, [0, 0, 0])


def spot(**measures):
    """A dark spot that is round and deep but for what is given."""
    usual = {"contrast": 0.6, "elongation": 1.2, "overrun": 0.0, "depth": 9.0, "ring_high": 1.1}
    return SimpleNamespace(**usual | measures)


def test_only_round_dark_spots_are_counted_and_a_simulator_that_makes_too_many_fails(load, capsys):
    dark_spots = load("accuracy.dark_spots")
    spots = [
        spot(), spot(contrast=0.4), spot(contrast=0.2), spot(elongation=2), spot(overrun=3),
        spot(depth=2), spot(ring_high=1.7),
    ]  # fmt: skip
    counts = dark_spots.count_spots(spots)
    assert list(counts.values()) == [4, 3, 2]
    real = json.loads((BENCHMARKS / "results" / "dark-spots-real.json").read_text("utf-8"))
    assert not any("sub" in str(value) for scan in real["counts"] for value in scan.values())
    assert dark_spots.compare_with_real(real, real) == 0
    many = {kind: count * 100 for kind, count in counts.items()}
    report = {"spots per scan": dark_spots.summarize_counts([many])}
    assert dark_spots.compare_with_real(report, real) == 1
    assert "outside the range of real scans" in capsys.readouterr().out


# --- The code -------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A package of three modules in a circle of two, with a run of statements that comes twice."""
    twin = "\n".join(f"    {{0}} = sum(each * {n} for each in {{0}})" for n in range(6))
    sources = {
        "bids_cmb/__init__.py": '"""A package."""\n',
        "bids_cmb/upper/__init__.py": "",
        "bids_cmb/upper/first.py": "from bids_cmb.upper import second\n\n\n"
        + f'def add(a, b, c, d, e, f, *, g):\n    """Add."""\n{twin.format("a")}\n    return a\n',
        "bids_cmb/upper/second.py": "from bids_cmb.upper.first import add\n\n\n"
        + f"def double(self, numbers):\n{twin.format('numbers')}\n    print(numbers)\n",
        "bids_cmb/lower.py": "def wait():\n    from bids_cmb import upper\n    return upper\n",
        "tests/test_add.py": "def test_add():\n    assert True\n",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_size_of_a_checkout_is_what_one_counts_by_hand(load, checkout):
    assert load("code_size").measure_code(checkout) == {
        "modules": 5, "packages": 1, "module_circles": 1, "package_circles": 0, "functions": 3,
        "body_median": 7, "body_p90": 7, "body_max": 7, "parameters_max": 7, "many_parameters": 1,
        "long_modules": 0, "duplicates": 1, "duplicates_tests": 0, "lines": 27, "lines_tests": 2,
    }  # fmt: skip


def test_the_cost_of_a_suite_is_given_by_folder(load, checkout):
    (checkout / "pyproject.toml").touch()
    (checkout / "tests" / "slow").mkdir()
    busy = "import time\n\n\ndef test_wait():\n    while time.process_time() < 1.5:\n        pass\n"
    (checkout / "tests" / "slow" / "test_wait.py").write_text(busy)
    seconds = load("code_size").measure_suite(checkout, ["slow"])
    assert list(seconds) == ["slow"]
    assert 1.4 < seconds["slow"] < 10


def test_a_false_alarm_is_caused_by_the_nearest_mimic_within_three_millimetres(load):
    """Candidates on a vein, 8 mm from it in the brain, beyond the brain; on a bleed; a double."""
    false_alarms = load("accuracy.false_alarms")
    labels, brain = np.zeros((40, 40, 10), np.uint16), np.zeros((40, 40, 10), np.uint8)
    labels[10, 10, 5], labels[12:14, 10, 5], brain[4:36, 4:36, 1:9] = 1, 2, 1
    labels, brain = Volume(labels, OBLIQUE), Volume(brain, OBLIQUE)
    drawn = np.argwhere(labels.data)
    kinds = np.array(["", "pial dot", "cortical vein"])[labels.data[tuple(drawn.T)]]
    mimics = Mimics({"pial dot": 1, "cortical vein": 1}, labels.world(drawn), kinds)
    voxels = np.array([(12, 10, 5), (28, 10, 5), (1, 1, 5), (20, 30, 5), (20, 31, 5)])
    positions = labels.world(voxels)
    scan = operating_points.ScanCandidates(
        "x", positions, np.ones(5), np.ones(5), ((tuple(positions[3]), 3.0, True),),
        doubles=((3, 4),),
    )  # fmt: skip
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    alarms = false_alarms.find_false_alarms(scan, scores, 0.65)
    np.testing.assert_allclose(alarms, positions[:3])
    np.testing.assert_allclose(false_alarms.find_false_alarms(scan, scores, 0.1), positions[:3])
    causes = false_alarms.find_causes(mimics, brain, alarms)
    assert causes == ["cortical vein", false_alarms.TISSUE, false_alarms.OUTSIDE]


# --- Throughput -----------------------------------------------------------------------------------


def test_the_busy_share_counts_as_long_as_every_worker_has_scans(load):
    """Ten seconds, of which seven are busy; what the second worker asks later does not count."""
    times = [(1, 0, 4), (2, 5, 7), (1, 9, 10), (2, 10, 30)]
    rows = [
        {"worker": worker, "began": float(began), "ended": float(ended)}
        for worker, began, ended in times
    ]
    assert load("speed.pipeline").measure_busy_share(rows) == pytest.approx(0.7)


def test_copies_of_a_scan_are_other_participants(load, tmp_path):
    scan = tmp_path / "raw/sub-01/ses-1/anat/sub-01_ses-1_T2starw.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"a scan")
    (tmp_path / "raw/dataset_description.json").write_text("{}")
    assert load("speed.pipeline").copy_dataset(tmp_path / "raw", tmp_path / "more", 2) == 2
    found = sorted((tmp_path / "more").rglob("*.nii.gz"))
    assert [path.name for path in found] == [
        f"sub-01copy{number}_ses-1_T2starw.nii.gz" for number in (0, 1)
    ]
    assert found[1].parent == tmp_path / "more/sub-01copy1/ses-1/anat"
    assert found[1].read_bytes() == b"a scan"
