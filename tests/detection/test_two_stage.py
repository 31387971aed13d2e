"""Two stages: U-Nets propose, a classifier decides, and neighbouring lesions stay apart."""

import json
from dataclasses import replace

import numpy as np
import pytest
from grids import OBLIQUE
from networks import write_member
from phantoms import part_of_brain, shaken, stripped
from scipy.ndimage import distance_transform_edt

from bids_cmb.anatomy.scan_anatomy import AnatomyResult, BrainMask
from bids_cmb.anatomy.segmentation import Anatomy
from bids_cmb.detection import ensemble, two_stage
from bids_cmb.detection.proposals import (
    ANATOMY_FROM,
    CHANNELS,
    PLACE_FEATURES,
    Proposal,
    ProposalRules,
    cut_patch,
    describe_places,
    find_proposals,
    mask_hidden,
)
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.preprocessing import BRAIN_SHELL_MM, Preprocessed
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import DetectionMap, Thresholds, find_lesions
from bids_cmb.networks.architectures.classifier import classifier
from bids_cmb.networks.architectures.unet import unet
from bids_cmb.networks.inference import Network
from bids_cmb.networks.loading import ModelOptions, load_network, load_patch_model
from bids_cmb.networks.weights import read_weights
from bids_cmb.training.inputs import TrainingData
from bids_cmb.training.recipe import Sources
from bids_cmb.training.scan_files import find_training_scans
from bids_cmb.training.scan_loading import TrainingScan, load_scan_and_brain
from bids_cmb.training.tasks import proposal_classification
from bids_cmb.training.train import TASKS, build_network, read_recipe, train

SHAPE = (80, 72, 20)  # of OBLIQUE: 0.5 x 0.5 x 2 mm, LAS, turned


def bumps(*places, width=0.7, affine=OBLIQUE, shape=SHAPE):
    """A probability map with a Gaussian of that width in mm at each (voxel, height)."""
    grid = Volume(np.zeros(shape, np.float32), affine)
    index = np.stack(np.indices(shape), axis=-1)
    for voxel, height in places:
        away = (index - voxel) * grid.spacing
        grid.data[:] = np.maximum(
            grid.data, height * np.exp(-(away**2).sum(axis=-1) / 2 / width**2)
        )
    return grid


def everywhere(shape=SHAPE):
    return np.ones(shape, bool)


def whole_brain():
    return Volume(everywhere(), OBLIQUE)


# --- Proposals ------------------------------------------------------------------------------------


def test_two_lesions_three_millimetres_apart_are_two_proposals_the_likelier_first():
    found = find_proposals(
        bumps(((40, 36, 9), 0.6), ((46, 36, 9), 0.9)), whole_brain(), ProposalRules()
    )
    assert [one.voxel for one in found] == [(46, 36, 9), (40, 36, 9)]
    assert [one.probability for one in found] == pytest.approx([0.9, 0.6], abs=1e-3)


def test_two_peaks_within_a_millimetre_are_one_proposal():
    found = find_proposals(
        bumps(((40, 36, 9), 0.6), ((42, 36, 9), 0.9), width=0.4), whole_brain(), ProposalRules()
    )
    assert [one.voxel for one in found] == [(42, 36, 9)]


def test_a_lesion_that_shows_in_two_thick_slices_is_one_proposal():
    found = find_proposals(
        bumps(((40, 36, 9), 0.9), ((40, 37, 10), 0.8)), whole_brain(), ProposalRules()
    )
    assert [one.voxel for one in found] == [(40, 36, 9)]


def test_a_plateau_has_one_peak_and_rules_say_how_many_and_how_likely():
    flat = bumps()
    flat.data[30:36, 30:36, 9] = 1
    assert len(find_proposals(flat, whole_brain(), ProposalRules())) == 1
    three = bumps(((20, 20, 4), 0.9), ((40, 40, 9), 0.5), ((60, 60, 15), 0.1))
    assert len(find_proposals(three, whole_brain(), ProposalRules(floor=0.2))) == 2
    assert len(find_proposals(three, whole_brain(), ProposalRules(most=1))) == 1


def test_beyond_the_number_only_likely_peaks_are_proposals_up_to_a_limit():
    three = bumps(((20, 20, 4), 0.9), ((40, 40, 9), 0.5), ((60, 60, 15), 0.1))

    def count(**rules):
        return len(find_proposals(three, whole_brain(), ProposalRules(**rules)))

    assert count(most=1, likely=0.4) == 2
    assert count(most=1, likely=0.05) == 3
    assert count(most=1, likely=0.05, limit=2) == 2
    assert count(most=3, likely=0.4, limit=2) == 3


def test_proposals_lie_in_the_brain_or_three_millimetres_beyond():
    three = bumps(((20, 20, 4), 0.9), ((40, 40, 9), 0.5), ((60, 60, 15), 0.1))
    for last, number in ((59, 3), (54, 3), (53, 2), (30, 1), (10, 0)):  # pixels of 0.5 mm
        brain = whole_brain()
        brain.data[last + 1 :] = False
        assert len(find_proposals(three, brain, ProposalRules())) == number


def test_proposals_are_in_the_same_places_however_the_axes_are_stored():
    one = bumps(((20, 20, 4), 0.9), ((40, 40, 9), 0.5), ((60, 60, 15), 0.7))
    flip = np.diag([-1.0, -1, 1, 1])
    flip[:2, 3] = SHAPE[0] - 1, SHAPE[1] - 1
    other = Volume(one.data[::-1, ::-1].copy(), one.affine @ flip)
    places = [
        part.world(
            np.array(
                [found.voxel for found in find_proposals(part, whole_brain(), ProposalRules())]
            )
        )
        for part in (one, other)
    ]
    np.testing.assert_allclose(places[0], places[1], atol=1e-6)


def test_unknown_rules_are_refused():
    with pytest.raises(
        ValueError, match=r"may be floor, apart_mm, most, likely, limit; found florr"
    ):
        ProposalRules.from_card({"florr": 1})


def test_a_patch_holds_its_voxel_in_the_middle_also_at_the_border():
    channels = np.zeros((*SHAPE, 3), np.float16)
    for voxel in ((0, 0, 0), (79, 71, 19), (40, 36, 9)):
        channels[voxel] = 5
        assert (cut_patch(channels, voxel, (40, 40, 9))[20, 20, 4] == 5).all()


# --- Place ----------------------------------------------------------------------------------------


def column(name):
    return PLACE_FEATURES.index(name)


def test_place_features_are_distances_in_the_head(anatomy):
    """Against distances counted voxel by voxel on the anatomy's own grid."""
    grid = Volume(np.zeros(SHAPE, np.float32), OBLIQUE)
    labels = anatomy.structures
    white = labels.world(np.argwhere(labels.data == 2)[::500])
    voxels = np.clip(np.rint(grid.index(white)).astype(int), 0, np.array(SHAPE) - 1)
    brain = Volume(everywhere(), OBLIQUE)
    found = describe_places(voxels, grid, brain, anatomy)
    positions = grid.world(voxels)
    ventricle = labels.world(np.argwhere(np.isin(labels.data, (4, 43, 5, 44, 14, 15))))
    nearest = np.linalg.norm(positions[:, None] - ventricle[None], axis=-1).min(axis=1)
    known = np.minimum(nearest, 20) / 10
    np.testing.assert_allclose(found[:, column("distance to ventricle")], known, atol=0.11)
    normal, offset = anatomy.midline
    midline = np.minimum(np.abs(positions @ normal + offset), 20) / 10
    np.testing.assert_allclose(found[:, column("distance to midline")], midline, atol=1e-5)
    assert (found[:, column("anatomy known")] == 1).all()
    alone = np.concatenate([describe_places([voxel], grid, brain, anatomy) for voxel in voxels])
    np.testing.assert_allclose(alone, found, atol=1e-6)  # and the other proposals do not matter


def test_without_an_anatomy_the_place_is_unknown_and_the_shape_is_not():
    grid = bumps(((40, 36, 9), 0.9))
    found = describe_places([(40, 36, 9)], grid, Volume(everywhere(), OBLIQUE), None)
    assert (found[:, ANATOMY_FROM:] == 0).all()
    # Half of a Gaussian of 0.7 mm is 1.65 mm wide: one slice of 2 mm.
    assert found[0, column("diameter")] * 5 == pytest.approx(1.65, abs=0.25)
    assert found[0, column("slices")] * 5 == pytest.approx(1)
    assert found[0, column("spacing")] * 5 == pytest.approx(2)
    assert found.shape == (1, len(PLACE_FEATURES))
    assert describe_places([], grid, Volume(everywhere(), OBLIQUE), None).shape[0] == 0


# --- Lesions one by one ---------------------------------------------------------------------------


def test_two_touching_lesions_are_painted_measured_and_counted_one_by_one():
    probability = bumps(((40, 36, 9), 0.9), ((45, 36, 9), 0.8), width=1.2)
    assert probability.data[40:46, 36, 9].min() > 0.5  # one component at one half
    image = Volume(1 - probability.data, OBLIQUE)
    proposals = find_proposals(probability, whole_brain(), ProposalRules())
    chance, outputs = two_stage.render_proposals(
        image, probability, proposals, np.array([0.7, 0.6])
    )
    brain = Volume(everywhere(), OBLIQUE)
    labels, lesions = find_lesions(
        DetectionMap(chance, instances=outputs.instances), image, brain, Thresholds(0.5, 0.65)
    )
    assert len(lesions) == 2
    for lesion, voxel in zip(lesions, ((40, 36, 9), (45, 36, 9)), strict=True):
        assert np.linalg.norm(lesion.centre - image.world(np.array(voxel))) < 1
    assert (labels.data > 0).sum() == (chance.data >= 0.5).sum()
    merged = find_lesions(DetectionMap(chance), image, brain, Thresholds(0.5, 0.65))[1]
    assert len(merged) == 1


def test_a_refused_proposal_is_no_lesion_and_what_is_no_proposal_still_is_one():
    probability = bumps(((40, 36, 9), 0.9), ((60, 60, 15), 0.8))
    image = Volume(1 - probability.data, OBLIQUE)
    proposals = find_proposals(probability, whole_brain(), ProposalRules())
    chance, outputs = two_stage.render_proposals(
        image, probability, proposals, np.array([0.7, 0.1])
    )
    chance.data[10:12, 10:12, 3] = 0.9  # of another detector
    lesions = find_lesions(
        DetectionMap(chance, instances=outputs.instances), image,
        Volume(everywhere(), OBLIQUE), Thresholds(0.5, 0.8),
    )[1]  # fmt: skip
    places = [tuple(np.rint(one.voxel).astype(int)) for one in lesions]
    assert (40, 36, 9) in places
    assert len(lesions) == 2


def test_an_extent_reaches_down_to_half_of_its_peak_on_another_grid():
    probability = bumps(((40, 36, 9), 0.8), width=1.5)
    coarse = Volume(np.ones((40, 36, 20), np.float32), OBLIQUE @ np.diag([2.0, 2, 1, 1]))
    proposals = find_proposals(probability, whole_brain(), ProposalRules())
    chance, _ = two_stage.render_proposals(coarse, probability, proposals, np.array([0.6]))
    assert set(np.unique(chance.data)) == {0, np.float32(0.6)}
    # Half of a Gaussian of 1.5 mm reaches 1.77 mm: a ball of 23 mm3.
    assert (chance.data > 0).sum() * coarse.voxel_volume == pytest.approx(23, rel=0.4)


def test_a_proposal_smaller_than_a_voxel_keeps_the_nearest_one():
    probability = bumps(((41, 37, 9), 0.8), width=0.2)
    coarse = Volume(np.ones((20, 18, 20), np.float32), OBLIQUE @ np.diag([4.0, 4, 1, 1]))
    found = [Proposal((41, 37, 9), 0.8)]
    chance, _ = two_stage.render_proposals(coarse, probability, found, np.array([0.6]))
    assert 1 <= (chance.data > 0).sum() <= 2
    assert chance.data[10, 9, 9] > 0


# --- The networks ---------------------------------------------------------------------------------

SMALL = {"widths": [4, 6, 8], "place": [4], "dense": 6, "shape": [12, 12, 5]}


def test_a_classifier_in_use_computes_what_was_trained(rng, tmp_path):
    model = shaken(classifier(**SMALL), rng)
    member = write_member(model, tmp_path / "w.npz", "classifier", SMALL)
    ask = load_patch_model(member, tmp_path / "w.npz")
    patches = rng.random((3, 12, 12, 5, 3), np.float32)
    places = rng.random((3, len(PLACE_FEATURES)), np.float32)
    np.testing.assert_allclose(
        ask(patches, places), np.asarray(model([patches, places])), atol=2e-4
    )


@pytest.mark.parametrize("packed", [True, [2, 2, 1]])
@pytest.mark.parametrize("flat", [0, 1])
def test_a_packed_network_asks_for_the_sides_that_it_needs(packed, flat, rng, tmp_path):
    arguments = {"widths": [4, 6, 8], "packed": packed, "flat": flat}
    model = shaken(unet(**arguments), rng)
    member = write_member(model, tmp_path / "w.npz", "unet", arguments)
    network = load_network(member, tmp_path / "w.npz")
    slices = (2 if packed is True else 1) * 2 ** (2 - flat)
    assert network.multiple == (8, 8, slices)
    image = rng.random((16, 8, 2 * slices), np.float32)
    logits = np.asarray(model(image[None, ..., None]))[0, ..., 0]
    np.testing.assert_allclose(network.predict(image, None), 1 / (1 + np.exp(-logits)), atol=1e-4)


@pytest.mark.parametrize("name", ["proposal-1", "proposal-2", "classifier-1"])
def test_the_recipes_build_their_networks(name):
    assert build_network(read_recipe(name)).count_params() > 100_000


def test_first_and_second_stage_share_grid_and_features():
    first, second = read_recipe("proposal-1"), read_recipe("classifier-1")
    assert first.grid == second.grid
    assert second.arguments["places"] == len(PLACE_FEATURES)


def test_faultless_stages_find_every_microbleed_and_nothing_else(heads, monkeypatch):
    """Networks by hand: what is dark is proposed, and only the symmetric ones are bleeds."""
    folder, truth = heads
    image, _ = load(folder / "six.nii.gz")
    brain = part_of_brain(image)

    class Dark:
        pass

    def see_dark(_, image):
        return (1.0 * ((image > 0) & (image < 0.75))).astype(np.float32)

    def load_round(*_, **__):
        def ask(patches, places):
            assert places.shape[1] == len(PLACE_FEATURES)
            return 20 * (patches[:, 18:23, 18:23, 4:5, 2].max(axis=(1, 2, 3)) - 0.5)[:, None]

        return ask

    monkeypatch.setattr(two_stage, "load_network", lambda *_, **__: Dark())
    monkeypatch.setattr(two_stage, "predict", see_dark)
    monkeypatch.setattr(two_stage, "load_predictor", load_round)
    coarse = {**read_recipe("proposal-1").grid, "spacing": [1.0, 1.0, None]}  # a quarter of voxels
    members = [
        {"name": name, "builder": name, "grid": coarse, "weights": "w.npz",
         "arguments": {"shape": [40, 40, 9]}}
        for name in ("unet", "classifier")
    ]  # fmt: skip
    card = {"name": "pair", "members": members, "parameters": {"most": 4000}}
    chance, outputs = two_stage.run_two_stage(image, brain, card, ModelOptions())
    for bleed in truth["six"]:
        index = np.rint(image.index(np.array([bleed.centre])))[0].astype(int)
        around = tuple(slice(at - 2, at + 3) for at in index)
        assert (chance.data[around] > 0.5).any(), bleed
    assert (outputs.instances.data[chance.data > 0] > 0).all()
    assert (chance.data > 0).sum() > 1.2 * (chance.data > 0.5).sum()  # refused ones stay
    again, _ = two_stage.run_two_stage(image, brain, card, ModelOptions())
    np.testing.assert_array_equal(chance.data, again.data)


def test_a_classifier_looks_at_flipped_patches_too_and_its_log_odds_are_averaged(monkeypatch):
    seen = []

    def ask(patches, _):
        seen.append(patches)
        return np.full((len(patches), 1), float(len(seen)))

    monkeypatch.setattr(two_stage, "load_predictor", lambda *_, **__: ask)
    member = {"name": "c", "builder": "classifier", "weights": "w.npz", "flips": [[0], [0, 1]],
              "arguments": {"shape": [40, 40, 9]}}  # fmt: skip
    grid = bumps(((30, 36, 9), 0.9))
    fed = Preprocessed(Volume(1 - grid.data, OBLIQUE), Volume(everywhere(), OBLIQUE))
    proposals = [Proposal((30, 36, 9), 0.9)]
    chance = two_stage.decide(
        fed, grid, proposals, {"name": "p", "members": [member]}, ModelOptions()
    )
    assert chance == pytest.approx(1 / (1 + np.exp(-2.0)))  # of log-odds 1, 2 and 3
    np.testing.assert_array_equal(seen[1], seen[0][:, ::-1])
    np.testing.assert_array_equal(seen[2], seen[0][:, ::-1, ::-1])


def test_a_classifier_may_look_without_the_anatomy_too(monkeypatch):
    def ask(_, places):
        known = places[:, PLACE_FEATURES.index("anatomy known")]
        assert (places[:, PLACE_FEATURES.index("depth")] > 0).all()  # the shape is always shown
        return np.where(known, 4.0, -1.0)[:, None]

    monkeypatch.setattr(two_stage, "load_predictor", lambda *_, **__: ask)
    grid = bumps(((30, 36, 9), 0.9))
    fed = Preprocessed(Volume(1 - grid.data, OBLIQUE), Volume(everywhere(), OBLIQUE))
    white, brain = Volume(np.full(SHAPE, 2, np.uint16), OBLIQUE), Volume(everywhere(), OBLIQUE)
    anatomy = Anatomy(white, brain, (np.array([-1.0, 0, 0]), 0.0), None, None)
    log_odds = []
    for blind in (0.0, 0.25, 1.0):
        member = {"name": "c", "builder": "classifier", "weights": "w.npz", "blind": blind,
                  "arguments": {"shape": [40, 40, 9]}}  # fmt: skip
        card = {"name": "p", "members": [member]}
        proposals = [Proposal((30, 36, 9), 0.9)]
        chance = two_stage.decide(fed, grid, proposals, card, ModelOptions(), anatomy)
        log_odds.append(float(np.log(chance / (1 - chance))[0]))
    assert log_odds == pytest.approx([4.0, 2.75, -1.0], abs=1e-4)


def test_a_second_opinion_is_read_within_two_and_a_half_millimetres_of_a_proposal():
    opinion = bumps(((30, 36, 9), 0.9), width=0.2)
    peak = opinion.world(np.array([[30, 36, 9]]))
    aside = opinion.affine[:3, 0] / np.linalg.norm(opinion.affine[:3, 0])  # along a row
    positions = np.concatenate([peak, peak + 2.4 * aside, peak + 2.6 * aside, peak + 500])
    read = two_stage.read_opinion(opinion, positions)
    assert read[:2] == pytest.approx(0.9)
    assert read[2] < 0.1
    assert read[3] == 0


def test_a_second_opinion_is_the_mean_of_the_members_that_the_card_names(monkeypatch):
    answers = {"a": 0.1, "b": 0.2, "c": 0.4, "d": 0.8}

    def load(member, *_, **__):
        answer = answers[member["name"]]
        return Network(
            member["name"], lambda x, _: np.full(x.shape, answer, np.float32), (1,) * 3, ()
        )

    monkeypatch.setattr(ensemble, "load_network", load)
    image = Volume(bumps(((30, 36, 9), 0.9)).data + 1, OBLIQUE)
    brain = Volume(everywhere(), OBLIQUE)
    positions = image.world(np.array([[20, 20, 5], [30, 36, 9]]))
    models = ModelOptions(members=("b",))  # of the detector, not of who gives it an opinion
    for members, wanted in ((None, 0.375), (["c", "d"], 0.6)):
        card = {"second_opinion": "ensemble"} | (
            {"second_opinion_members": members} if members else {}
        )
        opinion = ensemble.predict_second_opinion(card, image, brain, models, positions)
        assert opinion == pytest.approx(wanted, abs=1e-3)
    assert len(ensemble.predict_second_opinion(card, image, brain, models, positions[:0])) == 0


def answer(probability):
    return lambda positions: np.full(len(positions), probability)


def test_only_proposals_that_it_can_lift_to_an_operating_point_are_given_a_second_opinion(
    monkeypatch,
):
    """Weight 0.5 and full agreement add 4.6 to the log-odds: 0.02 becomes 0.67, 0.005 0.33."""
    places = [(20, 30, 9), (40, 36, 9), (60, 40, 9)]
    probabilities = np.array([0.3, 0.02, 0.005], np.float32)
    grid = bumps(*((place, 0.9) for place in places))
    image = Volume(1 - grid.data, OBLIQUE)
    fed = Preprocessed(image, Volume(everywhere(), OBLIQUE))
    proposals = [Proposal(place, 0.9) for place in places]
    monkeypatch.setattr(two_stage, "propose", lambda *_: (fed, grid, proposals))
    monkeypatch.setattr(two_stage, "decide", lambda *_: probabilities)
    called_for = []

    def agree(positions):
        called_for.append(positions)
        return np.ones(len(positions))

    points = [{"name": "sensitive", "threshold": 0.5}, {"name": "specific", "threshold": 0.9}]
    card = {"name": "p", "members": [], "second_opinion_weight": 0.5, "operating_points": points}
    chance, _ = two_stage.run_two_stage(image, None, card, ModelOptions(), None, agree)
    np.testing.assert_allclose(called_for, [image.world(np.array(places[:2]))])
    lifted = [0.3 / 0.7 * 1e2, 0.02 / 0.98 * 1e2, 0.005 / 0.995 / 1e2]  # odds
    assert [chance.data[place] for place in places] == pytest.approx(
        [odds / (1 + odds) for odds in lifted], rel=0.01
    )


def test_a_second_opinion_on_a_few_proposals_is_nearly_that_of_the_whole_brain():
    image = stripped(seed=3)
    brain = Volume(np.zeros(image.shape, bool), image.affine)
    brain.data[10:40, 10:40, 7:19] = True  # the middle of the ball, with all its spots
    brain.data[image.data == 0] = False
    spots = np.argwhere((image.data == 40) & (distance_transform_edt(brain.data) > 3))[:2]
    positions = image.world(np.vstack([spots, [[25, 25, 13]]]))
    card = {"second_opinion": "ensemble", "second_opinion_members": ["d"]}
    few = ensemble.predict_second_opinion(card, image, brain, ModelOptions(), positions)
    (whole,) = ensemble.run_detector(
        "ensemble", image, brain, ModelOptions(members=("d",)), None, None
    )[0]
    wanted = two_stage.read_opinion(Volume(whole, image.affine), positions)
    assert wanted.max() > 0.5 > wanted.min()
    assert few == pytest.approx(wanted, abs=0.05)


def test_a_second_opinion_moves_the_log_odds_by_its_weight(monkeypatch):
    monkeypatch.setattr(
        two_stage,
        "load_predictor",
        lambda *_, **__: lambda patches, _: 0 * patches[:, 0, 0, 0, :1],
    )
    grid = bumps(((30, 36, 9), 0.9))
    monkeypatch.setattr(
        two_stage, "propose",
        lambda image, *_: (
            Preprocessed(image, Volume(everywhere(), OBLIQUE)), grid, [Proposal((30, 36, 9), 0.9)]
        ),
    )  # fmt: skip
    member = {"name": "c", "builder": "classifier", "weights": "w.npz",
              "arguments": {"shape": [40, 40, 9]}}  # fmt: skip
    card = {"name": "p", "members": [member], "second_opinion_weight": 0.5}
    image = Volume(1 - grid.data, OBLIQUE)
    for opinion, log_odds in ((None, 0.0), (0.8, 0.5 * np.log(4)), (0.0, 0.5 * np.log(1e-4))):
        other = None if opinion is None else answer(opinion)
        chance, _ = two_stage.run_two_stage(image, None, card, ModelOptions(), None, other)
        most = float(chance.data.max())
        assert np.log(most / (1 - most)) == pytest.approx(log_odds, abs=1e-3)


def test_a_lesion_just_outside_the_brain_mask_is_listed_with_the_flag_edge(monkeypatch):
    place = (30, 36, 9)
    grid = bumps((place, 0.9))
    brain = everywhere()
    brain[:34] = False  # the peak lies 2 mm outside
    seen = {}

    def look(image, brain, *_):
        seen["brain"] = brain
        return two_stage.render_proposals(image, grid, [Proposal(place, 0.9)], np.array([0.9]))

    monkeypatch.setitem(ensemble.DESIGNS, "two-stage", look)
    monkeypatch.setattr(ensemble, "predict_second_opinion", lambda *_: np.zeros(1))
    image, mask = Volume(1 - grid.data, OBLIQUE), Volume(brain, OBLIQUE)
    probability = ensemble.detect("two-stage", image, mask)
    assert seen["brain"] is mask  # networks see the mask as it is
    _, lesions = find_lesions(probability.as_map(), image, mask, Thresholds(0.05, 0.5))
    assert [lesion.distance_to_surface for lesion in lesions] == [0]
    assert "edge" in lesions[0].flags
    assert lesions[0].included


def test_members_that_pool_differently_share_an_image_whose_sides_suit_all(monkeypatch, rng):
    """One network needs sides of multiples of 4, the other of 6: the image has those of 12."""
    shapes = []

    def pretend(network, image):
        shapes.append(image.shape)
        return np.full(image.shape, 0.25 if network == "a" else 0.75)

    monkeypatch.setattr(two_stage, "locate_member", lambda card, member, models: member["name"])  # noqa: ARG005
    monkeypatch.setattr(two_stage, "load_network", lambda member, path, precision: path)  # noqa: ARG005
    monkeypatch.setattr(two_stage, "predict", pretend)
    grid = read_recipe("proposal-1").grid
    members = [
        {"name": name, "builder": "unet", "grid": {**grid, "multiple": multiple}}
        for name, multiple in (("a", [4, 4, 2]), ("b", [6, 4, 3]))
    ]
    image = Volume(rng.random((30, 26, 20)), OBLIQUE)
    brain = Volume(np.ones(image.shape, bool), image.affine)
    card = {"name": "pair", "members": members}
    _, probability, _ = two_stage.propose(image, brain, card, ModelOptions())
    assert shapes[0] == shapes[1] == probability.shape
    assert all(side % multiple == 0 for side, multiple in zip(shapes[0], (12, 4, 6), strict=True))
    assert probability.data.max() == pytest.approx(0.5)  # the mean of both


def test_members_on_different_grids_are_refused(heads):
    image, _ = load(heads[0] / "six.nii.gz")
    grid = read_recipe("proposal-1").grid
    members = [
        {"name": "a", "builder": "unet", "grid": grid},
        {"name": "b", "builder": "classifier", "grid": {**grid, "order": 1}},
    ]
    brain = Volume(np.ones(image.shape, bool), image.affine)
    with pytest.raises(ValueError, match="must see one grid; found 2"):
        two_stage.propose(image, brain, {"name": "pair", "members": members}, ModelOptions())
    with pytest.raises(ValueError, match="needs a U-Net; found none"):
        two_stage.propose(image, brain, {"name": "pair", "members": members[1:]}, ModelOptions())


# --- Training -------------------------------------------------------------------------------------


def test_proposals_near_a_lesion_are_it_those_far_off_are_none_those_between_neither(rng):
    truth = np.zeros((40, 40, 10), np.uint8)
    sure, unsure = np.array([[10, 10, 5], [11, 10, 5]]), np.array([[30, 30, 5]])
    truth[tuple(sure.T)], truth[tuple(unsure.T)] = 1, 2
    case = TrainingScan(
        "x", np.ones(truth.shape, np.float16), truth, np.ones(truth.shape, bool),
        {"lesion": [sure, unsure], "mimic": [], "dark": [np.zeros((0, 3), int)], "any": []},
    )  # fmt: skip
    spacing = np.array([0.5, 0.5, 4.0])
    proposals = np.array(
        [(12, 10, 5), (10, 10, 6), (15, 10, 5), (10, 20, 5), (30, 31, 5), (30, 37, 5)]
    )
    rows = proposal_classification._assign_labels(case, proposals, spacing, rng)
    lesion = [
        tuple(voxel) for voxel, kind, _ in rows if kind == proposal_classification.LESION_PROPOSAL
    ]
    hard = [
        tuple(voxel) for voxel, kind, _ in rows if kind == proposal_classification.HARD_NEGATIVE
    ]
    assert lesion[:2] == [(12, 10, 5), (10, 10, 6)]  # 0.5 mm off; in the neighbouring slice
    assert lesion[2] in ((10, 10, 5), (11, 10, 5))  # its middle
    assert hard == [(10, 20, 5), (30, 37, 5)]  # not the one 2 mm off, nor the unsure one


def test_what_the_first_stage_thinks_does_not_change_how_often_a_place_is_drawn(rng):
    """Else the network, which is shown that too, learns the drawing (it did)."""
    kinds = np.array(
        [proposal_classification.LESION_PROPOSAL] * 3 + [proposal_classification.HARD_NEGATIVE] * 4,
        np.uint8,
    )
    lineup = proposal_classification.ProposalSet(
        np.zeros((7, 2, 2, 2, 3), np.float16), np.zeros((7, 4), np.float32), kinds,
        np.array([0, 0, 1, -1, -1, -1, -1], np.int16), rng.random(7).astype(np.float32),
    )  # fmt: skip
    _, lesions = proposal_classification._make_pool(
        [lineup], proposal_classification.LESION_PROPOSAL
    )
    assert lesions == pytest.approx([0.25, 0.25, 0.5])  # each lesion as often, however many patches
    _, hard = proposal_classification._make_pool([lineup], proposal_classification.HARD_NEGATIVE)
    assert hard == pytest.approx([0.25] * 4)


def written(folder, rng):
    """A first stage that somebody trained before, its weights by chance."""
    arguments = {"widths": [2, 3], "packed": [2, 2, 1], "flat": 1}
    folder.mkdir(parents=True)
    model, grid = shaken(unet(**arguments), rng), read_recipe("proposal-1").grid
    entry = write_member(model, folder / "w.npz", "unet", arguments, name="proposal-1", grid=grid)
    (folder / "proposal-1.json").write_text(json.dumps(entry))
    return "proposal-1", folder / "proposal-1.json"


@pytest.fixture
def recipe():
    given = read_recipe("classifier-1")
    return replace(
        given, name="x", arguments={**SMALL, "places": len(PLACE_FEATURES)}, batch=4, steps=2,
        epochs=1, settle=1, drawing={**given.drawing, "rules": {"floor": 0.0, "most": 20}},
    )  # fmt: skip


@pytest.mark.usefixtures("eagerly")
def test_a_classifier_is_trained_by_one_command_and_goes_into_a_card(
    recipe, lessons, tmp_path, rng, monkeypatch
):
    monkeypatch.setattr(proposal_classification, "segment_with_network", unseen)
    monkeypatch.setattr("bids_cmb.training.train.choose_precision", lambda: "mixed_bfloat16")
    given = (written(tmp_path / "first", rng),)
    data = lessons(1)
    material, lines = TrainingData((data,), validation=(data,), pretrained=given), []
    entry = train(recipe, material, tmp_path / "out", log=lines.append)
    assert "float32" in lines[1]  # so small that 16 bits may get gradients wrong
    assert entry["builder"] == "classifier"
    assert all(np.isfinite(one).all() for one in read_weights(tmp_path / "out/x.npz").values())
    kept = list((tmp_path / "first" / "proposed").iterdir())
    assert len(kept) == len(find_training_scans(data))
    read = np.load(kept[0])
    assert read["patches"].shape[1:] == (16, 16, 5, 3)
    assert set(read["kinds"]) >= {
        proposal_classification.LESION_PROPOSAL,
        proposal_classification.HARD_NEGATIVE,
    }


def unseen(_image, _models):
    return AnatomyResult(notes=("no regions",))


def test_false_alarms_beyond_the_brain_are_learnt_where_the_app_would_look(
    recipe, lessons, monkeypatch
):
    """The first stage sees a lesion every 6 mm; the app's brain mask is the whole scan here."""
    [scan] = find_training_scans(lessons(1))
    image, brain = load_scan_and_brain(scan)
    everything = Volume(np.ones(image.shape, bool), image.affine)
    head = Anatomy(brain, everything, (np.array([1.0, 0, 0]), 0.0), None, None)
    monkeypatch.setattr(
        proposal_classification, "extract_brain_mask", lambda *_: BrainMask(everything, "x")
    )
    recipe = replace(recipe, drawing={**recipe.drawing, "rules": {"floor": 0.01, "most": 9999}})

    def propose_every_6_mm(data):
        probability = np.zeros(data.shape, np.float32)
        probability[6::12, 6::12, 1::3] = 1  # voxels of 0.5 x 0.5 x 2 mm
        return probability

    numbers = []
    for found_head in (None, head):
        monkeypatch.setattr(
            proposal_classification, "segment_with_network",
            lambda *_, given=found_head: AnatomyResult(given),
        )  # fmt: skip
        made = proposal_classification._make_proposals(scan, recipe, propose_every_6_mm)
        numbers.append((made.kinds == proposal_classification.HARD_NEGATIVE).sum())
    near = distance_transform_edt(~brain.data, image.spacing) <= BRAIN_SHELL_MM
    assert numbers[1] / numbers[0] == pytest.approx(near.size / near.sum(), rel=0.1)
    assert near.size > 1.2 * near.sum()


def test_the_same_seed_draws_the_same_batch(recipe, lessons, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(proposal_classification, "segment_with_network", unseen)
    name, path = written(tmp_path / "first", rng)
    sources = Sources(find_training_scans(lessons(1)), pretrained={name: path})
    teach, told = TASKS["classification"].make_batches(recipe, sources, 1)
    (patches, places), truths = teach(np.random.default_rng(3))
    (again, _), _ = teach(np.random.default_rng(3))
    np.testing.assert_array_equal(patches, again)
    assert patches.shape == (4, 12, 12, 5, 3)
    assert places.shape == (4, len(PLACE_FEATURES))
    assert truths.shape == (4, 1)
    assert "lesions" in told


def test_a_classifier_without_a_first_stage_is_refused(recipe, lessons):
    with pytest.raises(ValueError, match="learns after a network that proposes"):
        TASKS["classification"].make_batches(recipe, Sources(find_training_scans(lessons(1))), 1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", r"must be a JSON object; found \[\]"),
        ("{}", "must hold name, builder, .* found no name"),
    ],
)
def test_a_first_stage_that_training_did_not_write_is_refused(recipe, tmp_path, content, sentence):
    path = tmp_path / "proposal-1.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"an entry that training wrote {sentence}"):
        TASKS["classification"].make_batches(
            recipe, Sources([], pretrained={"proposal-1": path}), 1
        )


def test_a_first_stage_of_another_grid_is_refused(recipe, lessons, tmp_path, rng):
    name, path = written(tmp_path / "first", rng)
    other = replace(recipe, grid={**recipe.grid, "order": 1})
    with pytest.raises(ValueError, match="must see the same grid"):
        TASKS["classification"].make_batches(
            other, Sources(find_training_scans(lessons(1)), pretrained={name: path}), 1
        )


def test_a_network_is_not_shown_what_its_card_hides(rng):
    patches = rng.random((2, 4, 4, 3, len(CHANNELS))).astype(np.float32)
    places = rng.random((2, len(PLACE_FEATURES))).astype(np.float32)
    channels, features = mask_hidden(["probability", "log-odds", "MNI y"])
    shown, listed = patches * channels, places * features
    assert not shown[..., CHANNELS.index("probability")].any()
    assert np.array_equal(shown[..., 0], patches[..., 0])
    gone = [PLACE_FEATURES.index(name) for name in ("log-odds", "MNI y")]
    assert not listed[:, gone].any()
    assert np.array_equal(np.delete(listed, gone, 1), np.delete(places, gone, 1))
    with pytest.raises(ValueError, match=r"features of the place; found odds\.$"):
        mask_hidden(["odds"])


def test_a_lesion_that_runs_through_two_slices_is_found_once():
    spacing = np.array([0.5, 0.5, 3.0])
    voxels = np.array([[40, 40, 7], [42, 41, 8], [40, 46, 7], [41, 41, 10], [43, 43, 9]])
    doubles = two_stage.find_doubles(voxels, spacing)
    assert doubles == [(0, 1), (1, 4), (3, 4)]  # (0, 2) are 3 mm apart in their slice
    kept = two_stage.drop_doubles(np.array([0.3, 0.9, 0.2, 0.1, 0.5]), doubles)
    assert kept.tolist() == [False, True, True, True, False]  # 4 is dropped, and drops 3 no more
    kept = two_stage.drop_doubles(np.full(5, 0.4), doubles)
    assert kept.tolist() == [True, False, True, True, False]
    assert two_stage.drop_doubles(
        np.empty(0), two_stage.find_doubles(np.empty((0, 3)), spacing)
    ).shape == (0,)
