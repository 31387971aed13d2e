"""Loading: from a member of a model card to a function of arrays, once.

Our own networks are computed by one of two engines, `networks.openvino_engine` on a CPU where
OpenVINO is installed, else `networks.tensorflow_engine`. TensorFlow alone computes ``shiva``, by
`networks.external.tiled_unet`, and ``savedmodel``, what somebody's TensorFlow has written, loaded
by `networks.external.saved_model`. Where one process computes for all workers of a run
(`networks.sharing`), the functions ask it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np

from bids_cmb.networks import openvino_engine, tensorflow_engine
from bids_cmb.networks.backend import (
    LOADING_LOCK,
    OPENVINO,
    TENSORFLOW,
    choose_engine,
    describe_device,
    get_tensorflow,
    get_threads,
    release_memory,
    settle_engine,
    suppress_stderr,
)
from bids_cmb.networks.builders import read_shiva_arrays
from bids_cmb.networks.external.saved_model import load_signature
from bids_cmb.networks.external.tiled_unet import build_tiled_unet
from bids_cmb.networks.inference import Network, predict_in_slabs
from bids_cmb.networks.weights import check_file
from bids_cmb.parallel.service import Client, get_client

ENGINES = {OPENVINO: openvino_engine, TENSORFLOW: tensorflow_engine}
# What the process that computes for all workers is asked: for a network, a prediction by it, one
# of patches, the device
NETWORK, IMAGE, PATCHES, DEVICE = "network", "image", "patches", "device"


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
    if client := get_client():
        return _REMOTE[load](client, dict(member), path, precision)
    with LOADING_LOCK:
        stated = json.dumps(dict(member), sort_keys=True)
        return _load_cached(load, stated, path, precision, choose_engine())


@lru_cache(maxsize=32)
def _load_cached(load: Callable, member_json: str, path: Path, precision: str, engine: str):  # noqa: ARG001
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
    return get_engine().compile_patch_network(member, path, precision)


def _load_unet(member: Mapping, path: Path, precision: str):
    """Load one of our own U-Nets; return its function and what its sides must be multiples of."""
    predict_image = get_engine().compile_image_network(member, path, precision)
    arguments = member["arguments"]
    halvings = len(arguments.get("widths", (16, 32, 64, 96))) - 1
    pack = arguments.get("packed") or (1, 1, 1)
    shared = 2**halvings * np.array((2, 2, 2) if pack is True else pack)
    shared[2] //= 2 ** arguments.get("flat", 0)
    multiple = tuple(shared.tolist())
    return lambda image, _: predict_in_slabs(predict_image, multiple, image), multiple


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


def get_engine() -> ModuleType:
    """Get the module that computes our own networks in this process."""
    return ENGINES[settle_engine()]


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
                get_engine().build_model(member, path)
    except ValueError as error:
        return str(error)
    return ""


def describe_computation() -> tuple[str, str]:
    """Describe the device that computes the networks of this process, and the engine."""
    if client := get_client():
        return client.ask((DEVICE,))[0]
    return describe_device(), choose_engine()


def prepare_engine() -> None:
    """Import what computes the networks in this process, which takes seconds; if any does here."""
    if get_client() is None:
        settle_engine()


def _ask_for_network(client: Client, member: Mapping, path: Path, precision: str) -> Network:
    """Load a network in the process that computes for all; as `_load_network`."""
    options = (member, str(path), precision, get_threads())
    (name, multiple, flips), _ = client.ask((NETWORK, *options))

    def predict(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        arrays = [image] if mask is None else [image, mask]
        return client.ask((IMAGE, *options), arrays)[1][0]

    return Network(name, predict, multiple, flips)


def _ask_for_patch_model(client: Client, member: Mapping, path: Path, precision: str) -> Callable:
    """Have patches predicted in the process that computes for all; as `_load_patch_model`."""

    def predict(*inputs: np.ndarray) -> np.ndarray | list[np.ndarray]:
        request = (PATCHES, member, str(path), precision, get_threads())
        several, outputs = client.ask(request, inputs)
        return outputs if several else outputs[0]

    return predict


_REMOTE = {_load_network: _ask_for_network, _load_patch_model: _ask_for_patch_model}
_LOADERS = {"unet": _load_unet, "shiva": _load_shiva, "savedmodel": _load_saved_model}
