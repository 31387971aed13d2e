"""What each threshold of an ensemble gives on simulated scans, for each member and for all.

    python benchmarks/operating_points.py ensemble RESULT.json DATA [DATA ...] [--model-dir DIR]

Each DATA is a simulated dataset with its truth. The members see a scan once; their maps, and the
mean of all, are cut at many thresholds as the app does it (but `large` ones count). The card's
threshold is set on validation scans, never on benchmark or real scans. The calibration is a
logistic curve over the highest log-odds of each lesion that is found at a low threshold: what comes
out is the chance that it is a microbleed, among scans like these.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize
from scipy.special import expit, logit

from bids_cmb.detection.ensemble import predict_members
from bids_cmb.evaluation.annotations import POSITION_COLUMNS, LesionAnnotations, read_annotations
from bids_cmb.imaging.volume import Volume, load, load_labels
from bids_cmb.lesions.measure import CONNECTIVITY_26
from bids_cmb.metrics.matching import match_valdo
from bids_cmb.networks.inference import ModelOptions, set_threads
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.data import ScanFiles, find_training_scans

THRESHOLDS = (0.05, *np.arange(0.1, 0.91, 0.05).round(2), 0.925, 0.95, 0.97, 0.98, 0.99)
LOW = 0.05  # from which on lesions are used for the calibration
LARGE_MM = 2.5


def main() -> None:
    """Measure, print and write."""
    asked = arguments()
    set_threads(asked.threads)
    names = [one["name"] for one in load_card(asked.detector, asked.model_dir)["members"]]
    groups = [*[(name,) for name in names], tuple(names)]
    pairs = [pair for data in asked.data for pair in with_truth(data)]
    rows = []
    for at, (paths, truth) in enumerate(pairs, start=1):
        print(f"\r{at} of {len(pairs)}", end="", file=sys.stderr, flush=True)
        rows += measured(paths, truth, asked, groups)
    print(file=sys.stderr)
    result = {" ".join(group): summed(rows, " ".join(group), len(pairs)) for group in groups}
    report = {"scans": len(pairs), "members": result, "calibration": calibration(rows, groups[-1])}
    asked.result.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for group, points in result.items():
        print(group)
        for point in points:
            print("  " + "  ".join(f"{key} {value:g}" for key, value in point.items()))
    print("calibration", report["calibration"])


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("detector", help="whose card has members")
    parser.add_argument("result", type=Path, help="where to")
    parser.add_argument("data", type=Path, nargs="+", help="simulated datasets")
    parser.add_argument("--model-dir", type=Path, help="folder of cards and weights")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    return parser.parse_args()


def with_truth(data: Path) -> list[tuple[ScanFiles, LesionAnnotations]]:
    """The scans of a dataset, each with its true lesions."""
    truths = {one.name: one for one in read_annotations(data / "derivatives" / "truth")}
    return [(one, truths[one.name]) for one in find_training_scans(data)]


def measured(
    paths: ScanFiles,
    truth: LesionAnnotations,
    asked: argparse.Namespace,
    groups: Sequence[tuple[str, ...]],
) -> list[dict]:
    """Hits, misses and false alarms of each group of members at each threshold."""
    image, _ = load(paths.image)
    brain = Volume(load_labels(paths.brain).data > 0, image.affine)
    parts = dict(
        zip(
            groups[-1],
            predict_members(asked.detector, image, brain, ModelOptions(asked.model_dir)),
            strict=True,
        )
    )
    volume = load_card(asked.detector, asked.model_dir)["min_volume_mm3"]
    return [
        {"members": " ".join(group), "threshold": threshold, **counted(*cut, truth)}
        for group in groups
        for threshold, cut in cuts(np.mean([parts[name] for name in group], axis=0), image, volume)
    ]


def cuts(
    chance: np.ndarray, grid: Volume, least: float
) -> Iterator[tuple[float, tuple[np.ndarray, np.ndarray]]]:
    """Centres in world mm and highest chances of the lesions at each threshold.

    As `find_lesions` cuts them, without the measurements that take its time.
    """
    pieces, _ = ndimage.label(chance >= min(THRESHOLDS), structure=CONNECTIVITY_26)
    found = {threshold: [] for threshold in THRESHOLDS}
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        inside = np.where(pieces[box] == number, chance[box], 0)
        start = [side.start for side in box]
        for threshold in THRESHOLDS:
            parts, count = ndimage.label(inside >= threshold, structure=CONNECTIVITY_26)
            for part in range(1, count + 1):
                voxels, weights = np.argwhere(parts == part), inside[parts == part]
                if len(voxels) * grid.voxel_volume >= least:
                    centre = start + np.average(voxels, axis=0, weights=weights)
                    found[threshold].append((*grid.world(centre), weights.max()))
    for threshold, lesions in found.items():
        table = np.array(lesions, float).reshape(-1, 4)
        yield threshold, (table[:, :3], table[:, 3])


def counted(centres: np.ndarray, tops: np.ndarray, truth: LesionAnnotations) -> dict:
    """What the VALDO rule makes of lesions at ``centres`` (N, 3)."""
    true = truth.lesions[POSITION_COLUMNS].to_numpy(float).reshape(-1, 3)
    apart = np.linalg.norm(centres[:, None] - true[None], axis=-1)
    unsure = (truth.lesions["uncertain"] | ~truth.lesions["included"]).to_numpy(bool)
    match = match_valdo(apart, unsure)
    large = truth.lesions["diameter_mm"].to_numpy(float) >= LARGE_MM
    wrong = (match.partner < 0) & ~match.ignored
    return {
        "true": int((~unsure).sum()),
        "hits": match.hits,
        "missed": int(match.missed.sum()),
        "large": int((large & ~unsure).sum()),
        "large_missed": int((match.missed & large).sum()),
        "false": int(wrong.sum()),
        "chances": [
            [float(top), int(not no)]
            for top, no, aside in zip(tops, wrong, match.ignored, strict=True)
            if not aside
        ],
    }


def summed(rows: Sequence[dict], group: str, scans: int) -> list[dict[str, float]]:
    """The figures over all scans, for each threshold."""
    points = []
    for threshold in THRESHOLDS:
        mine = [row for row in rows if row["members"] == group and row["threshold"] == threshold]
        total = {
            key: sum(row[key] for row in mine)
            for key in ("true", "hits", "missed", "large", "large_missed", "false")
        }
        found = total["true"] - total["missed"]
        all_ = 2 * total["hits"] + total["false"] + total["missed"]
        points.append(
            {
                "threshold": float(threshold),
                "sensitivity": round(found / max(total["true"], 1), 3),
                "sensitivity_large": round(1 - total["large_missed"] / max(total["large"], 1), 3),
                "false_per_scan": round(total["false"] / scans, 3),
                "f1": round(2 * total["hits"] / max(all_, 1), 3),
            }
        )
    return points


def calibration(rows: Sequence[dict], members: Sequence[str]) -> dict[str, float]:
    """Slope and offset of the log-odds that fit the lesions best."""
    pairs = [
        pair
        for row in rows
        if row["members"] == " ".join(members) and row["threshold"] == LOW
        for pair in row["chances"]
    ]
    chance, hit = np.array(pairs, float).T
    odds = logit(np.clip(chance, 1e-4, 1 - 1e-4))

    def surprise(at: np.ndarray) -> float:
        said = np.clip(expit(at[0] * odds + at[1]), 1e-9, 1 - 1e-9)
        return -float((hit * np.log(said) + (1 - hit) * np.log(1 - said)).sum())

    slope, offset = minimize(surprise, [1.0, 0.0], method="Nelder-Mead").x
    return {"slope": round(float(slope), 3), "offset": round(float(offset), 3)}


if __name__ == "__main__":
    main()
