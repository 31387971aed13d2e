"""What a detector found and missed on scans with known microbleeds, as its model card states it."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import logit

from bids_cmb.detection.calibration import MIN_PROBABILITY
from bids_cmb.imaging.protocol_kinds import classify_protocol

REAL, SIMULATED = "real", "simulated"  # origin of scans


def select_performance(
    card: Mapping, threshold: float, spacing: Sequence[float]
) -> list[dict[str, object]]:  # fmt: skip
    """Select from a model card what its detector found where the microbleeds are known.

    Args:
        card: Of the detector. Each entry of its ``performance`` holds ``data`` (``real`` or
            ``simulated``), ``contrast`` (BIDS suffix, of real scans), ``kind`` (as
            `classify_protocol` has it, or none for all), ``scans``, ``microbleeds`` and, in
            ``points``, ``threshold``, ``found`` and ``false_per_scan``.
        threshold: That the scan was processed with.
        spacing: Voxel size of the scan, mm.

    Returns:
        Real scans first, then the simulated ones of the scan's kind, each at the measured threshold
        that is nearest (in log-odds) to ``threshold``, in the words of sidecars. Empty if the card
        states none.
    """
    kind = classify_protocol(spacing)
    entries = [
        entry
        for entry in card.get("performance", ())
        if entry.get("points") and entry.get("kind") in (None, kind)
    ]
    return [
        _describe_entry(entry, threshold)
        for entry in sorted(entries, key=lambda entry: entry["data"] != REAL)
    ]


def _describe_entry(entry: Mapping, threshold: float) -> dict[str, object]:
    point = min(entry["points"], key=lambda point: _measure_gap(point["threshold"], threshold))
    described = {
        "Data": entry["data"],
        "Contrast": entry.get("contrast"),
        "Kind": entry.get("kind"),
        "Scans": entry["scans"],
        "Microbleeds": entry["microbleeds"],
        "Found": point["found"],
        "FalsePerScan": point["false_per_scan"],
        "Threshold": point["threshold"],
    }
    return {key: value for key, value in described.items() if value is not None}


def _measure_gap(first: float, second: float) -> float:
    """Measure how far two thresholds are from each other, in log-odds."""
    odds = logit(np.clip([first, second], MIN_PROBABILITY, 1 - MIN_PROBABILITY))
    return round(float(abs(odds[0] - odds[1])), 6)
