"""What the gate of a gated detector takes away: off, hard and soft, on simulated scans.

    python benchmarks/gate.py gated RESULT.json DATA [DATA ...] [--choose RECALL] [--scans N]

Each DATA is a simulated dataset with its truth. Every scan is seen once by both networks, the
segmenter on every slice; then their answers are put together in each way, and the map is cut at
many thresholds as ``operating_points.py`` does it.

Slice recall: of the slices of each sure microbleed (on the networks' grid), the share where the
gate is open at one of its pixels. ``--choose 0.98`` takes the highest gate threshold with that
recall on these scans, for validation scans; without it the card's is used.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from operating_points import counted, cuts, summed, with_truth

from bids_cmb.detection.gated import (
    GATE_MODES,
    apply_gate,
    compute_gate_map,
    load_probability_predictor,
    segment_slices,
)
from bids_cmb.detection.members import dilate_by_voxel, index_members
from bids_cmb.evaluation.annotations import LesionAnnotations
from bids_cmb.imaging.preprocessing import Grid, preprocess, resample_to_scan
from bids_cmb.imaging.volume import Volume, load, load_labels
from bids_cmb.networks.inference import ModelOptions, set_threads
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.data import LESION, ScanFiles, resample_lesions

AT = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9)  # gate thresholds told of


@dataclass(frozen=True, eq=False)
class Looked:
    """What both networks say of a scan.

    Attributes:
        scan: The image.
        mask: The brain, on its grid.
        affine: Of the networks' grid.
        brain: On it.
        opened: How open the gate is, float16, on it.
        found: What the segmenter says, float16, on it.
        slices: For each slice of each sure microbleed how open the gate is at most.
        seconds: Of the gate, and of the segmenter on every slice.
        truth: True lesions.
    """

    scan: Volume
    mask: np.ndarray
    affine: np.ndarray
    brain: np.ndarray
    opened: np.ndarray
    found: np.ndarray
    slices: list[float]
    seconds: tuple[float, float]
    truth: LesionAnnotations


def main() -> None:
    """Measure, print and write."""
    asked = arguments()
    set_threads(asked.threads)
    pairs = [pair for data in asked.data for pair in with_truth(data)][: asked.scans]
    looked = []
    for at, (paths, truth) in enumerate(pairs, start=1):
        print(f"\r{at} of {len(pairs)}", end="", file=sys.stderr, flush=True)
        looked.append(look(paths, truth, asked))
    print(file=sys.stderr)
    said = load_card(asked.detector, asked.model_dir)
    threshold = said["parameters"]["gate_threshold"]
    if asked.choose:
        threshold = chosen(looked, asked.choose)
    report = {
        "scans": len(pairs),
        "lesion_slices": sum(len(one.slices) for one in looked),
        "gate_threshold": threshold,
        "at_it": opening(looked, threshold),
        "seconds_per_scan": {
            part: round(float(np.mean([one.seconds[at] for one in looked])), 2)
            for at, part in enumerate(("gate", "segmenter on every slice"))
        },
        "gate_thresholds": [opening(looked, at) for at in AT],
        "gates": {
            how: points(looked, how, threshold, said["min_volume_mm3"]) for how in GATE_MODES
        },
    }
    asked.result.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: report[key] for key in report if key != "gates"}, indent=1))
    for how, rows in report["gates"].items():
        print(how)
        for row in rows:
            print("  " + "  ".join(f"{key} {value:g}" for key, value in row.items()))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("detector", help="whose card has the design `gated`")
    parser.add_argument("result", type=Path, help="where to")
    parser.add_argument("data", type=Path, nargs="+", help="simulated datasets")
    parser.add_argument("--choose", type=float, metavar="RECALL", help="of slices, at least")
    parser.add_argument("--scans", type=int, metavar="N", help="the first N only")
    parser.add_argument("--model-dir", type=Path, help="folder of cards and weights")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    return parser.parse_args()


def look(paths: ScanFiles, truth: LesionAnnotations, asked: argparse.Namespace) -> Looked:
    """Both networks' answers for a scan; its brain is the true one."""
    said, models = load_card(asked.detector, asked.model_dir), ModelOptions(asked.model_dir)
    members = index_members(said)
    image, _ = load(paths.image)
    brain = Volume(load_labels(paths.brain).data > 0, image.affine)
    fed = preprocess(image, brain, Grid.from_card(members["segmenter"]["grid"]))
    inside = dilate_by_voxel(fed.brain)
    gate, segmenter = (
        load_probability_predictor(said, members[part], models) for part in ("gate", "segmenter")
    )
    began = time.perf_counter()
    opened = compute_gate_map(gate, fed.image.data, inside)
    between = time.perf_counter()
    found = segment_slices(segmenter, fed.image.data, np.flatnonzero(inside.any(axis=(0, 1))))
    return Looked(
        image,
        brain.data,
        affine=fed.image.affine,
        brain=fed.brain.data,
        opened=opened.astype(np.float16),
        found=found.astype(np.float16),
        slices=at_lesions(paths.lesions, Volume(opened, fed.image.affine)),
        seconds=(between - began, time.perf_counter() - between),
        truth=truth,
    )


def at_lesions(lesions: Path, opened: Volume) -> list[float]:
    """For each slice of each sure microbleed how open the gate is at most."""
    codes, places = resample_lesions(lesions, opened)
    sure = [voxels for voxels in places if codes[tuple(voxels[0])] == LESION]
    return [
        float(opened.data[tuple(voxels[voxels[:, 2] == z].T)].max())
        for voxels in sure
        for z in np.unique(voxels[:, 2])
    ]


def chosen(looked: list[Looked], recall: float) -> float:
    """The highest threshold, in thousandths, with that recall of slices."""
    values = np.sort([value for one in looked for value in one.slices])
    lost = int(np.floor((1 - recall) * len(values) + 1e-9))
    return float(np.floor(values[lost] * 1000) / 1000)


def opening(looked: list[Looked], threshold: float) -> dict[str, float]:
    """What a gate threshold lets through."""
    values = np.array([value for one in looked for value in one.slices])
    brain = sum(int(one.brain.sum()) for one in looked)
    through = sum(int((one.opened[one.brain] >= threshold).sum()) for one in looked)
    slices = [
        (one.opened >= threshold).any(axis=(0, 1))[one.brain.any(axis=(0, 1))] for one in looked
    ]
    return {
        "threshold": threshold,
        "slice_recall": round(float((values >= threshold).mean()), 4),
        "brain_open": round(through / brain, 4),
        "slices_open": round(float(np.concatenate(slices).mean()), 4),
    }


def points(looked: list[Looked], how: str, threshold: float, volume: float) -> list[dict]:
    """Figures at each threshold of the answer, the gate used in one way."""
    rows = []
    for one in looked:
        opened, found = one.opened.astype(np.float32), one.found.astype(np.float32)
        whole = Volume(apply_gate(opened, found, how, threshold), one.affine)
        chance = np.where(one.mask, resample_to_scan(whole, one.scan).data, 0)
        for at, cut in cuts(chance, one.scan, volume):
            rows.append({"members": how, "threshold": at, **counted(*cut, one.labels)})
    return summed(rows, how, len(looked))


if __name__ == "__main__":
    main()
