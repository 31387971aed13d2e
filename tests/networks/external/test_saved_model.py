"""A SavedModel is a program: arithmetic is loaded and asked, anything else is refused unseen."""

import shutil

import numpy as np
import pytest
from saved_models import SHAPE, module, residual, version_one

from bids_cmb.networks import backend
from bids_cmb.networks.external.saved_model import check_operations, load_signature


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network, and the folder that Keras has exported it to."""
    backend.get_keras().utils.set_random_seed(3)
    model = residual()
    folder = tmp_path_factory.mktemp("saved") / "fold_0.tf_inference"
    model.export(folder, verbose=False)
    return model, folder


def test_the_answer_is_that_of_the_network(saved, rng):
    model, folder = saved
    image = rng.random(SHAPE, np.float32)
    found = load_signature(backend.get_tensorflow(), folder, SHAPE)(image)
    expected = np.asarray(model(image[None, ..., None]))[0, ..., 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.std() > 0.001


def test_the_dtype_is_read_from_the_file(tmp_path, rng):
    """A network that takes 16 bits is given 16 bits."""
    tf = backend.get_tensorflow()

    class Half(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE, 1), tf.float16)])
        def serve(self, image):
            return {"answer": tf.sigmoid(image)}

    made = Half()
    tf.saved_model.save(made, str(tmp_path / "m"), signatures={"serving_default": made.serve})
    image = rng.random(SHAPE, np.float32)
    found = load_signature(tf, tmp_path / "m", SHAPE)(image)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-image)), atol=2e-3)
    assert found.dtype == np.float32


def test_another_input_shape_is_refused(saved):
    with pytest.raises(
        ValueError, match=r"the input of a SavedModel must have shape \(None, 160, 214, 176, 1\)"
    ):
        load_signature(backend.get_tensorflow(), saved[1], (160, 214, 176))


def test_another_output_shape_is_refused(tmp_path):
    folder = module(lambda tf, image: tf.reduce_sum(image), tmp_path / "m")
    with pytest.raises(ValueError, match="the output of a SavedModel must have shape"):
        load_signature(backend.get_tensorflow(), folder, SHAPE)


def test_a_network_that_writes_files_is_refused_and_has_written_none(tmp_path):
    def ask(tf, image):
        tf.io.write_file(str(tmp_path / "written"), "by a model")
        return image

    folder = module(ask, tmp_path / "m")
    with pytest.raises(ValueError, match="arithmetic only; found the operation WriteFile"):
        load_signature(backend.get_tensorflow(), folder, SHAPE)
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


@pytest.mark.parametrize("where", ["main_op", "control"])
def test_a_version_1_graph_writes_no_file_at_loading_nor_when_asked(tmp_path, where):
    folder = version_one(tmp_path / "m", tmp_path / "written", where=where)
    with pytest.raises(ValueError, match="m: a SavedModel must be of TensorFlow 2"):
        load_signature(backend.get_tensorflow(), folder, SHAPE)
    assert not list(tmp_path.glob("written*"))


def altered(saved, folder, alter):
    """The network's SavedModel after ``alter(graph)`` of its protocol buffer."""
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415

    shutil.copytree(saved[1], folder)
    read = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    alter(read.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(read.SerializeToString())
    return folder


def add_saver(graph):
    node = graph.graph_def.node.add(name="saver", op="SaveV2")
    node.input.extend(["image", "image", "image", "image"])


def init_by_collection(graph):
    add_saver(graph)
    graph.collection_def["legacy_init_op"].node_list.value[:] = ["saver"]


def init_by_signature(graph):
    """TensorFlow's own NoOp, after an operation that saves."""
    add_saver(graph)
    (noop,) = [node for node in graph.graph_def.node if node.op == "NoOp"]
    noop.input.append("^saver")


def name_a_function(graph):
    """A function of the author's, called as TensorFlow calls its own, and run by the answer."""
    saver = next(one for one in graph.graph_def.library.function
                 if "traced_save" in one.signature.name)  # fmt: skip
    answers = [node for node in graph.graph_def.node if node.op == "StatefulPartitionedCall"]
    answers[0].attr["f"].func.name = saver.signature.name


def run_by_an_object(graph):
    """The functions of objects are those that the loader hands out."""
    name = next(one.signature.name for one in graph.graph_def.library.function
                if "traced_save" in one.signature.name)  # fmt: skip
    graph.object_graph_def.concrete_functions[name].SetInParent()


def name_of_its_own_only(graph):
    """A name is no reason to trust: this function is one that no saver knows."""
    graph.saver_def.Clear()


def resource(graph):
    graph.object_graph_def.nodes.add().resource.SetInParent()


@pytest.mark.parametrize(
    ("alter", "sentence"),
    [
        (add_saver, "arithmetic only; found the operation SaveV2"),
        (init_by_collection, "must initialise nothing but its variables; its init op is SaveV2"),
        (init_by_signature, r"its init op is NoOp after \^saver"),
        (name_a_function, "arithmetic only; found the operation"),
        (run_by_an_object, "arithmetic only; found the operation"),
        (name_of_its_own_only, "arithmetic only; found the operation"),
        (resource, "variables and functions only; found a resource object"),
    ],
)
def test_saving_is_no_part_of_what_is_run(saved, tmp_path, alter, sentence):
    check_operations(saved[1])
    with pytest.raises(ValueError, match=f"m: a SavedModel .*{sentence}"):
        check_operations(altered(saved, tmp_path / "m", alter))


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
        load_signature(backend.get_tensorflow(), folder, SHAPE)
