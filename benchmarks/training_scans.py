"""What the scans that the bundled networks were trained on are like, for the quality section.

    python benchmarks/training_scans.py DATA [DATA ...]

Each DATA is a simulated dataset with its truth, A, B and C of docs/notes/training.md. Writes
bids_cmb/resources/quality/training_scans.json. The brain is that of the simulation, so the measures
of a real scan, whose brain was found, may differ by what lies at its edge.
"""

import json
import sys
from pathlib import Path

import numpy as np

from bids_cmb.imaging.nifti import load, load_labels
from bids_cmb.imaging.volume import Volume
from bids_cmb.quality.familiarity import (
    MEASURE_NAMES,
    PERCENTILES,
    compute_histogram,
    measure_intensities,
    measure_scan,
)
from bids_cmb.training.scan_files import find_training_scans

PLACE = Path(__file__).parent.parent / "bids_cmb" / "resources" / "quality" / "training_scans.json"


def main() -> None:
    """Measure and write."""
    made = []
    for folder in sys.argv[1:]:
        for paths in find_training_scans(Path(folder)):
            image, _ = load(paths.image)
            brain = Volume(load_labels(paths.brain).data > 0, image.affine)
            intensities = measure_intensities(image, brain)
            made.append((measure_scan(image, brain, intensities), compute_histogram(intensities)))
            print(paths.name, made[-1][0], flush=True)
    about = "Simulated scans that `ensemble` was trained on; docs/notes/training.md."
    PLACE.write_text(json.dumps({"about": about, **summarize_scans(made)}, indent=1) + "\n")


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
