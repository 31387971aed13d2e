"""Files of Keras 2 are read as numbers: genuine ones of TensorFlow 2.7 on Python 3.7.

`fixtures/make_shiva_v1.py` made them, with Lambda layers and mixed_float16, and stored what Keras 2
answers beside them.
"""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from bids_cmb.networks import backend, builders
from bids_cmb.networks.external.keras_h5 import read_unet_h5
from bids_cmb.networks.external.shiva import parse_widths
from bids_cmb.networks.external.tiled_unet import build_tiled_unet, list_kernels

FIXTURES = Path(__file__).parents[2] / "fixtures"
FOLDS = sorted(FIXTURES.glob("*.h5"))
KERNELS = list_kernels(parse_widths(FOLDS[0].name))
SHAPE, EVERY = (130, 150, 134), 7


@pytest.fixture
def altered(tmp_path):
    """A maker of altered copies: the function gets the open file."""

    def make(change):
        path = tmp_path / FOLDS[1].name
        shutil.copyfile(FOLDS[1], path)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return make


def rewired(change):
    """A change of the description that the file holds."""

    def apply(file):
        said = json.loads(file.attrs["model_config"])
        change({one["config"]["name"]: one for one in said["config"]["layers"]})
        file.attrs["model_config"] = json.dumps(said)

    return apply


@pytest.mark.parametrize("fold", range(3))
def test_answers_are_those_of_keras_2_under_python_3_7(fold):
    image = np.random.RandomState(5).rand(*SHAPE).astype(np.float32)
    arrays = builders.fuse_batchnorm(read_unet_h5(FOLDS[fold], KERNELS))
    found = build_tiled_unet(backend.get_tensorflow(), arrays, parse_widths(FOLDS[0].name))(
        image, None
    )
    stored = np.load(FIXTURES / "shiva_v1_answers.npz")[f"fold_{fold}"]
    np.testing.assert_allclose(found[::EVERY, ::EVERY, ::EVERY], stored, atol=1e-4)


def test_weights_alone_are_read_too(tmp_path):
    """What `save_weights` writes: no description, the layers at the root."""
    path = tmp_path / "w.h5"
    with h5py.File(FOLDS[1]) as file, h5py.File(path, "w") as out:
        stored = file["model_weights"]
        for name in stored:
            stored.copy(name, out)
        out.attrs["layer_names"] = stored.attrs["layer_names"]
    whole, alone = read_unet_h5(FOLDS[1], KERNELS), read_unet_h5(path, KERNELS)
    assert all(np.array_equal(whole[name], alone[name]) for name in whole)


def test_skips_that_were_stacked_first_are_put_last(altered):
    """Another order of the stack is another order of the kernel's input, and no more."""

    def change(file):
        def wire(layers):
            nodes = layers["concatenate_6"]["inbound_nodes"][0]
            nodes.reverse()

        rewired(wire)(file)
        kernel = file["model_weights/conv3d_26/conv3d_26/kernel:0"]
        kernel[...] = np.roll(kernel[...], 2, axis=3)  # two channels of skip now come first

    before, after = read_unet_h5(FOLDS[1], KERNELS), read_unet_h5(altered(change), KERNELS)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_layers_stored_in_another_order_than_they_are_wired_are_refused(altered):
    def change(file):
        names = [str(one) for one in file["model_weights"].attrs["layer_names"]]
        first, second = names.index("conv3d_28"), names.index("conv3d_29")
        names[first], names[second] = names[second], names[first]
        file["model_weights"].attrs["layer_names"] = names

    with pytest.raises(ValueError, match=r"order in which they are wired; conv3d_29 follows batch"):
        read_unet_h5(altered(change), KERNELS)


@pytest.mark.parametrize(
    ("layer", "setting", "value", "sentence"),
    [
        ("activation_3", "activation", "relu", "activation of layer activation_3 must be swish"),
        ("conv3d_4", "activation", "relu", "activation of layer conv3d_4 must be linear; found re"),
        ("conv3d_30", "activation", "relu", "conv3d_30 must be sigmoid or linear; found relu"),
        ("conv3d_2", "strides", [2, 2, 2], r"strides of layer conv3d_2 must be \[1, 1, 1\]; found"),
        ("conv3d_2", "dilation_rate", [2, 2, 2], "dilation_rate of layer conv3d_2 must be"),
        ("conv3d_2", "padding", "valid", "padding of layer conv3d_2 must be same; found valid"),
        ("batch_normalization_5", "epsilon", 0.01, "epsilon of layer batch_normalization_5 must"),
        ("max_pooling3d", "pool_size", [3, 3, 3], "pool_size of layer max_pooling3d must be"),
        ("up_sampling3d", "size", [3, 3, 3], "size of layer up_sampling3d must be"),
    ],
)
def test_a_network_that_differs_where_its_shapes_do_not_is_refused(
    altered, layer, setting, value, sentence
):
    def wire(layers):
        layers[layer]["config"][setting] = value

    with pytest.raises(ValueError, match=sentence):
        read_unet_h5(altered(rewired(wire)), KERNELS)


def test_layers_of_another_kind_are_refused(altered):
    def wire(layers):
        layers["lambda"]["class_name"] = "Dense"

    with pytest.raises(ValueError, match="layer lambda must be one of a 3D U-Net; found Dense"):
        read_unet_h5(altered(rewired(wire)), KERNELS)


def test_another_size_is_refused_with_layer_expected_and_found_shape():
    wider = list_kernels((2, 4, 4, 5, 6, 8, 10))
    with pytest.raises(
        ValueError,
        match=r"layer conv3d_2 must be down1_first with kernel \(3, 3, 3, 2, 4\); found kernel "
        r"\(3, 3, 3, 2, 3\)",
    ):
        read_unet_h5(FOLDS[0], wider)


def test_a_network_that_goes_on_or_ends_early_is_refused():
    longer = {**KERNELS, "more": (1, 1, 1, 1, 1)}
    with pytest.raises(ValueError, match=r"layer conv3d_30 must be answer with kernel"):
        read_unet_h5(FOLDS[0], longer)
    *names, _, _ = KERNELS
    with pytest.raises(ValueError, match="layer conv3d_28 must be last_first with"):
        read_unet_h5(FOLDS[0], {name: KERNELS[name] for name in [*names, "last_first"]})


def test_what_is_no_keras_file_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(b"no HDF5 at all")
    with pytest.raises(ValueError, match=r"a\.h5: a Keras file must be HDF5"):
        read_unet_h5(path, KERNELS)
    with h5py.File(path, "w") as file:
        file["x"] = [1, 2, 3]
    with pytest.raises(ValueError, match="must name its layers; found no layer_names"):
        read_unet_h5(path, KERNELS)


def test_weights_that_are_missing_are_named(altered):
    def change(file):
        del file["model_weights/conv3d_7/conv3d_7/kernel:0"]

    with pytest.raises(ValueError, match="weights of layer conv3d_7 must be in the file"):
        read_unet_h5(altered(change), KERNELS)


def test_a_broken_description_is_refused(altered):
    def change(file):
        file.attrs["model_config"] = '{"config": [1]}'

    with pytest.raises(ValueError, match="model_config must describe a network"):
        read_unet_h5(altered(change), KERNELS)


def test_an_array_that_unpacks_to_160_gb_is_refused_and_not_unpacked(altered):
    """HDF5 stores nothing of an array that was never written, however large it says it is."""

    def grow(file):
        stored = file["model_weights"]
        name = next(one for one in stored if list(stored[one].attrs.get("weight_names", ())))
        weight = stored[name].attrs["weight_names"][0]
        del stored[name][weight]
        stored[name].create_dataset(weight, (200, 200, 1_000_000), "f4", chunks=(100, 100, 100))

    with pytest.raises(ValueError, match=r"must take at most 256 MB; found 1525\d\d MB"):
        read_unet_h5(altered(grow), KERNELS)


def test_a_description_of_nested_brackets_is_refused(altered):
    def nest(file):
        file.attrs["model_config"] = '{"config": ' + "[" * 30_000

    with pytest.raises(
        ValueError, match="model_config must describe a network; found more than 64"
    ):
        read_unet_h5(altered(nest), KERNELS)
