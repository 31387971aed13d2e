"""The benchmark's definition holds together; building it takes half an hour and is no test."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bids_cmb.laws import law
from bids_cmb.protocols import presets

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


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
    assert set(definition["protocols"]) <= set(presets())
    assert definition["variants"] == ["default", "other"]
    assert law("default") != law("other")


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
