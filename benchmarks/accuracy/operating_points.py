"""Measure an ensemble at each threshold on simulated scans, each member and all together.

    python -m benchmarks.accuracy.operating_points ensemble RESULT.json DATA [DATA ...]
        [--model-dir DIR] [--scans N]

Each DATA is a simulated dataset with its truth. The members predict each scan once; their maps, and
the mean of all, are cut at many thresholds as the app does it (but `large` lesions count). The
card's threshold is set on validation scans, never on benchmark or real scans. The calibration is
fitted to the lesions of the mean at the lowest threshold.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.measurements import (
    THRESHOLDS,
    add_scan_arguments,
    count_detections,
    cut_map,
    find_ignored,
    find_scans_with_truth,
    print_points,
    show_progress,
    tabulate_thresholds,
)
from bids_cmb.detection.ensemble import run_detector
from bids_cmb.evaluation.annotations import LesionAnnotations
from bids_cmb.files import write_json
from bids_cmb.networks.backend import set_threads
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.operating_points import ScanCandidates, fit_calibration
from bids_cmb.training.scan_loading import load_scan_and_brain


def main() -> None:
    """Measure, print and write."""
    options = make_parser().parse_args()
    set_threads(options.threads)
    card = load_card(options.detector, options.model_dir)
    names = [member["name"] for member in card["members"]]
    groups = [*[(name,) for name in names], tuple(names)]
    pairs = find_scans_with_truth(options.data, options.scans)
    counts: dict[str, list[np.ndarray]] = {" ".join(group): [] for group in groups}
    candidates = []
    for paths, truth in show_progress(pairs):
        image, brain = load_scan_and_brain(paths)
        models = ModelOptions(options.model_dir)
        maps, _ = run_detector(options.detector, image, brain, models, phase=None, anatomy=None)
        parts = dict(zip(names, maps, strict=True))
        for group in groups:
            mean = np.mean([parts[name] for name in group], axis=0)
            cuts = cut_map(mean, image, card["min_volume_mm3"])
            counts[" ".join(group)].append(
                np.stack([count_detections(centres, truth) for centres, _ in cuts.values()])
            )
        candidates.append(make_candidates(*cuts[min(THRESHOLDS)], truth))  # of all members
    members = {group: tabulate_thresholds(scans) for group, scans in counts.items()}
    calibration = calibrate_candidates(candidates)
    report = {"scans": len(pairs), "members": members, "calibration": calibration}
    write_json(options.result, report)
    for group, points in members.items():
        print_points(group, points)
    print("calibration", calibration)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("detector", help="whose model card has members")
    add_scan_arguments(parser)
    return parser


def make_candidates(
    centres: np.ndarray, probability: np.ndarray, truth: LesionAnnotations
) -> ScanCandidates:
    """Make the candidates of a scan from lesions, (N, 3) and (N,), of a detector of one stage."""
    diameters = truth.lesions["diameter_mm"].to_numpy(float)
    lesions = zip(truth.positions.tolist(), diameters, ~find_ignored(truth), strict=True)
    return ScanCandidates(truth.name, centres, probability, probability, tuple(lesions))


def calibrate_candidates(candidates: Sequence[ScanCandidates]) -> dict[str, float]:
    """Fit slope and offset of the log-odds at which the probabilities are chances."""
    fitted = fit_calibration(candidates)
    return {name: fitted[name] for name in ("slope", "offset")}


if __name__ == "__main__":
    main()
