"""Measure what the gate of a gated detector takes away: off, hard and soft, on simulated scans.

    python -m benchmarks.ablations.gate gated RESULT.json DATA [DATA ...] [--choose RECALL]
        [--scans N] [--model-dir DIR]

Each DATA is a simulated dataset with its truth. Both networks see every scan once, the segmenter
every slice; then their predictions are combined in each way, and the map is cut at many thresholds.

Slice recall: of the slices of each sure microbleed (on the networks' grid), the share in which the
gate is open at one of its pixels. ``--choose 0.98`` takes the highest gate threshold with that
recall on these scans, for validation scans; without it the card's is used.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measurements import (
    add_scan_arguments,
    count_at_thresholds,
    find_scans_with_truth,
    print_points,
    show_progress,
    tabulate_thresholds,
)
from bids_cmb.detection.gated import (
    GATE_MODES,
    apply_gate,
    compute_gate_map,
    load_probability_predictor,
    segment_slices,
)
from bids_cmb.detection.members import dilate_by_voxel, index_members
from bids_cmb.evaluation.annotations import LesionAnnotations
from bids_cmb.files import write_json
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.resampling import resample_to_scan
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.backend import set_threads
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.reference_labels import LESION, resample_lesions
from bids_cmb.training.scan_files import ScanFiles
from bids_cmb.training.scan_loading import load_scan_and_brain

GATE_THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9)  # reported


@dataclass(frozen=True, eq=False)
class GatePrediction:
    """What both networks predict of a scan.

    Attributes:
        scan: The image.
        mask: Its true brain, bool, on its grid.
        affine: Of the networks' grid.
        brain: The same brain, bool, on the networks' grid.
        response: How open the gate is, float16, on the networks' grid.
        probability: Of the segmenter, float16, on the networks' grid.
        slices: For each slice of each sure microbleed the highest response of the gate.
        seconds: Of the gate, and of the segmenter on every slice.
        truth: True lesions.
    """

    scan: Volume
    mask: np.ndarray
    affine: np.ndarray
    brain: np.ndarray
    response: np.ndarray
    probability: np.ndarray
    slices: list[float]
    seconds: tuple[float, float]
    truth: LesionAnnotations


def main() -> None:
    """Measure, print and write."""
    options = make_parser().parse_args()
    set_threads(options.threads)
    card = load_card(options.detector, options.model_dir)
    models = ModelOptions(options.model_dir)
    pairs = find_scans_with_truth(options.data, options.scans)
    scans = [predict_scan(paths, truth, card, models) for paths, truth in show_progress(pairs)]
    threshold = card["parameters"]["gate_threshold"]
    if options.choose:
        threshold = choose_threshold(scans, options.choose)
    gate, segmenter = np.mean([scan.seconds for scan in scans], axis=0).round(2).tolist()
    report = {
        "scans": len(scans),
        "lesion_slices": sum(len(scan.slices) for scan in scans),
        "gate_threshold": threshold,
        "at_it": measure_opening(scans, threshold),
        "seconds_per_scan": {"gate": gate, "segmenter on every slice": segmenter},
        "gate_thresholds": [measure_opening(scans, each) for each in GATE_THRESHOLDS],
        "gates": {
            mode: measure_mode(scans, mode, threshold, card["min_volume_mm3"])
            for mode in GATE_MODES
        },
    }
    write_json(options.result, report)
    print(json.dumps({key: report[key] for key in report if key != "gates"}, indent=1))
    for mode, points in report["gates"].items():
        print_points(mode, points)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("detector", help="whose model card has the design `gated`")
    add_scan_arguments(parser)
    parser.add_argument("--choose", type=float, metavar="RECALL", help="least slice recall")
    return parser


def predict_scan(
    paths: ScanFiles, truth: LesionAnnotations, card: Mapping, models: ModelOptions
) -> GatePrediction:
    """Run both networks on a scan, within its true brain."""
    members = index_members(card)
    image, brain = load_scan_and_brain(paths)
    fed = preprocess(image, brain, Grid.from_card(members["segmenter"]["grid"]))
    inside = dilate_by_voxel(fed.brain)
    gate, segmenter = (
        load_probability_predictor(card, members[part], models) for part in ("gate", "segmenter")
    )
    start = time.perf_counter()
    response = compute_gate_map(gate, fed.image.data, inside)
    between = time.perf_counter()
    slices = np.flatnonzero(inside.any(axis=(0, 1)))
    probability = segment_slices(segmenter, fed.image.data, slices)
    return GatePrediction(
        image,
        brain.data,
        affine=fed.image.affine,
        brain=fed.brain.data,
        response=response.astype(np.float16),
        probability=probability.astype(np.float16),
        slices=read_lesion_slices(paths.lesions, Volume(response, fed.image.affine)),
        seconds=(between - start, time.perf_counter() - between),
        truth=truth,
    )


def read_lesion_slices(lesions: Path, response: Volume) -> list[float]:
    """Read the highest response of the gate in each slice of each sure microbleed."""
    codes, voxels_of_lesions = resample_lesions(lesions, response)
    return [
        float(response.data[tuple(voxels[voxels[:, 2] == z].T)].max())
        for voxels in voxels_of_lesions
        if codes[tuple(voxels[0])] == LESION
        for z in np.unique(voxels[:, 2])
    ]


def choose_threshold(scans: Sequence[GatePrediction], recall: float) -> float:
    """Choose the highest gate threshold, in thousandths, with at least that slice recall."""
    responses = np.sort([response for scan in scans for response in scan.slices])
    lost = int(np.floor((1 - recall) * len(responses) + 1e-9))
    return float(np.floor(responses[lost] * 1000) / 1000)


def measure_opening(scans: Sequence[GatePrediction], threshold: float) -> dict[str, float]:
    """Measure what a gate threshold lets through: slices of lesions, brain, slices of brain."""
    responses = np.array([response for scan in scans for response in scan.slices])
    brain = sum(int(scan.brain.sum()) for scan in scans)
    opened = sum(int((scan.response[scan.brain] >= threshold).sum()) for scan in scans)
    slices = [
        (scan.response >= threshold).any(axis=(0, 1))[scan.brain.any(axis=(0, 1))] for scan in scans
    ]
    return {
        "threshold": threshold,
        "slice_recall": round(float((responses >= threshold).mean()), 4),
        "brain_open": round(opened / brain, 4),
        "slices_open": round(float(np.concatenate(slices).mean()), 4),
    }


def measure_mode(
    scans: Sequence[GatePrediction], mode: str, threshold: float, min_volume_mm3: float
) -> list[dict]:
    """Measure the detector at each threshold of its probability, the gate used in one mode."""
    counts = []
    for scan in scans:
        response, probability = (
            data.astype(np.float32) for data in (scan.response, scan.probability)
        )
        gated = Volume(apply_gate(response, probability, mode, threshold), scan.affine)
        inside = np.where(scan.mask, resample_to_scan(gated, scan.scan).data, 0)
        counts.append(count_at_thresholds(inside, scan.scan, min_volume_mm3, scan.truth))
    return tabulate_thresholds(counts)


if __name__ == "__main__":
    main()
