"""Networks computed by TensorFlow, on a GPU or a CPU.

Always in graph mode: eager 3D convolutions need twice the memory. Never with XLA, which is ten
times slower on a CPU. Never padded inside the graph: TensorFlow 2.15 to 2.22 computes a padding
that is followed by a convolution wrongly on CPUs. So inputs are multiples of what is needed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bids_cmb.networks.backend import get_keras, get_tensorflow, suppress_stderr
from bids_cmb.networks.builders import build_network, check_fit, fuse_batchnorm
from bids_cmb.networks.inference import PROBABILITY_STEPS
from bids_cmb.networks.weights import read_weights


def compile_image_network(
    member: Mapping, path: Path, precision: str
) -> Callable[[np.ndarray], np.ndarray]:
    """Compile a network for images of any size.

    Args:
        member: As the card has it; its ``temperature`` and ``offset`` divide and shift log-odds.
        path: Of its weights.
        precision: ``full``, ``mixed`` (16 bits where it costs little) or ``auto``, which is full.

    Returns:
        From (1, X, Y, Z, C) float32 to the probability, float32 (X, Y, Z), of a network for
        lesions; to probabilities of the classes and of the left side in 255ths, uint8 (X, Y, Z,
        classes + 1), of one for anatomy.

    Raises:
        ValueError: As `build_model`.
    """
    tf, model = get_tensorflow(), build_model(member, path, precision)
    temperature, offset = member.get("temperature", 1.0), member.get("offset", 0.0)
    shape = (1, None, None, None, model.input_shape[-1])
    outputs = model.output_shape[-1]

    @tf.function(
        input_signature=[tf.TensorSpec(shape, tf.float32)], autograph=False, jit_compile=False
    )
    def run(image):
        logits = model(image, training=False)[0]  # (X, Y, Z, C)
        if outputs == 1:
            return tf.sigmoid((logits[..., 0] - offset) / temperature)
        probabilities = tf.nn.softmax(logits[..., :-1])
        side = tf.sigmoid(logits[..., -1:])
        return tf.concat([_quantize(tf, probabilities), _quantize(tf, side)], axis=-1)

    run.get_concrete_function()  # traced now: two threads that trace at once spoil each other
    return lambda image: run(tf.constant(image, tf.float32)).numpy()


def _quantize(tf, probabilities):
    return tf.cast(tf.round(probabilities * PROBABILITY_STEPS), tf.uint8)


def compile_patch_network(member: Mapping, path: Path, precision: str) -> Callable:
    """Compile a network for batches of patches or slices.

    Args:
        member: As the card has it.
        path: Of its weights.
        precision: As `compile_image_network`.

    Returns:
        From a batch, float32 (B, ..., channels), or a batch of each input where the network has
        several, to its output, float32.

    Raises:
        ValueError: As `build_model`.
    """
    tf, model = get_tensorflow(), build_model(member, path, precision)
    signature = [tf.TensorSpec((None, *tensor.shape[1:]), tf.float32) for tensor in model.inputs]

    @tf.function(input_signature=signature, autograph=False, jit_compile=False)
    def run(*inputs):
        outputs = model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)
        return tf.cast(outputs, tf.float32)

    run.get_concrete_function()  # traced now: two threads that trace at once spoil each other
    return lambda *inputs: run(*(tf.constant(tensor, tf.float32) for tensor in inputs)).numpy()


def build_model(member: Mapping, path: Path, precision: str = "auto"):
    """Build the Keras model of a member, normalisations fused, with its weights from ``path``.

    Raises:
        ValueError: If builder or arguments are unknown, or the weights are not those of the card
            or not of this network.
    """
    arrays = fuse_batchnorm(read_weights(path, member["sha256"]))
    with suppress_stderr():
        model = _build_with_precision(member, path, precision)
    shapes = {variable.path: tuple(variable.shape) for variable in model.weights}
    check_fit(shapes, arrays, path)
    for variable in model.weights:
        variable.assign(arrays[variable.path])
    return model


def _build_with_precision(member: Mapping, path: Path, precision: str):
    keras = get_keras()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "mixed" else "float32")
    try:
        return build_network(member, path)
    finally:
        keras.config.set_dtype_policy(before)
