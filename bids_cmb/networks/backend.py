"""TensorFlow and Keras: imported late and quietly; the device and the threads they compute on.

TensorFlow takes seconds to import, and ``--help`` must not wait for it: it is imported with the
first network.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from threading import RLock

M_MMAP_THRESHOLD, LARGE_BYTES = -3, 2**21  # GNU's number for it; and what it shall be
LOADING_LOCK = RLock()  # one at a time, whichever thread asks: libraries, networks


def describe_device() -> str:
    """Describe the device that networks are computed on: ``CPU`` or ``GPU (count)``."""
    gpus = get_tensorflow().config.list_physical_devices("GPU")
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
        threading = get_tensorflow().config.threading
        threading.set_intra_op_parallelism_threads(count)
        threading.set_inter_op_parallelism_threads(1)


def get_tensorflow():
    """Get TensorFlow; imported at the first call."""
    with LOADING_LOCK:
        return _import_tensorflow()


@lru_cache(maxsize=1)
def _import_tensorflow():
    """Import TensorFlow without its greetings; it takes GPU memory as it needs it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by itself where AVX-512 is missing
    _set_malloc_threshold()
    with suppress_stderr(), _hide_module("matplotlib"):
        import tensorflow as tf  # noqa: PLC0415

        tf.get_logger().setLevel("ERROR")  # each network is a graph of its own, and it wonders why
        exact = tf.config.experimental.enable_tensor_float_32_execution
        exact(False)  # noqa: FBT003 as exact as a CPU
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # noqa: FBT003
    return tf


@contextmanager
def _hide_module(name: str) -> Iterator[None]:
    """Hide a module from what is imported meanwhile, unless it is loaded already.

    Keras would load matplotlib, for pictures that nobody asks it for: 0.6 s.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]


def get_keras():
    """Get Keras; imported at the first call."""
    get_tensorflow()
    import keras  # noqa: PLC0415

    return keras


@contextmanager
def suppress_stderr() -> Iterator[None]:
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
