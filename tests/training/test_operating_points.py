"""Operating points of a detector of two stages: calibration, thresholds, opinions asked."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from grids import OBLIQUE
from scipy.special import expit, logit

from bids_cmb.detection import two_stage
from bids_cmb.detection.calibration import calibrate
from bids_cmb.detection.proposals import Proposal
from bids_cmb.imaging.preprocessing import Preprocessed
from bids_cmb.imaging.volume import Volume
from bids_cmb.metrics.matching import match_valdo
from bids_cmb.metrics.scores import compute_metrics
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.training import operating_points as module
from bids_cmb.training.operating_points import (
    ScanCandidates,
    detect_in_scan,
    detect_with_points,
    find_best_f1_threshold,
    fit_calibration,
    set_operating_points,
)


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


def test_opinions_are_asked_for_as_the_app_asks(monkeypatch):
    """Weight 0.5 and full agreement add 4.6 to the log-odds: 0.02 becomes 0.67, 0.005 0.33."""
    places = [(20, 30, 9), (40, 36, 9), (60, 40, 9)]
    chances = np.array([0.3, 0.02, 0.005], np.float32)
    image = Volume(np.ones((80, 72, 20), np.float32), OBLIQUE)
    first_stage = Volume(np.zeros(image.shape, np.float32), OBLIQUE)
    proposals = [Proposal(place, 0.9) for place in places]
    proposed = (Preprocessed(image, Volume(image.data > 0, OBLIQUE)), first_stage, proposals)
    called_for = []

    def agree(*given):
        called_for.append(given[-1])
        return np.ones(len(given[-1]))

    def decide(*given):
        assert given[3]["first_stage_weight"] == 0  # what is kept is the second stage alone
        return chances

    monkeypatch.setattr(module, "load", lambda _: (image, None))
    monkeypatch.setattr(module, "segment_with_network", lambda *_: SimpleNamespace(head=None))
    monkeypatch.setattr(module, "get_brain_mask", lambda *_: SimpleNamespace(mask=None))
    monkeypatch.setattr(module, "propose", lambda *_: proposed)
    monkeypatch.setattr(module, "decide", decide)
    monkeypatch.setattr(module, "predict_second_opinion", agree)
    card = {"name": "p", "members": [], "second_opinion": "ensemble", "second_opinion_weight": 0.5}
    points = {"operating_points": [{"name": "sensitive", "threshold": 0.5}]}
    of_all = detect_in_scan(card, ModelOptions(), Path("sub-1_T2starw.nii.gz"), (), name="1")
    assert of_all.opinion.tolist() == [1, 1, 1]
    scan = detect_in_scan(card | points, ModelOptions(), Path("sub-1_swi.nii.gz"), (), name="1")
    assert scan.opinion.tolist() == [1, 1, 0]
    np.testing.assert_allclose(called_for[-1], image.world(np.array(places[:2])))
    # the first stage lifts all of them, so it is asked about all
    surer = card | points | {"first_stage_weight": 1.0}
    scan = detect_in_scan(surer, ModelOptions(), Path("sub-1_swi.nii.gz"), (), name="1")
    assert scan.opinion.tolist() == [1, 1, 1]
    # and the app asks the same
    app = []
    monkeypatch.setattr(two_stage, "propose", lambda *_: proposed)
    monkeypatch.setattr(two_stage, "decide", lambda *_: chances)
    ask = lambda positions: app.append(positions) or agree(positions)  # noqa: E731
    two_stage.run_two_stage(image, None, card | points, ModelOptions(), None, ask)
    np.testing.assert_allclose(app[0], called_for[1])
