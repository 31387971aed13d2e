"""A SavedModel is a program: arithmetic is loaded and asked, anything else is refused unseen."""

import numpy as np
import pytest

from bids_cmb import networks
from bids_cmb.savedmodels import check_operations, signature_of

SHAPE = (24, 20, 16)


def residual(shape=SHAPE):
    """Eight filters and residual blocks, as the name of SHIVA-CMB's second network has them."""
    keras = networks._keras()
    layers = keras.layers
    image = x = keras.Input((*shape, 1))
    for width in (8, 12):
        y = layers.Conv3D(width, 3, padding="same")(x)
        y = layers.Activation("swish")(layers.BatchNormalization()(y))
        y = layers.Conv3D(width, 3, padding="same")(y)
        x = layers.Activation("swish")(layers.Add()([y, layers.Conv3D(width, 1)(x)]))
        if width == 8:
            skip, x = x, layers.MaxPooling3D(2)(x)
    x = layers.Concatenate()([layers.UpSampling3D(2)(x), skip])
    x = layers.Conv3D(8, 3, padding="same", activation="swish")(x)
    return keras.Model(image, layers.Conv3D(1, 1, activation="sigmoid")(x))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network, and the folder that Keras has exported it to."""
    networks._keras().utils.set_random_seed(3)
    model = residual()
    folder = tmp_path_factory.mktemp("saved") / "fold_0.tf_inference"
    model.export(folder, verbose=False)
    return model, folder


def module(ask, folder, shape=(None, *SHAPE, 1)):
    """A SavedModel whose answer is ``ask(image)``."""
    tf = networks._tensorflow()

    class Holder(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="image")])
        def serve(self, image):
            return {"answer": ask(tf, image)}

    made = Holder()
    tf.saved_model.save(made, str(folder), signatures={"serving_default": made.serve})
    return folder


def test_the_answer_is_that_of_the_network(saved, rng):
    model, folder = saved
    image = rng.random(SHAPE, np.float32)
    found = signature_of(networks._tensorflow(), folder, SHAPE)(image)
    expected = np.asarray(model(image[None, ..., None]))[0, ..., 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.std() > 0.001


def test_the_dtype_is_read_from_the_file(tmp_path, rng):
    """A network that takes 16 bits is given 16 bits."""
    tf = networks._tensorflow()

    class Half(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE, 1), tf.float16)])
        def serve(self, image):
            return {"answer": tf.sigmoid(image)}

    made = Half()
    tf.saved_model.save(made, str(tmp_path / "m"), signatures={"serving_default": made.serve})
    image = rng.random(SHAPE, np.float32)
    found = signature_of(tf, tmp_path / "m", SHAPE)(image)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-image)), atol=2e-3)
    assert found.dtype == np.float32


def test_another_input_shape_is_refused(saved):
    with pytest.raises(
        ValueError, match=r"the input of a SavedModel must have shape \(None, 160, 214, 176, 1\)"
    ):
        signature_of(networks._tensorflow(), saved[1], (160, 214, 176))


def test_another_output_shape_is_refused(tmp_path):
    folder = module(lambda tf, image: tf.reduce_sum(image), tmp_path / "m")
    with pytest.raises(ValueError, match="the output of a SavedModel must have shape"):
        signature_of(networks._tensorflow(), folder, SHAPE)


def test_a_network_that_writes_files_is_refused_and_has_written_none(tmp_path):
    def ask(tf, image):
        tf.io.write_file(str(tmp_path / "written"), "by a model")
        return image

    folder = module(ask, tmp_path / "m")
    with pytest.raises(ValueError, match="arithmetic only; found the operation WriteFile"):
        signature_of(networks._tensorflow(), folder, SHAPE)
    assert not (tmp_path / "written").exists()


def test_a_network_that_saves_in_its_answer_is_refused(tmp_path):
    """Saving is allowed to TensorFlow's own functions, not on the way to an answer."""

    def ask(tf, image):
        tf.raw_ops.SaveV2(
            prefix=str(tmp_path / "written"), tensor_names=["a"], shape_and_slices=[""],
            tensors=[image],
        )  # fmt: skip
        return image

    folder = module(ask, tmp_path / "m")
    with pytest.raises(ValueError, match="found the operation SaveV2"):
        check_operations(folder)


def test_a_network_that_calls_python_is_refused(tmp_path):
    def ask(tf, image):
        return tf.ensure_shape(tf.py_function(lambda x: x, [image], tf.float32), image.shape)

    folder = module(ask, tmp_path / "m")
    with pytest.raises(ValueError, match="found the operation EagerPyFunc"):
        check_operations(folder)


def test_what_is_no_savedmodel_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must hold a readable saved_model\.pb"):
        check_operations(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xfenothing")
    with pytest.raises(ValueError, match=r"must hold a readable saved_model\.pb"):
        check_operations(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ValueError, match="one graph with serving_default"):
        check_operations(tmp_path)


def test_lost_variables_are_a_sentence(saved, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes((saved[1] / "saved_model.pb").read_bytes())
    with pytest.raises(ValueError, match="a SavedModel must be whole"):
        signature_of(networks._tensorflow(), folder, SHAPE)
