"""Loading: from a member of a model card to a function of arrays, once.

Three kinds of builder: ``unet``, ours; ``shiva``, computed by `networks.external.tiled_unet`;
``savedmodel``, what somebody's TensorFlow has written, loaded by `networks.external.saved_model`.

Always in graph mode: eager 3D convolutions need twice the memory. Never with XLA, which is ten
times slower on a CPU. Never padded inside the graph: TensorFlow 2.15 to 2.22 computes a padding
that is followed by a convolution wrongly on CPUs. So inputs are multiples of what is needed.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from bids_cmb.networks.backend import LOADING_LOCK, get_tensorflow, release_memory, suppress_stderr
from bids_cmb.networks.builders import load_keras_model, read_shiva_arrays
from bids_cmb.networks.external.saved_model import load_signature
from bids_cmb.networks.external.tiled_unet import build_tiled_unet
from bids_cmb.networks.inference import Network, predict_in_slabs
from bids_cmb.networks.weights import check_file

PROBABILITY_STEPS = 255  # of a probability that is kept in 8 bits


@dataclass(frozen=True)
class ModelOptions:
    """Which networks are used, and how.

    Attributes:
        folder: The user's folder of cards and weights.
        members: Members of ensembles that are used; all without.
        precision: ``auto``, ``full`` or ``mixed``, as `load_network` takes it.
    """

    folder: Path | None = None
    members: tuple[str, ...] = ()
    precision: str = "auto"


def load_network(member: Mapping, path: Path, *, precision: str = "auto") -> Network:
    """Build a member of a model card and load its weights; cached.

    Args:
        member: As the card has it.
        path: Of its weights.
        precision: ``full``, ``mixed`` (16 bits where it costs little) or ``auto``, which is full.

    Raises:
        ValueError: If builder or arguments are unknown, or the weights are not those of the card
            or not of this network.
    """
    return _load_once(_load_network, member, path, precision)


def load_patch_model(
    member: Mapping, path: Path, *, precision: str = "auto"
) -> Callable[..., np.ndarray | list[np.ndarray]]:
    """Load a network that predicts patches or slices; cached.

    Args:
        member: As the card has it.
        path: Of its weights.
        precision: As `load_network`.

    Returns:
        From a batch, float32 (B, ..., channels), or a batch of each input where the network has
        several, to the network's output, or all of them: raw numbers, as
        `networks.architectures` documents them.

    Raises:
        ValueError: As `load_network`.
    """
    return _load_once(_load_patch_model, member, path, precision)


def load_trained_model(
    entry: Mapping, path: Path, *, precision: str = "auto"
) -> Callable[..., np.ndarray | list[np.ndarray]]:
    """Load the network whose entry training wrote to ``path``; as `load_patch_model`."""
    weights = path.with_name(Path(entry["weights"]).name)
    return load_patch_model(entry, weights, precision=precision)


def _load_once(load: Callable, member: Mapping, path: Path, precision: str):
    with LOADING_LOCK:
        return _load_cached(load, json.dumps(dict(member), sort_keys=True), path, precision)


@lru_cache(maxsize=32)
def _load_cached(load: Callable, member_json: str, path: Path, precision: str):
    loaded = load(json.loads(member_json), path, precision)
    release_memory()
    return loaded


def _load_network(member: Mapping, path: Path, precision: str) -> Network:
    if member["builder"] not in _LOADERS:
        raise ValueError(
            f"{path}: the builder of a network must be one of {', '.join(_LOADERS)}; "
            f"found {member['builder']!r}."
        )
    run, multiple = _LOADERS[member["builder"]](member, path, precision)
    flips = tuple(tuple(axes) for axes in member.get("flips", ()))
    return Network(member["name"], run, multiple, flips)


def _load_patch_model(member: Mapping, path: Path, precision: str) -> Callable:
    tf, model = get_tensorflow(), load_keras_model(member, path, precision)
    signature = [tf.TensorSpec((None, *tensor.shape[1:]), tf.float32) for tensor in model.inputs]

    @tf.function(input_signature=signature, autograph=False, jit_compile=False)
    def run(*inputs):
        outputs = model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)
        return tf.nest.map_structure(lambda tensor: tf.cast(tensor, tf.float32), outputs)

    run.get_concrete_function()  # traced now: two threads that trace at once spoil each other

    def predict_patch(*inputs: np.ndarray):
        tensors = [tf.constant(tensor, tf.float32) for tensor in inputs]
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), run(*tensors))

    return predict_patch


def _load_unet(member: Mapping, path: Path, precision: str):
    """Load one of our own U-Nets; return its function and what its sides must be multiples of."""
    model = load_keras_model(member, path, precision)
    arguments = member["arguments"]
    halvings = len(arguments.get("widths", (16, 32, 64, 96))) - 1
    pack = arguments.get("packed") or (1, 1, 1)
    shared = 2**halvings * np.array((2, 2, 2) if pack is True else pack)
    shared[2] //= 2 ** arguments.get("flat", 0)
    multiple = tuple(shared.tolist())
    graph = _compile(model, member)
    return lambda image, _: predict_in_slabs(graph, multiple, image), multiple


def _load_shiva(member: Mapping, path: Path, precision: str):
    """Load a U-Net of SHIVA-CMB's first kind, for images of one size; as `_load_unet`."""
    arrays = read_shiva_arrays(member, path)
    with suppress_stderr():
        widths, mixed = member["arguments"]["widths"], precision == "mixed"
        run = build_tiled_unet(get_tensorflow(), arrays, widths, mixed=mixed)
    return run, tuple(member["grid"]["shape"])


def _load_saved_model(member: Mapping, path: Path, precision: str):  # noqa: ARG001 it computes as it was saved
    """Load somebody's SavedModel after checking its operations; as `_load_unet`."""
    check_file(path, member["sha256"])
    shape = tuple(member["grid"]["shape"])
    with suppress_stderr():
        predict_image = load_signature(get_tensorflow(), path, shape)
    return lambda image, _: predict_image(image), shape


def _compile(model, member: Mapping) -> Callable[[np.ndarray], np.ndarray]:
    tf = get_tensorflow()
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


_LOADERS = {"unet": _load_unet, "shiva": _load_shiva, "savedmodel": _load_saved_model}
