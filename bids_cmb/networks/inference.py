"""Inference: from a member of a model card to a function of arrays, loaded once.

Three kinds of builder: ``unet``, ours; ``shiva``, computed by `networks.external.tiled_unet`;
``savedmodel``, what somebody's TensorFlow has written, loaded by `networks.external.saved_model`.

Always in graph mode: eager 3D convolutions need twice the memory. Never with XLA, which is ten
times slower on a CPU. Never padded inside the graph: TensorFlow 2.15 to 2.22 computes a padding
that is followed by a convolution wrongly on CPUs. So inputs are multiples of what is needed.

TensorFlow takes seconds to import, and ``--help`` must not wait for it: it is imported with the
first network.
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from threading import RLock

import numpy as np

from bids_cmb.networks.external.saved_model import load_signature
from bids_cmb.networks.external.tiled_unet import build_tiled_unet, list_kernels
from bids_cmb.networks.weights import check_file, read_weights

PRECISIONS = ("auto", "full", "mixed")
MAX_VOXELS_AT_ONCE = (
    7_500_000  # at once: about 1.5 GB of activations; larger images are cut in slabs
)
HALO_VOXELS = 32  # voxels that slabs overlap by at either end: beyond, nothing changes by 0.001
NORM_EPSILON = 1e-3  # Keras' default, with which the networks were trained
M_MMAP_THRESHOLD, LARGE_BYTES = -3, 2**21  # GNU's number for it; and what it shall be
MAX_LOGIT_DIFFERENCE = 1e-3  # that graph and eager may differ by in a logit
BUILDERS = {  # each a function of that name in the module
    "unet": "bids_cmb.networks.architectures.unet",
    "yolo": "bids_cmb.networks.architectures.yolo",
    "cnn3d": "bids_cmb.networks.architectures.cnn3d",
    "resnet_gate": "bids_cmb.networks.architectures.resnet_gate",
    "resunet": "bids_cmb.networks.architectures.resunet",
    "classifier": "bids_cmb.networks.architectures.classifier",
    "cdet": "bids_cmb.networks.architectures.candidate_detector",
    "cdisc_teacher": "bids_cmb.networks.architectures.candidate_discriminator",
    "cdisc_student": "bids_cmb.networks.architectures.candidate_discriminator",
}
LOADING_LOCK = RLock()  # one at a time, whichever thread asks: libraries, networks
PROBABILITY_STEPS = 255  # of a probability that is kept in 8 bits
Predictor = Callable[[np.ndarray], np.ndarray]  # from a batch (B, ..., channels) to the output


@dataclass(frozen=True)
class ModelOptions:
    """Which networks are used, and how.

    Attributes:
        folder: The user's folder of cards and weights.
        members: Members of ensembles that are used; all without.
        precision: One of `PRECISIONS`.
    """

    folder: Path | None = None
    members: tuple[str, ...] = ()
    precision: str = "auto"


@dataclass(frozen=True, eq=False)
class Network:
    """A network that is ready to predict.

    Attributes:
        name: Of the member.
        predict: From (X, Y, Z) float32, and where the prediction is wanted or None, to it.
        multiple: What each side of the input must be a multiple of, (3,).
        flips: Axes along which the image is flipped for each further prediction (test-time
            augmentation); predictions are averaged.
    """

    name: str
    predict: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    multiple: tuple[int, int, int]
    flips: tuple[tuple[int, ...], ...]


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
    with LOADING_LOCK:
        return _load(json.dumps(dict(member), sort_keys=True), path, precision)


def get_builder(name: str) -> Callable:
    """Get the builder of a kind of network: from arguments, among them ``fused``, to a Keras model.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in BUILDERS:
        raise ValueError(
            f"The builder of a network must be one of {', '.join(BUILDERS)}; found {name!r}."
        )
    return getattr(import_module(BUILDERS[name]), name)


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
    with LOADING_LOCK:
        return _load_patch_model(json.dumps(dict(member), sort_keys=True), path, precision)


def load_trained_model(
    entry: Mapping, path: Path, *, precision: str = "auto"
) -> Callable[..., np.ndarray | list[np.ndarray]]:
    """Load the network whose entry training wrote to ``path``; as `load_patch_model`."""
    weights = path.with_name(Path(entry["weights"]).name)
    return load_patch_model(entry, weights, precision=precision)


def find_misfit(parts: Sequence[tuple[Mapping, Path]]) -> str:
    """Find what keeps weights from being those of their networks; empty if nothing does.

    Nothing is computed. A SavedModel brings a graph of its own and is passed over.

    Args:
        parts: Members as their cards have them, and where their weights lie.
    """
    try:
        for member, path in parts:
            if member["builder"] == "shiva":
                _read_shiva_arrays(member, path)
            elif member["builder"] != "savedmodel":
                arrays = fuse_batchnorm(read_weights(path, member["sha256"]))
                with _suppress_stderr():
                    model = _build(member, path, "full")
                _check_fit(model, arrays, path)
    except ValueError as error:
        return str(error)
    return ""


def predict(
    network: Network, image: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """Predict with a network.

    Args:
        network: From `load_network`.
        image: Scaled as in training, (X, Y, Z); each side a multiple of the network's.
        mask: True where the prediction is wanted, (X, Y, Z): a network may leave out the rest, or
            not. Everywhere without.

    Returns:
        Probability, float32 (X, Y, Z), of a network for lesions; probabilities of the classes and
        of the left side in 255ths, uint8 (X, Y, Z, classes + 1), of one for anatomy.

    Raises:
        ValueError: If a side is no multiple.
    """
    remainder = np.array(image.shape) % network.multiple
    if remainder.any():
        raise ValueError(
            f"Sides of an image for {network.name} must be multiples of {network.multiple}; "
            f"found {image.shape}."
        )
    predictions = [network.predict(image, mask)]
    for axes in network.flips:
        flipped = np.ascontiguousarray(np.flip(image, axes))
        flipped_mask = None if mask is None else np.flip(mask, axes)
        predictions.append(np.flip(network.predict(flipped, flipped_mask), axes))
    return (
        predictions[0] if len(predictions) == 1 else np.mean(predictions, axis=0, dtype=np.float32)
    )


def describe_device() -> str:
    """Describe the device that networks are computed on: ``CPU`` or ``GPU (count)``."""
    gpus = _tensorflow().config.list_physical_devices("GPU")
    return f"GPU ({len(gpus)})" if gpus else "CPU"


def find_device_problem(requested: str) -> str:
    """Find what keeps this process from computing on the requested device; empty if nothing does.

    Args:
        requested: ``gpu``, if it must be one; any other is always available.
    """
    if requested != "gpu" or describe_device().startswith("GPU"):
        return ""
    return f"--device gpu needs a GPU that can be used. {explain_missing_gpu()}"


def explain_missing_gpu() -> str:
    """Explain why there may be no GPU, in a sentence for users."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    driver = Path("/proc/driver/nvidia/version").is_file()
    nodes = bool(list(Path("/dev").glob("nvidia[0-9]*")))
    findings = [
        f"the driver is {'there' if driver else 'not seen'}",
        f"devices are {'there' if nodes else 'not seen'}",
        f"CUDA_VISIBLE_DEVICES is {'not set' if visible is None else repr(visible)}",
    ]
    hint = (
        "TensorFlow has no CUDA libraries here (install the extra `gpu`)."
        if driver and nodes
        else "Was --gpus all (Docker) or --nv (Apptainer) forgotten?"
    )
    return f"Found: {', '.join(findings)}. {hint}"


def release_memory() -> None:
    """Release freed memory to the system; the C library would keep some of it.

    Loading three networks of SHIVA-CMB's size leaves a quarter of a gigabyte behind.
    """
    with suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def _set_malloc_threshold() -> None:
    """Let the C library release each large array as it is freed.

    Else it learns from the first ones that were freed to keep the later ones, 0.2 GB of them.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def set_threads(count: int) -> None:
    """Limit the threads of networks; without effect after the first one was loaded."""
    with LOADING_LOCK, suppress(RuntimeError):
        threading = _tensorflow().config.threading
        threading.set_intra_op_parallelism_threads(count)
        threading.set_inter_op_parallelism_threads(1)


def predict_in_slabs(
    run: Callable, multiple: Sequence[int], image: np.ndarray, max_voxels: int | None = None,
    overlap: int | None = None,
) -> np.ndarray:  # fmt: skip
    """Predict slab by slab along the longest axis with a halo, so that large images fit in memory.

    Args:
        run: From (1, X, Y, Z, C) to a prediction whose first three axes are X, Y and Z.
        multiple: What the sides of a slab must be multiples of.
        image: (X, Y, Z) or (X, Y, Z, C).
        max_voxels: Voxels at once, overlap aside; `MAX_VOXELS_AT_ONCE` without.
        overlap: Voxels of context at either end of a slab; `HALO_VOXELS` without.
    """
    image = image[..., None] if image.ndim == 3 else image
    axis = int(np.argmax(image.shape[:3]))
    step, length = multiple[axis], image.shape[axis]
    pieces = -(-int(np.prod(image.shape[:3])) // (max_voxels or MAX_VOXELS_AT_ONCE))
    if pieces == 1:
        return run(image[None])
    size = -(-length // (pieces * step)) * step
    halo = -(-(HALO_VOXELS if overlap is None else overlap) // step) * step
    parts = []
    for start in range(0, length, size):
        low, high = max(0, start - halo), min(length, start + size + halo)
        slab = np.take(image, range(low, high), axis)
        prediction = run(np.ascontiguousarray(slab)[None])
        parts.append(np.take(prediction, range(start - low, min(start + size, length) - low), axis))
    return np.concatenate(parts, axis)


# --- Loading --------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _load(member_json: str, path: Path, precision: str) -> Network:
    member = json.loads(member_json)
    if member["builder"] not in _LOADERS:
        raise ValueError(
            f"{path}: the builder of a network must be one of {', '.join(_LOADERS)}; "
            f"found {member['builder']!r}."
        )
    run, multiple = _LOADERS[member["builder"]](member, path, precision)
    release_memory()
    flips = tuple(tuple(axes) for axes in member.get("flips", ()))
    return Network(member["name"], run, multiple, flips)


@lru_cache(maxsize=16)
def _load_patch_model(member_json: str, path: Path, precision: str) -> Callable:
    tf, member = _tensorflow(), json.loads(member_json)
    arrays = fuse_batchnorm(read_weights(path, member["sha256"]))
    with _suppress_stderr():
        model = _build(member, path, precision)
    _fill(model, arrays, path)
    signature = [tf.TensorSpec((None, *tensor.shape[1:]), tf.float32) for tensor in model.inputs]

    @tf.function(input_signature=signature, autograph=False, jit_compile=False)
    def run(*inputs):
        member_json = model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)
        return tf.nest.map_structure(lambda tensor: tf.cast(tensor, tf.float32), member_json)

    run.get_concrete_function()  # traced now: two threads that trace at once spoil each other

    def predict_patch(*inputs: np.ndarray):
        tensors = [tf.constant(tensor, tf.float32) for tensor in inputs]
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), run(*tensors))

    release_memory()
    return predict_patch


def _load_unet(member: Mapping, path: Path, precision: str):
    """Load one of our own U-Nets; return its function and what its sides must be multiples of."""
    arrays = fuse_batchnorm(read_weights(path, member["sha256"]))
    with _suppress_stderr():
        model = _build(member, path, precision)
    _fill(model, arrays, path)
    arguments = member["arguments"]
    halvings = len(arguments.get("widths", (16, 32, 64, 96))) - 1
    pack = arguments.get("packed") or (1, 1, 1)
    shared = 2**halvings * np.array((2, 2, 2) if pack is True else pack)
    shared[2] //= 2 ** arguments.get("flat", 0)
    multiple = tuple(shared.tolist())
    _check_graph(model, multiple, path, precision)
    graph = _compile(model, member)
    return lambda image, _: predict_in_slabs(graph, multiple, image), multiple


def _load_shiva(member: Mapping, path: Path, precision: str):
    """Load a U-Net of SHIVA-CMB's first kind, for images of one size; as `_load_unet`."""
    arrays = _read_shiva_arrays(member, path)
    _check_stages()
    with _suppress_stderr():
        widths, mixed = member["arguments"]["widths"], precision == "mixed"
        run = build_tiled_unet(_tensorflow(), arrays, widths, mixed=mixed)
    return run, tuple(member["grid"]["shape"])


def _read_shiva_arrays(member: Mapping, path: Path) -> dict[str, np.ndarray]:
    """Read kernels and biases, each of the shape that the network needs."""
    widths = member["arguments"]["widths"]
    arrays = fuse_batchnorm(read_weights(path, member["sha256"]))
    for name, kernel in list_kernels(widths).items():
        for part, shape in (("kernel", kernel), ("bias", kernel[-1:])):
            array = arrays.pop(f"{name}/{part}", np.empty(0))
            if array.shape != shape:
                raise ValueError(
                    f"{path}: {name}/{part} must have shape {shape}; found {array.shape}."
                )
            arrays[f"{name}/{part}"] = array
    return arrays


def _load_saved_model(member: Mapping, path: Path, precision: str):  # noqa: ARG001 it computes as it was saved
    """Load somebody's SavedModel after checking its operations; as `_load_unet`."""
    check_file(path, member["sha256"])
    shape = tuple(member["grid"]["shape"])
    with _suppress_stderr():
        predict_image = load_signature(_tensorflow(), path, shape)
    return lambda image, _: predict_image(image), shape


def fuse_batchnorm(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fuse each batch normalisation into the convolution before it.

    kernel · γ / √(variance + ε), bias β + (bias - mean) · γ / √(variance + ε).

    Args:
        arrays: By name: ``x/kernel`` and ``x_norm/gamma``, ``beta``, ``moving_mean`` and
            ``moving_variance``.

    Returns:
        ``x/kernel`` and ``x/bias``; all else as it was. A bias that was there counts.
    """
    fused = {name: array for name, array in arrays.items() if "_norm/" not in name}
    for name in arrays:
        layer, norm, _ = name.partition("_norm/gamma")
        if not norm:
            continue
        gamma, beta, mean, variance = (
            arrays[f"{layer}_norm/{part}"]
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        scale = gamma / np.sqrt(variance + NORM_EPSILON)
        fused[f"{layer}/kernel"] = arrays[f"{layer}/kernel"] * scale
        fused[f"{layer}/bias"] = beta + (arrays.get(f"{layer}/bias", 0) - mean) * scale
    return fused


def _build(member: Mapping, path: Path, precision: str):
    keras = _keras()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "mixed" else "float32")
    try:
        return get_builder(member["builder"])(**member["arguments"], fused=True)
    except TypeError as error:
        raise ValueError(f"{path}: {member['builder']} takes no such argument; {error}.") from error
    finally:
        keras.config.set_dtype_policy(before)


def _fill(model, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    _check_fit(model, arrays, path)
    for variable in model.weights:
        variable.assign(arrays[variable.path])


def _check_fit(model, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Refuse arrays that are not those of a network by name and shape."""
    wanted = {variable.path: variable for variable in model.weights}
    missing, extra = sorted(set(wanted) - set(arrays)), sorted(set(arrays) - set(wanted))
    if missing or extra:
        raise ValueError(
            f"{path}: weights must be those of the network; found "
            f"{f'none for {missing[0]}' if missing else f'{extra[0]}, which it does not have'}."
        )
    for name, variable in wanted.items():
        if arrays[name].shape != tuple(variable.shape):
            raise ValueError(
                f"{path}: {name} must have shape {tuple(variable.shape)}; "
                f"found {arrays[name].shape}."
            )


def _compile(model, member: Mapping) -> Callable[[np.ndarray], np.ndarray]:
    tf = _tensorflow()
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


def _check_graph(model, multiple: Sequence[int], path: Path, precision: str) -> None:
    """Refuse a network whose graph does not compute what its layers do one by one."""
    tf = _tensorflow()
    shape = (1, *(2 * side for side in multiple), model.input_shape[-1])
    image = tf.constant(np.random.default_rng(0).random(shape, np.float32))
    difference = np.abs(tf.function(model)(image).numpy() - model(image).numpy()).max()
    if difference > (MAX_LOGIT_DIFFERENCE if precision != "mixed" else 0.5):
        raise ValueError(
            f"{path}: this TensorFlow ({tf.__version__}) must compute a network alike in graph "
            f"and eager mode; found logits {difference:.2g} apart."
        )


@lru_cache(maxsize=1)
def _check_stages() -> None:
    """Refuse a TensorFlow whose graphs do not compute what the stages do one by one."""
    tf, rng, widths = _tensorflow(), np.random.default_rng(0), (2, 2, 2, 2)
    image = rng.random((35, 22, 19), np.float32)
    arrays = {}
    for name, shape in list_kernels(widths).items():
        arrays[f"{name}/kernel"] = rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape)
        arrays[f"{name}/bias"] = rng.normal(0, 0.1, shape[-1:])
    run = build_tiled_unet(tf, arrays, widths)
    middle = np.zeros(image.shape, bool)
    middle[14:20, 9:13, 8:11] = True  # away from the border, where other graphs are asked
    in_graphs = run(image, None), run(image, middle)
    tf.config.run_functions_eagerly(True)  # noqa: FBT003
    try:
        one_by_one = run(image, None), run(image, middle)
        difference = np.abs(np.subtract(in_graphs, one_by_one)).max()
    finally:
        tf.config.run_functions_eagerly(False)  # noqa: FBT003
    if difference > MAX_LOGIT_DIFFERENCE:
        raise ValueError(
            f"This TensorFlow ({tf.__version__}) must compute a network alike in graph and eager "
            f"mode; found probabilities {difference:.2g} apart."
        )


_LOADERS = {"unet": _load_unet, "shiva": _load_shiva, "savedmodel": _load_saved_model}

# --- Libraries ------------------------------------------------------------------------------------


def _tensorflow():
    with LOADING_LOCK:
        return _import_tensorflow()


@lru_cache(maxsize=1)
def _import_tensorflow():
    """Import TensorFlow without its greetings; it takes GPU memory as it needs it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by itself where AVX-512 is missing
    _set_malloc_threshold()
    with _suppress_stderr():
        import tensorflow as tf  # noqa: PLC0415

        tf.get_logger().setLevel("ERROR")  # each network is a graph of its own, and it wonders why
        exact = tf.config.experimental.enable_tensor_float_32_execution
        exact(False)  # noqa: FBT003 as exact as a CPU
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # noqa: FBT003
    return tf


def _keras():
    _tensorflow()
    import keras  # noqa: PLC0415

    return keras


@contextmanager
def _suppress_stderr() -> Iterator[None]:
    """Silence what is written to stderr below Python; TensorFlow has no switch for it."""
    try:
        stderr = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        yield  # somebody holds it already
        return
    sys.stderr.flush()
    saved, null = os.dup(stderr), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stderr)
    try:
        yield
    finally:
        os.dup2(saved, stderr)
        os.close(saved)
        os.close(null)
