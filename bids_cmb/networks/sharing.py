"""One process that computes the networks of all workers: one copy of them, and one user of the GPU.

The workers read, measure and write; `networks.loading` gives them networks that ask this process.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from bids_cmb.networks.backend import may_have_gpu, set_threads
from bids_cmb.networks.loading import (
    DEVICE,
    IMAGE,
    NETWORK,
    PATCHES,
    describe_computation,
    load_network,
    load_patch_model,
)
from bids_cmb.parallel.service import Service


def should_share(wish: str, workers: int) -> bool:
    """Whether one process computes the networks of all workers.

    Args:
        wish: ``on``, ``off``, or ``auto``: if there are several workers and may be a GPU.
        workers: Number of processes that read scans.
    """
    return wish == "on" or (wish == "auto" and workers > 1 and may_have_gpu())


def share_networks(*, shared: bool) -> AbstractContextManager[Service | None]:
    """Have processes that are started within ask one process for all that networks compute.

    Args:
        shared: Whether; without, each computes by itself.

    Returns:
        What the ``with`` statement gets: the process; None without.
    """
    return Service(answer_request) if shared else nullcontext()


def answer_request(request: tuple, arrays: list[np.ndarray]) -> tuple[object, list[np.ndarray]]:
    """Compute what a worker asks for, as `networks.loading` words it.

    Raises:
        ValueError: As `networks.loading.load_network`.
    """
    kind, *rest = request
    if kind == DEVICE:
        return describe_computation(), []
    member, path, precision, threads = rest
    if threads:
        set_threads(threads)
    if kind == PATCHES:
        output = load_patch_model(member, Path(path), precision=precision)(*arrays)
        several = isinstance(output, list)
        return several, output if several else [output]
    network = load_network(member, Path(path), precision=precision)
    if kind == NETWORK:
        return (network.name, network.multiple, network.flips), []
    assert kind == IMAGE
    image, *mask = arrays
    return None, [network.predict(image, mask[0] if mask else None)]
