"""How far a scan lies from those that the bundled networks were trained on.

``resources/quality/training_scans.json`` has the measures of their simulated scans, made by
``benchmarks/training_scans.py``. A scan that is unlike all of them may be read less well than any
benchmark says; one that is like them may still be read badly.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from bids_cmb.anatomy.brain_extraction import measure_volume_ml
from bids_cmb.imaging.volume import Volume
from bids_cmb.quality.measures import signal_to_noise

LEVELS = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)  # percentiles that are kept of each measure
BINS = np.linspace(0, 2.5, 41)  # of the histogram, in medians of the brain
DARK, BRIGHT = 0.6, 1.4  # of the brain's median
WHITE = 99.5  # percentile of the brain that is white in pictures
MEASURES = {  # what they are called
    "in_plane_voxel_size_mm": "in-plane voxel size, mm",
    "slice_spacing_mm": "slice spacing, mm",
    "brain_ml": "brain, ml",
    "brain_snr": "signal to noise",
    "spread": "spread of intensity",
    "dark_percent": "darker than 0.6 medians, %",
    "bright_percent": "brighter than 1.4 medians, %",
}


@dataclass(frozen=True, eq=False)
class BrainIntensities:
    """Intensities of a brain, shape (N,), their quartiles, and what pictures show white."""

    values: np.ndarray
    low: float
    middle: float
    high: float
    white: float


def brain_intensities(image: Volume, brain: Volume) -> BrainIntensities:
    """The intensities of a brain, looked up once.

    Args:
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
    """
    values = image.data[brain.data > 0]
    return BrainIntensities(values, *map(float, np.percentile(values, [25, 50, 75, WHITE])))


def measures(image: Volume, brain: Volume, intensities: BrainIntensities) -> dict[str, float]:
    """A scan in the numbers of ``MEASURES``.

    The spread is the distance of the quartiles within the brain, in medians.

    Args:
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        intensities: Its intensities.
    """
    inside, level = intensities.values, intensities.middle or 1.0
    found = {
        "in_plane_voxel_size_mm": float(np.delete(image.spacing, image.slice_axis).max()),
        "slice_spacing_mm": float(image.spacing[image.slice_axis]),
        "brain_ml": measure_volume_ml(brain),
        "brain_snr": signal_to_noise(image, brain, intensities.middle),
        "spread": (intensities.high - intensities.low) / level,
        "dark_percent": 100 * float((inside < DARK * level).mean()),
        "bright_percent": 100 * float((inside > BRIGHT * level).mean()),
    }
    return {name: round(value, 3) for name, value in found.items()}


def histogram(intensities: BrainIntensities) -> list[float]:
    """Per cent of the brain's voxels in each of ``BINS``; the last takes all that is brighter."""
    relative = intensities.values / np.float32(intensities.middle or 1)
    at = np.clip(relative / float(BINS[1]), 0, len(BINS) - 2).astype(np.uint8)  # the bins are even
    counts = np.bincount(at, minlength=len(BINS) - 1)
    return (100 * counts / max(len(relative), 1)).round(3).tolist()


def percentiles_in_training_set(found: dict[str, float]) -> list[dict[str, object]]:
    """Each measure against the training scans.

    Returns:
        A row each: ``name``, ``value``, ``low`` and ``high`` (the middle 90 % of the training
        scans), ``percentile``, and ``outside``: whether no training scan lies so far out.
    """
    rows = []
    for key, name in MEASURES.items():
        known = training_reference()["measures"][key]
        value = found[key]
        slack = 0.01 * abs(value)  # 0.99 mm is no stranger to 1 mm
        rows.append(
            {
                "name": name,
                "value": value,
                "low": known[LEVELS.index(5)],
                "high": known[LEVELS.index(95)],
                "percentile": round(float(np.interp(value, known, LEVELS))),
                "outside": not known[0] - slack <= value <= known[-1] + slack,
            }
        )
    return rows


def summarize_scans(scans: list[tuple[dict[str, float], list[float]]]) -> dict:
    """Measures and histograms of many scans, as in ``resources/quality/training_scans.json``."""
    return {
        "scans": len(scans),
        "levels": list(LEVELS),
        "measures": {
            name: np.percentile([one[name] for one, _ in scans], LEVELS).round(3).tolist()
            for name in MEASURES
        },
        "histogram": {
            str(level): np.percentile([bins for _, bins in scans], level, axis=0).round(3).tolist()
            for level in (5, 50, 95)
        },
    }


@lru_cache(maxsize=1)
def training_reference() -> dict:
    """What is known of the training scans."""
    text = (
        resources.files("bids_cmb")
        .joinpath("resources/quality/training_scans.json")
        .read_text("utf-8")
    )
    return json.loads(text)
