"""Layers that architectures are made of: Keras', or those of another engine under the same names.

An architecture asks this module for ``Conv3D`` and the like. It gets Keras' own, from which
networks are trained, unless it is called within `use_layers`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from bids_cmb.networks.backend import get_keras

_other_layers: ContextVar[ModuleType | None] = ContextVar("other_layers", default=None)


@contextmanager
def use_layers(module: ModuleType) -> Iterator[None]:
    """Use the layers of a module instead of Keras', in this thread.

    Args:
        module: Has every layer that an architecture asks for.
    """
    token = _other_layers.set(module)
    try:
        yield
    finally:
        _other_layers.reset(token)


def __getattr__(name: str):
    """Get a layer, ``Input``, ``Model``, ``Constant`` or ``logsumexp`` by name."""
    if name.startswith("__"):
        raise AttributeError(name)
    other = _other_layers.get()
    if other is not None:
        return getattr(other, name)
    keras = get_keras()
    for part in (keras.layers, keras, keras.initializers, keras.ops):
        if hasattr(part, name):
            return getattr(part, name)
    raise AttributeError(f"Keras has no layer {name}.")
