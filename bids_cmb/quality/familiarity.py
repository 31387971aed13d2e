"""Comparison of a scan with those that the bundled networks were trained on.

``resources/quality/training_scans.json`` has the measures of their simulated scans, made by
``benchmarks/training_scans.py``. On a scan unlike all of them the networks may do worse than any
benchmark says; on one that is like them they may still do badly.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bids_cmb.anatomy.brain_extraction import measure_volume_ml
from bids_cmb.imaging.volume import Volume
from bids_cmb.quality.measures import measure_snr
from bids_cmb.resource_files import load_resource

PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)  # that are kept of each measure
BINS = np.linspace(0, 2.5, 41)  # of the histogram, in medians of the brain
DARK, BRIGHT = 0.6, 1.4  # of the brain's median
WHITE_PERCENTILE = 99.5  # percentile of the brain that is white in pictures
MEASURE_NAMES = {
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
    """Intensities of a brain, shape (N,), their quartiles, and the level that pictures show white.

    Attributes:
        values: One for each voxel.
        low: First quartile.
        middle: Median.
        high: Third quartile.
        white: Their percentile ``WHITE_PERCENTILE``.
    """

    values: np.ndarray
    low: float
    middle: float
    high: float
    white: float


def measure_intensities(image: Volume, brain: Volume) -> BrainIntensities:
    """Collect the intensities of a brain.

    Args:
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
    """
    values = image.data[brain.data > 0]
    return BrainIntensities(
        values, *map(float, np.percentile(values, [25, 50, 75, WHITE_PERCENTILE]))
    )


def measure_scan(image: Volume, brain: Volume, intensities: BrainIntensities) -> dict[str, float]:
    """Measure a scan in the quantities of ``MEASURE_NAMES``.

    The spread is the distance of the quartiles within the brain, in medians.

    Args:
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        intensities: Of that brain.
    """
    inside, level = intensities.values, intensities.middle or 1.0
    values = {
        "in_plane_voxel_size_mm": float(np.delete(image.spacing, image.slice_axis).max()),
        "slice_spacing_mm": float(image.spacing[image.slice_axis]),
        "brain_ml": measure_volume_ml(brain),
        "brain_snr": measure_snr(image, brain, intensities.middle),
        "spread": (intensities.high - intensities.low) / level,
        "dark_percent": 100 * float((inside < DARK * level).mean()),
        "bright_percent": 100 * float((inside > BRIGHT * level).mean()),
    }
    return {name: round(value, 3) for name, value in values.items()}


def compute_histogram(intensities: BrainIntensities) -> list[float]:
    """Compute the per cent of voxels in each of ``BINS``; the last has all that is brighter."""
    relative = intensities.values / np.float32(intensities.middle or 1)
    bins = np.clip(relative / float(BINS[1]), 0, len(BINS) - 2).astype(np.uint8)  # of equal width
    counts = np.bincount(bins, minlength=len(BINS) - 1)
    return (100 * counts / max(len(relative), 1)).round(3).tolist()


def compare_with_training_set(values: dict[str, float]) -> list[dict[str, object]]:
    """Compare each measure of a scan with the training scans.

    Args:
        values: From `measure_scan`.

    Returns:
        A row each: ``name``, ``value``, ``low`` and ``high`` (the middle 90 % of the training
        scans), ``percentile``, and ``outside``: whether it is beyond all training scans.
    """
    rows = []
    for key, name in MEASURE_NAMES.items():
        percentiles = load_training_reference()["measures"][key]
        value = values[key]
        tolerance = 0.01 * abs(value)  # 0.99 mm is not outside 1 mm
        rows.append(
            {
                "name": name,
                "value": value,
                "low": percentiles[PERCENTILES.index(5)],
                "high": percentiles[PERCENTILES.index(95)],
                "percentile": round(float(np.interp(value, percentiles, PERCENTILES))),
                "outside": not percentiles[0] - tolerance <= value <= percentiles[-1] + tolerance,
            }
        )
    return rows


@lru_cache(maxsize=1)
def load_training_reference() -> dict:
    """Load the summary of the training scans."""
    return load_resource("quality/training_scans.json")
