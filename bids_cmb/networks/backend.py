"""OpenVINO, TensorFlow and Keras: which computes, imported late and quietly; device and threads.

TensorFlow takes seconds to import, and ``--help`` must not wait for it: an engine is imported with
the first network.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, RLock
from weakref import WeakSet

M_MMAP_THRESHOLD, LARGE_BYTES = -3, 2**21  # GNU's number for it; and what it shall be
OPENVINO, TENSORFLOW = "openvino", "tensorflow"  # the engines
ENGINE_VARIABLE = "BIDS_CMB_ENGINE"  # one of them, for this process and its children
LOADING_LOCK = RLock()  # one at a time, whichever thread asks: libraries, networks

_threads: list[int] = []  # none, or one number
_releases: WeakSet[Callable[[], None]] = WeakSet()
_RELEASE_LOCK = Lock()


def make_environment(device: str, engine: str) -> dict[str, str]:
    """Make the variables by which this process or another computes on a device, by an engine.

    Args:
        device: ``cpu`` hides all GPUs.
        engine: `OPENVINO`, `TENSORFLOW` or ``auto``.
    """
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else {}
    return hidden | ({ENGINE_VARIABLE: engine} if engine != "auto" else {})


def choose_engine() -> str:
    """Choose the engine of our own networks: `OPENVINO` or `TENSORFLOW`.

    What `ENGINE_VARIABLE` names; else OpenVINO where it is installed, unless TensorFlow may find a
    GPU.
    """
    named = os.environ.get(ENGINE_VARIABLE, "")
    if named in (OPENVINO, TENSORFLOW):
        return named
    return OPENVINO if find_spec("openvino") and not may_have_gpu() else TENSORFLOW


def settle_engine() -> str:
    """Import the engine that `choose_engine` chooses, which takes seconds, and return its name.

    Where nobody has named one and OpenVINO cannot be loaded, such as on a processor that it was not
    built for, this process computes by TensorFlow.

    Raises:
        ImportError: If OpenVINO cannot be loaded though it was named.
    """
    if choose_engine() == OPENVINO:
        try:
            get_openvino()
        except (ImportError, OSError):
            if os.environ.get(ENGINE_VARIABLE) == OPENVINO:
                raise
            os.environ[ENGINE_VARIABLE] = TENSORFLOW
        else:
            return OPENVINO
    get_tensorflow()
    return TENSORFLOW


def find_engine_problem(engine: str, device: str) -> str:
    """Find what keeps an engine from computing on a device; empty if nothing does.

    Args:
        engine: `OPENVINO`, `TENSORFLOW` or ``auto``.
        device: ``gpu``, ``cpu`` or ``auto``.
    """
    named, origin = engine, "--engine"
    if engine == "auto":
        named, origin = os.environ.get(ENGINE_VARIABLE, engine), ENGINE_VARIABLE
    if named not in ("", "auto", OPENVINO, TENSORFLOW):
        return f"{origin} must be {OPENVINO} or {TENSORFLOW}; found {named!r}."
    if named != OPENVINO:
        return ""
    if device == "gpu":
        return f"{origin} {OPENVINO} computes on the CPU; found --device gpu."
    if not find_spec("openvino"):
        return (
            f"{origin} {OPENVINO} needs the package openvino (install the extra `cpu`); it is not "
            "installed."
        )
    return ""


def may_have_gpu() -> bool:
    """Whether TensorFlow may find a GPU; to know it would take seconds."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return bool(_list_gpus()) and not _is_installed("tensorflow-cpu")


def _list_gpus() -> list[Path]:
    """List the device files of GPUs; ``dxg`` is that of the Windows Subsystem for Linux."""
    return [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg")]


def _is_installed(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


def describe_device() -> str:
    """Describe the device that our networks are computed on: ``CPU`` or ``GPU (count)``."""
    if choose_engine() == OPENVINO:
        return "CPU"
    gpus = get_tensorflow().config.list_physical_devices("GPU")
    return f"GPU ({len(gpus)})" if gpus else "CPU"


def find_device_problem(requested: str) -> str:
    """Find what keeps this process from computing on the requested device; empty if nothing does.

    Args:
        requested: ``gpu``, if it must be one; any other is always available.
    """
    if requested != "gpu" or get_tensorflow().config.list_physical_devices("GPU"):
        return ""
    return f"--device gpu needs a GPU that can be used. {explain_missing_gpu()}"


def explain_missing_gpu() -> str:
    """Explain why there may be no GPU, in a sentence for users."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    driver = Path("/proc/driver/nvidia/version").is_file()
    nodes = bool(_list_gpus())
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

    Loading three networks of SHIVA-CMB's size leaves a quarter of a gigabyte behind, and OpenVINO
    keeps what each network needed last.
    """
    with _RELEASE_LOCK:
        releases = list(_releases)
    for release in releases:
        release()
    with suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def release_with_memory(release: Callable[[], None]) -> None:
    """Have a function called whenever memory is released, as long as somebody holds it."""
    with _RELEASE_LOCK:
        _releases.add(release)


def _set_malloc_threshold() -> None:
    """Let the C library release each large array as it is freed.

    Else it learns from the first ones that were freed to keep the later ones, 0.2 GB of them.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def set_threads(count: int) -> None:
    """Limit the threads of networks that are loaded from now on.

    Without effect on TensorFlow after it has computed.
    """
    with LOADING_LOCK:
        _threads[:] = [count]
        if "tensorflow" in sys.modules:
            _limit_tensorflow(get_tensorflow())


def get_threads() -> int | None:
    """Get the number that `set_threads` was given last; None if it was not."""
    return _threads[0] if _threads else None


def _limit_tensorflow(tf) -> None:
    if not _threads:
        return
    with suppress(RuntimeError):  # it has computed already
        tf.config.threading.set_intra_op_parallelism_threads(_threads[0])
        tf.config.threading.set_inter_op_parallelism_threads(1)


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
    _limit_tensorflow(tf)
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


def get_openvino():
    """Get OpenVINO; imported at the first call."""
    with LOADING_LOCK:
        return _import_openvino()


@lru_cache(maxsize=1)
def _import_openvino():
    """Import OpenVINO without the module that reports to its makers what is done with it."""
    _set_malloc_threshold()
    with _hide_module("openvino_telemetry"):
        import openvino  # noqa: PLC0415
        import openvino.opset13  # noqa: PLC0415
    return openvino


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
