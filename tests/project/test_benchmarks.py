"""The benchmark's definition holds together; building it takes half an hour and is no test."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from bids_cmb.evaluation.annotations import POSITION_COLUMNS, LesionAnnotations
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.lesion_priors import load_priors
from bids_cmb.simulation.protocols import load_presets

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def definition():
    return json.loads((BENCHMARKS / "simulated.json").read_text("utf-8"))


@pytest.fixture
def builder():
    spec = importlib.util.spec_from_file_location("simulated", BENCHMARKS / "simulated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_definition_names_protocols_and_laws_that_exist(definition):
    assert set(definition["protocols"]) <= set(load_presets())
    assert definition["lesion_priors"] == ["default", "other"]
    assert load_priors("default") != load_priors("other")


def test_every_protocol_comes_equally_often_and_each_time_with_another_head(definition, builder):
    turns = builder.turns(definition["protocols"], definition["scans"])
    heads = definition["anatomy"]
    met = {(name, heads[at % len(heads)]) for at, name in enumerate(turns)}
    assert len(met) == min(len(turns), len(definition["protocols"]) * len(heads))
    assert len({turns.count(name) for name in definition["protocols"]}) == 1


def test_only_the_named_heads_are_used(builder, tmp_path):
    anatomy, chosen = tmp_path / "anatomy", tmp_path / "chosen"
    for folder in (anatomy, chosen):
        folder.mkdir()
    for name in ("head_01.nii.gz", "head_16.nii.gz"):
        (anatomy / name).touch()
    builder.heads(["head_16.nii.gz"], anatomy, chosen)
    assert [path.name for path in chosen.iterdir()] == ["head_16.nii.gz"]
    with pytest.raises(SystemExit, match=r"needs head_16.*, head_17.*; head_17\S* not there"):
        builder.heads(["head_16.nii.gz", "head_17.nii.gz"], anatomy, chosen)


def test_a_gates_threshold_is_the_highest_that_keeps_enough_slices(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gate = importlib.import_module("gate")
    scans = [SimpleNamespace(slices=[0.9] * 60), SimpleNamespace(slices=[0.8] * 38 + [0.4567, 0.1])]
    assert gate.chosen(scans, 0.98) == 0.8  # two of a hundred may be lost
    assert gate.chosen(scans, 0.99) == 0.456
    assert gate.chosen(scans, 1.0) == 0.1


def test_an_ideal_reader_accepts_what_is_true_and_marks_what_is_missed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    fine_tuning = importlib.import_module("fine_tuning")
    true = [[0, 0, 0, False], [30, 0, 0, True], [60, 0, 0, False], [0, 60, 0, False]]
    table = pd.DataFrame(true, columns=[*POSITION_COLUMNS, "uncertain"])
    table["included"] = [True, False, True, False]  # the last one cannot be seen
    found = [[1, 0, 0], [31, 0, 0], [90, 0, 0]]
    rows = [
        {"index": at, **dict(zip(POSITION_COLUMNS, place, strict=True))}
        for at, place in enumerate(found, start=1)
    ]
    lines = fine_tuning.verdicts(rows, LesionAnnotations({"sub": "01"}, table))
    assert [line["verdict"] for line in lines] == [
        "accept",
        "unsure",
        "reject",
        "missed",
        "complete",
    ]
    assert [lines[3][axis] for axis in POSITION_COLUMNS] == [60, 0, 0]


def test_detectors_agree_where_lesions_touch_or_lie_near_and_nowhere_else(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    fusion = importlib.import_module("fusion")
    grid = Volume(np.zeros((60, 20, 8), np.float32), np.diag([-1.0, 1, 2, 1]))
    maps = np.zeros((3, 60, 20, 8), np.float32)
    maps[0, 4:14, 5, 4], maps[1, 12:20, 5, 4] = 0.9, 0.5  # share voxels, centres 7 mm apart
    maps[0, 30, 5, 4], maps[2, 30, 7, 4] = 0.8, 0.6  # 2 mm apart
    maps[1, 45, 5, 4], maps[2, 45, 5, 6] = 0.7, 0.7  # 4 mm apart
    maps[0, 55, 15, 4] = 0.2  # below the threshold
    cuts = [fusion.lesions(chance, grid, 0.3, 1.0) for chance in maps]
    size, centres, tops = fusion.agreed(cuts)
    found = sorted(
        zip(size.tolist(), (-centres[:, 0]).round(2).tolist(), tops.round(3).tolist(), strict=True)
    )
    assert found == [(1, 45.0, 0.7), (1, 45.0, 0.7), (2, 12.0, 0.7), (2, 30.0, 0.7)]
    size, _, _ = fusion.agreed([fusion.lesions(maps[0] * 0, grid, 0.3, 1.0)] * 2)
    assert len(size) == 0


def test_the_surest_suspects_hold_the_lesions_that_have_one_near(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cascade = importlib.import_module("cascade")
    true = [[0, 0, 0, False], [30, 0, 0, False], [60, 0, 0, True], [90, 0, 0, False]]
    marks = LesionAnnotations(
        {"sub": "01"}, pd.DataFrame(true, columns=[*POSITION_COLUMNS, "uncertain"])
    )
    places = np.array([[0, 4, 0], [0, 0, 2], [30, 0, 6], [90, 0, 1]], float)
    best = cascade.best_near(places, np.array([0.3, 0.9, 0.8, 0.2]), marks)
    np.testing.assert_array_equal(best, [0.9, 0, 0.2])  # 6 mm off is off; the unsure is not asked
    rows = [(np.array([0.3, 0.9, 0.8, 0.2]), best), (np.array([0.7]), np.array([0.7]))]
    assert cascade.recall(rows, 1) == 1 / 4  # two suspects: 0.9 and 0.8
    assert cascade.recall(rows, 2) == 2 / 4
    assert cascade.recall(rows, 50) == 3 / 4
    nobody = cascade.best_near(np.zeros((0, 3)), np.zeros(0), marks)
    np.testing.assert_array_equal(nobody, [0, 0, 0])


def spot(**measures):
    """A dark spot that is round and deep but for what is given."""
    usual = {"contrast": 0.6, "elongation": 1.2, "overrun": 0.0, "depth": 9.0, "ring_high": 1.1}
    return SimpleNamespace(**usual | measures)


def test_only_round_dark_spots_are_counted_and_a_simulator_that_makes_too_many_fails(
    monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    dark_spots = importlib.import_module("dark_spots")
    spots = [
        spot(), spot(contrast=0.4), spot(contrast=0.2), spot(elongation=2), spot(overrun=3),
        spot(depth=2), spot(ring_high=1.7),
    ]  # fmt: skip
    counts = dark_spots.counted(spots)
    assert list(counts.values()) == [4, 3, 2]
    real = json.loads((BENCHMARKS / "results" / "dark-spots-real.json").read_text("utf-8"))
    assert not any("sub" in str(value) for scan in real["counts"] for value in scan.values())
    assert dark_spots.beside(real, real) == 0
    many = {kind: count * 100 for kind, count in counts.items()}
    report = {"spots per scan": dark_spots.summed([many])}
    assert dark_spots.beside(report, real) == 1
    assert "outside the range of real scans" in capsys.readouterr().out
