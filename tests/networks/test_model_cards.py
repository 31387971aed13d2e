"""Model cards are data: what a model is, where its weights lie, which are its members."""

import json
import os

import pytest

from bids_cmb.networks import model_cards
from bids_cmb.networks.model_cards import (
    ANATOMY,
    DETECTION,
    list_cards,
    load_card,
    locate_weights,
    select_members,
)

MEMBER = {
    "name": "a", "builder": "unet", "arguments": {}, "grid": {}, "weights": "w.npz", "sha256": "0",
}  # fmt: skip
CARD = {
    "name": "mine", "task": DETECTION, "description": "Mine.", "threshold": 0.5,
    "definite_threshold": 0.9, "min_volume_mm3": 1, "members": [MEMBER, {**MEMBER, "name": "b"}],
}  # fmt: skip


def shelf(tmp_path, **contents):
    for name, said in contents.items():
        (tmp_path / f"{name}.json").write_text(said if isinstance(said, str) else json.dumps(said))
    return tmp_path


def test_the_package_has_a_detector_without_and_one_with_networks():
    assert {"radial", "ensemble"} <= set(list_cards(DETECTION))
    assert "members" not in load_card("radial")
    assert len(load_card("ensemble")["members"]) >= 1


def test_every_card_of_the_package_says_where_it_comes_from():
    for name in list_cards():
        said = load_card(name)
        assert said["name"] == name
        for member in select_members(said):
            assert locate_weights(name, member).is_file()
            assert len(member["sha256"]) == 64


def test_a_folder_of_the_user_comes_first(tmp_path):
    models = shelf(tmp_path, mine=CARD, radial={**CARD, "name": "radial"})
    assert "mine" in list_cards(DETECTION, models)
    assert "mine" not in list_cards(ANATOMY, models)
    assert load_card("radial", models)["description"] == "Mine."
    assert locate_weights("mine", MEMBER, models) == tmp_path / "w.npz"


def test_a_card_is_parsed_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    parsed, load = [], model_cards.load_json
    monkeypatch.setattr(model_cards, "load_json", lambda path: parsed.append(path) or load(path))
    models = shelf(tmp_path, mine=CARD)
    load_card("mine", models)["threshold"] = 0.1  # of one's copy
    assert load_card("mine", models)["threshold"] == 0.5
    assert len(parsed) == 1
    shelf(tmp_path, mine={**CARD, "threshold": 0.25})
    assert load_card("mine", models)["threshold"] == 0.25


def test_weights_never_lie_outside_the_folder_of_their_card(tmp_path):
    member = {**MEMBER, "weights": "../../elsewhere/w.npz"}
    assert locate_weights("mine", member, shelf(tmp_path, mine=CARD)) == tmp_path / "w.npz"


def test_folds_are_asked_for_by_name():
    assert [one["name"] for one in select_members(CARD, ("b",))] == ["b"]
    assert len(select_members(CARD)) == 2
    with pytest.raises(ValueError, match=r"--members must name members of mine, a b; found c\."):
        select_members(CARD, ("a", "c"))


@pytest.mark.parametrize("name", ["nobody", "../cards/radial", "/etc/passwd"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=r"A detector must be one of .*radial.*; found "):
        load_card(name)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("{", "must be JSON"),
        ({"name": "mine"}, "must hold a task, cerebral microbleeds or anatomy"),
        ({**CARD, "threshold": 1, "members": [{}]}, "must hold name of each member"),
        ({key: CARD[key] for key in ("name", "task")}, "must hold description, threshold"),
    ],
)
def test_a_card_that_says_too_little_is_refused(tmp_path, said, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_card("mine", shelf(tmp_path, mine=said))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"members": None}, "members of a model card must be a list of networks; found null"),
        ({"members": []}, "members of a model card must be a list of networks"),
        ({"members": [1, 2]}, "each of the members of a model card must be an object; found 1"),
        ({"members": [MEMBER, MEMBER]}, "must have names of their own"),
        ({"members": [{**MEMBER, "grid": 5}]}, "grid of each member .* must be an object"),
        ({"members": [{**MEMBER, "sha256": None}]}, "sha256 of each member .* must be a text"),
        ({"members": [{**MEMBER, "temperature": 0}]}, "temperature .* must be a number above 0"),
        ({"members": [{**MEMBER, "zooms": [0.8]}]}, "zooms .* must be a list of numbers of at"),
        ({"members": [{**MEMBER, "exponents": 2}]}, "exponents .* must be a list of numbers of"),
        ({"members": [{**MEMBER, "flips": [7]}]}, "flips .* must be a list of lists of axes"),
        (
            {"views_for": ["coarse"]},
            'views_for .* a list of kinds of protocol: thin .*"coarse"',
        ),
        ({"views_for": "thin slices"}, 'views_for .* found "thin slices"'),
        (
            {"members": [{**MEMBER, "protocol_kinds": ["swi"]}]},
            'protocol_kinds of each member .* a list of kinds of protocol: thin .*"swi"',
        ),
        ({"threshold": "high"}, 'threshold .* above 0 and up to 1; found "high"'),
        (
            {"threshold": 7},
            "threshold of a model card must be a number above 0 .* found 7",
        ),
        ({"threshold": True}, "threshold .* found true"),
        ({"threshold": float("nan")}, "threshold .* found null"),
        ({"min_volume_mm3": -1}, "min_volume_mm3 .* must be a number of at least 0"),
        ({"citation": "ours"}, "citation .* must be a list of objects with text and doi"),
        ({"calibration": {"slope": 1}}, "calibration .* the numbers slope and offset"),
        ({"name": None}, "name of a model card must be a text; found null"),
        ({"task": ["anatomy"]}, "must hold a task"),
    ],
)
def test_a_card_with_a_value_that_cannot_be_is_refused(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=rf"mine\.json: .*{sentence}"):
        load_card("mine", shelf(tmp_path, mine={**CARD, **changes}))


@pytest.mark.parametrize("text", ['{"x":' + "[" * 100_000, '{"x":' + "[" * 600 + "]" * 600 + "}"])
def test_a_card_of_nested_brackets_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="must be JSON; found more than 64 levels"):
        load_card("mine", shelf(tmp_path, mine=text))


def test_a_broken_card_does_not_hide_the_others(tmp_path):
    models = shelf(tmp_path, mine=CARD, broken="{")
    os.mkfifo(tmp_path / "pipe.json")
    assert "mine" in list_cards(DETECTION, models)
    with pytest.raises(ValueError, match=r"must be one of .*mine.*; found 'other'"):
        load_card("other", models)
    with pytest.raises(ValueError, match="found 'pipe'"):
        load_card("pipe", models)
