"""From the members of model cards to networks: their builders, and the arrays that fit them."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import numpy as np

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
    """Get the builder of a kind of network: from arguments, among them ``fused``, to a model.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in BUILDERS:
        raise ValueError(
            f"The builder of a network must be one of {', '.join(BUILDERS)}; found {name!r}."
        )
    return getattr(import_module(BUILDERS[name]), name)


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


def build_network(member: Mapping, path: Path):
    """Build the network of a member, normalisations fused, of `networks.layers` in use.

    Args:
        member: As the card has it.
        path: Of its weights, for errors.

    Raises:
        ValueError: If builder or arguments are unknown.
    """
    builder = get_builder(member["builder"])
    try:
        return builder(**member["arguments"], fused=True)
    except TypeError as error:
        raise ValueError(f"{path}: {member['builder']} takes no such argument; {error}.") from error


def check_fit(
    shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray], path: Path
) -> None:
    """Refuse arrays that are not those of a network by name and shape.

    Args:
        shapes: That the network needs, by name.
        arrays: That there are.
        path: Where they were read from.

    Raises:
        ValueError: If one is missing, is not needed or has another shape.
    """
    missing, extra = sorted(set(shapes) - set(arrays)), sorted(set(arrays) - set(shapes))
    if missing or extra:
        raise ValueError(
            f"{path}: weights must be those of the network; found "
            f"{f'none for {missing[0]}' if missing else f'{extra[0]}, which it does not have'}."
        )
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{path}: {name} must have shape {shape}; found {arrays[name].shape}.")
