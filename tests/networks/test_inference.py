"""A network in use computes what was trained, on any size, and refuses what does not fit."""

import importlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from networks import weights_of, write_member
from scipy import ndimage

from bids_cmb.networks import backend, inference, loading
from bids_cmb.networks.builders import fuse_batchnorm
from bids_cmb.networks.inference import Network, predict, predict_around, predict_in_slabs
from bids_cmb.networks.loading import load_network

ARGUMENTS = {"widths": [2, 4, 4]}


def trained(rng, **arguments):
    """A network with weights by chance, and normalisations as after a training."""
    backend.get_tensorflow()
    from bids_cmb.networks.architectures.unet import unet  # noqa: PLC0415 after TensorFlow, which is silent so

    model = unet(**{**ARGUMENTS, **arguments})
    for one in model.variables:
        if one.path.endswith(("gamma", "moving_variance")):
            one.assign(rng.uniform(0.5, 2, one.shape))
        elif one.path.endswith(("beta", "moving_mean")):
            one.assign(rng.normal(0, 0.3, one.shape))
    return model


def member_of(model, path, **more):
    return write_member(model, path, "unet", ARGUMENTS, **more)


@pytest.fixture
def model(rng):
    return trained(rng)


def logit(chance):
    return np.log(chance / (1 - chance))


def test_taking_normalisations_into_convolutions_changes_nothing(model, rng, tmp_path):
    image = rng.random((16, 24, 8), np.float32)
    before = np.asarray(model(image[None, ..., None]))[0, ..., 0]
    network = load_network(member_of(model, tmp_path / "w.npz"), tmp_path / "w.npz")
    np.testing.assert_allclose(logit(predict(network, image)), before, atol=1e-4)


def test_folded_weights_have_no_normalisation_left(model):
    arrays = weights_of(model)
    assert any("_norm" in name for name in arrays)
    assert not any("_norm" in name for name in fuse_batchnorm(arrays))


def test_temperature_and_offset_bend_the_probability_and_nothing_else(model, rng, tmp_path):
    image = rng.random((8, 8, 8), np.float32)
    path = tmp_path / "w.npz"
    plain = predict(load_network(member_of(model, path), path), image)
    bent = predict(load_network(member_of(model, path, temperature=2.0, offset=1.0), path), image)
    np.testing.assert_allclose(logit(bent), (logit(plain) - 1) / 2, atol=1e-4)


def test_flips_are_averaged(model, rng, tmp_path):
    image = rng.random((8, 12, 8), np.float32)
    path = tmp_path / "w.npz"
    network = load_network(member_of(model, path), path)
    turned = predict(network, image[::-1].copy())[::-1]
    both = predict(load_network(member_of(model, path, flips=[[0]]), path), image)
    np.testing.assert_allclose(both, (predict(network, image) + turned) / 2, atol=1e-6)


def test_slabs_give_what_the_whole_gives(model, rng, tmp_path, monkeypatch):
    image = rng.random((8, 160, 8), np.float32)
    path = tmp_path / "w.npz"
    network = load_network(member_of(model, path), path)
    whole = predict(network, image)
    monkeypatch.setattr(inference, "MAX_VOXELS_AT_ONCE", image.size // 3)
    np.testing.assert_allclose(predict(network, image), whole, atol=1e-6)


def test_slabs_of_several_images_are_those_of_one_place(rng):
    first, second = rng.random((40, 6, 5), np.float32), rng.integers(0, 9, (40, 6, 5, 2), np.uint8)

    def combine(one, two):
        shapes.append((one.shape, two.shape))
        return one[0, ..., 0] * two[0, ..., 1]

    shapes = []
    product = predict_in_slabs(combine, (4, 1, 1), (first, second), first.size // 2, overlap=4)
    np.testing.assert_array_equal(product, first * second[..., 1])
    assert shapes == [((1, 24, 6, 5, 1), (1, 24, 6, 5, 2))] * 2


def test_a_hidden_module_is_hidden_for_a_while_and_one_that_is_loaded_never():
    sys.modules.pop("colorsys", None)
    with backend._hide_module("colorsys"), pytest.raises(ImportError):
        importlib.import_module("colorsys")
    loaded = importlib.import_module("colorsys")
    with backend._hide_module("colorsys"):
        assert importlib.import_module("colorsys") is loaded


def test_around_a_few_voxels_it_is_the_whole_prediction_where_the_context_holds_the_field(rng):
    def average(image, _):  # a field of 5 x 5 x 3 voxels
        sizes.append(image.size)
        return ndimage.uniform_filter(image, (5, 5, 3), mode="constant")

    sizes = []
    network = Network("mean", average, (4, 4, 2), ())
    image = rng.random((64, 80, 20), np.float32)
    voxels = np.array([[30, 31, 9], [0, 79, 19], [200, 40, -3]])  # inside, in a corner, outside
    reach, context = np.array([2, 3, 1]), np.array([2, 2, 1])
    part = predict_around(network, image, voxels, reach, context)
    whole = average(image, None)
    wanted = np.zeros(image.shape, bool)
    for voxel in ([30, 31, 9], [0, 79, 19], [63, 40, 0]):
        away = np.abs(np.stack(np.indices(image.shape), axis=-1) - voxel)
        wanted |= (away <= reach).all(axis=-1)
    np.testing.assert_allclose(part[wanted], whole[wanted], atol=1e-6)
    assert not part[~wanted].any()
    assert sizes[:3] == [12 * 12 * 6, 8 * 8 * 4, 8 * 12 * 4]


def test_around_many_voxels_the_whole_is_predicted_once(rng):
    images = []
    network = Network("same", lambda image, _: images.append(image) or image, (4, 4, 4), ())
    image = rng.random((16, 16, 16), np.float32)
    everywhere = np.argwhere(image > 0.9)
    assert predict_around(network, image, everywhere, np.ones(3, int), np.ones(3, int)) is image
    assert len(images) == 1


def test_a_side_that_is_no_multiple_is_refused(model, tmp_path):
    path = tmp_path / "w.npz"
    network = load_network(member_of(model, path), path)
    with pytest.raises(ValueError, match=r"must be multiples of \(4, 4, 4\); found \(8, 8, 6\)"):
        predict(network, np.zeros((8, 8, 6), np.float32))


def test_flat_levels_ask_less_of_the_slices(rng, tmp_path):
    path, arguments = tmp_path / "w.npz", {**ARGUMENTS, "flat": 1}
    member = {**member_of(trained(rng, flat=1), path), "arguments": arguments}
    network = load_network(member, path)
    assert predict(network, np.zeros((8, 8, 6), np.float32)).shape == (8, 8, 6)


def test_anatomy_answers_with_chances_of_classes_and_a_side(rng, tmp_path):
    path, arguments = tmp_path / "w.npz", {**ARGUMENTS, "outputs": 4}
    member = {**member_of(trained(rng, outputs=4), path), "arguments": arguments}
    found = predict(load_network(member, path), rng.random((8, 8, 8), np.float32))
    assert found.shape == (8, 8, 8, 4)
    assert found.dtype == np.uint8
    assert (abs(found[..., :3].sum(axis=-1, dtype=int) - 255) <= 2).all()


def test_packing_answers_as_finely_as_it_is_asked(rng, tmp_path):
    path, arguments = tmp_path / "w.npz", {**ARGUMENTS, "packed": True}
    member = {**member_of(trained(rng, packed=True), path), "arguments": arguments}
    network = load_network(member, path)
    assert network.multiple == (8, 8, 8)
    assert predict(network, rng.random((16, 8, 8), np.float32)).shape == (16, 8, 8)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"builder": "oracle"},
            "the builder of a network must be one of unet, shiva.*; found 'oracle'",
        ),
        ({"arguments": {"depth": 3}}, "unet takes no such argument"),
        ({"arguments": {"widths": [2, 4]}}, "which it does not have"),
        ({"arguments": {"widths": [2, 4, 4, 4]}}, "found none for "),
        ({"arguments": {"widths": [2, 4, 6]}}, r"must have shape \(.*\); found \("),
    ],
)
@pytest.mark.parametrize("engine", [backend.TENSORFLOW, backend.OPENVINO])
def test_weights_of_another_network_are_refused(
    model, tmp_path, monkeypatch, engine, change, sentence
):  # fmt: skip
    monkeypatch.setenv(backend.ENGINE_VARIABLE, engine)
    path = tmp_path / "w.npz"
    member = {**member_of(model, path), **change}
    with pytest.raises(ValueError, match=rf"w.npz: .*{sentence}"):
        load_network(member, path)
    if "builder" not in change:
        assert re.search(rf"w.npz: .*{sentence}", loading.find_misfit([(member, path)]))


def test_weights_that_fit_have_no_misfit(model, tmp_path):
    path = tmp_path / "w.npz"
    assert not loading.find_misfit([(member_of(model, path), path)])


@pytest.mark.parametrize("engine", [backend.TENSORFLOW, backend.OPENVINO])
def test_sixteen_bits_are_nearly_as_good(model, rng, tmp_path, monkeypatch, engine):
    monkeypatch.setenv(backend.ENGINE_VARIABLE, engine)
    image = rng.random((16, 16, 16), np.float32)
    path = tmp_path / "w.npz"
    full, mixed = (
        predict(load_network(member_of(model, path), path, precision=precision), image)
        for precision in ("full", "mixed")
    )
    assert abs(full - mixed).max() < 0.03
    if engine == backend.TENSORFLOW:  # OpenVINO leaves it where the processor has no 16 bits
        assert abs(full - mixed).max() > 0


def test_without_a_gpu_it_is_said_what_was_looked_at(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    said = backend.explain_missing_gpu()
    assert "CUDA_VISIBLE_DEVICES is '-1'" in said
    assert "driver" in said


ANSWER = """
import json, os, sys
import numpy as np
import bids_cmb
from bids_cmb.networks.inference import Network, predict, predict_around, predict_in_slabs
from bids_cmb.networks.loading import load_network
member = json.loads(sys.argv[1])
image = np.random.default_rng(1).random((32, 32, 32), np.float32)
network = load_network(member, __import__("pathlib").Path(sys.argv[2]))
np.save(sys.argv[3], predict(network, image))
print(os.environ["TF_ENABLE_ONEDNN_OPTS"])
"""


def test_results_with_and_without_onednn_are_the_same(model, tmp_path):
    """It is on unless the user says otherwise; TensorFlow reads it once, so in two processes."""
    path = tmp_path / "w.npz"
    member = json.dumps(member_of(model, path))
    unset = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
    found = {}
    for name, environment in {"1": unset, "0": {**unset, "TF_ENABLE_ONEDNN_OPTS": "0"}}.items():
        out = tmp_path / f"{name}.npy"
        ran = subprocess.run(
            [sys.executable, "-c", ANSWER, member, path, out],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert ran.stdout.split() == [name]
        found[name] = np.load(out)
    np.testing.assert_allclose(found["1"], found["0"], atol=1e-5)
    assert found["1"].std() > 1e-3  # a hundred times what they may differ by


def test_voxels_that_lie_near_each_other_share_a_box(rng):
    seen = []
    network = Network("same", lambda image, _: seen.append(image.shape) or image, (4, 4, 4), ())
    image = rng.random((80, 80, 40), np.float32)
    voxels = np.array([[20, 20, 10], [60, 60, 30], [22, 21, 10], [20, 23, 12]])
    part = predict_around(network, image, voxels, np.ones(3, int), np.full(3, 5))
    assert seen == [(16, 16, 16), (16, 16, 16)]
    for x, y, z in voxels:
        box = np.s_[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2]
        np.testing.assert_array_equal(part[box], image[box])
    assert np.count_nonzero(part) <= 4 * 27
