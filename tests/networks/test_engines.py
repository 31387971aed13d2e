"""Two engines compute the same, and the one is chosen that the machine has."""

import gc
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from networks import write_member

from bids_cmb.networks import backend, loading, openvino_engine, tensorflow_engine
from bids_cmb.networks.builders import BUILDERS
from bids_cmb.networks.model_cards import list_cards, load_card, locate_weights, select_members

BUNDLED = [
    pytest.param(card, member, id=f"{card}-{member['name']}")
    for card in list_cards()
    for member in load_card(card).get("members", ())
    if member["builder"] in BUILDERS
]
SIDES = (32, 48, 16)  # multiples of what every network asks for


def squash(numbers):
    return 1 / (1 + np.exp(-np.asarray(numbers, float)))


def draw_inputs(member, rng, batch=3):
    """Draw a batch as bright as brain is to itself, of the size that the network is used with."""
    with loading.LOADING_LOCK:
        model = tensorflow_engine.build_model(member, locate_weights(member["card"], member, None))
    shapes = [
        [side or size for side, size in zip(tensor.shape[1:], SIDES, strict=False)]
        + list(tensor.shape[1:][len(SIDES) :])
        for tensor in model.inputs
    ]
    return [rng.normal(1, 0.3, (batch, *shape)).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(("card", "member"), BUNDLED)
def test_probabilities_of_bundled_networks_are_the_same_by_either_engine(card, member, rng):
    path = locate_weights(card, member, None)
    inputs = draw_inputs({**member, "card": card}, rng)
    found, expected = (
        engine.compile_patch_network(member, path, "full")(*inputs)
        for engine in (openvino_engine, tensorflow_engine)
    )
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(squash(found), squash(expected), atol=1e-5)
    assert np.ptp(expected) > 0.01  # a network that says something


@pytest.mark.parametrize("card", ["ensemble", "anatomy"])
def test_whole_images_are_the_same_by_either_engine(card, rng):
    member = next(iter(select_members(load_card(card))))
    path = locate_weights(card, member, None)
    image = rng.normal(1, 0.3, (1, 32, 48, 16, 1)).astype(np.float32)
    found, expected = (
        engine.compile_image_network(member, path, "full")(image)
        for engine in (openvino_engine, tensorflow_engine)
    )
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    limit = 1e-5 if found.dtype == np.float32 else 1  # of 255 steps
    assert np.abs(found.astype(float) - expected.astype(float)).max() <= limit


ARCHITECTURES = [  # what no bundled network has
    ("cdisc_teacher", {"width": 2, "inputs": 2}, [(24, 24, 24, 2)]),
    ("resnet_gate", {"widths": [3, 4], "blocks": [2, 1], "bottleneck": True}, [(15, 13, 3)]),
    ("classifier", {"shape": [15, 14, 7], "widths": [3, 4, 5]}, [(15, 14, 7, 3), (32,)]),
    ("unet", {"widths": [3, 5], "packed": True, "inputs": 2, "outputs": 3}, [(16, 8, 12, 2)]),
]


@pytest.mark.parametrize(("builder", "arguments", "shapes"), ARCHITECTURES)
def test_layers_compute_what_keras_computes(builder, arguments, shapes, rng, tmp_path):
    backend.get_tensorflow()
    model = getattr(import_module(BUILDERS[builder]), builder)(**arguments)
    for variable in model.variables:
        low = 0.5 if variable.path.endswith(("gamma", "moving_variance")) else -0.5
        variable.assign(rng.uniform(low, 1, variable.shape))
    path = tmp_path / "w.npz"
    member = write_member(model, path, builder, arguments)
    inputs = [rng.normal(0, 1, (2, *shape)).astype(np.float32) for shape in shapes]
    expected = np.asarray(model(inputs[0] if len(inputs) == 1 else inputs, training=False))
    found = openvino_engine.compile_patch_network(member, path, "full")(*inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_memory_may_be_released_while_a_network_computes(rng):
    member = next(iter(select_members(load_card("ensemble"))))
    path = locate_weights("ensemble", member, None)
    predict = openvino_engine.compile_image_network(member, path, "full")
    image = rng.normal(1, 0.3, (1, 48, 48, 32, 1)).astype(np.float32)
    expected, ended = predict(image), threading.Event()

    def release():
        while not ended.is_set():
            backend.release_memory()

    thread = threading.Thread(target=release)
    thread.start()
    try:
        for _ in range(5):
            np.testing.assert_array_equal(predict(image), expected)
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def machine(monkeypatch):
    """A machine without anything, to which a test adds."""
    monkeypatch.delenv(backend.ENGINE_VARIABLE, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(backend, "find_spec", lambda _: None)
    monkeypatch.setattr(backend, "_list_gpus", list)
    monkeypatch.setattr(backend, "_is_installed", lambda _: False)
    return monkeypatch


def test_openvino_computes_where_it_is_installed_and_no_gpu_is(machine):
    assert backend.choose_engine() == "tensorflow"
    machine.setattr(backend, "find_spec", lambda _: True)
    assert backend.choose_engine() == "openvino"
    machine.setattr(backend, "_list_gpus", lambda: [Path("/dev/nvidia0")])
    assert backend.choose_engine() == "tensorflow"
    machine.setenv("CUDA_VISIBLE_DEVICES", "-1")  # --device cpu
    assert backend.choose_engine() == "openvino"
    machine.delenv("CUDA_VISIBLE_DEVICES")
    machine.setattr(backend, "_is_installed", lambda name: name == "tensorflow-cpu")
    assert backend.choose_engine() == "openvino"
    machine.setenv(backend.ENGINE_VARIABLE, "tensorflow")
    assert backend.choose_engine() == "tensorflow"


def test_where_openvino_cannot_be_loaded_tensorflow_computes_unless_it_was_named(machine):
    def fail():
        raise ImportError("libopenvino.so: cannot open shared object file")

    machine.setattr(backend, "find_spec", lambda _: True)
    machine.setattr(backend, "get_openvino", fail)
    machine.setenv(backend.ENGINE_VARIABLE, "openvino")
    with pytest.raises(ImportError, match="cannot open"):
        backend.settle_engine()
    machine.setenv(backend.ENGINE_VARIABLE, "auto")
    assert backend.settle_engine() == "tensorflow"
    assert loading.get_engine() is tensorflow_engine
    assert backend.choose_engine() == "tensorflow"


def test_an_engine_that_cannot_compute_is_said_in_a_sentence(machine):
    assert not backend.find_engine_problem("auto", "gpu")
    assert "needs the package openvino" in backend.find_engine_problem("openvino", "auto")
    assert "found --device gpu" in backend.find_engine_problem("openvino", "gpu")
    machine.setattr(backend, "find_spec", lambda _: True)
    assert not backend.find_engine_problem("openvino", "cpu")
    machine.setenv(backend.ENGINE_VARIABLE, "onnx")
    assert "BIDS_CMB_ENGINE must be openvino or tensorflow; found 'onnx'" in (
        backend.find_engine_problem("auto", "cpu")
    )


def test_openvino_reports_nothing_to_its_makers(tmp_path):
    (tmp_path / "openvino_telemetry.py").write_text("raise SystemExit('it would have reported')")
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise SystemExit('it called home')\n"
        "socket.socket.connect = refuse\n"
        "from bids_cmb.networks import backend\n"
        "backend.get_openvino()\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{Path.cwd()}", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_network_that_nobody_holds_is_not_kept():
    member = next(iter(select_members(load_card("ensemble"))))
    path = locate_weights("ensemble", member, None)
    before = len(backend._releases)
    predict = openvino_engine.compile_image_network(member, path, "full")
    assert len(backend._releases) == before + 1
    del predict
    gc.collect()
    assert len(backend._releases) == before
