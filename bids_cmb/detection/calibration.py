"""Calibration: curves, scales, thresholds and operating points of the detectors' probabilities."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import expit, logit

from bids_cmb.config import BALANCED, SENSITIVE

MIN_PROBABILITY = 1e-6  # below it, and above 1 less it, log-odds are clipped
COMMON_THRESHOLD = 0.5  # of the mean of several detectors, on their common scale


def calibrate(probability: np.ndarray, curve: Mapping[str, float] | None) -> np.ndarray:
    """Calibrate probabilities by a logistic curve over their log-odds; 0 stays 0.

    Args:
        probability: 0 to 1.
        curve: ``slope`` and ``offset``; the probabilities stay as they are without.
    """
    if not curve:
        return probability
    calibrated = np.zeros_like(probability)
    positive = probability > 0
    clipped = np.clip(probability[positive], MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    calibrated[positive] = expit(curve["slope"] * logit(clipped) + curve["offset"])
    return calibrated


def map_to_common_scale(
    probability: np.ndarray | float, threshold: float
) -> np.ndarray | float:  # fmt: skip
    """Map a detector's probabilities to the common scale of several detectors.

    Detectors differ in what their numbers mean: the threshold of one may be the noise of another.
    A line from (0, 0) over (threshold, 1/2) to (1, 1) makes them comparable at the only value whose
    meaning is known of each, so that the mean of several is how far they are, on balance, above or
    below the value from which each alone would call a voxel a lesion.

    Args:
        probability: 0 to 1.
        threshold: Of the detector's card, above 0 and up to 1.

    Returns:
        0 to 1, of the same dtype; the order of the probabilities is kept.
    """
    knots = [0, threshold, 1] if threshold < 1 else [0, 1]
    mapped = np.interp(probability, knots, [0, COMMON_THRESHOLD, 1][: len(knots)])
    if isinstance(probability, np.ndarray):
        return mapped.astype(probability.dtype)
    return float(mapped)


def combine_thresholds(cards: Sequence[Mapping]) -> tuple[float, float]:
    """Combine the probabilities from which a voxel is lesion, and a lesion definite.

    Args:
        cards: Of the detectors that are averaged.

    Returns:
        Those of the card if there is one; of several `COMMON_THRESHOLD`, and the mean of their
        thresholds for definite lesions on the common scale.
    """
    if len(cards) == 1:
        return cards[0]["threshold"], cards[0]["definite_threshold"]
    definite = [
        map_to_common_scale(card["definite_threshold"], card["threshold"]) for card in cards
    ]
    return COMMON_THRESHOLD, float(np.mean(definite))


def apply_operating_point(card: dict, name: str) -> dict:
    """Apply one of its operating points to a card.

    Args:
        card: Of the detector.
        name: Of the operating point; `BALANCED` is that of the card's own threshold.

    Returns:
        The card with the thresholds of the operating point.

    Raises:
        ValueError: If the card has no such operating point.
    """
    if name == BALANCED:
        return card
    points = _index_operating_points(card)
    if name not in points:
        known = ", ".join(points) or "none"
        raise ValueError(
            f"{card['name']}: --operating-point must be one that its model card has; "
            f"found {name}, and on the card {known}."
        )
    threshold = points[name]["threshold"]
    definite = max(card["definite_threshold"], threshold)
    return {**card, "threshold": threshold, "definite_threshold": definite}


def get_sensitive_threshold(card: Mapping) -> float | None:
    """Get the threshold of a card's sensitive operating point; None if it has none."""
    return _index_operating_points(card).get(SENSITIVE, {}).get("threshold")


def _index_operating_points(card: Mapping) -> dict[str, Mapping]:
    """Index the operating points of a card by name; those without one cannot be chosen."""
    return {point["name"]: point for point in card.get("operating_points", ()) if "name" in point}
