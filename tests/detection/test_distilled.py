"""A network that misses nothing, and a student that tells apart: published sizes and the chain."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from networks import weights_of, write_member
from phantoms import part_of_brain, shaken
from scipy.special import log_softmax

from bids_cmb.detection import distilled
from bids_cmb.detection.distilled import (
    CandidateRegion,
    NetworkInput,
    classify_regions,
    find_regions,
    predict_candidates,
    prepare_input,
    render_probability,
    scale_symmetry,
    stack_channels,
)
from bids_cmb.detection.radial_symmetry import compute_radial_symmetry
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.preprocessing import Preprocessed
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.architectures.candidate_detector import cdet
from bids_cmb.networks.architectures.candidate_discriminator import cdisc_student, cdisc_teacher
from bids_cmb.networks.builders import fuse_batchnorm
from bids_cmb.networks.loading import ModelOptions, load_patch_model
from bids_cmb.networks.model_cards import MEMBER_KEYS
from bids_cmb.networks.weights import read_weights
from bids_cmb.training.distillation import (
    CandidateLoss,
    StudentLoss,
    TeacherLoss,
    kl_divergence,
    patch_loss,
)
from bids_cmb.training.inputs import TrainingData
from bids_cmb.training.recipe import Sources
from bids_cmb.training.scan_files import find_training_scans
from bids_cmb.training.tasks import candidate_detection, distillation
from bids_cmb.training.tasks.distillation import MARGIN_VOXELS, load_patches
from bids_cmb.training.train import TASKS, build_network, read_recipe, train

BUILDERS = {"cdet": cdet, "cdisc_teacher": cdisc_teacher, "cdisc_student": cdisc_student}
LOSSES = {"cdet": CandidateLoss, "cdisc_teacher": TeacherLoss, "cdisc_student": StudentLoss}
SIDES = {"cdet": (16, 8, 8), "cdisc_teacher": (24, 24, 24), "cdisc_student": (24, 24, 24)}
ALL = sorted(BUILDERS)


def truth_for(name, rng, batch):
    """A truth as the loss of that network takes it."""
    if name == "cdisc_student":
        kinds = np.arange(batch) % 2
        return np.column_stack([kinds, rng.normal(size=(batch, 2))]).astype(np.float32)
    lesion = rng.random((batch, *SIDES[name])) > 0.9
    known = [lesion, 1 + 9.0 * lesion]
    if name == "cdisc_teacher":
        known.append(np.broadcast_to((np.arange(batch) % 2)[:, None, None, None], lesion.shape))
    return np.stack(known, axis=-1).astype(np.float32)


def images_for(name, rng, batch=2):
    return rng.random((batch, *SIDES[name], 2), np.float32)


# --- The networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),  # Sundaresan et al. 2023, counted on the layers of their code
    [("cdet", 3_433_611), ("cdisc_teacher", 5_373_165), ("cdisc_student", 3_139_371)],
)
def test_networks_of_the_published_size_have_the_published_parameters(name, count):
    model = BUILDERS[name](biased=True)
    assert sum(int(np.prod(one.shape)) for one in model.trainable_variables) == count


def test_teacher_and_student_classify_with_the_same_layers():
    teacher, student = cdisc_teacher(biased=True), cdisc_student(biased=True)
    shapes = {one.path: tuple(one.shape) for one in teacher.variables}
    assert all(shapes[one.path] == tuple(one.shape) for one in student.variables)
    kinds = [one for one in student.trainable_variables if one.path.startswith("kind")]
    assert sum(int(np.prod(one.shape)) for one in kinds) == 1_939_554  # Tc


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cdet", (2, 16, 8, 8, 2)), ("cdisc_teacher", (2, 24, 24, 24, 4)), ("cdisc_student", (2, 2))],
)
def test_answers_have_the_shape_that_is_promised(name, shape, rng):
    found = BUILDERS[name](width=4)(images_for(name, rng))
    assert tuple(found.shape) == shape


def test_the_teacher_says_the_same_of_a_patch_at_each_of_its_voxels(rng):
    keras.utils.set_random_seed(1)  # with four filters some draws are silent everywhere
    found = np.asarray(shaken(cdisc_teacher(width=4), rng)(images_for("cdisc_teacher", rng)))
    assert np.ptp(found[..., 2:], axis=(1, 2, 3)).max() == 0
    assert np.ptp(found[..., :2], axis=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("name", ALL)
def test_a_saved_network_loads_without_our_code(name, rng, tmp_path):
    model, images = shaken(BUILDERS[name](width=4), rng), images_for(name, rng)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras", safe_mode=True)
    assert {type(layer).__module__.split(".")[0] for layer in again.layers} == {"keras"}
    np.testing.assert_allclose(np.asarray(again(images)), np.asarray(model(images)), atol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("biased", [False, True])
def test_a_network_in_use_computes_what_was_trained(name, biased, rng, tmp_path):
    arguments = {"width": 4, "biased": biased}
    model, images = shaken(BUILDERS[name](**arguments), rng), images_for(name, rng)
    member = write_member(model, tmp_path / "w.npz", name, arguments)
    ask = load_patch_model(member, tmp_path / "w.npz")
    arrays = weights_of(model)
    assert any("_norm/" in path for path in arrays)
    assert not any("_norm/" in path for path in fuse_batchnorm(arrays))
    np.testing.assert_allclose(ask(images), np.asarray(model(images)), atol=2e-4)


@pytest.mark.parametrize("name", ALL)
def test_one_step_moves_every_weight(name, rng):
    model = BUILDERS[name](width=4)
    model.compile(keras.optimizers.SGD(1.0), loss=LOSSES[name](), run_eagerly=True)
    before = [keras.ops.convert_to_numpy(one.value) for one in model.trainable_variables]
    model.train_on_batch(images_for(name, rng, 4), truth_for(name, rng, 4))
    for one, was in zip(model.trainable_variables, before, strict=True):
        assert (keras.ops.convert_to_numpy(one.value) != was).any(), one.path


@pytest.mark.usefixtures("in_16_bits")
def test_what_is_said_of_a_patch_is_computed_in_32_bits():
    """In 16 bits the gradient of kernels of 3 voxels on 2 was no number, once in a few steps."""
    layers = cdisc_student(width=4).layers
    kinds = {layer.compute_dtype for layer in layers if layer.name.startswith("kind")}
    assert kinds == {"float32"}
    assert {layer.compute_dtype for layer in layers} == {"float32", "bfloat16"}


# --- What they are punished for -------------------------------------------------------------------


def test_distillation_is_the_divergence_of_softened_logits():
    teacher, student = np.array([[8.0, 0.0]], np.float32), np.array([[0.0, 0.0]], np.float32)
    # softmax(8/4, 0) = (0.8808, 0.1192) against (1/2, 1/2): ln 2 less 0.3653 nats of entropy
    meant = 1 / (1 + np.exp(-2.0))
    by_hand = np.log(2) + meant * np.log(meant) + (1 - meant) * np.log(1 - meant)
    assert by_hand == pytest.approx(0.6931 - 0.3653, abs=1e-3)
    assert float(kl_divergence(teacher, student, 4.0)) == pytest.approx(by_hand, rel=1e-5)


def test_the_student_is_punished_as_published(rng):
    truth, logits = np.array([1.0, 0, 0, 1], np.float32), rng.normal(size=(4, 2)).astype("f")
    teacher = rng.normal(size=(4, 2)).astype(np.float32) * 3
    said = log_softmax(logits.astype(float), axis=1)
    entropy = -np.mean(said[range(4), truth.astype(int)])
    chances = np.exp(said[:, 1])
    dice = 1 - (2 * (truth * chances).sum() + 1) / (truth.sum() + chances.sum() + 1)
    meant, soft = (log_softmax(one.astype(float) / 4, axis=1) for one in (teacher, logits))
    apart = np.mean((np.exp(meant) * (meant - soft)).sum(axis=1))
    by_hand = entropy + dice + 0.1 * 16 * apart + 0.9 * entropy
    packed = np.column_stack([truth, teacher])
    assert float(StudentLoss()(packed, logits)) == pytest.approx(by_hand, rel=1e-5)
    alone = float(StudentLoss(alpha=0)(packed, logits))
    assert alone == pytest.approx(2 * entropy + dice, rel=1e-5)


def test_a_teacher_that_is_agreed_with_costs_nothing(rng):
    logits = rng.normal(size=(5, 2)).astype(np.float32)
    assert float(kl_divergence(logits, logits + 3, 4.0)) == pytest.approx(0, abs=1e-6)


def test_a_heavy_positive_counts_as_often_as_it_weighs():
    logits = np.array([[0, 2.0], [0, -1], [0, -1]], np.float32)
    twice = np.array([[0, 2.0], [0, 2], [0, -1], [0, -1]], np.float32)
    loss = patch_loss(np.array([1.0, 0, 0], np.float32), logits, 2.0)
    same = patch_loss(np.array([1.0, 1, 0, 0], np.float32), twice, 1.0)
    dice_of = [1 - (2 * n * 0.8808 + 1) / (n + n * 0.8808 + 2 * 0.2689 + 1) for n in (1, 2)]
    assert float(loss) - dice_of[0] == pytest.approx(float(same) - dice_of[1], abs=1e-3)


def test_voxels_nobody_knows_cost_nothing(rng):
    truth = truth_for("cdet", rng, 2)
    truth[:, :8, ..., 1] = 0
    logits = rng.normal(size=(*truth.shape[:4], 2)).astype(np.float32)
    other = logits.copy()
    other[:, :8] = rng.normal(size=other[:, :8].shape) * 9
    loss = CandidateLoss()
    assert float(loss(truth, logits)) == pytest.approx(float(loss(truth, other)), rel=1e-5)


def test_the_teacher_is_punished_for_voxels_and_for_the_patch(rng):
    truth = truth_for("cdisc_teacher", rng, 2)
    right = 20 * (2 * truth[..., [0, 2]] - 1)
    answer = np.stack([-right[..., 0], right[..., 0], -right[..., 1], right[..., 1]], axis=-1)
    loss = TeacherLoss()
    assert float(loss(truth, answer)) < 0.01
    for pair in ([1, 0, 2, 3], [0, 1, 3, 2]):
        assert float(loss(truth, answer[..., pair])) > 10


# --- What they are shown --------------------------------------------------------------------------


def scene(*, ball=(), tube=()):
    """Even tissue of 1 with a dark ball or a dark tube in its plane, 0.6 x 0.6 x 2 mm, oblique."""
    from grids import OBLIQUE  # noqa: PLC0415

    affine = OBLIQUE @ np.diag([1.2, 1.2, 1, 1])
    x, y, z = (
        (np.arange(n) - n // 2) * mm for n, mm in zip((72, 72, 16), (0.6, 0.6, 2), strict=True)
    )
    data = np.ones((72, 72, 16), np.float32)
    if ball:
        at, radius = ball
        away = np.sqrt(
            (x[:, None, None] - at[0]) ** 2 + (y[:, None] - at[1]) ** 2 + (z - at[2]) ** 2
        )
        data -= 0.8 * np.clip(radius - away + 0.5, 0, 1)
    if tube:
        at, radius = tube
        away = np.hypot(y[:, None] - at[1], z - at[2])[None]
        data -= 0.8 * np.clip(radius - away + 0.5, 0, 1)
    brain = np.zeros(data.shape, bool)
    brain[3:-3, 3:-3, 1:-1] = True
    return Preprocessed(Volume(data, affine), Volume(brain, affine))


def test_symmetry_peaks_in_the_middle_of_a_ball():
    found = scale_symmetry(scene(ball=((4.8, -3.6, 2), 1.8)))
    peak = np.argwhere(found == found.max()).mean(axis=0)
    np.testing.assert_allclose(peak, (36 + 8, 36 - 6, 9), atol=0.5)
    assert found.min() >= 0
    assert found.max() == pytest.approx(1)


def test_a_tube_is_far_less_symmetric_than_a_ball():
    both = scene(ball=((0, 9, 0), 1.8), tube=((0, -9, 0), 1.8))
    found = compute_radial_symmetry(both.image, both.brain).data  # what `scale_symmetry` scales
    middle = np.s_[8:-8]  # the tube's ends at the brain's edge are no tube
    ball, tube = found[middle, 36:].max(), found[middle, :36].max()
    assert tube < 0.05 * ball


def test_even_tissue_is_not_symmetric():
    assert scale_symmetry(scene()).max() == 0


def test_the_black_middle_of_a_microbleed_is_the_darkest_thing_there_is():
    fed = scene(ball=((0, 0, 0), 3.0))
    fed.image.data[36, 36, 8] = 0
    seen = prepare_input(fed)
    assert seen.channels[36, 36, 8, 0] == 1
    assert seen.channels[0, 0, 0, 1] == 0
    assert seen.channels[50, 36, 8, 0] == pytest.approx(0.5)


def test_nothing_is_seen_far_outside_the_brain(rng):
    image, inside = np.zeros((8, 8, 8)), np.zeros((8, 8, 8), bool)
    inside[2:5] = True
    shown = stack_channels(image, rng.random((8, 8, 8)), inside)
    assert (shown[~inside] == 0).all()
    assert (shown[inside][:, 0] == 1).all()


# --- The chain ------------------------------------------------------------------------------------


def test_spots_hang_together_by_corners_and_the_likeliest_comes_first():
    chance = np.zeros((12, 12, 12), np.float32)
    chance[2, 2, 2], chance[3, 3, 3] = 0.4, 0.6
    chance[8, 8, 8], chance[9, 8, 8] = 0.9, 0.3
    found = find_regions(chance, threshold=0.2, most=9)
    assert [region.probability for region in found] == pytest.approx([0.9, 0.6])
    assert [len(region.voxels) for region in found] == [1, 2]  # half of the highest is kept
    np.testing.assert_array_equal(found[0].centre, (8, 8, 8))
    assert len(find_regions(chance, threshold=0.2, most=1)) == 1
    assert find_regions(chance, threshold=0.95, most=9) == []


def test_the_student_sees_a_spot_in_the_middle_of_its_patch_even_at_the_border():
    stacked = np.zeros((30, 30, 30, 2), np.float32)
    places = [(0, 0, 0), (29, 15, 29), (11, 12, 13)]
    for at in places:
        stacked[at] = 7

    def ask(patches):
        middle = patches[:, 12, 12, 12, 0] == 7
        return np.column_stack([np.zeros(len(patches)), np.where(middle, 4.0, -4)])

    spots = [CandidateRegion(np.array(at), np.array([at]), 1.0) for at in [*places, (20, 20, 20)]]
    np.testing.assert_array_equal(
        classify_regions(ask, stacked, spots) > 0.5, [True, True, True, False]
    )
    assert classify_regions(ask, stacked, []).shape == (0,)


def test_a_chance_is_the_same_over_all_of_its_spot_on_another_grid(blank):
    fine = Volume(np.zeros((96, 96, 40), np.float32), blank.affine @ np.diag([0.7, 0.7, 0.8, 1]))
    voxels = np.argwhere(np.ones((6, 6, 3))) + (40, 50, 20)
    found = render_probability([CandidateRegion(voxels.mean(0), voxels, 1.0)], [0.8], fine, blank)
    there = found.data > 0
    np.testing.assert_allclose(found.data[there], 0.8, atol=1e-5)
    middle = found.world(np.argwhere(there)).mean(axis=0)
    np.testing.assert_allclose(middle, fine.world(voxels).mean(axis=0), atol=0.6)
    full = len(voxels) * fine.voxel_volume
    assert full / 2 < there.sum() * found.voxel_volume < 2.5 * full


def test_slabs_give_what_the_whole_gives(rng, monkeypatch):
    model = shaken(cdet(width=4), rng)
    data, brain = rng.random((150, 21, 10, 2), np.float32), np.ones((150, 21, 10), bool)
    seen = NetworkInput(data, Volume(brain, np.eye(4)))

    def ask(images):
        return np.asarray(model(images))

    whole = predict_candidates(ask, seen)
    monkeypatch.setattr(distilled, "MAX_VOXELS_AT_ONCE", 150 * 24 * 12 // 2)
    np.testing.assert_allclose(predict_candidates(ask, seen), whole, atol=1e-5)
    assert whole.shape == (150, 21, 10)


def test_what_the_student_refuses_is_not_painted_as_likely(heads, monkeypatch):
    """Faultless networks by hand: what is dark is a spot, and only the round ones are bleeds."""
    folder, truth = heads
    image, _ = load(folder / "six.nii.gz")
    brain = part_of_brain(image)

    def load_by_hand(_, member, __):
        if member["name"] == "candidates":
            return lambda images: np.stack([0 * images[..., 0], 40 * (images[..., 0] - 0.7)], -1)
        middle = np.s_[:, 8:17, 8:17, 10:15, 1]

        def ask(patches):
            round_ = patches[middle].max(axis=(1, 2, 3))
            return np.column_stack([0 * round_, 20 * (round_ - 0.5)])

        return ask

    monkeypatch.setattr(distilled, "load_predictor", load_by_hand)
    grid = read_recipe("distilled-candidates").grid
    members = [
        {"name": name, "grid": grid, "weights": "w.npz"} for name in ("candidates", "student")
    ]
    card = {
        "name": "distilled", "members": members,
        "parameters": {"candidate_threshold": 0.2, "most_candidates": 4000},
    }  # fmt: skip
    found, _ = distilled.run_distilled(image, brain, card, ModelOptions())
    assert found.shape == image.shape
    assert found.data.dtype == np.float32
    likely = found.data > 0.5
    for bleed in truth["six"]:
        index = np.rint(image.index(np.array([bleed.centre])))[0].astype(int)
        around = tuple(slice(at - 2, at + 3) for at in index)
        assert likely[around].any(), bleed
    assert (found.data > 0).sum() > 1.2 * likely.sum()  # refused spots stay, with a low chance
    again, _ = distilled.run_distilled(image, brain, card, ModelOptions())
    np.testing.assert_array_equal(found.data, again.data)


# --- Training -------------------------------------------------------------------------------------


def small(part, **more):
    given = read_recipe(f"distilled-{part}")
    drawing = dict(given.drawing)
    if part == "candidates":
        drawing["shape"] = [16, 16, 8]
    else:
        drawing |= {"threshold": 0.01, "most": 20, "negatives": 5}
    arguments = {key: value for key, value in given.arguments.items() if key != "start"}
    return replace(
        given, name="x", arguments={**arguments, "width": 4}, drawing=drawing, batch=2, steps=2,
        epochs=1, settle=1, **more,
    )  # fmt: skip


@pytest.mark.parametrize("part", ["candidates", "teacher", "student"])
def test_the_recipes_of_the_package_build_their_networks(part):
    assert build_network(read_recipe(f"distilled-{part}")).count_params() > 100_000


def guessed(_, seen):
    """What is dark, and a corner of the brain that is not, as if a network had said so."""
    chance = 1.0 * (seen.channels[..., 0] > 0.7) * seen.brain.data
    chance[20:23, 20:23, 8] = 0.5
    return chance


def written(part, folder):
    """A network that somebody trained before, its weights by chance."""
    recipe, folder = small(part), folder / part
    folder.mkdir(parents=True)
    entry = write_member(
        build_network(recipe), folder / "w.npz", recipe.builder, recipe.arguments, name=part,
        grid=recipe.grid,
    )  # fmt: skip
    (folder / f"{part}.json").write_text(json.dumps(entry))
    return part, folder / f"{part}.json"


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("part", ["candidates", "teacher"])
def test_candidates_and_a_teacher_are_trained_by_one_command(part, lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "predict_candidates", guessed)
    given = (written("candidates", tmp_path),) if part == "teacher" else ()
    entry = train(small(part), TrainingData((lessons(1),), pretrained=given), tmp_path / "out")
    assert entry["builder"] == small(part).builder
    assert all(np.isfinite(one).all() for one in read_weights(tmp_path / "out/x.npz").values())


def test_scans_of_two_datasets_keep_their_symmetry_though_they_have_one_name(lessons, monkeypatch):
    """A and B of docs/notes/training.md both begin with sub-001."""
    (paths,) = find_training_scans(lessons(1))
    bright = candidate_detection.load_symmetry_scan(paths, Grid.from_card(small("candidates").grid))
    bright = replace(bright, symmetric=np.full_like(bright.symmetric, 0.25))
    black = replace(bright.case, image=np.zeros_like(bright.case.image))
    read = iter([bright, candidate_detection.SymmetryScan(black, np.ones_like(bright.symmetric))])
    monkeypatch.setattr(candidate_detection, "load_symmetry_scan", lambda *_: next(read))
    recipe = replace(small("candidates"), batch=24)
    teach, _ = TASKS["candidates"].make_batches(recipe, Sources([paths, paths]), 1)
    images, _ = teach(np.random.default_rng(1))
    dark = images[..., 0].min(axis=(1, 2, 3), where=images[..., 1] > 0, initial=1) == 1
    assert 0 < dark.sum() < 24
    np.testing.assert_array_equal(images[..., 1].max(axis=(1, 2, 3)), np.where(dark, 1, 0.25))


@pytest.mark.usefixtures("eagerly")
def test_a_student_learns_after_a_teacher_from_what_was_found_once(lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "predict_candidates", guessed)
    data, given = lessons(2), (written("candidates", tmp_path), written("teacher", tmp_path))
    sources = Sources(find_training_scans(data), pretrained=dict(given))
    _, told = TASKS["teacher"].make_batches(small("teacher"), sources, 1)
    assert told == "2 scans, 4 patches about microbleeds and 2 others"
    kept = sorted((tmp_path / "candidates" / "seen").iterdir())
    when = [path.stat().st_mtime_ns for path in kept]
    assert len(when) == 2
    entry = train(small("student"), TrainingData((data,), pretrained=given), tmp_path / "out")
    assert entry["builder"] == "cdisc_student"
    assert entry["training"]["data"].split(";")[0].endswith("2 others, a teacher")
    curves = np.genfromtxt(tmp_path / "out" / "curves.tsv", names=True, delimiter="\t")
    assert np.isfinite(curves["loss"]).all()
    assert [path.stat().st_mtime_ns for path in kept] == when  # looked for once


def test_the_student_is_told_what_the_teacher_says_of_the_patch_it_sees(
    lessons, tmp_path, monkeypatch
):
    monkeypatch.setattr(distillation, "predict_candidates", guessed)

    def given_network(recipe, sources, role):  # noqa: ARG001
        middle = np.s_[:, 8:16, 8:16, 10:14]
        logits = lambda images: np.stack([images[middle].sum(axis=(1, 2, 3))] * 2, axis=-2)  # noqa: E731
        return {"sha256": "0", "grid": recipe.grid}, lambda images: np.broadcast_to(
            logits(images).reshape(-1, 1, 1, 1, 4), (len(images), 24, 24, 24, 4)
        )

    monkeypatch.setattr(distillation, "load_pretrained", given_network)
    sources = Sources(
        find_training_scans(lessons(1)), pretrained={"candidates": tmp_path / "c.json"}
    )
    teach, told = TASKS["student"].make_batches(small("student"), sources, 1)
    images, truths = teach(np.random.default_rng(1))
    np.testing.assert_array_equal(truths[:, 0], [0, 1])
    middle = images[:, 8:16, 8:16, 10:14].sum(axis=(1, 2, 3))
    np.testing.assert_allclose(truths[:, 1:], middle, rtol=1e-5)
    again, _ = teach(np.random.default_rng(1))
    np.testing.assert_array_equal(again, images)  # the same chance, the same batch
    alone, told = TASKS["student"].make_batches(small("student", loss={"alpha": 0}), sources, 1)
    assert told.endswith("no teacher")
    assert (alone(np.random.default_rng(1))[1][:, 1:] == 0).all()


def test_patches_lie_about_microbleeds_and_unsure_ones_are_left_out(lessons, tmp_path):
    data = lessons(1)
    recipe = small("teacher")
    recipe = replace(recipe, drawing={**recipe.drawing, "threshold": 0.5})
    entry = {"sha256": "0", "grid": recipe.grid}

    def dark(images):
        return np.stack([0 * images[..., 0], 40 * (images[..., 0] - 0.7)], -1)

    found = load_patches(find_training_scans(data)[0], entry, dark, recipe, tmp_path / "seen")
    side = 24 + 2 * MARGIN_VOXELS
    assert found.images.shape[1:] == (side, side, side, 2)
    # the sure one as a lesion and as a spot; the possible one, as dark, is neither right nor wrong
    assert found.positive.sum() == 2
    assert len(found.positive) - found.positive.sum() <= 5
    middle = found.images[:, side // 2, side // 2, side // 2, 0]
    assert (middle[found.positive] < 0.5).all()
    truth = found.marks % 4
    assert (truth[~found.positive][:, side // 2, side // 2, side // 2] == 0).all()


def test_whoever_learns_after_nobody_is_told_what_is_missing(lessons, tmp_path):
    with pytest.raises(
        ValueError, match=r"give it --pretrained candidates=OUT/NAME.json; found none"
    ):
        train(small("teacher"), TrainingData((lessons(1),)), tmp_path / "out")


def test_whoever_learns_after_somebody_with_another_grid_is_refused(lessons, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**dict.fromkeys(MEMBER_KEYS, "x"), "grid": {"spacing": 1}}))
    material = TrainingData((lessons(1),), pretrained=(("candidates", path),))
    with pytest.raises(ValueError, match=r"must see the same grid, .*; found \{'spacing': 1\}"):
        train(small("teacher"), material, tmp_path / "out")
