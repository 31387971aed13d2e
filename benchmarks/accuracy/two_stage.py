"""Measure each stage of a two-stage detector, and the detector as shipped by kind of protocol.

    python -m benchmarks.accuracy.two_stage NAME DATA [--points TABLE] [--model-dir DIR]
        [--keep FILE] [--detector two-stage]

Every candidate of every scan is kept, however unlikely, so that the whole curve shows. The truth is
that of the dataset (``derivatives/truth``) or a table of points: columns ``subject``, ``x_mm``,
``y_mm``, ``z_mm``, and ``diameter_mm`` (or ``equiv_diameter_mm``) if known. VALDO rule; 95 %
intervals over scans. Writes ``benchmarks/results/two-stage-NAME.json``. Positions of real lesions
are not written (``--points``): only how they rank. ``--keep`` stores all candidates in that file
and reads them from it the next time, so that another calibration needs no networks.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.measurements import RESULTS
from bids_cmb.detection.calibration import calibrate
from bids_cmb.files import read_json, write_json
from bids_cmb.metrics.bootstrap import compute_figures
from bids_cmb.metrics.matching import match_valdo
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import load_card
from bids_cmb.provenance import machine, software
from bids_cmb.training.operating_points import (
    ScanCandidates,
    combine_probabilities,
    convert_to_json,
    detect_in_dataset,
    detect_with_points,
)

SHIPPED = "as shipped"
PRINTED = (
    "sensitivity_at_0.5_fp", "sensitivity_at_1_fp", "sensitivity_at_2_fp", "sensitivity_at_4_fp",
    "sensitivity_large_at_0.5_fp", "best_f1", "best_f1_threshold", "best_f1_fp_per_scan",
    "rank_median", "rank_auc",
)  # fmt: skip
Score = Callable[[ScanCandidates], np.ndarray]


def main() -> None:
    """Detect, measure, print and write."""
    options = make_parser().parse_args()
    card = load_card(options.detector, options.model_dir)
    threshold = card["threshold"]
    scans = detect_or_load(options, card)
    stages = make_stages(card, with_opinion=bool(scans) and scans[0].opinion is not None)
    report = {
        "name": options.name,
        "detector": options.detector,
        "threshold": threshold,
        "members": {member["name"]: member["sha256"] for member in card["members"]},
        "scans": len(scans),
        "lesions": sum(len(scan.lesions) for scan in scans),
        "figures": {name: measure_stage(scans, score, threshold) for name, score in stages.items()},
        "kinds": {
            kind: measure_stage(
                [scan for scan in scans if scan.kind == kind], stages[SHIPPED], threshold
            )
            for kind in sorted({scan.kind for scan in scans})
        },
        "software": software(),
        "machine": machine(),
        "judged": [describe_scan(scan, points=bool(options.points)) for scan in scans],
    }
    for name, figures in (*report["figures"].items(), *report["kinds"].items()):
        print(name, {key: figures[key][0] for key in PRINTED if key in figures})
    write_json(RESULTS / f"two-stage-{options.name}.json", report)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="of the result file")
    parser.add_argument("data", type=Path, help="BIDS dataset")
    parser.add_argument("--points", type=Path, help="table of true positions")
    parser.add_argument("--model-dir", type=Path, help="folder of model cards and weights")
    parser.add_argument("--keep", type=Path, help="file that stores all candidates")
    parser.add_argument("--detector", default="two-stage", help="(default: two-stage)")
    return parser


def detect_or_load(options: argparse.Namespace, card: Mapping) -> list[ScanCandidates]:
    """Detect the candidates of every scan, or load those that were kept."""
    if options.keep and options.keep.exists():
        return [parse_candidates(content) for content in read_json(options.keep)["judged"]]
    models = ModelOptions(options.model_dir)
    if options.points:
        scans = list(detect_with_points(card, models, options.data, options.points, print))
    else:  # opinions on all candidates, so that weights can be fitted to those that are kept
        asking = {key: value for key, value in card.items() if key != "operating_points"}
        scans = detect_in_dataset(asking, models, options.data, print)
    if options.keep:
        write_json(options.keep, {"judged": [convert_to_json(scan) for scan in scans]})
    return scans


def make_stages(card: Mapping, *, with_opinion: bool) -> dict[str, Score]:
    """Make the functions that score a scan's candidates, (N,), by name of the stage."""
    weights = {key: card[key] for key in card if key.endswith("_weight")}
    stages = {
        "first stage": lambda scan: scan.proposed,
        "second stage": lambda scan: scan.chance,
        SHIPPED: lambda scan: calibrate(
            combine_probabilities(scan, weights), card.get("calibration")
        ),
    }
    if with_opinion:
        stages["second opinion"] = lambda scan: scan.opinion
    return stages


def parse_candidates(content: Mapping) -> ScanCandidates:
    """Parse what `bids_cmb.training.operating_points.convert_to_json` wrote of a scan."""
    candidates = content["candidates"]
    lesions = tuple(
        (tuple(lesion["position_mm"]), lesion["diameter_mm"], lesion["sure"])
        for lesion in content["lesions"]
    )
    opinion = None
    if candidates and "opinion" in candidates[0]:
        opinion = np.array([candidate["opinion"] for candidate in candidates])
    return ScanCandidates(
        content["name"],
        np.array([candidate["position_mm"] for candidate in candidates]).reshape(-1, 3),
        np.array([candidate["proposed"] for candidate in candidates]),
        np.array([candidate["chance"] for candidate in candidates]),
        lesions,
        opinion,
        content["kind"],
        content["contrast"],
        tuple(map(tuple, content.get("doubles", ()))),
    )


def measure_stage(
    scans: Sequence[ScanCandidates], score: Score, threshold: float
) -> dict[str, list[float]]:
    """Measure the figures of a stage: value, low and high."""
    matches = [scan.match(score(scan)) for scan in scans]
    figures = compute_figures(matches, match_valdo, threshold=threshold, seed=1, draws=1000)
    return {
        name: [round(float(number), 3) for number in (figure.value, figure.low, figure.high)]
        for name, figure in figures.items()
    }


def describe_scan(scan: ScanCandidates, *, points: bool) -> dict:
    """Describe a scan's candidates and ranks; with points of real lesions without positions."""
    content = convert_to_json(scan)
    if points:
        content.pop("lesions")
        content["candidates"] = len(content["candidates"])
    return content


if __name__ == "__main__":
    main()
