"""Agreement of two counts: the same numbers, not only numbers that rise together."""

import numpy as np

from bids_cmb.bids.tables import read_columns
from bids_cmb.lesions.table import classify_burden

BURDENS = tuple(read_columns("scan")["burden"]["Levels"])


def intraclass_correlation(ratings: np.ndarray) -> float:
    """Compute ICC(2,1): two-way random effects, absolute agreement, single rating.

    (BMS - EMS) / (BMS + (k - 1) EMS + k (JMS - EMS) / n), with mean squares between scans, between
    raters and of the residual. 1 is perfect agreement. A rater who always counts two more lowers
    it, unlike a correlation.

    Args:
        ratings: A row for each scan, a column for each rater, (N, K).

    Returns:
        NaN with fewer than two scans or if all ratings are the same.

    Source:
        Shrout & Fleiss 1979, doi:10.1037/0033-2909.86.2.420.
    """
    ratings = np.asarray(ratings, float)
    n, k = ratings.shape
    if n < 2 or np.ptp(ratings) == 0:
        return float("nan")
    overall = ratings.mean()
    between_scans = k * ((ratings.mean(axis=1) - overall) ** 2).sum()
    between_raters = n * ((ratings.mean(axis=0) - overall) ** 2).sum()
    rest = ((ratings - overall) ** 2).sum() - between_scans - between_raters
    bms, jms, ems = between_scans / (n - 1), between_raters / (k - 1), rest / ((n - 1) * (k - 1))
    whole = bms + (k - 1) * ems + k * (jms - ems) / n
    return float((bms - ems) / whole) if whole > 0 else float("nan")


def weighted_kappa(first: np.ndarray, second: np.ndarray, *, classes: int) -> float:
    """Compute Cohen's kappa with quadratic weights: a class too far counts 1, two too far 4.

    Args:
        first: Class of every scan by one rater, from 0, (N,).
        second: The same by the other.
        classes: How many there are.

    Returns:
        1 for perfect agreement, 0 for that of chance; NaN if both raters know one class only.

    Source:
        Cohen 1968, doi:10.1037/h0026256.
    """
    table = np.zeros((classes, classes))
    np.add.at(table, (np.asarray(first), np.asarray(second)), 1)
    apart = np.subtract.outer(np.arange(classes), np.arange(classes)) ** 2
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(table.sum(), 1)
    expected = (apart * by_chance).sum()
    return float(1 - (apart * table).sum() / expected) if expected > 0 else float("nan")


def measure_count_agreement(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Measure how near the numbers of lesions of scans come to the true ones, (scans,) both."""
    classes = [
        [BURDENS.index(classify_burden(int(n))) for n in counts] for counts in (predicted, truth)
    ]
    return {
        "count_icc": intraclass_correlation(np.stack([predicted, truth], axis=1)),
        "count_mae": float(np.abs(predicted - truth).mean()),
        "count_bias": float((predicted - truth).mean()),
        "burden_kappa": weighted_kappa(*classes, classes=len(BURDENS)),
    }
