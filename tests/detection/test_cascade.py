"""The cascade: networks as published, a loss as on paper, candidates where they are dark."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from box_answers import ANCHORS, answer_of
from networks import check_folds, weights_of
from phantoms import part_of_brain, phantom
from spots import AFFINE, MIDDLE, SPACING, ball, brain, scan

from bids_cmb.detection.boxes import BoxCandidate, compute_iou
from bids_cmb.detection.cascade import (
    CandidateRules,
    ScoredCandidate,
    crop_patch,
    detect_candidates,
    find_box_candidates,
    make_slice_input,
    render_probability,
    run_cascade,
    scale_anchors,
)
from bids_cmb.detection.ensemble import detect
from bids_cmb.imaging.preprocessing import Preprocessed
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import DetectionMap, Thresholds, find_lesions
from bids_cmb.networks.architectures.cnn3d import cnn3d
from bids_cmb.networks.architectures.yolo import yolo
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import MEMBER_KEYS, load_card
from bids_cmb.training.cross_validation import cross_validate
from bids_cmb.training.inputs import TrainingData
from bids_cmb.training.losses import BoxLoss
from bids_cmb.training.tasks import box_detection as lesson
from bids_cmb.training.tasks.candidate_classification import assign_labels
from bids_cmb.training.train import build_network, read_recipe, train

TINY = {"anchors": ANCHORS, "stages": [[4], [6], [8, 4, 8]], "head": [8, 8], "passed": 3,
        "inputs": 2}  # fmt: skip
RECIPES = ("cascade-boxes", "cascade-patches")


# Networks


def test_the_published_detector_has_its_parameters_and_cells():
    model = yolo(classes=1)
    assert sum(np.prod(one.shape) for one in model.trainable_variables) == 50_558_014
    assert model.compute_output_shape((1, 448, 448, 3)) == (1, 14, 14, 30)


@pytest.mark.parametrize(
    ("shape", "count"),
    [((16, 32, 16), 1_355_322), ((16, 16, 16), 1_093_178), ((32, 32, 32), 2_928_186)],
)
def test_the_published_3d_network_has_its_parameters(shape, count):
    assert cnn3d(shape=shape, fused=True).count_params() == count  # normalisations not counted


def test_the_detector_that_ships_has_cells_of_2_4_mm():
    recipe = read_recipe("cascade-boxes")
    model = build_network(recipe)
    anchors = len(recipe.arguments["anchors"])
    assert model.compute_output_shape((1, 64, 48, 2)) == (1, 16, 12, 5 * anchors)
    assert recipe.grid["spacing"][0] * 4 == pytest.approx(2.4)


def test_passing_on_keeps_every_pixel():
    model = yolo(**{**TINY, "stages": [[1], [1]], "head": [1, 1], "passed": 1})
    packed = keras.Model(
        model.get_layer("passed_leaky").output, model.get_layer("passed_packed").output
    )
    image = np.arange(48, dtype=np.float32).reshape(1, 6, 8, 1)
    found = keras.ops.convert_to_numpy(packed(image))
    assert found.shape == (1, 3, 4, 4)
    for i in range(3):
        for j in range(4):
            block = image[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 0]
            np.testing.assert_array_equal(np.sort(found[0, i, j]), block.ravel())


def test_saved_networks_need_none_of_our_code(tmp_path, rng):
    for model in (yolo(**TINY), cnn3d(shape=(8, 8, 4), stages=[[2], [3]])):
        image = rng.random((2, *(side or 16 for side in model.input_shape[1:])), np.float32)
        model.save(tmp_path / "x.keras")
        again = keras.models.load_model(tmp_path / "x.keras", safe_mode=True)
        assert {type(layer).__module__.split(".")[0] for layer in again.layers} == {"keras"}
        np.testing.assert_allclose(again(image), model(image), atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_one_step_moves_every_weight(name, rng):
    recipe = read_recipe(name)
    model = build_network(recipe)
    if name == "cascade-boxes":
        image = rng.random((4, 32, 32, 2), np.float32)
        truth = np.zeros((4, 3, 5), np.float32)
        truth[:, 0] = np.column_stack(
            [rng.uniform(2, 30, (4, 2)), rng.uniform(3, 6, (4, 2)), np.ones(4)]
        )
    else:
        image = rng.random((4, *recipe.arguments["shape"], 1), np.float32)
        truth = np.array([[0], [1], [0], [1]], np.float32)
    from bids_cmb.training.train import TASKS  # noqa: PLC0415

    model.compile("sgd", loss=TASKS[recipe.task].loss(recipe), run_eagerly=True)
    before = weights_of(model)
    model.train_on_batch(image, truth)
    for one in model.trainable_variables:
        assert (keras.ops.convert_to_numpy(one.value) != before[one.path]).any(), one.path


# The loss


def by_hand(said, truth, stride, widest, good):
    """The loss of one slice, box by box."""
    columns, rows, count = *said.shape[:2], len(ANCHORS)

    def logistic(x):
        return 1 / (1 + np.exp(-x))

    def entropy(logit, target):
        chance = logistic(logit)
        return -target * np.log(chance) - (1 - target) * np.log(1 - chance)

    sure = [one for one in truth if one[4] == 1]
    owners = {}
    for one in sure:
        shapes = [min(one[2], w) * min(one[3], h) for w, h in ANCHORS]
        alike = [c / (one[2] * one[3] + w * h - c) for c, (w, h) in zip(shapes, ANCHORS)]  # noqa: B905
        at = (int(one[0] // stride), int(one[1] // stride), int(np.argmax(alike)))
        owners.setdefault(at, one)
    total = 0.0
    for at in np.ndindex(columns, rows, count):
        raw = said[at[0], at[1], 4 * at[2] : 4 * at[2] + 4]
        logit = said[at[0], at[1], 4 * count + at[2]]
        box = [
            *((np.array(at[:2]) + logistic(raw[:2])) * stride),
            *(ANCHORS[at[2]] * np.exp(raw[2:])),
        ]
        near = compute_iou(np.array([box]), np.array(truth)[:, :4])[0]
        if at in owners:
            x, y, w, h, _ = owners[at]
            fit = compute_iou(np.array([box]), np.array([[x, y, w, h]]))[0, 0]
            apart = (logistic(raw[0]) - (x / stride - at[0])) ** 2
            apart += (logistic(raw[1]) - (y / stride - at[1])) ** 2
            apart += (raw[2] - np.log(w / ANCHORS[at[2]][0])) ** 2
            apart += (raw[3] - np.log(h / ANCHORS[at[2]][1])) ** 2
            total += (2 - w * h / widest**2) * apart + 5 * entropy(logit, fit)
        else:
            good_enough = any(n > good for n, t in zip(near, truth, strict=True) if t[4] == 1)
            maybe = any(
                abs(box[0] - t[0]) <= t[2] / 2 and abs(box[1] - t[1]) <= t[3] / 2
                for t in truth
                if t[4] == 2
            )
            total += 0 if good_enough or maybe else entropy(logit, 0)
    return total / (len(sure) + 1)


def test_the_loss_is_what_it_is_on_paper(rng):
    truth = [
        (9.3, 5.5, 5, 3, 1), (13.1, 9.0, 8, 7, 1), (13.5, 9.9, 9, 7, 1), (3, 17, 4, 4, 2),
        (0, 0, 0, 0, 0),
    ]  # fmt: skip
    said = rng.normal(0, 1, (4, 5, 5 * len(ANCHORS)))
    loss = BoxLoss(anchors=ANCHORS, stride=4, widest=20, good=0.3)
    found = float(loss(np.array([truth], np.float32), said[None].astype(np.float32)))
    assert found == pytest.approx(by_hand(said, truth, 4, 20, 0.3), rel=1e-4)
    other = by_hand(said, [one for one in truth if one[4] == 1], 4, 20, 0.9)
    assert found < other  # what is good enough, and what nobody is sure of, costs less


def test_a_perfect_answer_costs_nothing_and_any_other_something():
    boxes = [(9.3, 5.5, 5, 3, 0), (13.1, 9.0, 8, 7, 1)]
    truth = np.array([[(*box[:4], 1) for box in boxes]], np.float32)
    loss = BoxLoss(anchors=ANCHORS, stride=4, widest=20)
    perfect = answer_of(boxes, (4, 4)).astype(np.float32)[None]
    assert float(loss(truth, perfect)) < 1e-3
    moved = truth + np.array([2, 0, 0, 0, 0], np.float32)
    assert float(loss(moved, perfect)) > 0.1
    silent = perfect.copy()
    silent[..., 8:] = -20
    assert float(loss(truth, silent)) > 10
    loud = perfect.copy()
    loud[..., 8:] = 20
    assert float(loss(truth, loud)) > 100


# Lessons


def test_boxes_turn_with_the_part_of_the_slice_that_is_drawn(lessons):
    recipe = read_recipe("cascade-boxes")
    from bids_cmb.imaging.grid import Grid  # noqa: PLC0415
    from bids_cmb.training import patches, scan_files, scan_loading  # noqa: PLC0415

    grid = Grid.from_card(recipe.grid)
    case = scan_loading.load_training_scan(scan_files.find_training_scans(lessons(1))[0], grid)
    known = {id(case): lesson.find_slice_boxes(case, grid.spacing[0])}
    drawing = patches.PatchSampling(shape=(64, 64, 3), shares={"lesion": 1.0})
    seen = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image, boxes = lesson.sample_patch(known, drawing, rng, inputs=2, most=4)
        assert image.shape == (64, 64, 2)
        assert boxes.shape == (4, 5)
        for x, y, w, h, _ in boxes[boxes[:, 4] > 0]:
            if not (8 < x < 56 and 8 < y < 56):
                continue
            part = image[
                round(x - w / 2) : round(x + w / 2), round(y - h / 2) : round(y + h / 2), 1
            ]
            assert part.mean() < 0.6 * np.median(image[image[..., 1] > 0][:, 1])
            seen += 1
    assert seen > 20


def test_candidates_near_a_lesion_are_right_and_near_an_unsure_one_neither(rng):
    from bids_cmb.training.reference_labels import LESION, UNCERTAIN  # noqa: PLC0415
    from bids_cmb.training.scan_loading import TrainingScan  # noqa: PLC0415

    truth = np.zeros((40, 40, 10), np.uint8)
    truth[10:12, 10:12, 5], truth[30, 30, 5] = LESION, UNCERTAIN
    lesions = [np.argwhere(truth == LESION), np.argwhere(truth == UNCERTAIN)]
    case = TrainingScan("sub-1", rng.random(truth.shape), truth, truth >= 0, {"lesion": lesions})
    places = [(11, 10, 5), (13, 10, 5), (30, 31, 5), (20, 20, 5)]
    candidates = [BoxCandidate(tuple(map(float, at)), (4, 4), (5, 5), 0.5, 1) for at in places]
    found = assign_labels(case, candidates, (0.6, 0.6, 2.0), near=1.3)
    np.testing.assert_array_equal(found.negatives, [(20, 20, 5)])
    np.testing.assert_allclose(found.positives[0], [(11, 10, 5), (13, 10, 5), (10.5, 10.5, 5)])
    assert len(found.positives) == 1


@pytest.fixture
def tiny():
    """Recipes of a tiny cascade: of its boxes, of its patches."""
    first = read_recipe("cascade-boxes")
    arguments = {
        **first.arguments,
        "stages": [[4], [6], [8]],
        "head": [8, 8],
        "passed": 3,
        "start": 0,
    }
    first = replace(first, name="tiny-boxes", arguments=arguments, batch=2, steps=2, epochs=1)
    second = read_recipe("cascade-patches")
    second = replace(
        second, name="tiny-patches", batch=4, steps=2, epochs=1,
        arguments={"shape": [12, 12, 4], "stages": [[2], [4]], "outputs": 1},
        drawing={**second.drawing, "rules": {"confidence": 0.01, "most": 50}},
    )  # fmt: skip
    return first, second


@pytest.fixture
def trained(lessons, tmp_path, tiny, eagerly):  # noqa: ARG001
    """A tiny cascade, trained for two steps: its card, and the folder it lies in."""
    data, (first, second) = lessons(2), tiny
    out = tmp_path / "out"
    boxes = train(first, TrainingData((data,)), out)
    (out / "recipe.json").unlink()
    for name in ("curves.tsv", "best.weights.h5"):
        (out / name).unlink()
    given = (("boxes", out / "tiny-boxes.json"),)
    patches = train(second, TrainingData((data,), pretrained=given), tmp_path / "second")
    (tmp_path / "second" / "tiny-patches.npz").rename(out / "tiny-patches.npz")
    told = {**load_card("cascade"), "name": "tiny"}
    told["parameters"] = {"confidence": 0.01, "most": 20}
    told["members"] = [{**boxes, "name": "boxes"}, {**patches, "name": "patches"}]
    (out / "tiny.json").write_text(json.dumps(told))
    return told, out


def test_both_networks_are_learnt_one_after_the_other_and_used(trained):
    told, out = trained
    image = scan((ball(3), 0.7))
    found, left = run_cascade(image, brain(), told, ModelOptions(out))
    assert found.data.dtype == np.float32
    assert found.shape == image.shape
    assert 0 < found.data.max() <= 1
    assert left.boxes
    for box in left.boxes:
        index = image.index(np.array(box.centre))
        assert ((index > -1) & (index < image.shape)).all()
        assert box.detector == "tiny"
        assert 0 <= box.probability <= 1
    again, _ = run_cascade(image, brain(), told, ModelOptions(out))
    np.testing.assert_array_equal(found.data, again.data)
    alone = {**told, "members": told["members"][:1]}
    _, candidates = detect_candidates(image, brain(), alone, ModelOptions(out))
    assert all(one.probability == one.candidate.confidence for one in candidates)
    lost = {**told, "members": told["members"][1:]}
    with pytest.raises(ValueError, match="must be boxes and patches; found patches for tiny"):
        run_cascade(image, brain(), lost, ModelOptions(out))


@pytest.mark.slow  # tests/training/test_train.py has the folds of one network
@pytest.mark.usefixtures("eagerly")
def test_both_networks_are_learnt_without_the_subjects_of_a_fold(unfitted, lessons, tmp_path, tiny):
    data, (first, second) = lessons(2), tiny
    boxes = cross_validate(first, TrainingData((data,)), tmp_path / "boxes", folds=2)
    given = (("boxes", tmp_path / "boxes/fold-1/tiny-boxes-1.json"),)
    patches = cross_validate(
        second, TrainingData((data,), pretrained=given), tmp_path / "p", folds=2
    )
    check_folds(unfitted, boxes, patches)


@pytest.mark.parametrize(("given", "found"), [((), "found none"), ((("teacher", "x"),), "teacher")])
def test_patches_are_not_learnt_without_boxes(lessons, tmp_path, given, found):
    with pytest.raises(ValueError, match=rf"--pretrained boxes=OUT/NAME.json.*{found}"):
        train(
            read_recipe("cascade-patches"),
            TrainingData((lessons(1),), pretrained=given),
            tmp_path / "o",
        )


def test_patches_and_boxes_lie_on_one_grid(lessons, tmp_path):
    entry = tmp_path / "b.json"
    entry.write_text(json.dumps({**dict.fromkeys(MEMBER_KEYS, "x"), "grid": {"spacing": 1}}))
    material = TrainingData((lessons(1),), pretrained=(("boxes", entry),))
    with pytest.raises(ValueError, match="must see the same grid"):
        train(read_recipe("cascade-patches"), material, tmp_path / "o")


def test_boxes_are_not_learnt_from_label_maps(tmp_path):
    with pytest.raises(ValueError, match="boxes are learnt from BIDS datasets"):
        train(read_recipe("cascade-boxes"), TrainingData((tmp_path / "maps",)), tmp_path / "o")


# In use


def test_a_slice_is_shown_with_its_neighbours_and_its_phase(rng):
    data, phase = rng.random((6, 5, 4), np.float32), rng.random((6, 5, 4), np.float32)
    shown = make_slice_input(data, 2, 3, phase)
    np.testing.assert_allclose(shown[..., 0], data[:, :, 1:4].mean(axis=2), rtol=1e-6)
    np.testing.assert_array_equal(shown[..., 1], data[:, :, 2])
    np.testing.assert_allclose(shown[..., 2], 1 - phase[:, :, 1:4].mean(axis=2), rtol=1e-5)
    first = make_slice_input(data, 0, 3)
    np.testing.assert_allclose(first[..., 0], (2 * data[:, :, 0] + data[:, :, 1]) / 3, rtol=1e-6)
    assert (first[..., 2] == 0.5).all()  # no phase: as if nothing disturbed it
    assert make_slice_input(data, 0, 2).shape == (6, 5, 2)


def test_a_patch_has_its_place_in_the_middle_and_nothing_beyond_the_scan(rng):
    data = rng.random((20, 20, 8), np.float32)
    np.testing.assert_array_equal(
        crop_patch(data, (10.4, 9.6, 4), (5, 5, 3))[..., 0], data[8:13, 8:13, 3:6]
    )
    corner = crop_patch(data, (0, 19, 7), (5, 5, 3))[..., 0]
    np.testing.assert_array_equal(corner[2:, :3, :2], data[:3, 17:, 6:])
    assert not corner[:2].any()
    assert not corner[:, 3:].any()
    assert not corner[:, :, 2:].any()


def test_boxes_outside_the_brain_are_no_candidates():
    said = answer_of([(9.3, 5.5, 5, 3, 0), (33.1, 29.0, 8, 7, 1)], (16, 16))
    data = np.ones((64, 64, 3), np.float32)
    inside = np.ones_like(data, bool)
    inside[:20] = False
    fed = Preprocessed(Volume(data, np.diag([1.0, 1, 2, 1])), Volume(inside, np.eye(4)))
    member = {"arguments": TINY, "grid": {"spacing": [1.0, 1.0, 2.0]}}
    found = find_box_candidates(lambda x: np.stack([said] * len(x)), member, fed, CandidateRules())
    assert len(found) == 1
    assert found[0].boxes == 3
    np.testing.assert_allclose(found[0].centre, (32.6, 28.5, 1), atol=1e-3)


def test_a_card_that_asks_for_what_no_cascade_has_is_refused():
    assert CandidateRules.from_card({"name": "mine"}) == CandidateRules()
    assert CandidateRules.from_card(load_card("cascade")).confidence < 0.1
    with pytest.raises(ValueError, match=r"may be confidence, .*; found zeal for mine"):
        CandidateRules.from_card({"name": "mine", "parameters": {"zeal": 1}})
    with pytest.raises(ValueError, match=r"those of pixels in mm; found \[None, None, 2\]"):
        scale_anchors({"arguments": TINY, "grid": {"spacing": [None, None, 2]}})
    odd = Volume(np.ones((64, 62, 3), np.float32), np.eye(4))
    member = {"arguments": TINY, "grid": {"spacing": [1.0, 1.0, 2.0]}}
    with pytest.raises(ValueError, match="must be one of 4; found slices of 64 x 62"):
        find_box_candidates(lambda x: x, member, Preprocessed(odd, odd), CandidateRules())


def spot(at, size=(6, 6), slices=(5, 5), chance=0.8):
    one = BoxCandidate(tuple(map(float, at)), size, slices, 0.9, 1)
    return ScoredCandidate(one, (0, 0, 0), (0, 0), chance)


def test_a_candidate_is_rendered_where_it_is_dark_and_nowhere_else():
    image = scan((ball(3.5), 0.7), (ball(3, (9, 0, 0)), 0.7))
    found = render_probability(image, AFFINE, [spot(MIDDLE)])
    index = np.argwhere(found.data > 0)
    assert set(np.unique(found.data)) == {0, np.float32(0.8)}
    away = (index - MIDDLE) * SPACING
    assert np.abs(away[:, :2]).max() < 3
    assert 2.5 < np.ptp(away[:, 0]) + SPACING[0] < 5
    true = image.world(MIDDLE)
    assert np.linalg.norm(image.world(index.mean(axis=0)) - true) < 0.5


def test_a_candidate_has_a_voxel_even_where_nothing_is_dark_and_none_beyond_ten_mm():
    flat = Volume(np.full((76, 88, 11), 300, np.float32), AFFINE)
    assert render_probability(flat, AFFINE, [spot(MIDDLE)]).data.max() == np.float32(0.8)
    bright = scan((ball(3), -0.9))
    assert render_probability(bright, AFFINE, [spot(MIDDLE, (1, 1))]).data.max() == np.float32(0.8)
    dark = scan((ball(25), 0.9))
    found = render_probability(dark, AFFINE, [spot(MIDDLE, (60, 60), (0, 10))])
    width = (np.ptp(np.argwhere(found.data > 0), axis=0) + 1) * SPACING
    assert (width[:2] <= 10 + SPACING[:2]).all()


def test_candidates_on_a_finer_and_mirrored_grid_are_rendered_alike():
    image = scan((ball(4), 0.7))
    # Half as large pixels, the second axis mirrored
    grid = image.affine @ np.array([[0.5, 0, 0, 0], [0, -0.5, 0, 87], [0, 0, 1, 0], [0, 0, 0, 1]])
    place = np.linalg.inv(grid) @ image.affine @ [*MIDDLE, 1]
    fine = render_probability(image, grid, [spot(place[:3], (12, 12))])
    same = render_probability(image, AFFINE, [spot(MIDDLE)])
    np.testing.assert_array_equal(fine.data, same.data)


def test_where_candidates_meet_the_higher_probability_stands():
    image = scan((ball(4), 0.7))
    found = render_probability(image, AFFINE, [spot(MIDDLE, chance=0.3), spot(MIDDLE, chance=0.7)])
    assert set(np.unique(found.data)) == {0, np.float32(0.7)}
    assert not render_probability(image, AFFINE, []).data.any()
    outside = spot((-500, 0, 0))
    assert not render_probability(image, AFFINE, [outside]).data.any()


def test_the_cascade_that_ships_finds_the_microbleeds_of_a_phantom():
    image, _, placed = phantom(np.random.default_rng(7), bleeds=6, spacing=(1.0, 1.0, 3.0))
    inside = part_of_brain(image)
    found = detect("cascade", image, inside).mean
    said = load_card("cascade")
    assert not found.data[~inside.data].any()
    thresholds = Thresholds(said["threshold"], said["definite_threshold"])
    _, lesions = find_lesions(DetectionMap(found), image, inside, thresholds)
    away = np.linalg.norm(
        np.array([one.centre for one in placed])[:, None] - [one.centre for one in lesions], axis=-1
    )
    assert (away.min(axis=1) < 3).sum() >= 5
    assert len(lesions) < 30
