"""Detectors say how likely a microbleed is at every voxel of a scan."""

import json

import numpy as np
import pytest
from spots import AFFINE, MIDDLE, SHAPE, SPACING, ball, brain, position, scan, tube

from bids_cmb.detection import ensemble
from bids_cmb.detection.calibration import (
    apply_operating_point,
    calibrate,
    combine_thresholds,
)
from bids_cmb.detection.designs import check_detector
from bids_cmb.detection.ensemble import detect
from bids_cmb.detection.radial import Candidate, run_radial
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import DETECTION, list_cards, load_card


def chance(*things):
    """The highest probability within 3 mm of the middle."""
    near = np.linalg.norm(position(), axis=-1) < 3
    return run_radial(scan(*things), brain()).data[near].max()


def test_a_clean_dot_in_tissue_is_a_microbleed():
    assert chance((ball(3), 0.5)) >= load_card("radial")["threshold"]
    assert chance((ball(3), 0.8)) >= load_card("radial")["definite_threshold"]


@pytest.mark.parametrize("diameter", [2, 3, 5])
def test_dark_dots_of_the_usual_sizes_pass(diameter):
    assert chance((ball(diameter), 0.8)) >= load_card("radial")["threshold"]


@pytest.mark.parametrize(
    ("what", "things"),
    {
        "nothing": [],
        "a faint dot": [(ball(3), 0.2)],
        "a tube through three slices": [(tube(2, 3), 0.6)],
        "a tube through all slices": [(tube(3, 11), 0.6)],
        "a dot in fluid": [(ball(9), -0.8), (ball(2.5), 0.8)],
        "a dot in a dark surround": [(ball(11), 0.5), (ball(2.5), 0.7)],
        "a ball of 14 mm": [(ball(14), 0.7)],
        "an oval three times as long as wide": [(ball(2), 0.7), (ball(2, (2, 0, 0)), 0.7),
                                                (ball(2, (-2, 0, 0)), 0.7)],
    }.items(),
)  # fmt: skip
def test_mimics_are_refused(what, things):
    assert chance(*things) < 0.5 * load_card("radial")["threshold"], what


def test_a_dot_on_the_surface_is_refused():
    near_edge = ball(3, centre=(-0.6 * 26, 0, 0))  # 1.8 mm from the first voxel outside
    assert run_radial(scan((near_edge, 0.6)), brain()).data.max() < 0.5


def test_a_dot_is_painted_where_it_lies():
    at = np.array([6, -7.5, 6])
    found = run_radial(scan((ball(3.5, at), 0.7)), brain())
    index = np.argwhere(found.data >= 0.5)
    true = AFFINE[:3, :3] @ (MIDDLE + at / SPACING) + AFFINE[:3, 3]
    assert np.linalg.norm(found.world(index).mean(axis=0) - true) < 0.5
    width = np.ptp(index, axis=0) * SPACING
    assert np.all(width[:2] <= 4)


def test_probability_lies_between_0_and_1_and_inside_the_brain():
    on_the_edge = ball(3, (-0.6 * 27, 0, 0))
    found = run_radial(scan((ball(3), 0.7), (on_the_edge, 0.7)), brain())
    assert found.data.dtype == np.float32
    assert found.data.min() == 0
    assert 0.9 < found.data.max() <= 1
    assert not found.data[~brain().data].any()
    np.testing.assert_array_equal(found.affine, AFFINE)


def test_the_same_scan_gives_the_same_probability_twice():
    image = scan((ball(3), 0.7))
    np.testing.assert_array_equal(run_radial(image, brain()).data, run_radial(image, brain()).data)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_scan_stored_backwards_gives_the_same_probability(axis):
    order = np.eye(4)
    order[axis, axis], order[axis, 3] = -1, SHAPE[axis] - 1
    image = scan((ball(3), 0.7), (ball(2.5, (8, 9, 3)), 0.6))
    backwards = [Volume(np.flip(v.data, axis), AFFINE @ order) for v in (image, brain())]
    np.testing.assert_allclose(
        np.flip(run_radial(*backwards).data, axis), run_radial(image, brain()).data, atol=1e-5
    )


def test_a_scan_stored_with_slices_first_gives_the_same_probability():
    order = np.eye(4)[:, [2, 0, 1, 3]]
    image = scan((ball(3), 0.7), (ball(2.5, (8, 9, 3)), 0.6))
    turned = [Volume(v.data.transpose(2, 0, 1), AFFINE @ order) for v in (image, brain())]
    np.testing.assert_allclose(
        run_radial(*turned).data.transpose(1, 2, 0), run_radial(image, brain()).data, atol=1e-5
    )


@pytest.mark.parametrize("unit", [1e-4, 7.3, 4096])
def test_the_unit_of_brightness_does_not_matter(unit):
    image = scan((ball(3), 0.7))
    other = Volume((image.data * unit).astype(np.float32), AFFINE)
    np.testing.assert_allclose(
        run_radial(other, brain()).data, run_radial(image, brain()).data, atol=1e-4
    )


def test_one_detector_has_no_spread():
    found = detect("radial", scan((ball(3), 0.7)), brain())
    assert found.detectors == ("radial",)
    assert found.spread is None
    alone = run_radial(scan((ball(3), 0.7)), brain()).data
    np.testing.assert_allclose(found.mean.data, alone, atol=0.6e-4)  # it is rounded


@pytest.fixture
def painters(monkeypatch):
    """A maker of detectors that paint one value everywhere: ``painters(name=(value, threshold))``.

    Definite is what lies halfway between their threshold and 1.
    """

    def make(**told):
        def painter(value):
            return lambda image, *_: Volume(np.full(image.shape, value, np.float32), image.affine)

        cards = {
            name: {
                "name": name,
                "task": DETECTION,
                "parameters": {},
                "threshold": threshold,
                "definite_threshold": (1 + threshold) / 2,
            }
            for name, (_, threshold) in told.items()
        }
        functions = {name: painter(value) for name, (value, _) in told.items()}
        monkeypatch.setattr(ensemble, "load_card", lambda name, *_: cards[name])
        monkeypatch.setattr(ensemble, "FUNCTIONS", functions)
        return detect(list(told), scan(), brain()), combine_thresholds(list(cards.values()))

    return make


def test_several_detectors_are_averaged(painters):
    found, _ = painters(cautious=(0.2, 0.5), bold=(0.8, 0.5))
    assert found.detectors == ("cautious", "bold")
    np.testing.assert_allclose(found.mean.data, 0.5, rtol=1e-6)
    np.testing.assert_allclose(found.spread.data, 0.3, rtol=1e-6)
    assert found.mean.data.dtype == found.spread.data.dtype == np.float32


def test_the_map_of_several_detectors_tells_on_what_scale_it_is(painters):
    found, (threshold, _) = painters(cautious=(0.2, 0.5), bold=(0.8, 0.6))
    assert "by cautious and bold, each on a common scale" in found.description
    assert found.description.endswith(f"the threshold of its model card is {threshold}.")
    alone, _ = painters(cautious=(0.2, 0.5))
    assert alone.description == "Probability of cerebral microbleed, by cautious."


@pytest.mark.parametrize(
    ("answer", "words"), [(np.nan, "nan to nan"), (7.5, "7.5 to 7.5"), (-1, "-1 to -1")]
)
def test_answers_that_are_no_probabilities_are_refused_by_the_name_of_the_detector(
    painters, answer, words
):
    sentence = f"detector odd must give probabilities from 0 to 1; found {words}"
    with pytest.raises(ValueError, match=sentence):
        painters(sound=(0.2, 0.5), odd=(answer, 0.5))


@pytest.mark.parametrize(
    ("first", "second", "lesion"),
    [
        # Each just at its own threshold: a lesion for both, so one for the two of them.
        ((0.9, 0.9), (0.2, 0.2), True),
        # Each well below its own: none, though 0.8 and 0.19 come to more than the other's 0.2.
        ((0.8, 0.9), (0.19, 0.2), False),
        # One as far above its threshold, on its own scale, as the other is below.
        ((0.95, 0.9), (0.1, 0.2), True),
        ((0.94, 0.9), (0.1, 0.2), False),
        # Painted maps: what one does not see at all, the other must be certain of.
        ((0.99, 0.9), (0.0, 0.2), False),
        ((1.0, 0.9), (0.0, 0.2), True),
        ((1.0, 1.0), (0.2, 0.2), True),
    ],
)
def test_detectors_are_weighed_by_how_far_they_are_from_their_own_thresholds(
    painters, first, second, lesion
):
    found, (threshold, _) = painters(a=first, b=second)
    assert (found.mean.data.max() >= threshold) == lesion


def test_what_is_definite_for_each_detector_is_definite_for_their_mean(painters):
    found, (_, definite) = painters(a=(0.95, 0.9), b=(0.6, 0.2))
    assert definite == pytest.approx(0.75)
    assert found.mean.data.max() >= definite
    found, _ = painters(a=(0.94, 0.9), b=(0.59, 0.2))
    assert found.mean.data.max() < definite


def own_card(models, name="radial", **changes):
    said = {**json.loads(json.dumps(load_card("radial"))), "name": name, **changes}
    (models / f"{name}.json").write_text(json.dumps(said))
    return ModelOptions(models)


def test_the_gates_of_ones_own_card_are_those_that_are_used(tmp_path):
    """A gate that nothing passes leaves nothing."""
    spot = scan((ball(3), 0.7))
    assert detect("radial", spot, brain()).mean.data.max() > 0.5
    parameters = json.loads(json.dumps(load_card("radial")["parameters"]))
    parameters["gates"].append(
        {"measure": "diameter", "keep": "above", "midpoint": 500.0, "width": 1.0}
    )
    models = own_card(tmp_path, parameters=parameters)
    check_detector("radial", tmp_path)
    assert detect("radial", spot, brain(), models).mean.data.max() == 0


GATE = {"measure": "diameter", "keep": "above", "midpoint": 1.0, "width": 1.0}


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("mine", {}, "mine: the card of a detector must have members, or the name radial"),
        ("radial", {"parameters": {}}, "parameters must hold gates"),
        (
            "radial",
            {"parameters": {"gates": [{**GATE, "width": "wide"}]}},
            "width must be a number",
        ),
        ("radial", {"parameters": {"gates": [{**GATE, "width": 0}]}}, "a width above 0"),
        ("radial", {"parameters": {"gates": [{**GATE, "measure": "hue"}]}}, "found 'hue'"),
        ("mine", {"design": "telepathy"}, "must have members"),
        ("radial", {"design": "telepathy"}, "must be one of cascade, .*; found 'telepathy'"),
    ],
)
def test_a_card_that_is_no_detector_is_refused_before_any_scan(tmp_path, name, changes, sentence):
    own_card(tmp_path, name, **changes)
    with pytest.raises(ValueError, match=sentence):
        check_detector(name, tmp_path)


def test_a_card_of_something_else_is_no_detector():
    with pytest.raises(
        ValueError, match=r"must be one of .*radial.*; found 'anatomy', for anatomy"
    ):
        check_detector("anatomy")


@pytest.mark.parametrize("name", list_cards(DETECTION))
def test_the_cards_of_the_package_are_detectors(name):
    check_detector(name)


def test_every_card_says_what_a_reader_and_the_app_need():
    for name in list_cards(DETECTION):
        told = load_card(name)
        assert told["name"] == name
        assert {"task", "description", "citation"} <= set(told)
        assert {"parameters"} <= set(told) or {"members", "licence", "training"} <= set(told)
        assert 0 < told["threshold"] <= told["definite_threshold"] <= 1
        assert told["min_volume_mm3"] >= 0
        assert all(cited["doi"].startswith("10.") for cited in told["citation"])
        assert json.dumps(told)


def test_every_gate_measures_something_of_a_candidate():
    for gate in load_card("radial")["parameters"]["gates"]:
        assert gate["measure"] in Candidate.__dataclass_fields__
        assert gate["keep"] in {"above", "below"}
        assert gate["width"] > 0
        assert gate["reason"]


def test_an_unknown_detector_is_refused():
    with pytest.raises(ValueError, match=r"must be one of .*radial.*; found 'telepathy'"):
        detect("telepathy", scan(), brain())


@pytest.mark.parametrize("names", [[], ["radial", "radial"]])
def test_detectors_are_named_once_each(names):
    with pytest.raises(ValueError, match="must be named once each; found"):
        detect(names, scan(), brain())


def test_calibration_shifts_the_odds_and_leaves_nothing_at_nothing():
    chances = np.array([0, 0.1, 0.5, 0.9, 1], np.float32)
    assert calibrate(chances, None) is chances
    np.testing.assert_allclose(calibrate(chances, {"slope": 1, "offset": 0}), chances, atol=2e-6)
    halved = calibrate(chances, {"slope": 1, "offset": -np.log(2)})  # the odds are half as high
    np.testing.assert_allclose(halved[1:4], [1 / 19, 1 / 3, 9 / 11], atol=1e-6)
    steeper = calibrate(chances, {"slope": 2, "offset": 0})
    np.testing.assert_allclose(steeper[1:4], [1 / 82, 0.5, 81 / 82], atol=1e-6)
    assert steeper[0] == 0
    assert (np.diff(steeper) > 0).all()


# --- Operating points -----------------------------------------------------------------------------

POINTS = {
    "name": "pair",
    "threshold": 0.5,
    "definite_threshold": 0.8,
    "operating_points": [
        {"name": "sensitive", "threshold": 0.2},
        {"name": "balanced", "threshold": 0.5},
        {"name": "specific", "threshold": 0.9},
    ],
}


def test_an_operating_point_sets_the_threshold_and_balanced_is_that_of_the_card():
    assert apply_operating_point(POINTS, "balanced") == POINTS
    assert apply_operating_point(POINTS, "sensitive")["threshold"] == 0.2
    specific = apply_operating_point(POINTS, "specific")
    assert specific["threshold"] == 0.9
    assert specific["definite_threshold"] == 0.9  # never below the other


def test_an_operating_point_that_a_card_lacks_is_refused():
    rule = "ensemble: --operating-point must be one that its model card has; found sensitive"
    with pytest.raises(ValueError, match=rule):
        apply_operating_point(load_card("ensemble"), "sensitive")
    assert apply_operating_point(load_card("ensemble"), "balanced") == load_card("ensemble")
