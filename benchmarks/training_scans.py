"""Measure the scans that the bundled networks were trained on, for the quality section.

    python -m benchmarks.training_scans DATA [DATA ...]

Each DATA is a simulated dataset with its truth, A, B and C of docs/notes/training.md. Writes
bids_cmb/resources/quality/training_scans.json. The brain is that of the simulation, so the measures
of a real scan, whose brain is extracted, may differ by what lies at its edge.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.measurements import ROOT, show_progress
from bids_cmb.files import write_text
from bids_cmb.quality.familiarity import (
    MEASURE_NAMES,
    PERCENTILES,
    compute_histogram,
    measure_intensities,
    measure_scan,
)
from bids_cmb.training.scan_files import find_training_scans
from bids_cmb.training.scan_loading import load_scan_and_brain

RESULT = ROOT / "bids_cmb" / "resources" / "quality" / "training_scans.json"
ABOUT = "Simulated scans that `ensemble` was trained on; docs/notes/training.md."


def main() -> None:
    """Measure and write."""
    options = make_parser().parse_args()
    files = [paths for data in options.data for paths in find_training_scans(data)]
    measures = []
    for paths in show_progress(files):
        image, brain = load_scan_and_brain(paths)
        intensities = measure_intensities(image, brain)
        measures.append((measure_scan(image, brain, intensities), compute_histogram(intensities)))
    content = {"about": ABOUT, **summarize_scans(measures)}
    write_text(RESULT, json.dumps(content, indent=1) + "\n")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", help="simulated datasets with truth")
    return parser


def summarize_scans(scans: list[tuple[dict[str, float], list[float]]]) -> dict:
    """Summarize measures and histograms of scans, as ``resources/quality/training_scans.json``."""
    return {
        "scans": len(scans),
        "levels": list(PERCENTILES),
        "measures": {
            name: np.percentile([values[name] for values, _ in scans], PERCENTILES)
            .round(3)
            .tolist()
            for name in MEASURE_NAMES
        },
        "histogram": {
            str(level): np.percentile([bins for _, bins in scans], level, axis=0).round(3).tolist()
            for level in (5, 50, 95)
        },
    }


if __name__ == "__main__":
    main()
