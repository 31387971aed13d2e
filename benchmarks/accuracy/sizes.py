"""Compare sizes of microbleeds with those of experts, at half depth and by the detector's outline.

    python -m benchmarks.accuracy.sizes REAL FOUND RESULT.json

REAL is a BIDS dataset with a table of its microbleeds (``microbleeds.tsv``: ``subject``, voxel
``i``, ``j``, ``k`` from 0, ``equiv_diameter_mm``, of the ball with the volume that the experts
outlined), FOUND the output of the app for it. Half depth is measured at every expert's position,
from the darkest voxel within 2 mm and one slice; the outline of those that were found, within 5 mm.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bids_cmb.bids.paths import list_participant_dirs, locate_brain, locate_lesion_table
from bids_cmb.bids.tables import POSITION_COLUMNS, read_table
from bids_cmb.files import write_json
from bids_cmb.imaging.nifti import load, load_labels
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.profile import measure_size
from bids_cmb.metrics.matching import MAX_DISTANCE_MM

SEARCH_MM = 2.0  # around an expert's position


def main() -> None:
    """Measure, print and write."""
    options = make_parser().parse_args()
    experts = pd.read_csv(options.real / "microbleeds.tsv", sep="\t")
    rows = [
        row
        for mask in find_masks(options.output)
        for row in measure_scan(options.real, mask, experts)
    ]
    table = pd.DataFrame(rows)
    report = {"microbleeds": len(table)} | {
        name: summarize_ratios(table[name], table["expert"])
        for name in ("half_depth_diameter", "half_depth_in_plane", "outline")
    }
    write_json(options.result, report)
    print(table.round(2).to_string(), *report.items(), sep="\n")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("real", type=Path, help="BIDS dataset with microbleeds.tsv")
    parser.add_argument("output", type=Path, help="output of the app for it")
    parser.add_argument("result", type=Path, help="JSON file to write")
    return parser


def find_masks(output: Path) -> list[Path]:
    """Find the lesion masks of an output folder."""
    folders = list_participant_dirs(output)
    return [path for folder in folders for path in folder.glob("anat/*_label-CMB_*_mask.nii.gz")]


def measure_scan(real: Path, mask: Path, experts: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Measure the microbleeds of a scan, a row each."""
    subject = mask.name.partition("_")[0]
    image, _ = load(next(real.glob(f"{subject}/anat/{subject}_T2star*.nii.gz")))
    brain = load_labels(locate_brain(mask))
    brain = Volume(brain.data > 0, brain.affine)
    lesions = read_table(locate_lesion_table(mask))
    for expert in experts[experts.subject == subject].itertuples():
        voxel = np.array([expert.i, expert.j, expert.k])
        seed = find_darkest(image, brain, voxel)
        labels = np.zeros(image.shape, np.uint8)
        labels[seed] = 1
        box = tuple(slice(index, index + 1) for index in seed)
        yield {
            "subject": subject,
            "expert": expert.equiv_diameter_mm,
            **measure_size(labels, 1, box, image, brain),
            "outline": find_outline(lesions, image.world(voxel)),
        }


def find_darkest(image: Volume, brain: Volume, voxel: np.ndarray) -> tuple[int, ...]:
    """Find the darkest voxel of the brain near a position, not rounded, in voxels."""
    reach = np.ceil(SEARCH_MM / image.spacing).astype(int) + 1
    low = np.maximum(np.rint(voxel).astype(int) - reach, 0)
    box = tuple(
        slice(start, start + length) for start, length in zip(low, 2 * reach + 1, strict=True)
    )
    data = image.data[box]
    away = abs(np.indices(data.shape) + (low - voxel)[:, None, None, None])
    axis = image.slice_axis
    in_plane = np.delete(away, axis, axis=0) * np.delete(image.spacing, axis)[:, None, None, None]
    near = (np.hypot(*in_plane) <= SEARCH_MM) & (away[axis] <= 1.01) & brain.data[box]
    darkest = np.unravel_index(np.argmin(np.where(near, data, np.inf)), data.shape)
    return tuple((low + darkest).tolist())


def find_outline(lesions: Sequence[Mapping], position: np.ndarray) -> float:
    """Find the equivalent diameter of the lesion that lies at a position, mm; NaN if none."""
    if not lesions:
        return np.nan
    places = np.array([[row[axis] for axis in POSITION_COLUMNS] for row in lesions], float)
    away = np.linalg.norm(places - position, axis=1)
    if away.min() > MAX_DISTANCE_MM:
        return np.nan
    return float(np.cbrt(6 * float(lesions[int(away.argmin())]["volume_mm3"]) / np.pi))


def summarize_ratios(values: Sequence, experts: Sequence) -> dict[str, float]:
    """Summarize how sizes relate to those of the experts: number, ratio, median difference."""
    values, experts = np.array(values, float), np.array(experts, float)
    known = np.isfinite(values)
    low, middle, high = np.percentile(values[known] / experts[known], [25, 50, 75])
    return {
        "measured": int(known.sum()),
        "median_ratio": round(float(middle), 2),
        "ratio_quartiles": [round(float(low), 2), round(float(high), 2)],
        "median_difference_mm": round(float(np.median((values - experts)[known])), 2),
    }


if __name__ == "__main__":
    main()
