"""Network files of Keras 2, read as data: nothing in them is run.

Keras wrote, until its third version, a network into one HDF5 file: a description in JSON, in which
Lambda layers hold Python bytecode, and the weights of each layer. Only numbers, names and the
wiring are taken.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from bids_cmb.files import parse_json

MAX_LAYER_BYTES = 2**28  # of a layer; the largest of the published networks has a tenth of it
BATCHNORM_ARRAYS = ("gamma", "beta", "moving_mean", "moving_variance")
WEIGHTLESS_LAYERS = {  # layers without weights that a U-Net may have between those with
    "InputLayer", "Activation", "MaxPooling3D", "UpSampling3D", "Concatenate", "Dropout",
    "SpatialDropout3D", "ZeroPadding3D", "Cropping3D", "Lambda", "TFOpLambda", "SlicingOpLambda",
}  # fmt: skip
SWISH = ("swish", "silu")


def read_unet_h5(path: Path, kernels: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Read the weights of a 3D U-Net that Keras 2 has written, in the order of its layers.

    Args:
        path: ``.h5`` of ``model.save`` or ``model.save_weights``.
        kernels: The shape of each convolution's kernel, under our names, in the order in which an
            image passes them. All but the last are followed by a normalisation, and have no bias.

    Returns:
        float32, under our names: ``x/kernel``, ``x_norm/gamma`` …, ``answer/bias``.

    Raises:
        ValueError: If it is no such file, or its layers are others; the layer, what it should be
            and what it is are named.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: a Keras file must be HDF5; {_shorten(error)}.") from error
    with file:
        stored = file.get("model_weights", file)
        if "layer_names" not in stored.attrs:
            raise ValueError(f"{path}: a Keras file must name its layers; found no layer_names.")
        names = [_decode(name) for name in stored.attrs["layer_names"]]
        layers = {name: _read_layer(path, stored, name) for name in names}
        weighted = [name for name in names if layers[name]]
        skip_first = _check_wiring(path, file.attrs.get("model_config"), weighted)
        return _name_arrays(path, [(name, layers[name]) for name in weighted], kernels, skip_first)


def _read_layer(path: Path, stored: h5py.Group, name: str) -> dict[str, np.ndarray]:
    """Read the arrays of a layer by their last names, ``kernel``, ``gamma`` and so on."""
    try:
        group = stored[name]
        wanted = [_decode(weight) for weight in group.attrs.get("weight_names", ())]
        size = sum(
            group[weight].nbytes for weight in wanted
        )  # of what it unpacks to, not of the file
        if size > MAX_LAYER_BYTES:
            raise ValueError(
                f"{path}: the weights of layer {name} must take at most "
                f"{MAX_LAYER_BYTES // 2**20} MB; found {size / 2**20:.0f} MB."
            )
        return {weight.split("/")[-1].partition(":")[0]: group[weight][()] for weight in wanted}
    except (KeyError, OSError, TypeError, AttributeError) as error:
        message = f"{path}: the weights of layer {name} must be in the file; {_shorten(error)}."
        raise ValueError(message) from error


def _name_arrays(path: Path, layers: list, kernels: Mapping, skip_first: set[str]) -> dict:
    """Name the arrays of the layers as ours, every shape checked."""
    named, remaining = {}, iter(layers)
    *_, last = kernels

    def take(our_name: str, parts: Mapping[str, tuple[int, ...]]) -> tuple[str, dict]:
        name, arrays = next(remaining, ("none", {}))
        shapes = {part: array.shape for part, array in arrays.items()}
        if shapes != dict(parts):
            raise ValueError(
                f"{path}: layer {name} must be {our_name} with {_format_shapes(parts)}; "
                f"found {_format_shapes(shapes)}."
            )
        return name, {part: np.asarray(array, np.float32) for part, array in arrays.items()}

    for our_name, shape in kernels.items():
        bias = {"bias": shape[-1:]} if our_name == last else {}
        name, arrays = take(our_name, {"kernel": shape, **bias})
        if name in skip_first:
            made_of_skip = shape[3] - _count_coarse_channels(our_name, kernels)
            arrays["kernel"] = np.roll(arrays["kernel"], -made_of_skip, axis=3)
        named |= {f"{our_name}/{part}": array for part, array in arrays.items()}
        if our_name != last:
            _, arrays = take(f"{our_name}_norm", dict.fromkeys(BATCHNORM_ARRAYS, shape[-1:]))
            named |= {f"{our_name}_norm/{part}": array for part, array in arrays.items()}
    for name, _ in remaining:
        raise ValueError(f"{path}: a network must end with {last}; found layer {name} after it.")
    return named


def _count_coarse_channels(our_name: str, kernels: Mapping) -> int:
    """Count the channels a decoder level's first convolution gets from the coarser level."""
    names = list(kernels)
    return kernels[names[names.index(our_name) - 1]][-1]


def _format_shapes(parts: Mapping) -> str:
    return ", ".join(f"{part} {tuple(shape)}" for part, shape in parts.items()) or "nothing"


# The wiring


def _check_wiring(path: Path, config: object, weighted: list[str]) -> set[str]:
    """Check that the description agrees with what is read from the weights.

    Returns:
        The convolutions that get the skip before what comes from the coarser level; ours get it
        after.
    """
    if config is None:
        return set()  # weights alone: their order and their shapes are all there is
    try:
        layer_configs = parse_json(_decode(config))["config"]["layers"]
        layers = {layer["config"]["name"]: layer for layer in layer_configs}
        before = {name: list(_list_inputs(layer, layers)) for name, layer in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: model_config must describe a network; {_shorten(error)}."
        ) from error
    ends = {*layers} - {source for sources in before.values() for source in sources}
    for name, layer in layers.items():
        _check_layer(path, name, layer)
        answers = name == weighted[-1] or name in ends
        _check_activation(path, name, layer, ("sigmoid", "linear") if answers else SWISH)
    for first, second in pairwise(weighted):
        if _find_source(layers, before, second, set(weighted)) != first:
            raise ValueError(
                f"{path}: layers must be stored in the order in which they are wired; "
                f"{second} follows {first} in the file and not in the network."
            )
    return {
        name for name in weighted for both in [_find_concatenated(layers, before, name)]
        if both and not _is_upsampled(layers, before, both[0])
    }  # fmt: skip


def _check_layer(path: Path, name: str, layer: Mapping) -> None:
    """Check that a layer is one of a 3D U-Net, with the settings that ours has."""
    kind, config = layer["class_name"], layer["config"]
    if kind not in WEIGHTLESS_LAYERS | {"Conv3D", "BatchNormalization"}:
        raise ValueError(f"{path}: layer {name} must be one of a 3D U-Net; found {kind}.")
    wanted = {
        "Conv3D": {"strides": [1, 1, 1], "dilation_rate": [1, 1, 1], "padding": "same"},
        "BatchNormalization": {"epsilon": 1e-3},
        "MaxPooling3D": {"pool_size": [2, 2, 2]},
        "UpSampling3D": {"size": [2, 2, 2]},
    }.get(kind, {})
    if config.get("kernel_size") == [1, 1, 1]:
        del wanted["padding"]  # nothing to pad
    for key, value in wanted.items():
        actual = config.get(key, value)
        if not np.all(np.isclose(actual, value) if key == "epsilon" else np.array(actual) == value):
            raise ValueError(f"{path}: {key} of layer {name} must be {value}; found {actual}.")


def _check_activation(path: Path, name: str, layer: Mapping, allowed: tuple[str, ...]) -> None:
    activation = layer["config"].get("activation", "linear")
    actual = (
        activation.get("config", activation.get("class_name"))
        if isinstance(activation, dict)
        else activation
    )
    kind = layer["class_name"]
    if kind == "Conv3D" and allowed == SWISH:
        allowed = ("linear",)  # the normalisation comes before the swish
    if kind in ("Conv3D", "Activation") and actual not in allowed:
        raise ValueError(
            f"{path}: the activation of layer {name} must be {' or '.join(allowed)}; "
            f"found {actual}."
        )


def _list_inputs(layer: Mapping, layers: Mapping) -> Iterator[str]:
    """List the names of the layers that a layer gets its input from, in order."""

    def names(node: object) -> Iterator[str]:
        if isinstance(node, list) and node and isinstance(node[0], str):
            yield from node[:1] if node[0] in layers else []
        elif isinstance(node, list | dict):  # Keras 3 wraps the same in dictionaries
            for item in node.values() if isinstance(node, dict) else node:
                yield from names(item)

    yield from names(layer["inbound_nodes"])


def _find_source(layers: Mapping, before: Mapping, name: str, weighted: set[str]) -> str | None:
    """Find the layer with weights that an image passed last before it came to this one."""
    seen = set()
    waiting = list(before[name])
    while waiting:
        candidate = waiting.pop(0)
        if candidate in weighted:
            return candidate
        if candidate in seen:
            continue
        seen.add(candidate)
        inputs = before[candidate]
        if layers[candidate]["class_name"] == "Concatenate":  # what was doubled came last
            inputs = sorted(
                inputs, key=lambda source_name: not _is_upsampled(layers, before, source_name)
            )
        waiting = [*inputs, *waiting]
    return None


def _find_concatenated(layers: Mapping, before: Mapping, name: str) -> list[str]:
    """Find the two inputs of the Concatenate that feeds a layer directly; none if none does."""
    (source_name, *_) = before[name] or [None]
    if source_name and layers[source_name]["class_name"] == "Concatenate":
        return before[source_name]
    return []


def _is_upsampled(layers: Mapping, before: Mapping, name: str) -> bool:
    """Tell whether an image has just been upsampled, paddings and croppings aside."""
    while layers[name]["class_name"] in WEIGHTLESS_LAYERS - {
        "InputLayer",
        "Concatenate",
        "MaxPooling3D",
    }:
        if layers[name]["class_name"] == "UpSampling3D":
            return True
        if layers[name]["class_name"] == "Activation" or not before[name]:
            return False
        name = before[name][0]
    return False


def _decode(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _shorten(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
