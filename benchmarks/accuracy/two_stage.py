"""What a detector of two stages finds and misses: each stage, as shipped, every kind of protocol.

    python benchmarks/two_stage.py NAME DATA [--points TABLE] [--model-dir DIR] [--keep FILE]

Every candidate of every scan is kept, however unlikely, so the whole curve shows. The truth is that
of the dataset (``derivatives/truth``) or a table of points: columns ``subject``, ``x_mm``,
``y_mm``, ``z_mm``, and ``diameter_mm`` (or ``equiv_diameter_mm``) if known. VALDO rule; 95 %
intervals over scans. Written to ``benchmarks/results/two-stage-NAME.json``. Positions of real
lesions are not written (``--points``): only how they rank. With ``--keep`` all that was judged is
kept in that file, and read from it the next time, so that another calibration need not judge again.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bids_cmb.bids.filters import Query
from bids_cmb.bids.selection import find_scans
from bids_cmb.detection.calibration import calibrate
from bids_cmb.files import read_json, write_json
from bids_cmb.imaging.volume import load
from bids_cmb.metrics.bootstrap import compute_figures
from bids_cmb.metrics.matching import match_valdo
from bids_cmb.networks.inference import ModelOptions
from bids_cmb.networks.model_cards import load_card
from bids_cmb.provenance import machine, software
from bids_cmb.training.operating_points import (
    ScanCandidates,
    combine_probabilities,
    convert_to_json,
    detect_in_dataset,
    detect_with_points,
)

RESULTS = Path(__file__).parent / "results"
FINE_MM, THICK_MM = 0.6, 2.5  # pixels below, slices from
SHOWN = (
    "sensitivity_at_0.5_fp", "sensitivity_at_1_fp", "sensitivity_at_2_fp", "sensitivity_at_4_fp",
    "sensitivity_large_at_0.5_fp", "best_f1", "best_f1_threshold", "best_f1_fp_per_scan",
    "rank_median", "rank_auc",
)  # fmt: skip


def main() -> None:
    """Judge, print and write."""
    given = arguments()
    models = ModelOptions(given.model_dir)
    card = load_card(given.detector, given.model_dir)
    weights = {key: card[key] for key in card if key.endswith("_weight")}
    card = {**card, "first_stage_weight": 0.0}  # chances of the second stage alone
    if given.keep and given.keep.exists():
        judged = [from_json(one) for one in read_json(given.keep)["judged"]]
    elif given.points:
        judged = list(detect_with_points(card, models, given.data, given.points, print))
    else:
        judged = detect_in_dataset(card, models, given.data, print)
    if given.keep:
        write_json(given.keep, {"judged": [convert_to_json(one) for one in judged]})
    kinds = {one.name: kind_of(path) for one, path in zip(judged, images(given.data), strict=True)}
    threshold = card["threshold"]
    stages = {
        "first stage": lambda one: one.proposed,
        "second stage": lambda one: one.chance,
        "as shipped": lambda one: calibrate(
            combine_probabilities(one, weights), card.get("calibration")
        ),
    }
    if judged and judged[0].opinion is not None:
        stages["second opinion"] = lambda one: one.opinion
    report = {
        "name": given.name,
        "detector": given.detector,
        "threshold": threshold,
        "members": {member["name"]: member["sha256"] for member in card["members"]},
        "scans": len(judged),
        "lesions": sum(len(one.lesions) for one in judged),
        "figures": {
            name: measure(judged, score, card["threshold"]) for name, score in stages.items()
        },
        "kinds": {
            kind: measure(
                [one for one in judged if kinds[one.name] == kind],
                stages["as shipped"],
                card["threshold"],
            )
            for kind in sorted(set(kinds.values()))
        },
        "software": software(),
        "machine": machine(),
        "judged": [described(one, points=bool(given.points)) for one in judged],
    }
    for name, found in (*report["figures"].items(), *report["kinds"].items()):
        print(name, {key: found[key][0] for key in SHOWN if key in found})
    write_json(RESULTS / f"two-stage-{given.name}.json", report)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("name", help="of the file of results")
    parser.add_argument("data", type=Path, help="BIDS dataset")
    parser.add_argument("--points", type=Path, help="table of true positions")
    parser.add_argument("--model-dir", type=Path, help="folder of cards and weights")
    parser.add_argument("--keep", type=Path, help="file for all that was judged")
    parser.add_argument("--detector", default="two-stage")
    return parser.parse_args()


def from_json(kept: dict) -> ScanCandidates:
    """Read what `training.operating_points.convert_to_json` wrote of a scan."""
    candidates = kept["candidates"]
    return ScanCandidates(
        kept["name"],
        np.array([one["position_mm"] for one in candidates]).reshape(-1, 3),
        np.array([one["proposed"] for one in candidates]),
        np.array([one["chance"] for one in candidates]),
        tuple(
            (tuple(one["position_mm"]), one["diameter_mm"], one["sure"]) for one in kept["lesions"]
        ),
        np.array([one["opinion"] for one in candidates])
        if candidates and "opinion" in candidates[0]
        else None,
    )


def images(data: Path) -> list[Path]:
    """Find the scans of a dataset."""
    return [scan.path for scan in find_scans(data.absolute(), Query()).scans]


def kind_of(path: Path) -> str:
    """Tell the kind of protocol by the voxels of a scan."""
    sides = sorted(load(path)[0].spacing)
    if sides[2] < THICK_MM:
        return "thin slices"
    return "thick slices, fine pixels" if sides[0] < FINE_MM else "thick slices"


def measure(
    judged: Sequence[ScanCandidates],
    score: Callable[[ScanCandidates], np.ndarray],
    threshold: float,
) -> dict[str, list[float]]:
    """Measure the figures of a stage: value, low and high."""
    found = compute_figures(
        [one.match(score(one)) for one in judged], match_valdo, threshold=threshold, seed=1,
        draws=1000,
    )  # fmt: skip
    return {
        name: [round(float(number), 3) for number in (one.value, one.low, one.high)]
        for name, one in found.items()
    }


def described(one: ScanCandidates, *, points: bool) -> dict:
    """Give a scan's candidates and ranks; positions only where they are simulated."""
    found = convert_to_json(one)
    if points:
        found.pop("lesions")
        found["candidates"] = len(found["candidates"])
    return found


if __name__ == "__main__":
    sys.exit(main())
