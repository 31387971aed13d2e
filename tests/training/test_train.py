"""Training moves every weight, goes on where it stopped, and leaves what the app can use."""

import base64
import json
import re
from dataclasses import asdict, replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from bids_cmb.imaging import nifti, volume
from bids_cmb.networks.inference import predict
from bids_cmb.networks.loading import load_network
from bids_cmb.networks.weights import read_weights
from bids_cmb.training.cross_validation import cross_validate
from bids_cmb.training.inputs import TrainingData
from bids_cmb.training.losses import LesionLoss, StructuresLoss
from bids_cmb.training.train import (
    build_network,
    choose_precision,
    has_wrong_gradients,
    read_recipe,
    recalibrate_batchnorm,
    train,
)


class HaltError(RuntimeError):
    """The power went."""


SMALL = {"widths": [2, 4], "start": -3}


@pytest.fixture
def data(lessons):
    return lessons(2)


@pytest.fixture(scope="module")
def recipe():
    given = read_recipe("ensemble-a")
    drawing = {**given.drawing, "shape": [16, 16, 16]}
    return replace(given, name="tiny", arguments=SMALL, drawing=drawing, batch=2, steps=2, epochs=2)


@pytest.fixture(scope="module")
def material(two_lessons):
    return TrainingData((two_lessons,), validation=(two_lessons,))


@pytest.fixture(scope="module")
def trained(recipe, material, tmp_path_factory):
    """A training that nothing interrupted: what it returned, logged, and wrote into its folder."""
    told, out = [], tmp_path_factory.mktemp("trained") / "out"
    entry = train(recipe, material, out, log=told.append)
    return entry, told, out


def arrays_of(folder):
    return read_weights(folder / "tiny.npz")


def test_every_recipe_of_the_package_builds_its_network():
    for name in ("ensemble-a", "ensemble-b", "ensemble-c", "ensemble-d", "anatomy"):
        assert build_network(read_recipe(name)).count_params() > 100_000


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "a recipe must be JSON; Expecting"),
        (b"[1]", r"a recipe must be a JSON object; found \[1\]"),
        (b'{"name": "\xff"}', "a recipe must be JSON; found the byte 0xff, not UTF-8"),
        (b"[" * 100_000, "a recipe must be JSON; found more than"),
        (b"\xef\xbb\xbf{}", "a recipe must hold what `Recipe` lists; lacking: name, task, "),
    ],
    ids=["cut off", "a list", "not UTF-8", "nested", "byte-order mark"],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(tmp_path, content, sentence):
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"mine\.json: {sentence}"):
        read_recipe(str(tmp_path / "mine.json"))


def test_training_leaves_weights_that_the_app_loads(trained):
    entry, told, out = trained
    network = load_network(entry, out / "tiny.npz")
    found = predict(network, np.zeros((16, 16, 16), np.float32))
    assert found.shape == (16, 16, 16)
    assert json.loads((out / "tiny.json").read_text())["sha256"] == entry["sha256"]
    epochs = [said for said in told if said.startswith("epoch ")]
    assert [" min left" in said for said in epochs] == [True, False]
    curves = np.genfromtxt(out / "curves.tsv", names=True, delimiter="\t")
    assert (curves["val_loss"] > 0).all()
    np.testing.assert_array_equal(curves["voxels"], [2 * 2 * 16**3, 2 * 2 * 2 * 16**3])
    took = entry["training"]
    assert took["voxels"] == curves["voxels"][-1]
    assert took["core_hours"] > 0
    assert took["ended_by"] == "epochs"
    assert f"{took['voxels']:,} voxels" in took["data"]
    report = (out / "report.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', report)
    assert len(pictures) == 2  # curves and examples, in the file itself
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert f"{curves['val_loss'][-1]:.4g} in the last" in report
    assert f"models create NAME {out / 'tiny.json'} --model-dir MODELS" in report


def test_one_step_moves_every_weight(recipe, rng):
    network = build_network(recipe)
    network.compile("sgd", loss=LesionLoss(), run_eagerly=True)
    before = [keras.ops.convert_to_numpy(one.value) for one in network.trainable_variables]
    image = rng.random((2, 8, 8, 8, 1), np.float32)
    truth = np.stack([image[..., 0] > 0.5, np.ones((2, 8, 8, 8))], axis=-1)
    network.train_on_batch(image, truth)
    for one, was in zip(network.trainable_variables, before, strict=True):
        assert (keras.ops.convert_to_numpy(one.value) != was).any(), one.path


def test_normalisations_are_measured_anew_as_the_mean_over_batches(recipe, rng):
    network = build_network(recipe)
    batches = rng.random((3, 2, 8, 8, 8, 1), np.float32)
    first = network.get_layer("down0_first_norm")
    seen = keras.Model(network.input, network.get_layer("down0_first").output)(
        batches.reshape(6, 8, 8, 8, 1)
    )
    recalibrate_batchnorm(network, lambda at: batches[at], 3)
    mean = np.asarray(seen, np.float32).mean(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(np.asarray(first.moving_mean), mean, atol=1e-4)
    assert first.momentum == 0.98


@pytest.mark.slow  # tests/training/test_loop.py has the same of the loop alone
def test_training_that_was_interrupted_ends_like_one_that_was_not(
    material, recipe, trained, tmp_path
):
    def fails(said):
        if said.startswith("epoch 1"):
            raise HaltError("the power went")

    keras.utils.set_random_seed(recipe.seed)
    before = {
        one.path: keras.ops.convert_to_numpy(one.value) for one in build_network(recipe).weights
    }
    with pytest.raises(HaltError, match="the power went"):
        train(recipe, material, tmp_path / "halted", log=fails)
    told = []
    entry = train(recipe, material, tmp_path / "halted", log=told.append)
    assert not any(said.startswith("epoch 1") for said in told)
    whole, halted = arrays_of(trained[-1]), arrays_of(tmp_path / "halted")
    learnt = [name for name in whole if "moving" not in name]
    moved = max(np.abs(whole[name] - before[name]).max() for name in learnt)
    assert moved > 0
    for name, array in whole.items():
        np.testing.assert_allclose(halted[name], array, atol=0.01 * moved, rtol=0, err_msg=name)
    assert entry["training"]["voxels"] == 2 * 2 * 2 * 16**3


@pytest.mark.parametrize("hours", [0, -1, float("nan")])
def test_a_budget_of_nothing_is_refused_and_nothing_is_written(data, recipe, tmp_path, hours):
    with pytest.raises(ValueError, match="A budget must be more than 0 hours; found"):
        train(recipe, TrainingData((data,)), tmp_path / "out", hours=hours)
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_used_claim_no_folder(data, recipe, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="a truth needs label maps of microbleeds"):
        train(recipe, TrainingData((data,), truth=tmp_path / "nowhere"), out)
    (data / "dataset_description.json").unlink()  # as a simulation that was interrupted has none
    with pytest.raises(ValueError, match=r"must have a dataset_description\.json"):
        train(recipe, TrainingData((data,)), out)
    assert not out.exists()


@pytest.mark.usefixtures("unfitted")
def test_a_folder_keeps_to_its_data(data, recipe, tmp_path):
    train(recipe, TrainingData((data,)), tmp_path / "out")
    with pytest.raises(ValueError, match=r"material.json: .* it began with; .* \(validation\)"):
        train(recipe, TrainingData((data,), validation=(data,)), tmp_path / "out")
    truth = next((data / "derivatives/truth/sub-01/anat").glob("*seg-CMB*.nii.gz"))
    other = data / "derivatives/truth/sub-02/anat" / truth.name.replace("sub-01", "sub-02")
    labels = nifti.load_labels(other)
    nifti.save(volume.Volume(0 * labels.data, labels.affine), other, dtype=np.uint16)
    with pytest.raises(ValueError, match=r"material.json: .* it began with; .* \(data\)"):
        train(recipe, TrainingData((data,)), tmp_path / "out")


def test_a_dataset_is_no_folder_to_train_in(data, recipe):
    with pytest.raises(ValueError, match="trained in a folder of its own; found a dataset"):
        train(recipe, TrainingData((data,)), data)
    assert not (data / "recipe.json").exists()


def test_the_same_seed_gives_the_same_weights_and_another_one_others(
    material, recipe, trained, tmp_path
):
    for name, seed in (("same", recipe.seed), ("other", recipe.seed + 1)):
        train(replace(recipe, seed=seed), material, tmp_path / name)
    folders = (trained[-1], tmp_path / "same", tmp_path / "other")
    one, same, other = map(arrays_of, folders)
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


@pytest.mark.usefixtures("unfitted")
def test_a_folder_keeps_to_its_recipe(data, recipe, tmp_path):
    train(recipe, TrainingData((data,)), tmp_path / "out")
    with pytest.raises(ValueError, match=r"recipe.json: training goes on .* \(rate\)"):
        train(replace(recipe, rate=1.0), TrainingData((data,)), tmp_path / "out")


def test_fine_tuning_begins_with_the_weights_it_is_given(material, recipe, trained, tmp_path):
    start = trained[-1] / "tiny.npz"
    still = replace(recipe, rate=1e-9, epochs=2)
    train(still, replace(material, start=start), tmp_path / "second")
    first, second = arrays_of(trained[-1]), arrays_of(tmp_path / "second")
    for name in first:
        if "moving" not in name:
            np.testing.assert_allclose(second[name], first[name], atol=1e-2)
    wider = replace(recipe, arguments={"widths": [4, 8]})
    with pytest.raises(ValueError, match=r"must be those of the recipe's network"):
        train(wider, replace(material, start=start), tmp_path / "third")


@pytest.mark.usefixtures("unfitted")
def test_a_fold_does_not_learn_from_the_subjects_it_is_tried_on(data, recipe, tmp_path):
    entries = cross_validate(recipe, TrainingData((data,)), tmp_path / "cv", folds=2)
    assert [entry["left_out"] for entry in entries] == [("sub-01",), ("sub-02",)]
    assert all("1 scans" in entry["training"]["data"] for entry in entries)
    with pytest.raises(ValueError, match="Folds must be 2 or more and no more than subjects"):
        cross_validate(recipe, TrainingData((data,)), tmp_path / "cv", folds=3)


@pytest.mark.usefixtures("eagerly")
def test_anatomy_is_learnt_from_simulated_scans(data, tmp_path):
    given = read_recipe("anatomy")
    small = replace(
        given, name="tiny", arguments={"widths": [2, 4]}, patch=(16, 16, 16), batch=1, steps=1,
        epochs=1,
    )  # fmt: skip
    entry = train(small, TrainingData((data,)), tmp_path / "out")
    assert entry["arguments"]["outputs"] == len(given.classes) + 1


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("nonsense", "A recipe must be one of anatomy, .*ensemble-a"), ("odd.json", "must hold what")],
)
def test_a_recipe_that_is_none_is_refused(tmp_path, monkeypatch, name, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.json").write_text('{"name": "odd", "secret": 1}')
    with pytest.raises(ValueError, match=sentence):
        read_recipe(name)


def test_a_recipe_is_told_which_of_its_words_are_unknown_or_lacking(tmp_path, recipe):
    content = {**asdict(recipe), "Name": "x", "tempo": 1}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"`Recipe` lists; unknown: Name, tempo\.$"):
        read_recipe(str(path))
    del content["name"], content["rate"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lists; lacking: name, rate; unknown: Name, tempo\.$"):
        read_recipe(str(path))


def test_an_unknown_builder_is_refused(recipe):
    with pytest.raises(ValueError, match="found 'oracle'"):
        build_network(replace(recipe, builder="oracle"))


def test_lesions_are_not_learnt_from_label_maps(recipe, tmp_path):
    with pytest.raises(ValueError, match="lesions are learnt from BIDS datasets"):
        train(recipe, TrainingData((tmp_path / "maps",)), tmp_path / "out")


def test_voxels_without_weight_do_not_count(rng):
    loss = LesionLoss()
    truth = np.zeros((1, 4, 4, 4, 2), np.float32)
    truth[0, :2, ..., 1] = 1
    logits = rng.normal(size=(1, 4, 4, 4, 1)).astype(np.float32)
    other = logits.copy()
    other[0, 2:] = 9
    assert float(loss(truth, logits)) == pytest.approx(float(loss(truth, other)), rel=1e-5)


def test_a_perfect_answer_costs_next_to_nothing(rng):
    truth = np.stack([rng.integers(0, 3, (1, 6, 6, 6)), rng.integers(0, 2, (1, 6, 6, 6))], -1)
    truth = truth.astype(np.float32)
    sure = np.concatenate(
        [60.0 * np.eye(3)[truth[..., 0].astype(int)], 60 * (2 * truth[..., 1:] - 1)], axis=-1
    ).astype(np.float32)
    loss = StructuresLoss(classes=3)
    assert float(loss(truth, sure)) < 0.01
    assert float(loss(truth, -sure)) > 10


def test_precision_is_one_that_keras_knows():
    assert keras.DTypePolicy(choose_precision()).compute_dtype in ("bfloat16", "float32")


@pytest.mark.usefixtures("in_16_bits")
@pytest.mark.parametrize(
    ("sides", "kernel", "wrong"),
    [
        ((1, 6, 6), (3, 3, 3), False),
        ((2, 6, 6), (3, 3, 3), True),
        ((2, 6, 6), (1, 3, 3), False),
        ((3, 2, 2), (3, 3, 3), False),
        ((4, 6, 6), (5, 1, 1), True),
        ((5, 6, 6), (5, 1, 1), False),
    ],
)
def test_gradients_that_are_not_called_wrong_are_those_of_32_bits(sides, kernel, wrong, rng):
    """Memory that a wrong kernel would read is filled with what is no number before each run."""
    image = keras.Input((None, None, None, 6))
    network = keras.Model(image, keras.layers.Conv3D(8, kernel, padding="same")(image))
    images = rng.normal(size=(4, *sides, 6)).astype(np.float32)
    assert has_wrong_gradients(network, images) == wrong
    if wrong:  # where there are units of 16 bits
        return
    exact = keras.models.clone_model(network, clone_function=in_32_bits)
    exact.set_weights(network.get_weights())
    expected = find_kernel_gradient(exact, images)
    for _ in range(3):
        for size in 2 ** np.arange(6, 16):
            tf.fill([int(size)], np.float32(np.nan))
        found = find_kernel_gradient(network, images)
        np.testing.assert_allclose(found, expected, atol=0.05 * abs(expected).max())


@pytest.mark.usefixtures("in_16_bits")
def test_layers_that_compute_in_32_bits_by_themselves_are_not_called_wrong():
    """Those of the student see images of two voxels by kernels of three."""
    student = build_network(read_recipe("distilled-student"))
    assert not has_wrong_gradients(student, np.zeros((1, *student.input.shape[1:]), np.float32))


def in_32_bits(layer):
    return type(layer).from_config({**layer.get_config(), "dtype": "float32"})


def find_kernel_gradient(network, images):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(network(images), tf.float32) ** 2)
    return tape.gradient(loss, network.trainable_variables[0]).numpy()
