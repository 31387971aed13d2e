"""Networks that a user trained become a detector that the app takes like its own."""

import json

import numpy as np
import pytest

from bids_cmb.cli.commands import main
from bids_cmb.networks.external.shiva import verify_models
from bids_cmb.networks.model_cards import USE_KEYS, load_card
from bids_cmb.networks.user_models import make_card
from bids_cmb.networks.weights import read_weights, write_weights


@pytest.fixture
def entry(tmp_path):
    """What training leaves: weights, and beside them their entry for a card."""

    def make(name, value=1.0):
        out = tmp_path / name
        digest = write_weights(out / "x.npz", {"w": np.full(3, value)})
        said = {"name": name, "builder": "unet", "arguments": {}, "grid": {"spacing": 1}}
        path = out / f"{name}.json"
        path.write_text(json.dumps({**said, "weights": "x.npz", "sha256": digest}))
        return path

    return make


def test_networks_of_ones_own_are_a_detector_with_the_rules_of_ours(entry, tmp_path):
    models = tmp_path / "models"
    make_card("mine", [("", entry("one", 1.0)), ("two", entry("other", 2.0))], models)
    said, ours = load_card("mine", models), load_card("ensemble")
    assert [one["name"] for one in said["members"]] == ["one", "two"]
    assert said["threshold"] == ours["threshold"]
    assert said["min_volume_mm3"] == ours["min_volume_mm3"]
    assert "metrics" not in said  # those were measured with other networks
    assert verify_models(models) == {"mine": ""}
    second = read_weights(models / said["members"][1]["weights"])  # of one name, both kept
    np.testing.assert_array_equal(second["w"], [2, 2, 2])


def test_parts_that_one_did_not_train_are_the_packages(entry, tmp_path):
    models = tmp_path / "models"
    make_card("mine", [("patches", entry("new"))], models, like="cascade", threshold=0.9)
    parts = {one["name"]: one["sha256"] for one in load_card("mine", models)["members"]}
    ours = {one["name"]: one["sha256"] for one in load_card("cascade")["members"]}
    assert parts["boxes"] == ours["boxes"]
    assert parts["patches"] != ours["patches"]
    assert load_card("mine", models)["design"] == "cascade"
    assert load_card("mine", models)["definite_threshold"] == 0.9  # never below the other
    assert verify_models(models) == {"mine": ""}


@pytest.mark.parametrize("like", ["cascade", "distilled", "gated", "two-stage"])
def test_a_card_like_another_decides_by_all_its_rules(entry, tmp_path, like):
    """All that a card holds but words, the networks, and what was measured with other networks."""
    words = {"name", "description", "limits", "training", "threshold_reason", "members"}
    measured = {"performance", "metrics", "operating_points", "calibration"}
    ours = load_card(like)
    make_card("mine", [(ours["members"][0]["name"], entry("new"))], tmp_path, like=like)
    assert load_card("mine", tmp_path).keys() | words == ours.keys() - measured
    for rule in ours.keys() - words - measured:
        assert load_card("mine", tmp_path)[rule] == ours[rule]


def test_a_network_of_ones_own_is_shown_what_the_one_in_its_place_is_shown(entry, tmp_path):
    made = make_card("mine", [("classifier-1", entry("new"))], tmp_path, like="two-stage")
    ours = {member["name"]: member for member in load_card("two-stage")["members"]}
    for member in json.loads(made.read_text())["members"]:
        for key in USE_KEYS:
            assert member.get(key) == ours[member["name"]].get(key)


def test_the_makers_door_says_how_to_use_the_card(entry, tmp_path, capsys):
    models = tmp_path / "models"
    path = entry("a=b")  # a path may hold what divides part and path
    assert main(["models", "create", "mine", str(path), "--model-dir", str(models)]) == 0
    assert f"--model-dir {models} --detector mine" in capsys.readouterr().out
    assert main(["models", "create", "radial", str(path), "--model-dir", str(models)]) == 1
    assert "must be none of the package's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "part", "like", "sentence"),
    [
        (
            "ensemble",
            "",
            "ensemble",
            "must be none of the package's .*found 'ensemble'",
        ),
        ("../mine", "", "ensemble", "must be letters, digits, .* digit; found '../mine'"),
        ("", "", "ensemble", "must be letters, digits, .* digit; found ''"),
        (".mine", "", "ensemble", "must be letters, digits, .* digit; found '.mine'"),
        ("mine", "nose", "cascade", "A part of cascade must be one of boxes, patches.*found nose"),
    ],
)
def test_names_and_parts_that_cannot_be_are_refused(entry, tmp_path, name, part, like, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_card(name, [(part, entry("one"))], tmp_path / "models", like=like)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "entry.json: an entry that training wrote must be JSON"),
        ('{"name": "x"}', "found no builder, arguments, grid, weights, sha256"),
    ],
)
def test_what_is_no_entry_is_refused(tmp_path, text, sentence):
    (tmp_path / "entry.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        make_card("mine", [("", tmp_path / "entry.json")], tmp_path / "models")


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_a_folder_of_models_that_is_not_there_is_refused(tmp_path, capsys, verb):
    nowhere = tmp_path / "nowhere"
    assert main(["models", verb, "--model-dir", str(nowhere)]) == 1
    said = capsys.readouterr()
    refusal = f"bids_cmb: {nowhere}: --model-dir must be a folder; there is none.\n"
    assert (said.out, said.err) == ("", refusal)


def test_a_folder_without_a_card_is_not_called_unaltered(tmp_path, capsys):
    assert main(["models", "verify", "--model-dir", str(tmp_path)]) == 1
    assert "must hold model cards, .json; found none" in capsys.readouterr().err


def test_weights_that_are_not_those_of_the_entry_are_refused(entry, tmp_path):
    path = entry("one")
    write_weights(path.with_name("x.npz"), {"w": np.zeros(3)})
    with pytest.raises(ValueError, match="must have the checksum of their model card"):
        make_card("mine", [("", path)], tmp_path / "models")
    assert not (tmp_path / "models" / "mine.json").exists()
