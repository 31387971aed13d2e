"""Network files of other programs, read as data: nothing in them is run.

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

MOST_BYTES = 2**28  # of a layer; the largest of the published networks has a tenth of it
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
PASSING = {  # layers without weights that a U-Net may have between those with
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
        raise ValueError(f"{path}: a Keras file must be HDF5; {_short(error)}.") from error
    with file:
        stored = file.get("model_weights", file)
        if "layer_names" not in stored.attrs:
            raise ValueError(f"{path}: a Keras file must name its layers; found no layer_names.")
        names = [_text(name) for name in stored.attrs["layer_names"]]
        layers = {name: _layer(path, stored, name) for name in names}
        weighted = [name for name in names if layers[name]]
        skip_first = _wiring(path, file.attrs.get("model_config"), weighted)
        return _named(path, [(name, layers[name]) for name in weighted], kernels, skip_first)


def _layer(path: Path, stored: h5py.Group, name: str) -> dict[str, np.ndarray]:
    """The arrays of a layer by their last names, ``kernel``, ``gamma`` and so on."""
    try:
        group = stored[name]
        wanted = [_text(one) for one in group.attrs.get("weight_names", ())]
        size = sum(group[one].nbytes for one in wanted)  # of what it unpacks to, not of the file
        if size > MOST_BYTES:
            raise ValueError(
                f"{path}: the weights of layer {name} must take at most {MOST_BYTES // 2**20} MB; "
                f"found {size / 2**20:.0f} MB."
            )
        return {one.split("/")[-1].partition(":")[0]: group[one][()] for one in wanted}
    except (KeyError, OSError, TypeError, AttributeError) as error:
        said = f"{path}: the weights of layer {name} must be in the file; {_short(error)}."
        raise ValueError(said) from error


def _named(path: Path, layers: list, kernels: Mapping, skip_first: set[str]) -> dict:
    """The arrays of the layers under our names, every shape checked."""
    made, waiting = {}, iter(layers)
    *_, last = kernels

    def take(ours: str, parts: Mapping[str, tuple[int, ...]]) -> tuple[str, dict]:
        name, found = next(waiting, ("none", {}))
        shapes = {part: array.shape for part, array in found.items()}
        if shapes != dict(parts):
            raise ValueError(
                f"{path}: layer {name} must be {ours} with {_shapes(parts)}; "
                f"found {_shapes(shapes)}."
            )
        return name, {part: np.asarray(array, np.float32) for part, array in found.items()}

    for ours, shape in kernels.items():
        bias = {"bias": shape[-1:]} if ours == last else {}
        name, found = take(ours, {"kernel": shape, **bias})
        if name in skip_first:
            made_of_skip = shape[3] - _coarse(ours, kernels)
            found["kernel"] = np.roll(found["kernel"], -made_of_skip, axis=3)
        made |= {f"{ours}/{part}": array for part, array in found.items()}
        if ours != last:
            _, found = take(f"{ours}_norm", dict.fromkeys(NORM, shape[-1:]))
            made |= {f"{ours}_norm/{part}": array for part, array in found.items()}
    for name, _ in waiting:
        raise ValueError(f"{path}: a network must end with {last}; found layer {name} after it.")
    return made


def _coarse(ours: str, kernels: Mapping) -> int:
    """Channels that the first convolution of a decoder level gets from the coarser level."""
    names = list(kernels)
    return kernels[names[names.index(ours) - 1]][-1]


def _shapes(parts: Mapping) -> str:
    return ", ".join(f"{part} {tuple(shape)}" for part, shape in parts.items()) or "nothing"


# The wiring


def _wiring(path: Path, said: object, weighted: list[str]) -> set[str]:
    """See that the description agrees with what is read from the weights.

    Returns:
        The convolutions that get the skip before what comes from the coarser level; ours get it
        after.
    """
    if said is None:
        return set()  # weights alone: their order and their shapes are all there is
    try:
        described = parse_json(_text(said))["config"]["layers"]
        layers = {one["config"]["name"]: one for one in described}
        before = {name: list(_before(one, layers)) for name, one in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: model_config must describe a network; {_short(error)}."
        ) from error
    ends = {*layers} - {source for sources in before.values() for source in sources}
    for name, one in layers.items():
        _check_layer(path, name, one)
        answers = name == weighted[-1] or name in ends
        _check_activation(path, name, one, ("sigmoid", "linear") if answers else SWISH)
    for first, second in pairwise(weighted):
        if _source(layers, before, second, set(weighted)) != first:
            raise ValueError(
                f"{path}: layers must be stored in the order in which they are wired; "
                f"{second} follows {first} in the file and not in the network."
            )
    return {
        name for name in weighted for both in [_joined(layers, before, name)]
        if both and not _doubled(layers, before, both[0])
    }  # fmt: skip


def _check_layer(path: Path, name: str, layer: Mapping) -> None:
    """A layer must be one that a network of this kind has, with the settings that ours has."""
    kind, config = layer["class_name"], layer["config"]
    if kind not in PASSING | {"Conv3D", "BatchNormalization"}:
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
        found = config.get(key, value)
        if not np.all(np.isclose(found, value) if key == "epsilon" else np.array(found) == value):
            raise ValueError(f"{path}: {key} of layer {name} must be {value}; found {found}.")


def _check_activation(path: Path, name: str, layer: Mapping, allowed: tuple[str, ...]) -> None:
    said = layer["config"].get("activation", "linear")
    found = said.get("config", said.get("class_name")) if isinstance(said, dict) else said
    kind = layer["class_name"]
    if kind == "Conv3D" and allowed == SWISH:
        allowed = ("linear",)  # the normalisation comes before the swish
    if kind in ("Conv3D", "Activation") and found not in allowed:
        raise ValueError(
            f"{path}: the activation of layer {name} must be {' or '.join(allowed)}; found {found}."
        )


def _before(layer: Mapping, layers: Mapping) -> Iterator[str]:
    """Names of the layers that a layer gets its input from, in order."""

    def names(node: object) -> Iterator[str]:
        if isinstance(node, list) and node and isinstance(node[0], str):
            yield from node[:1] if node[0] in layers else []
        elif isinstance(node, list | dict):  # Keras 3 wraps the same in dictionaries
            for one in node.values() if isinstance(node, dict) else node:
                yield from names(one)

    yield from names(layer["inbound_nodes"])


def _source(layers: Mapping, before: Mapping, name: str, weighted: set[str]) -> str | None:
    """The layer with weights that an image passed last before it came to this one."""
    seen = set()
    waiting = list(before[name])
    while waiting:
        found = waiting.pop(0)
        if found in weighted:
            return found
        if found in seen:
            continue
        seen.add(found)
        inputs = before[found]
        if layers[found]["class_name"] == "Concatenate":  # what was doubled came last
            inputs = sorted(inputs, key=lambda one: not _doubled(layers, before, one))
        waiting = [*inputs, *waiting]
    return None


def _joined(layers: Mapping, before: Mapping, name: str) -> list[str]:
    """The two inputs of the Concatenate that feeds a layer directly; none if none does."""
    (found, *_) = before[name] or [None]
    if found and layers[found]["class_name"] == "Concatenate":
        return before[found]
    return []


def _doubled(layers: Mapping, before: Mapping, name: str) -> bool:
    """Whether an image has just been doubled, paddings and croppings aside."""
    while layers[name]["class_name"] in PASSING - {"InputLayer", "Concatenate", "MaxPooling3D"}:
        if layers[name]["class_name"] == "UpSampling3D":
            return True
        if layers[name]["class_name"] == "Activation" or not before[name]:
            return False
        name = before[name][0]
    return False


def _text(said: object) -> str:
    return said.decode() if isinstance(said, bytes) else str(said)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
