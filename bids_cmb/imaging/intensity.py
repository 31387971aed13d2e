"""Rules that scale the intensities of a scan for a network."""

from collections.abc import Callable
from functools import partial

import numpy as np


def _scale_to_percentile(data: np.ndarray, brain: np.ndarray, *, cap: float) -> np.ndarray:
    """Scale the 99th percentile of the brain to 1 / cap, clipped at 1."""
    data = np.maximum(data, 0)
    bright = _check_divisor(np.percentile(data[brain].astype(float), 99), "99th percentile")
    return np.minimum(data / bright, cap) / cap


def _scale_to_median(data: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Scale the median of the brain to 1."""
    return data / _check_divisor(np.median(data[brain]), "median")


def _standardize(data: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Standardize to mean 0 and standard deviation 1 in the brain."""
    values = data[brain].astype(float)
    return (data - float(values.mean())) / _check_divisor(values.std(), "standard deviation")


def _scale_to_foreground(data: np.ndarray, brain: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Scale the mean of all that is brighter than the mean to 1; needs no brain mask."""
    return data / _check_divisor(data[data > data.mean()].mean(dtype=float), "foreground's mean")


def _check_divisor(value: float, measure: str) -> float:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(
            f"The {measure} of the image within the brain must be above 0. Received: {value:g}."
        )
    return float(value)


INTENSITIES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    # SHiVAi divides by the cap after it was applied: 99th percentile at 0.769. The README of
    # SHIVA-CMB reads as if it ended at 1; networks trained by that sentence need the second rule.
    "shiva": partial(_scale_to_percentile, cap=1.3),
    "shiva-readme": partial(_scale_to_percentile, cap=1.0),
    "brain-median": _scale_to_median,
    "zscore": _standardize,
    "foreground": _scale_to_foreground,
    "none": lambda data, brain: data,  # noqa: ARG005
}
