"""bids_cmb: cerebral microbleeds found, measured and counted on susceptibility MRI.

The Python API is loaded when a name of it is first used: ``from bids_cmb import load_image``.
"""

import importlib
import os

# Half the processor seconds of a network, and results that differ by less than 1e-5. TensorFlow
# reads it at its own import and switches it on by itself on some processors only.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"
__all__ = [
    "detect_microbleeds",
    "evaluate",
    "extract_brain",
    "load_image",
    "locate_lesions",
    "measure_lesions",
    "segment_anatomy",
    "simulate_scan",
]


def __getattr__(name: str) -> object:
    """Load a function of the Python API (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("bids_cmb.api"), name)


def __dir__() -> list[str]:
    """List the Python API among the names of the package."""
    return sorted({*globals(), *__all__})
