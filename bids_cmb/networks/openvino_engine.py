"""Networks computed by OpenVINO, on a CPU, with less memory and less time to load than TensorFlow.

Probabilities agree with TensorFlow's within 1e-5; a test compares all networks that are bundled.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np

from bids_cmb.networks.backend import get_openvino, get_threads, release_with_memory
from bids_cmb.networks.builders import build_network, check_fit, fuse_batchnorm
from bids_cmb.networks.inference import PROBABILITY_STEPS
from bids_cmb.networks.layers import use_layers
from bids_cmb.networks.openvino_layers import OpenVinoLayers
from bids_cmb.networks.weights import read_weights

MAX_VALUES_KEPT = 2**19  # of an input; what a larger one needs is released after each


def compile_image_network(
    member: Mapping, path: Path, precision: str
) -> Callable[[np.ndarray], np.ndarray]:
    """Compile a network for images of any size; as `tensorflow_engine.compile_image_network`."""
    model = build_model(member, path)
    temperature, offset = member.get("temperature", 1.0), member.get("offset", 0.0)
    return _compile(_add_probabilities(model, temperature, offset), precision)


def compile_patch_network(member: Mapping, path: Path, precision: str) -> Callable:
    """Compile a network for patches; as `tensorflow_engine.compile_patch_network`."""
    return _compile(build_model(member, path), precision)


def build_model(member: Mapping, path: Path):
    """Build the OpenVINO model of a member, normalisations fused, with its weights from ``path``.

    Raises:
        ValueError: If builder or arguments are unknown, or the weights are not those of the card
            or not of this network.
    """
    arrays = fuse_batchnorm(read_weights(path, member["sha256"]))
    layers = OpenVinoLayers(arrays)
    with use_layers(layers):
        model = build_network(member, path)
    check_fit(layers.shapes, arrays, path)
    return model


def _add_probabilities(model, temperature: float, offset: float):
    """Turn log-odds (1, X, Y, Z, C) into the probabilities of one image without the batch."""
    ov, ops = get_openvino(), get_openvino().opset13
    logits = model.output(0).get_node().input_value(0)
    outputs = logits.get_partial_shape()[4].get_length()
    first = ops.gather(logits, np.int64(0), np.int64(0))  # (X, Y, Z, C)
    if outputs == 1:
        shifted = ops.divide(ops.subtract(first, np.float32(offset)), np.float32(temperature))
        answer = ops.sigmoid(ops.squeeze(shifted, np.int64(3)))
    else:
        classes, side = ops.variadic_split(first, np.int64(3), np.array([outputs - 1, 1])).outputs()
        both = ops.concat([ops.softmax(classes, 3), ops.sigmoid(side)], 3)
        steps = ops.round(ops.multiply(both, np.float32(PROBABILITY_STEPS)), "half_to_even")
        answer = ops.convert(steps, "u8")
    return ov.Model([answer], model.get_parameters(), "probabilities")


def _compile(model, precision: str) -> Callable:
    """Compile a model; return a function of its inputs, of any size, to its output."""
    options = {
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "mixed" else "f32",
    }
    if threads := get_threads():
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = _get_core().compile_model(model, "CPU", options)
    computing = Lock()

    def infer(*inputs: np.ndarray) -> np.ndarray:
        arrays = [np.ascontiguousarray(array, np.float32) for array in inputs]
        with computing:
            answer = compiled.create_infer_request().infer(arrays, share_inputs=True)[0]
            if sum(array.size for array in arrays) > MAX_VALUES_KEPT:
                compiled.release_memory()
        return answer

    def release() -> None:
        if computing.acquire(blocking=False):  # another thread's need not be waited for
            try:
                compiled.release_memory()
            finally:
                computing.release()

    release_with_memory(release)
    infer.release = release  # which lives as long as the network
    return infer


@lru_cache(maxsize=1)
def _get_core():
    return get_openvino().Core()
