"""Confidence intervals: exact ones of counts, and those of a bootstrap over subjects.

All are 95 %. A figure that is a ratio of counts never has an interval narrower than the exact one
of the bare counts: five subjects that all agree would otherwise leave no width at all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, chi2

from bids_cmb.metrics.scores import divide

CONFIDENCE_LEVEL = 0.95
Interval = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval over subjects; NaN where it is not defined.

    One subject tells nothing of the next: what rests on fewer than two has no interval.
    """

    value: float
    low: float
    high: float


def compute_rates(
    part: np.ndarray, whole: np.ndarray, *, seed: int, draws: int, bare: Interval | None = None
) -> list[Figure]:
    """Divide the sum of parts by that of wholes for every class, subjects drawn with replacement.

    Args:
        part: A row for each subject, a column for each class, shape (U, C).
        whole: The same.
        seed: Of the draws.
        draws: How many.
        bare: The exact interval of a sum of parts and a sum of wholes; no interval becomes
            narrower. A proportion's if left out.
    """
    values = divide(part.sum(axis=0), whole.sum(axis=0))
    times = draw_subjects(len(part), seed, draws)
    spread = divide(times @ part, times @ whole)  # (draws, C)
    spread[:, (whole > 0).sum(axis=0) < 2] = np.nan
    return [
        Figure(
            float(value),
            *widen_interval(compute_interval(column), (bare or proportion_interval)(*sums)),
        )
        for value, column, *sums in zip(
            values, spread.T, part.sum(axis=0), whole.sum(axis=0), strict=True
        )
    ]


def proportion_interval(part: float, whole: float) -> tuple[float, float]:
    """Give the exact interval of ``part`` of ``whole`` (Clopper & Pearson 1934); NaN of nothing."""
    if not whole > 0:
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE_LEVEL) / 2
    low = beta.ppf(tail, part, whole - part + 1) if part > 0 else 0.0
    high = beta.ppf(1 - tail, part + 1, whole - part) if part < whole else 1.0
    return float(low), float(high)


def f1_interval(hits: float, errors: float) -> tuple[float, float]:
    """Give the interval of F1 from the exact one of hits / (hits + errors), with which it rises.

    Args:
        hits: True positives.
        errors: False alarms and misses together.
    """
    low, high = proportion_interval(hits, hits + errors)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def count_interval(count: float, whole: float) -> tuple[float, float]:
    """Give the exact interval of a Poisson count (Garwood 1936), per ``whole``; NaN of nothing."""
    if not whole > 0:
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE_LEVEL) / 2
    low = chi2.ppf(tail, 2 * count) / 2 if count > 0 else 0.0
    return float(low / whole), float(chi2.ppf(1 - tail, 2 * (count + 1)) / 2 / whole)


def widen_interval(drawn: list[float], bare: tuple[float, float] | None) -> tuple[float, float]:
    """Widen a bootstrap interval to at least that of the bare counts."""
    low, high = drawn
    if bare is None or np.isnan([low, *bare]).any():
        return low, high
    return min(low, bare[0]), max(high, bare[1])


def draw_subjects(subjects: int, seed: int, draws: int) -> np.ndarray:
    """Draw how often each subject comes in each bootstrap sample, (draws, subjects)."""
    even = np.full(subjects, 1 / subjects)
    return np.random.default_rng(seed).multinomial(subjects, even, size=draws)


def compute_interval(values: np.ndarray) -> list[float]:
    """Compute the interval of a figure from its bootstrap values; NaN if none is defined."""
    return compute_quantiles(values, (1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2)


def compute_quantiles(values: np.ndarray, *parts: float) -> list[float]:
    """Compute quantiles of what is defined; NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return np.quantile(defined, parts).tolist() if len(defined) else [float("nan")] * len(parts)
