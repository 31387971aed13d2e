"""The self-test says what it tried, and what is off."""

import json

import pytest

from bids_cmb.cli.run import main
from bids_cmb.cli.selftest import run_tests
from bids_cmb.networks.model_cards import load_card


@pytest.fixture
def broken(tmp_path):
    """A folder of models whose weights are other numbers than those of their card."""
    said = {**load_card("ensemble"), "name": "mine"}
    (tmp_path / "mine.json").write_text(json.dumps(said))
    for member in said["members"]:
        (tmp_path / member["weights"]).write_bytes(b"other numbers")
    return tmp_path


def test_weights_that_are_not_those_of_their_card_are_off(broken, capfd, monkeypatch):
    monkeypatch.setattr("bids_cmb.cli.selftest.list_cards", lambda **_: ["mine"])
    assert main(["selftest", "--model-dir", str(broken)]) == 1
    said = capfd.readouterr()
    assert "weights must have the checksum of their model card" in said.err
    assert "self-test failed" in said.out


def test_a_gpu_that_was_asked_for_and_is_not_there_is_off(tmp_path, monkeypatch):
    monkeypatch.setattr("bids_cmb.networks.backend.describe_device", lambda: "CPU")
    monkeypatch.setattr("bids_cmb.cli.selftest._count_lesions", lambda *_: [])
    told = []
    wrong = run_tests(tmp_path, models=None, device="gpu", log=told.append)
    assert len(wrong) == 1
    assert "--device gpu needs a GPU that can be used" in wrong[0]
    for name in ("ensemble", "cascade"):
        assert any(line.startswith(f"{name}, member") for line in told)


@pytest.mark.slow
def test_here_all_is_well(capfd):
    assert main(["selftest", "--device", "cpu"]) == 0
    assert "self-test passed" in capfd.readouterr().out
