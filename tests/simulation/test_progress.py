"""An interrupted simulation goes on where it was, and ends as if nothing had happened."""

from dataclasses import replace

import numpy as np
import pytest
from grids import OBLIQUE

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation import dataset as dataset_module
from bids_cmb.simulation.dataset import DatasetPlan, simulate_dataset
from bids_cmb.simulation.protocols import load_presets
from bids_cmb.simulation.simulate import SimulatedScan

FACTS = {"age": 70.0, "sex": "F", "head": "made", "dress": "whole", "snr": 20.0, "handed": 1}


@pytest.fixture
def quick(monkeypatch):
    """Scans of noise instead of simulated ones; the list of participants begun."""
    begun, protocol = [], load_presets()["alfa-t2star"]

    def simulate(rng, job):
        begun.append(job.index)
        noise = Volume(rng.random((4, 5, 6)).astype(np.float32), OBLIQUE)
        labels = Volume(np.zeros((4, 5, 6), np.uint16), OBLIQUE)
        yield SimulatedScan(noise, None, None, *[labels] * 4, [], [], protocol, FACTS)

    monkeypatch.setattr(dataset_module, "_simulate_sessions", simulate)
    return begun


def read_tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


@pytest.fixture
def interrupted(quick, tmp_path, monkeypatch):
    """A simulation of three scans that was stopped while the truth of the third was written."""
    write = dataset_module._write_truth

    def stop_at_third(folder, place, scan):
        if str(place) == "sub-03":
            raise KeyboardInterrupt
        write(folder, place, scan)

    with monkeypatch.context() as patched:
        patched.setattr(dataset_module, "_write_truth", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            simulate_dataset(tmp_path / "stopped", DatasetPlan(3, 8))
    quick.clear()
    return tmp_path / "stopped"


def test_it_ends_with_the_same_bytes_and_makes_only_what_is_missing(interrupted, quick, tmp_path):
    assert not (interrupted / "dataset_description.json").exists()
    progress = []
    numbers = simulate_dataset(
        interrupted, DatasetPlan(3, 8), progress=lambda done, of, _: progress.append((done, of))
    )
    assert quick == [2]
    assert progress == [(1, 1)]
    assert numbers == simulate_dataset(tmp_path / "whole", DatasetPlan(3, 8))
    assert read_tree(interrupted) == read_tree(tmp_path / "whole")


def test_it_does_not_go_on_with_other_arguments(interrupted, quick):
    before = read_tree(interrupted)
    for change, name in (({"seed": 9}, "seed"), ({"priors": "other"}, "priors"),
                         ({"protocols": ["ukb-swi"]}, "protocols")):  # fmt: skip
        with pytest.raises(
            ValueError, match=f"stopped: .* same arguments only; found other {name}"
        ):
            simulate_dataset(interrupted, replace(DatasetPlan(3, 8), **change))
    assert read_tree(interrupted) == before
    assert not quick


def test_a_complete_dataset_is_not_added_to(quick, tmp_path):
    simulate_dataset(tmp_path / "made", DatasetPlan(1, 8))
    assert quick == [0]
    with pytest.raises(ValueError, match="needs an empty folder; found files in it"):
        simulate_dataset(tmp_path / "made", DatasetPlan(2, 8))


def test_what_a_damaged_record_says_was_made_is_made_anew(interrupted, quick, tmp_path):
    (interrupted / ".simulation" / "0.json").write_text("{")
    simulate_dataset(interrupted, DatasetPlan(3, 8))
    assert quick == [0, 2]
    simulate_dataset(tmp_path / "whole", DatasetPlan(3, 8))
    assert read_tree(interrupted) == read_tree(tmp_path / "whole")
