"""From nothing to a detector: what is there stays, budgets are shared, operating points hold."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from bids_cmb.detection.calibration import calibrate
from bids_cmb.metrics.matching import match_valdo
from bids_cmb.metrics.scores import compute_metrics
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import USE_KEYS, load_card
from bids_cmb.simulation.protocols import resolve_protocols
from bids_cmb.training import release as module
from bids_cmb.training.operating_points import (
    ScanCandidates,
    detect_with_points,
    find_best_f1_threshold,
    fit_calibration,
    set_operating_points,
)
from bids_cmb.training.release import (
    ReleaseOptions,
    locate_protocols,
    read_plan,
    release,
    simulate_set,
    train_network,
)
from bids_cmb.training.train import read_recipe


def judged(rng, *, scans=40, slope=2.0, offset=-1.0):
    """Scans with candidates whose chance, after that logistic curve, is the truth."""
    made = []
    for number in range(scans):
        odds = rng.normal(0, 2, 30)
        hit = rng.random(30) < 1 / (1 + np.exp(-(slope * odds + offset)))
        positions = np.column_stack([20.0 * np.arange(30), np.zeros((30, 2))])
        lesions = tuple((tuple(place), 3.0, True) for place in positions[hit].tolist())
        chance = 1 / (1 + np.exp(-odds))
        made.append(ScanCandidates(f"sub-{number:02d}", positions, chance, chance, lesions))
    return made


def test_calibration_finds_the_curve_that_the_truth_was_drawn_by(rng):
    found = fit_calibration(judged(rng))
    assert found["slope"] == pytest.approx(2.0, abs=0.3)
    assert found["offset"] == pytest.approx(-1.0, abs=0.3)


def test_candidates_of_unsure_lesions_say_nothing_about_the_calibration(rng):
    made = judged(rng)
    others = [
        replace(
            one,
            positions=np.vstack([one.positions, [[900.0, 900, 900]]]),
            proposed=np.append(one.proposed, 0.5),
            chance=np.append(one.chance, 0.999),
            lesions=(*one.lesions, ((900.0, 900.0, 901.0), 2.0, False)),
        )
        for one in made
    ]
    assert fit_calibration(others) == pytest.approx(fit_calibration(made), abs=2e-3)


def test_operating_points_cost_no_more_than_they_may(rng):
    card = set_operating_points(judged(rng), {"sensitive": 2.0, "balanced": 0.5, "specific": 0.2})
    points = {one["name"]: one for one in card["operating_points"]}
    for one in points.values():
        assert one["false_per_scan"] <= one["false_per_scan_aimed_at"]
    assert points["sensitive"]["threshold"] <= points["balanced"]["threshold"]
    assert points["balanced"]["threshold"] <= points["specific"]["threshold"]
    assert points["sensitive"]["sensitivity"] >= points["specific"]["sensitivity"] > 0
    assert card["threshold"] == points["balanced"]["threshold"] <= card["definite_threshold"]


def test_a_second_opinion_that_knows_the_truth_is_given_weight_and_one_of_chance_is_not(rng):
    known, chance = [], []
    for one in judged(rng):
        true = np.isin(one.positions[:, 0], [place[0] for place, _, _ in one.lesions])
        noise = rng.normal(0, 1, len(true))
        known.append(replace(one, opinion=expit(np.where(true, 1.5, -1.5) + noise)))
        chance.append(replace(one, opinion=expit(noise)))
    assert fit_calibration(known)["second_opinion_weight"] > 0.5
    assert fit_calibration(chance)["second_opinion_weight"] < 0.1
    assert "second_opinion_weight" not in fit_calibration(judged(rng))
    assert set_operating_points(known, {"balanced": 0.5})["second_opinion_weight"] > 0.5


def test_the_card_states_what_is_found_by_kind_of_protocol_and_on_real_scans(rng):
    kinds = ("thin slices", "thick slices")
    simulated = [
        replace(scan, kind=kinds[number % 4 == 0]) for number, scan in enumerate(judged(rng))
    ]
    real = [replace(scan, contrast="swi") for scan in judged(rng, scans=5)]
    card = set_operating_points(simulated, {"sensitive": 2.0, "balanced": 0.5}, real)
    [first, thick, thin] = card["performance"]
    assert (first["data"], first["contrast"], first["scans"]) == ("real", "swi", 5)
    assert first["microbleeds"] == sum(len(scan.lesions) for scan in real)
    assert (thick["kind"], thick["scans"]) == ("thick slices", 10)
    assert (thin["kind"], thin["scans"]) == ("thin slices", 30)
    points = {point["name"]: point for point in card["operating_points"]}
    for name, threshold in ((name, points[name]["threshold"]) for name in points):
        found = [
            next(point["found"] for point in group["points"] if point["threshold"] == threshold)
            for group in (thick, thin)
        ]
        lesions = thick["microbleeds"] + thin["microbleeds"]
        assert sum(found) / lesions == pytest.approx(points[name]["sensitivity"], abs=1e-3)


def test_with_real_scans_the_balanced_threshold_is_set_on_them_and_nothing_else(rng):
    aims = {"sensitive": 2.0, "balanced": 0.5, "specific": 0.2}
    simulated, real = judged(rng), judged(rng, scans=5, slope=1.0, offset=-3.0)
    alone = set_operating_points(simulated, aims)
    card = set_operating_points(simulated, aims, real)
    points = {one["name"]: one for one in card["operating_points"]}
    for name in ("sensitive", "specific"):
        before = next(one for one in alone["operating_points"] if one["name"] == name)
        assert {key: points[name][key] for key in before} == before
    assert card["calibration"] == alone["calibration"]
    balanced = points["balanced"]
    assert card["threshold"] == balanced["threshold"] != alone["threshold"]
    assert balanced["set_on"] == "5 real scans"
    assert balanced["false_per_scan_on_real"] <= 0.6
    for other in np.linspace(0.02, 0.98, 25):  # none is better there at so few false ones
        scored = [one.match(calibrate(one.chance, card["calibration"])) for one in real]
        metrics = compute_metrics(scored, match_valdo, threshold=other)
        assert metrics.fp_per_scan > 0.6 or not metrics.f1 > balanced["f1_on_real"] + 0.001


def test_a_threshold_lies_between_the_last_candidate_that_counts_and_the_next():
    positions = np.column_stack([20.0 * np.arange(4), np.zeros((4, 2))])
    lesions = tuple((tuple(place), 3.0, True) for place in positions[[0, 1]].tolist())
    chances = np.array([0.9, 0.8, 0.2, 0.1])
    one = ScanCandidates("sub-01", positions, chances, chances, lesions)
    threshold = find_best_f1_threshold([one.match(chances)], 0.6)
    assert threshold == pytest.approx(0.5, abs=1e-3)  # halfway in log-odds


def test_a_table_of_points_without_their_subject_is_refused(tmp_path):
    table = tmp_path / "points.tsv"
    table.write_text("x_mm\ty_mm\tz_mm\n1\t2\t3\n")
    with pytest.raises(ValueError, match=r"points\.tsv: must have the columns .* lacks subject"):
        next(detect_with_points({}, ModelOptions(), tmp_path, table))


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


def test_the_first_stage_counts_as_much_as_it_knows_besides_the_second(rng):
    made = []
    for number, one in enumerate(judged(rng, slope=1.0, offset=0.0)):
        first = rng.normal(0, 2, 30)
        odds = logit(one.chance)
        hit = rng.random(30) < expit(odds + 0.5 * first - 1)
        lesions = tuple((tuple(place), 3.0, True) for place in one.positions[hit].tolist())
        made.append(replace(one, name=str(number), proposed=expit(first), lesions=lesions))
    found = fit_calibration(made)
    assert found["first_stage_weight"] == pytest.approx(0.5, abs=0.12)
    assert found["slope"] == pytest.approx(1.0, abs=0.2)
    alone = [replace(one, chance=one.proposed) for one in made]
    assert fit_calibration(alone)["first_stage_weight"] == 0


def test_calibration_is_the_best_logistic_curve_wherever_it_lies(rng):
    """Chances near 0 and 1, an offset far from 0: a simplex search once stopped short of it."""
    made = []
    for number, one in enumerate(judged(rng, scans=24)):
        second, first = rng.normal(-3, 2, 30), rng.normal(-4, 3, 30)
        hit = rng.random(30) < expit(1.3 * second + 0.4 * first + 3)
        lesions = tuple((tuple(place), 3.0, True) for place in one.positions[hit].tolist())
        chance, proposed = expit(second), expit(first)
        made.append(
            replace(one, name=str(number), chance=chance, proposed=proposed, lesions=lesions)
        )
    found = fit_calibration(made)

    def surprise(slope, offset, weight):
        total = 0.0
        for one in made:
            odds = slope * (logit(one.chance) + weight * logit(one.proposed)) + offset
            hit = one.match(one.chance).between.min(axis=1, initial=np.inf) < 1
            total += np.sum(np.logaddexp(0, odds) - hit * odds)
        return total

    best = surprise(found["slope"], found["offset"], found["first_stage_weight"])
    for change in ((0.2, 0, 0), (-0.2, 0, 0), (0, 0.3, 0), (0, -0.3, 0), (0, 0, 0.1), (0, 0, -0.1)):
        moved = np.add([found[k] for k in ("slope", "offset", "first_stage_weight")], change)
        assert surprise(*moved) > best
