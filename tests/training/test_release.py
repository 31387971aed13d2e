"""From nothing to a detector: what is there stays, budgets are shared, a plan is followed."""

import json

import pytest

from bids_cmb.networks.model_cards import USE_KEYS, load_card
from bids_cmb.simulation.protocols import resolve_protocols
from bids_cmb.training import release as module
from bids_cmb.training.release import (
    ReleaseOptions,
    locate_protocols,
    read_plan,
    release,
    simulate_set,
    train_network,
)
from bids_cmb.training.train import read_recipe


def test_the_plan_of_the_package_names_recipes_sets_and_protocols_that_exist():
    plan = read_plan("two-stage")
    for network in plan["networks"]:
        read_recipe(network["recipe"])
        assert {*network["data"], *network["validation"]} <= set(plan["sets"])
    assert set(plan["judged"]) <= set(plan["sets"])
    for names in plan["protocols"].values():
        resolve_protocols(locate_protocols(names))
    data = {network["recipe"]: set(network["data"]) for network in plan["networks"]}
    for network in plan["networks"]:  # false alarms on scans not learnt from
        assert not any(data[role] & set(network["data"]) for role in network.get("pretrained", ()))
    teaching = [given for given in plan["sets"].values() if given["of"] == "training"]
    assert sum(given["scans"] for given in teaching) >= 300
    assert not set(plan["heads"]["training"]) & set(plan["heads"]["validation"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "a plan must be JSON"),
        ("{}", "must hold name, heads"),
        ("[]", "must be a JSON object"),
    ],
)
def test_a_plan_that_is_none_is_refused_in_a_sentence(text, said, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_plan(str(path))
    with pytest.raises(ValueError, match="JSON file or one of two-stage; found 'x'"):
        read_plan("x")


@pytest.mark.parametrize(
    ("part", "key", "said"),
    [("sets", "law", "a set of a plan has .* only; found law"),
     ("sets", "protocols", "protocols of the set F1 must be one of .*; found anything"),
     ("sets", "of", "heads of the set F1 must be one of training, validation; found anything"),
     ("networks", "given", "a network of a plan has .* only; found given")],
)  # fmt: skip
def test_a_plan_with_a_setting_that_does_not_exist_is_refused(part, key, said, tmp_path):
    """It would be passed over in silence: a network would be trained without what it needs."""
    plan = read_plan("two-stage")
    parts = list(plan[part].values()) if part == "sets" else plan[part]
    parts[-1][key] = "anything"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=said):
        read_plan(str(tmp_path / "plan.json"))


@pytest.mark.parametrize(("part", "key"), [("sets", "of"), ("networks", "share")])
def test_a_plan_whose_set_or_network_lacks_a_setting_is_refused(part, key, tmp_path):
    plan = read_plan("two-stage")
    parts = list(plan[part].values()) if part == "sets" else plan[part]
    del parts[-1][key]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=rf"each {part[:-1]} of a plan must hold .* lacks {key}"):
        read_plan(str(tmp_path / "plan.json"))


def test_a_plan_that_judges_by_a_set_that_it_lacks_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text(
        json.dumps({**read_plan("two-stage"), "judged": ["V", "X"]})
    )
    with pytest.raises(ValueError, match="`judged` must list sets of the plan; found X"):
        read_plan(str(tmp_path / "plan.json"))


@pytest.mark.parametrize("hours", [0, -1, float("nan")])
def test_a_budget_of_nothing_is_refused(hours, tmp_path):
    with pytest.raises(ValueError, match="more than 0 hours"):
        release(read_plan("two-stage"), ReleaseOptions(tmp_path, tmp_path / "work", hours))
    assert not (tmp_path / "work").exists()


@pytest.fixture
def heads_of(tmp_path):
    """A folder with so many files that are called like label maps."""

    def make(count):
        folder = tmp_path / "heads"
        folder.mkdir()
        for number in range(1, count + 1):
            (folder / f"head_{number:02d}.nii.gz").touch()
        return folder

    return make


def test_a_set_is_simulated_once_from_the_heads_that_the_plan_names(
    heads_of, tmp_path, monkeypatch
):
    calls = []

    def pretend(folder, wanted, **_):
        heads = sorted(path.name for path in wanted.anatomy.iterdir())
        calls.append((heads, wanted.scans, wanted.priors, wanted.protocols[0]))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset_description.json").write_text("{}")
        return []

    monkeypatch.setattr(module, "simulate_dataset", pretend)
    plan, means = read_plan("two-stage"), ReleaseOptions(heads_of(15), tmp_path / "work")
    half_made = tmp_path / "work" / "sets" / "V.part"
    (half_made / "sub-01").mkdir(parents=True)
    for _ in range(2):
        folder = simulate_set("V", plan["sets"]["V"], plan, means, print)
    of_v = (["head_14.nii.gz", "head_15.nii.gz"], 24, "default", "alfa-t2star")
    assert calls == [of_v]
    assert folder == tmp_path / "work" / "sets" / "V"
    assert not half_made.exists()
    assert (folder / "sub-01").is_dir()  # what was made before it was stopped is kept
    simulate_set("T2", plan["sets"]["T2"], plan, means, print)
    assert calls[1][1:] == (16, "default", "generic-swi-3t")


def test_the_networks_of_a_release_are_used_as_the_plan_says(tmp_path, monkeypatch):
    entries = {}
    for name in ("first", "second", "helper"):
        entries[name] = ({"name": name, "weights": f"{name}.npz"}, tmp_path / f"{name}.json")
        (tmp_path / f"{name}.npz").touch()
    monkeypatch.setattr(module, "train_network", lambda given, *_: entries[given["recipe"]])
    monkeypatch.setattr(module, "detect_in_dataset", lambda *_: [])
    monkeypatch.setattr(module, "set_operating_points", lambda *_: {"threshold": 0.3})
    networks = [
        {"recipe": "helper", "member": False},
        {"recipe": "first", "use": {"zooms": [1.25]}},
        {"recipe": "second"},
    ]
    plan = {**read_plan("two-stage"), "sets": {}, "networks": networks, "judged": []}
    card = release(plan, ReleaseOptions(tmp_path, tmp_path / "work"))
    assert card["members"] == [{**entries["first"][0], "zooms": [1.25]}, entries["second"][0]]
    assert json.loads((tmp_path / "work" / "release" / "two-stage.json").read_text()) == card


def test_the_threshold_is_set_on_real_scans_that_are_judged_with_the_operating_points(
    tmp_path, monkeypatch
):
    """A card that has them is asked for second opinions as the app asks, one without is not."""
    calls = []

    def detect(card, *_):
        calls.append("operating_points" in card)
        return iter(["a real scan"])

    def set_points(scans, aims, real=()):
        assert (scans, aims["balanced"]) == ([], 2.0)
        return {"operating_points": [{"threshold": 0.1}], "threshold": 0.3 if real else 0.5}

    monkeypatch.setattr(module, "detect_with_points", detect)
    monkeypatch.setattr(module, "set_operating_points", set_points)
    plan = {**read_plan("two-stage"), "sets": {}, "networks": [], "judged": []}
    options = ReleaseOptions(tmp_path, tmp_path / "work", real=(tmp_path, tmp_path / "points.tsv"))
    assert release(plan, options)["threshold"] == 0.3
    assert calls == [True]


def test_the_plan_uses_its_networks_as_the_card_that_ships_does():
    plan, card = read_plan("two-stage"), load_card("two-stage")
    planned = {network["recipe"]: network.get("use", {}) for network in plan["networks"]}
    for member in card["members"]:
        seen = {key: member[key] for key in USE_KEYS if key in member}
        assert seen == planned[member["name"]]
    assert card["views_for"] == plan["card"]["views_for"]


def test_a_network_begins_with_the_weights_of_the_one_that_the_plan_names(tmp_path, monkeypatch):
    begun = {}

    def pretend(recipe, material, out, **_):
        begun[recipe.name] = material.start
        out.mkdir(parents=True)
        (out / f"{recipe.name}.json").write_text(json.dumps({"name": recipe.name}))

    monkeypatch.setattr(module, "train", pretend)
    options = ReleaseOptions(tmp_path, tmp_path / "work")
    common = {"data": ["T1"], "validation": ["V"], "share": 1}
    for given in (
        {"recipe": "classifier-1"},
        {"recipe": "classifier-thin", "start": "classifier-1"},
    ):
        network = {**common, **given}
        train_network(network, {"networks": [network]}, options, print)
    first = tmp_path / "work" / "runs" / "classifier-1" / "classifier-1.npz"
    assert begun == {"classifier-1": None, "classifier-thin": first}


def test_too_few_heads_are_told(heads_of, tmp_path):
    plan, means = read_plan("two-stage"), ReleaseOptions(heads_of(3), tmp_path / "work")
    with pytest.raises(ValueError, match="needs 15 label maps of heads; found 3"):
        simulate_set("V", plan["sets"]["V"], plan, means, print)


def test_networks_share_the_hours_and_a_trained_one_stays(tmp_path, monkeypatch):
    shares = {}

    def pretend(recipe, material, out, *, hours, log):  # noqa: ARG001
        shares[recipe.name] = hours
        out.mkdir(parents=True)
        (out / f"{recipe.name}.json").write_text(json.dumps({"name": recipe.name}))

    monkeypatch.setattr(module, "train", pretend)
    plan, means = read_plan("two-stage"), ReleaseOptions(tmp_path, tmp_path / "work", hours=2.0)
    for network in plan["networks"]:
        entry, path = train_network(network, plan, means, print)
        assert entry["name"] == network["recipe"]
        assert path.is_file()
    assert sum(shares.values()) == pytest.approx(2.0)
    monkeypatch.setattr(module, "train", None)
    train_network(plan["networks"][0], plan, means, print)
