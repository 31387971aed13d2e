"""Keras models of the members of model cards, with the weights that lie beside the cards."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from bids_cmb.networks.backend import get_keras, suppress_stderr
from bids_cmb.networks.external.tiled_unet import list_kernels
from bids_cmb.networks.weights import read_weights

NORM_EPSILON = 1e-3  # Keras' default, with which the networks were trained
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


def find_misfit(parts: Sequence[tuple[Mapping, Path]]) -> str:
    """Find what keeps weights from being those of their networks; empty if nothing does.

    Nothing is computed. A SavedModel brings a graph of its own and is passed over.

    Args:
        parts: Members as their cards have them, and where their weights lie.
    """
    try:
        for member, path in parts:
            if member["builder"] == "shiva":
                read_shiva_arrays(member, path)
            elif member["builder"] != "savedmodel":
                load_keras_model(member, path, "full")
    except ValueError as error:
        return str(error)
    return ""


def read_shiva_arrays(member: Mapping, path: Path) -> dict[str, np.ndarray]:
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


def load_keras_model(member: Mapping, path: Path, precision: str):
    """Build the Keras model of a member, normalisations fused, with its weights from ``path``."""
    arrays = fuse_batchnorm(read_weights(path, member["sha256"]))
    with suppress_stderr():
        model = _build(member, path, precision)
    _check_fit(model, arrays, path)
    for variable in model.weights:
        variable.assign(arrays[variable.path])
    return model


def _build(member: Mapping, path: Path, precision: str):
    keras = get_keras()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "mixed" else "float32")
    try:
        return get_builder(member["builder"])(**member["arguments"], fused=True)
    except TypeError as error:
        raise ValueError(f"{path}: {member['builder']} takes no such argument; {error}.") from error
    finally:
        keras.config.set_dtype_policy(before)


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
