"""What benchmarks share: scans with truth, counts at many thresholds, cost of commands."""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

from bids_cmb.evaluation.annotations import LesionAnnotations, read_annotations
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import CONNECTIVITY_26
from bids_cmb.metrics.matching import match_valdo
from bids_cmb.metrics.scores import ScanMatches, derive_metrics
from bids_cmb.training.scan_files import ScanFiles, find_training_scans

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
THRESHOLDS = (0.05, *np.arange(0.1, 0.91, 0.05).round(2).tolist(), 0.925, 0.95, 0.97, 0.98, 0.99)
Item = TypeVar("Item")


def add_scan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a benchmark on simulated scans with truth."""
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("data", type=Path, nargs="+", help="simulated datasets with truth")
    parser.add_argument("--model-dir", type=Path, help="folder of model cards and weights")
    parser.add_argument("--scans", type=int, metavar="N", help="only the first N of each dataset")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: 1)")


def find_scans_with_truth(
    datasets: Sequence[Path], limit: int | None = None
) -> list[tuple[ScanFiles, LesionAnnotations]]:
    """Find the scans of simulated datasets, each with its true lesions.

    Args:
        datasets: Each with its truth in ``derivatives/truth``.
        limit: Take only the first so many scans of each dataset.
    """
    pairs = []
    for data in datasets:
        truth = {scan.name: scan for scan in read_annotations(data / "derivatives" / "truth")}
        pairs += [(paths, truth[paths.name]) for paths in find_training_scans(data)[:limit]]
    return pairs


def show_progress(items: Sequence[Item]) -> Iterator[Item]:
    """Iterate, and count on the terminal."""
    for number, item in enumerate(items, start=1):
        print(f"\r{number} of {len(items)}", end="", file=sys.stderr, flush=True)
        yield item
    print(file=sys.stderr)


# --- Counts at many thresholds --------------------------------------------------------------------


def cut_map(
    probability: np.ndarray, grid: Volume, min_volume_mm3: float
) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Cut a probability map into lesions at each of `THRESHOLDS`.

    As `bids_cmb.lesions.measure.find_lesions` cuts it, without the measurements that take its time.

    Args:
        probability: 0 to 1, (X, Y, Z).
        grid: A volume on the same grid.
        min_volume_mm3: Smaller lesions are dropped.

    Returns:
        By threshold: centres, world mm, (N, 3), and highest probabilities, (N,).
    """
    pieces, _ = ndimage.label(probability >= min(THRESHOLDS), structure=CONNECTIVITY_26)
    lesions: dict[float, list] = {threshold: [] for threshold in THRESHOLDS}
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        inside = np.where(pieces[box] == number, probability[box], 0)
        corner = [side.start for side in box]
        for threshold in THRESHOLDS:
            parts, count = ndimage.label(inside >= threshold, structure=CONNECTIVITY_26)
            for part in range(1, count + 1):
                voxels, weights = np.argwhere(parts == part), inside[parts == part]
                if len(voxels) * grid.voxel_volume >= min_volume_mm3:
                    centre = corner + np.average(voxels, axis=0, weights=weights)
                    lesions[threshold].append((*grid.world(centre), weights.max()))
    tables = {key: np.array(rows, float).reshape(-1, 4) for key, rows in lesions.items()}
    return {threshold: (table[:, :3], table[:, 3]) for threshold, table in tables.items()}


def find_ignored(truth: LesionAnnotations) -> np.ndarray:
    """Find the true lesions that are uncertain or cannot be seen, bool, (T,)."""
    return (truth.lesions["uncertain"] | ~truth.lesions["included"]).to_numpy(bool)


def count_detections(centres: np.ndarray, truth: LesionAnnotations) -> np.ndarray:
    """Count hits, misses and false alarms by the VALDO rule.

    Args:
        centres: Of the detections, world mm, (N, 3).
        truth: True lesions of the scan.

    Returns:
        The `bids_cmb.metrics.scores.COUNT_NAMES`, (8,).
    """
    matches = ScanMatches(
        truth.name,
        np.ones(len(centres)),
        cdist(centres, truth.positions),
        find_ignored(truth),
        truth.lesions["diameter_mm"].to_numpy(float),
    )
    return matches.tally(match_valdo).read(np.zeros(1))[0]


def count_at_thresholds(
    probability: np.ndarray, grid: Volume, min_volume_mm3: float, truth: LesionAnnotations
) -> np.ndarray:
    """Count what a map finds at each of `THRESHOLDS`, (T, 8); arguments as `cut_map` has them."""
    cuts = cut_map(probability, grid, min_volume_mm3)
    return np.stack([count_detections(centres, truth) for centres, _ in cuts.values()])


def tabulate_thresholds(counts: Iterable[np.ndarray]) -> list[dict[str, float | None]]:
    """Compute the figures over all scans at each of `THRESHOLDS`.

    Args:
        counts: Of each scan, as `count_at_thresholds` gives them, (T, 8).
    """
    metrics = derive_metrics(np.sum(list(counts), axis=0))
    columns = {
        "threshold": np.array(THRESHOLDS),
        "sensitivity": metrics.sensitivity,
        "sensitivity_large": metrics.sensitivity_large,
        "false_per_scan": metrics.fp_per_scan,
        "f1": metrics.f1,
    }
    return [
        {name: round_figure(column[row]) for name, column in columns.items()}
        for row in range(len(THRESHOLDS))
    ]


def print_points(title: str, points: Iterable[Mapping[str, float | None]]) -> None:
    """Print the figures of each threshold below a title."""
    print(title)
    for point in points:
        print("  " + "  ".join(f"{name} {value}" for name, value in point.items()))


def round_figure(value: float) -> float | None:
    """Round to three digits; None for what is not defined."""
    return round(float(value), 3) if math.isfinite(value) else None


# --- Cost of commands -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: Of the wall clock.
        processor_seconds: Of all its processes.
        peak_mb: Of the largest of its processes; at least that of this one, which Linux passes on.
    """

    seconds: float
    processor_seconds: float
    peak_mb: float


def measure_command(
    command: Sequence[object], environment: Mapping[str, str] | None = None
) -> Cost:
    """Run a command without its output and measure what it takes.

    Raises:
        SystemExit: If it fails.
    """
    words = [str(word) for word in command]
    start = time.perf_counter()
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed with exit code {process.returncode}.")
    return Cost(
        round(time.perf_counter() - start, 2),
        round(usage.ru_utime + usage.ru_stime, 1),
        round(usage.ru_maxrss / 1024),
    )


def make_app_command(bids_dir: Path, output: Path, *options: object) -> list[object]:
    """Make the command that runs the app of this working tree on a dataset."""
    return [sys.executable, ROOT / "run.py", bids_dir, output, *options]
