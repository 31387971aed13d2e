"""A gate lets suspicious tiles through, a U-Net on slices says where in them a microbleed lies."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from networks import check_folds, write_member
from phantoms import part_of_brain, phantom, shaken
from scipy.special import logit

from bids_cmb.anatomy.brain_extraction import segment_brain
from bids_cmb.detection import gated as design
from bids_cmb.detection.ensemble import detect
from bids_cmb.detection.gated import (
    TILE_VOXELS,
    apply_gate,
    compute_gate_map,
    predict_tiles,
    segment_slices,
)
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.networks.architectures.resnet_gate import resnet_gate
from bids_cmb.networks.architectures.resunet import resunet
from bids_cmb.networks.loading import ModelOptions, load_patch_model
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.cross_validation import cross_validate
from bids_cmb.training.inputs import TrainingData
from bids_cmb.training.losses import FocalTverskyLoss, TileLoss
from bids_cmb.training.recipe import make_patch_sampling
from bids_cmb.training.reference_labels import LESION, UNCERTAIN
from bids_cmb.training.tasks.tile_classification import RIM_VOXELS, label_tile
from bids_cmb.training.train import build_network, read_recipe, train

PUBLISHED_GATE = {
    "widths": [64, 128, 256, 512], "blocks": [3, 4, 6, 3], "bottleneck": True, "stem": 7,
    "dense": [1024, 512],
}  # fmt: skip
SMALL_GATE = {"widths": [2, 4], "blocks": [1, 2], "dense": [4]}
SMALL_UNET = {"widths": [2, 4, 6]}


@pytest.fixture(params=["gate", "bottleneck gate", "resunet"])
def network(request, rng):
    """Each kind of network: its builder, its arguments, a model."""
    builder, arguments = {
        "gate": (resnet_gate, SMALL_GATE),
        "bottleneck gate": (resnet_gate, {**SMALL_GATE, "bottleneck": True}),
        "resunet": (resunet, SMALL_UNET),
    }[request.param]
    keras.utils.set_random_seed(5)
    return builder.__name__, arguments, shaken(builder(**arguments), rng)


@pytest.fixture(scope="module")
def head():
    """A phantom with six microbleeds and half of its brain; oblique and LAS."""
    image, _, bleeds = phantom(np.random.default_rng(4), bleeds=6, spacing=(1.0, 1.0, 3.0))
    return image, part_of_brain(image), bleeds


@pytest.fixture
def chained(tmp_path):
    """A maker of gated detectors whose weights are by chance, in a folder of the user's."""

    def make(**parameters):
        grid = {"spacing": [2, 2, 4], "axes": "slices", "multiple": [4, 4, 1], "margin": 8,
                "intensity": "brain-median"}  # fmt: skip
        own = np.random.default_rng(11)
        keras.utils.set_random_seed(11)
        members = [
            write_member(shaken(builder(**arguments), own), tmp_path / f"{name}.npz",
                    builder.__name__, arguments, name=name, grid=grid)
            for name, builder, arguments in (
                ("gate", resnet_gate, SMALL_GATE), ("segmenter", resunet, SMALL_UNET),
            )
        ]  # fmt: skip
        said = load_card("gated") | {"name": "mine", "members": members}
        said["parameters"] = {"gate": "hard", "gate_threshold": 0.5} | parameters
        (tmp_path / "mine.json").write_text(json.dumps(said))
        return ModelOptions(tmp_path)

    return make


# --- Networks -------------------------------------------------------------------------------------


def test_the_published_gate_is_resnet50_with_its_head():
    stem = 7 * 7 * 3 * 64 + 4 * 64
    levels = [(64, 64, 3), (256, 128, 4), (512, 256, 6), (1024, 512, 3)]  # in, width, blocks
    first = sum(c * w + 9 * w * w + 4 * w * w + 4 * c * w + 4 * 10 * w for c, w, _ in levels)
    rest = sum((n - 1) * (4 * w * w + 9 * w * w + 4 * w * w + 4 * 6 * w) for _, w, n in levels)
    head = 2048 * 1024 + 1024 + 1024 * 512 + 512 + 512 + 1
    assert resnet_gate(**PUBLISHED_GATE).count_params() == stem + first + rest + head == 26_184_641
    theirs = keras.applications.ResNet50(weights=None, include_top=False)
    idle = sum(one.shape[0] for one in theirs.weights if one.path.endswith("conv/bias"))
    assert stem + first + rest == theirs.count_params() - idle


def test_the_published_resunet_has_the_published_parameters():
    def block(before, width):  # 1 x 1, 3 x 3 and 1 x 1 past them, each normalised
        return before * width + 9 * width * width + before * width + 3 * 4 * width

    stage = 9 * 3 * 16 + 16 + 4 * 16 + 9 * 16 * 16 + 16 + 4 * 16
    down = block(16, 32) + block(32, 64) + block(64, 128) + block(128, 256)
    up = block(256 + 128, 128) + block(128 + 64, 64) + block(64 + 32, 32) + block(32 + 16, 16)
    idle = 3 * (32 + 64 + 128 + 256 + 128 + 64 + 32 + 16)  # biases that a normalisation takes away
    assert stage + down + up + 16 + 1 == 1_210_513 - idle == 1_208_353
    assert resunet().count_params() == 1_208_353


def test_those_that_ship_have_this_many_parameters():
    assert build_network(read_recipe("gated-gate")).count_params() == 180_693
    assert build_network(read_recipe("gated-segmenter")).count_params() == 681_433


def test_tiles_get_one_answer_and_slices_one_for_each_pixel():
    assert resnet_gate(**SMALL_GATE)(np.zeros((2, 40, 24, 3))).shape == (2, 1)
    found = resunet(**SMALL_UNET)(np.zeros((2, 40, 24, 3)))
    assert found.shape == (2, 40, 24, 1)


def test_one_dark_pixel_reaches_the_gate_wherever_it_lies(rng):
    keras.utils.set_random_seed(5)  # some networks by chance hardly answer to anything
    gate = shaken(resnet_gate(**{**SMALL_GATE, "widths": [8, 16]}), rng)
    tiles = np.ones((3, 64, 64, 3), np.float32)
    tiles[1, 29, 30, 1] = tiles[2, 29 + 4, 30 + 2, 1] = -5
    plain, here, there = np.asarray(gate(tiles))[:, 0]
    assert here == pytest.approx(there, abs=1e-5)
    assert here != pytest.approx(plain, abs=1e-5)


def test_a_saved_network_needs_keras_and_nothing_of_ours(network, rng, tmp_path):
    _, _, model = network
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
    model.save(tmp_path / "saved.keras")
    loaded = keras.models.load_model(tmp_path / "saved.keras", custom_objects={}, safe_mode=True)
    image = rng.random((2, 16, 24, 3), np.float32)
    np.testing.assert_allclose(loaded(image), model(image), atol=1e-6)


def test_taking_normalisations_into_convolutions_changes_nothing(network, rng, tmp_path):
    builder, arguments, model = network
    member = write_member(model, tmp_path / "w.npz", builder, arguments)
    ask = load_patch_model(member, tmp_path / "w.npz")
    image = rng.random((3, 16, 24, 3), np.float32)
    np.testing.assert_allclose(ask(image), model(image), atol=1e-4)


def test_one_step_moves_every_weight(network, rng):
    _, _, model = network
    tile = len(model.output_shape) == 2
    model.compile("sgd", loss=TileLoss() if tile else FocalTverskyLoss(), run_eagerly=True)
    before = [keras.ops.convert_to_numpy(one.value) for one in model.trainable_variables]
    image = rng.random((8, 16, 16, 3), np.float32)
    truth = image[:, 0, 0, :2] if tile else image[..., :2]
    model.train_on_batch(image, np.stack([truth[..., 0] > 0.5, truth[..., 1] > 0.1], -1) * 1.0)
    for one, was in zip(model.trainable_variables, before, strict=True):
        assert (keras.ops.convert_to_numpy(one.value) != was).any(), one.path


# --- Losses ---------------------------------------------------------------------------------------


def told(truth, weight=None):
    weight = np.ones_like(truth) if weight is None else weight
    return np.stack([truth, weight], axis=-1).astype(np.float32)


def test_focal_tversky_is_what_one_gets_by_hand():
    truth = np.array([[[1, 1], [0, 0]]])
    chance = np.array([[[0.9, 0.4], [0.2, 0.1]]], np.float32)
    loss = FocalTverskyLoss(smooth=1e-6, entropy_weight=0)
    hits, missed, false = 0.9 + 0.4, 0.1 + 0.6, 0.2 + 0.1
    index = hits / (hits + 0.7 * missed + 0.3 * false)
    assert float(loss(told(truth), logit(chance)[..., None])) == pytest.approx(
        (1 - index) ** 0.75, rel=1e-4
    )
    plain = FocalTverskyLoss(smooth=1e-6, entropy_weight=1, lesion_weight=5)
    entropy = -(5 * np.log(0.9) + 5 * np.log(0.4) + np.log(0.8) + np.log(0.9)) / (4 + 1)
    assert float(plain(told(truth), logit(chance)[..., None])) == pytest.approx(
        (1 - index) ** 0.75 + entropy, rel=1e-4
    )


def test_images_are_judged_one_by_one():
    truth = np.array([[[1, 0]], [[1, 1]]])
    chance = np.array([[[0.5, 0.5]], [[0.8, 0.8]]], np.float32)
    one, other = 0.5 / (0.5 + 0.35 + 0.15), 1.6 / (1.6 + 0.7 * 0.4)
    loss = FocalTverskyLoss(smooth=1e-6, entropy_weight=0)
    assert float(loss(told(truth), logit(chance)[..., None])) == pytest.approx(
        ((1 - one) ** 0.75 + (1 - other) ** 0.75) / 2, rel=1e-4
    )


@pytest.mark.parametrize("smooth", [1e-6, 1.0])
def test_nothing_where_nothing_is_costs_nothing_and_teaches_nothing(smooth):
    import tensorflow as tf  # noqa: PLC0415 Keras has no gradients of its own

    loss = FocalTverskyLoss(smooth=smooth)
    logits = tf.Variable(tf.fill((1, 4, 4, 1), -80.0))
    with tf.GradientTape() as tape:
        cost = loss(told(np.zeros((1, 4, 4))), logits)
    assert float(cost) < 1e-5
    assert np.abs(tape.gradient(cost, logits).numpy()).max() < 1e-5  # and is a number


def test_pixels_without_weight_do_not_count(rng):
    weight = rng.integers(0, 2, (2, 6, 6))
    truth = told(rng.integers(0, 2, (2, 6, 6)) * weight, weight)
    logits = rng.normal(size=(2, 6, 6, 1)).astype(np.float32)
    other = np.where(weight[..., None] > 0, logits, 7)
    loss = FocalTverskyLoss()
    assert float(loss(truth, logits)) == pytest.approx(float(loss(truth, other)), rel=1e-5)


def test_tiles_nobody_knows_about_do_not_count():
    truth, logits = np.array([[1, 1], [0, 1], [0, 0]]), np.array([[1.0], [-2.0], [9.0]])
    wanted = (np.log1p(np.exp(-1)) + np.log1p(np.exp(-2))) / 2
    assert float(TileLoss()(truth.astype(np.float32), logits)) == pytest.approx(wanted, rel=1e-5)


# --- What is taught -------------------------------------------------------------------------------


def tile_with(code, at, z=1):
    codes = np.zeros((TILE_VOXELS, TILE_VOXELS, 3), np.uint8)
    codes[at, at, z] = code
    return codes


def test_a_tile_is_asked_about_where_the_answer_is_sure():
    assert label_tile(tile_with(LESION, 16)) == 1
    assert label_tile(np.zeros((TILE_VOXELS, TILE_VOXELS, 3), np.uint8)) == 0
    assert label_tile(tile_with(UNCERTAIN, 16)) is None
    assert label_tile(tile_with(LESION, RIM_VOXELS - 1)) is None  # half of it may lie outside
    assert label_tile(tile_with(LESION, 16, z=2)) is None  # on the next slice only


def test_the_gate_is_taught_on_tiles_of_the_size_it_is_asked_about():
    drawing = make_patch_sampling(read_recipe("gated-gate").drawing)
    assert drawing.shape == (TILE_VOXELS, TILE_VOXELS, 3)
    assert max(drawing.reach) <= TILE_VOXELS // 2 - RIM_VOXELS  # what is drawn is not on the rim
    assert read_recipe("gated-gate").grid == read_recipe("gated-segmenter").grid


@pytest.mark.usefixtures("eagerly")
def test_gate_then_segmenter_are_taught_and_work(lessons, tmp_path):
    data = lessons(2)
    gate = read_recipe("gated-gate")
    gate = replace(gate, arguments=SMALL_GATE, batch=6, steps=2, epochs=1)
    entry = train(gate, TrainingData((data,)), tmp_path / "gate")
    assert "2 scans with 4 lesions" in entry["training"]["data"]
    unet = read_recipe("gated-segmenter")
    unet = replace(unet, arguments={**SMALL_UNET, "start": -4}, batch=4, steps=2, epochs=1)
    given = (("gate", tmp_path / "gate" / "gated-gate.json"),)
    entry = train(unet, TrainingData((data,), (data,), pretrained=given), tmp_path / "unet")
    assert "false alarms of a gate" in entry["training"]["data"]
    assert "Patches of the validation" in (tmp_path / "unet/report.html").read_text()


@pytest.mark.slow
def test_gate_and_segmenter_are_taught_without_the_subjects_of_a_fold(unfitted, lessons, tmp_path):
    data = lessons(2)
    gate = replace(read_recipe("gated-gate"), arguments=SMALL_GATE, batch=6, steps=2, epochs=1)
    gates = cross_validate(gate, TrainingData((data,)), tmp_path / "gate", folds=2)
    unet = replace(read_recipe("gated-segmenter"), batch=4, steps=2, epochs=1)
    unet = replace(unet, arguments={**SMALL_UNET, "start": -4})
    given = (("gate", tmp_path / "gate/fold-1/gated-gate-1.json"),)
    unets = cross_validate(
        unet, TrainingData((data,), pretrained=given), tmp_path / "unet", folds=2
    )
    check_folds(unfitted, gates, unets)


def test_half_of_the_gates_batches_are_lesions(lessons):
    from bids_cmb.training.recipe import Sources  # noqa: PLC0415
    from bids_cmb.training.scan_files import find_training_scans  # noqa: PLC0415
    from bids_cmb.training.tasks import tile_classification as gate  # noqa: PLC0415

    recipe = replace(read_recipe("gated-gate"), batch=16)
    teach, _ = gate.TASK.make_batches(recipe, Sources(find_training_scans(lessons(1))), 0)
    images, truths = teach(np.random.default_rng(0))
    assert images.shape == (16, TILE_VOXELS, TILE_VOXELS, 3)
    known = truths[truths[:, 1] > 0]
    assert len(known) >= 14
    assert 0.4 <= known[:, 0].mean() <= 0.6
    again, _ = teach(np.random.default_rng(0))
    np.testing.assert_array_equal(images, again)


# --- In use ---------------------------------------------------------------------------------------


def bright(tiles):
    """A gate, (B, 1), that opens for tiles with something bright on the middle slice."""
    return (tiles[..., 1].max(axis=(1, 2)) > 0.5)[:, None].astype(np.float32)


@pytest.mark.parametrize("at", [(0, 0, 0), (70, 99, 3), (31, 32, 2), (63, 64, 1)])
def test_tiles_leave_out_nothing_and_open_about_a_spot_only(at):
    image = np.zeros((71, 100, 4), np.float32)
    image[at] = 1
    opened = compute_gate_map(bright, image, np.ones(image.shape, bool))
    assert opened[at] == 1
    away = np.abs(np.moveaxis(np.indices(image.shape), 0, -1) - at)
    assert not opened[(away[..., :2] >= TILE_VOXELS).any(axis=-1) | (away[..., 2] > 0)].any()


def test_tiles_are_not_asked_about_where_nothing_is_wanted():
    starts, chances = predict_tiles(bright, np.ones((40, 40, 3), np.float32), np.zeros((40, 40, 3)))
    assert starts.shape == (0, 3)
    assert len(chances) == 0
    where = np.zeros((40, 40, 3), bool)
    where[10, 10, 2] = True
    starts, _ = predict_tiles(bright, np.ones((40, 40, 3), np.float32), where)
    assert {tuple(start) for start in starts} == {(0, 0, 2)}


def test_a_slice_is_seen_with_its_neighbours_and_nothing_beyond_the_ends(rng):
    image = rng.random((4, 8, 5), np.float32)
    found = segment_slices(lambda slices: slices[..., 1:2], image, np.array([0, 3]))
    np.testing.assert_array_equal(found[..., [0, 3]], image[..., [0, 3]])
    assert not found[..., [1, 2, 4]].any()
    above = segment_slices(lambda slices: slices[..., 2:], image, np.arange(5))
    np.testing.assert_array_equal(above[..., :4], image[..., 1:])
    assert not above[..., 4].any()


def test_a_gate_takes_away_and_never_adds(rng):
    opened, found = rng.random((2, 6, 6, 6))
    off, hard, soft = (apply_gate(opened, found, how, 0.4) for how in ("off", "hard", "soft"))
    np.testing.assert_array_equal(off, found)
    assert (hard[opened >= 0.4] == found[opened >= 0.4]).all()
    assert not hard[opened < 0.4].any()
    assert (soft <= hard).all()
    np.testing.assert_allclose(soft[opened >= 0.4], (opened * found)[opened >= 0.4])


def test_without_a_gate_the_segmenter_is_asked_everywhere(head, chained, monkeypatch):
    image, brain, _ = head
    off = detect("mine", image, brain, chained(gate="off")).mean.data

    def open_everywhere(_, image, __):
        return np.ones(image.shape, np.float32)

    monkeypatch.setattr(design, "compute_gate_map", open_everywhere)
    wide = detect("mine", image, brain, chained(gate="hard")).mean.data
    np.testing.assert_array_equal(off, wide)
    assert (off[brain.data] > 0).mean() > 0.99


def test_the_gate_leaves_behind_how_far_it_opened_in_each_slice(head, chained):
    image, brain, _ = head
    models = chained(gate_threshold=0.25)
    left = detect("mine", image, brain, models).outputs.gate_responses
    gate = load_card("mine", models.folder)["members"][0]
    fed = preprocess(image, brain, Grid.from_card(gate["grid"]))
    where = np.ones(fed.image.shape, bool)
    opened = compute_gate_map(load_gate(gate, models), fed.image.data, where)
    for one in left:
        at = np.rint(fed.image.index(np.array(one.position))).astype(int)
        assert opened[:, :, at[2]].max() >= one.probability > 0
        assert (at >= 0).all()
        assert (at < fed.image.shape).all()
    slices = {round(float(fed.image.index(np.array(one.position))[2])) for one in left}
    assert len(slices) == len(left)
    assert slices >= set(np.flatnonzero(fed.brain.data.any(axis=(0, 1))))
    assert {(one.detector, one.threshold) for one in left} == {("mine", 0.25)}
    assert not detect("mine", image, brain, chained(gate="off")).outputs.gate_responses


def load_gate(member, models):
    return design.load_probability_predictor({"name": "mine"}, member, models)


def median_of_the_gate(image, brain, models):
    gate = load_card("mine", models.folder)["members"][0]
    fed = preprocess(image, brain, Grid.from_card(gate["grid"]))
    opened = compute_gate_map(load_gate(gate, models), fed.image.data, fed.brain.data)
    return float(np.median(opened[fed.brain.data]))


def test_a_hard_gate_never_adds_a_voxel_and_a_soft_one_never_a_chance(head, chained):
    image, brain, _ = head
    middling, found = median_of_the_gate(image, brain, chained()), {}
    for how in ("off", "hard", "soft"):
        models = chained(gate=how, gate_threshold=middling)
        found[how] = detect("mine", image, brain, models).mean.data
    assert (found["hard"] <= found["off"]).all()
    assert (found["soft"] <= found["hard"]).all()
    assert 0 < (found["hard"] > 0).sum() < (found["off"] > 0).sum()


def test_the_same_scan_gives_the_same_chances_twice_and_0_outside_the_brain(head, chained):
    image, brain, _ = head
    one, other = (detect("mine", image, brain, chained(gate="soft")).mean for _ in range(2))
    np.testing.assert_array_equal(one.data, other.data)
    assert one.data.dtype == np.float32
    assert not one.data[~brain.data].any()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"parameters": {"gate": "ajar"}}, "must be one of off, hard, soft; found 'ajar'"),
        ({"members": 1}, "needs the members gate and segmenter; found gate"),
    ],
)
def test_a_card_that_is_none_of_a_gated_detector_is_refused(head, chained, change, sentence):
    image, brain, _ = head
    models = chained()
    path = models.folder / "mine.json"
    said = json.loads(path.read_text())
    if "members" in change:
        change = {"members": said["members"][: change["members"]]}
    path.write_text(json.dumps(said | change))
    with pytest.raises(ValueError, match=f"mine: .*{sentence}"):
        detect("mine", image, brain, models)


@pytest.mark.slow
def test_the_packages_detector_finds_the_microbleeds_of_a_phantom(head):
    image, _, bleeds = head
    said = load_card("gated")
    chance = detect("gated", image, segment_brain(image)).mean.data
    near = [
        np.linalg.norm(image.world(np.argwhere(chance >= said["threshold"])) - one.centre, axis=1)
        for one in bleeds
    ]
    assert sum(away.min() < one.diameter / 2 for away, one in zip(near, bleeds, strict=True)) >= 4
