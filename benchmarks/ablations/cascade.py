"""What the parts of the cascade are worth: anchors, and the 3D network after the boxes.

    python benchmarks/cascade.py anchors RESULT.json DATA [DATA ...]
    python benchmarks/cascade.py points RESULT.json DATA [DATA ...] [--model-dir DIR] [--scans N]
    python benchmarks/cascade.py suspects RESULT.json DATA [DATA ...] --entries OUT/NAME.json ...

``anchors`` clusters the true boxes of simulated scans, and tells how well these anchors and the
published ones (Pascal VOC, YOLO v2, slices of 448 pixels that show 224 mm) fit them.

``points`` judges every suspect twice: by the 3D network, and by the confidence of its surest box as
if there were no 3D network. Both are painted and cut at many thresholds, like the app does it, and
counted by the VALDO rule. It also counts what the first stage alone suspects and misses. The card's
threshold is set on validation scans, never on benchmark or real scans.

``suspects`` compares networks for boxes by the entries that training wrote: how many microbleeds
are among the surest suspects, at equal numbers of suspects per scan, and how many more than by the
first network, with intervals over scans. One that takes phase is asked with it and without.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from anchors import cluster_anchors, compute_size_iou
from operating_points import counted, cuts, summed, with_truth

from bids_cmb.detection.boxes import CERTAIN, make_target_boxes
from bids_cmb.detection.cascade import (
    CandidateRules,
    ScoredCandidate,
    detect_candidates,
    find_box_candidates,
    render_probability,
    uses_phase,
)
from bids_cmb.evaluation.annotations import POSITION_COLUMNS, LesionAnnotations
from bids_cmb.imaging.preprocessing import Grid, preprocess
from bids_cmb.networks.architectures.yolo import VOC_ANCHORS
from bids_cmb.networks.inference import ModelOptions, load_trained_model, set_threads
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training import data as training_data
from bids_cmb.training.train import read_recipe

CELL_MM = 32 * 224 / 448  # of the published detector
FAR_MM = 5.0  # from a lesion's centre: a suspect further away is not that lesion
WITH, WITHOUT = "with the 3D network", "without"
ASKED_ABOUT = (10, 20, 50, 100, 200)  # suspects per scan
FAINT = CandidateRules(confidence=0.005)
DRAWS = 2000


def main() -> None:
    """Measure, print and write."""
    asked = arguments()
    set_threads(asked.threads)
    report = {"anchors": anchors, "points": points, "suspects": suspects}[asked.what](asked)
    asked.result.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=("anchors", "points", "suspects"))
    parser.add_argument("result", type=Path, help="where to")
    parser.add_argument("data", type=Path, nargs="+", help="simulated datasets")
    parser.add_argument("--model-dir", type=Path, help="folder of cards and weights")
    parser.add_argument("--entries", type=Path, nargs="+", default=[], help="of networks for boxes")
    parser.add_argument("--scans", type=int, help="the first so many of each dataset only")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    return parser.parse_args()


def anchors(asked: argparse.Namespace) -> dict:
    """Anchors for the boxes of simulated scans, and how well they and the published ones fit."""
    recipe = read_recipe("cascade-boxes")
    grid = Grid.from_card(recipe.grid)
    rows = []
    for data in asked.data:
        for paths in training_data.find_training_scans(data)[: asked.scans]:
            case = training_data.make_training_scan(
                paths, preprocess(*training_data.load_scan_and_brain(paths), grid)
            )
            for voxels in case.sampling_centres["lesion"]:
                sure = case.labels[tuple(voxels[0])] == training_data.LESION
                rows.append(make_target_boxes(voxels.astype(int), grid.spacing[0], certain=sure))
    boxes = np.concatenate(rows)
    sizes = boxes[boxes[:, 5] == CERTAIN][:, 3:5] * grid.spacing[0]  # mm
    clusters = {count: cluster_anchors(sizes, count) for count in (1, 2, 3, 4, 5)}
    used = np.array(recipe.arguments["anchors"])
    return {
        "boxes": len(sizes),
        "sides_mm": dict(zip(("5 %", "50 %", "95 %"), quantiles(sizes), strict=True)),
        "mean_iou": {
            "published (VOC)": fit(sizes, CELL_MM * np.array(VOC_ANCHORS)),
            "of the recipe": fit(sizes, used),
            **{f"k-means, {count}": fit(sizes, found) for count, found in clusters.items()},
        },
        "anchors_mm": {
            str(count): np.round(found, 2).tolist() for count, found in clusters.items()
        },
    }


def quantiles(sizes: np.ndarray) -> list[float]:
    """Of the sides, mm."""
    return np.quantile(sizes, [0.05, 0.5, 0.95]).round(2).tolist()


def fit(sizes: np.ndarray, found: np.ndarray) -> float:
    """Mean over the boxes of the best IoU with an anchor, both about one middle."""
    return round(float(compute_size_iou(sizes, found).max(axis=1).mean()), 3)


def points(asked: argparse.Namespace) -> dict:
    """What each threshold gives, with and without the 3D network."""
    said = load_card("cascade", asked.model_dir)
    pairs = [pair for data in asked.data for pair in with_truth(data)[: asked.scans]]
    rows, first = [], []
    for at, (paths, truth) in enumerate(pairs, start=1):
        print(f"\r{at} of {len(pairs)}", end="", file=sys.stderr, flush=True)
        image, brain = training_data.load_scan_and_brain(paths)
        asked_for = any(map(uses_phase, said["members"]))
        phase = training_data.load_phase(paths, image, brain) if asked_for else None
        fed, found = detect_candidates(image, brain, said, ModelOptions(asked.model_dir), phase)
        first.append(suspected(found, truth))
        alone = [replace(one, probability=one.candidate.confidence) for one in found]
        for name, judged in ((WITH, found), (WITHOUT, alone)):
            chance = render_probability(image, fed.image.affine, judged)
            inside = np.where(brain.data, chance.data, 0)
            for threshold, cut in cuts(inside, image, said["min_volume_mm3"]):
                row = {"members": name, "threshold": threshold, **counted(*cut, truth)}
                rows.append(row)
    print(file=sys.stderr)
    lesions = sum(one["lesions"] for one in first)
    return {
        "scans": len(pairs),
        "lesions": lesions,
        "suspects_per_scan": round(sum(one["suspects"] for one in first) / len(pairs), 1),
        "suspected": round(sum(one["suspected"] for one in first) / max(lesions, 1), 3),
        "points": {name: summed(rows, name, len(pairs)) for name in (WITH, WITHOUT)},
    }


def suspected(found: Sequence[ScoredCandidate], truth: LesionAnnotations) -> dict[str, int]:
    """How many suspects there are, and how many sure lesions have one near."""
    sure = truth.lesions[~truth.lesions["uncertain"].to_numpy(bool)]
    true = sure[POSITION_COLUMNS].to_numpy(float).reshape(-1, 1, 3)
    places = np.array([one.centre for one in found]).reshape(1, -1, 3)
    near = np.linalg.norm(true - places, axis=-1) <= FAR_MM
    return {
        "lesions": len(sure), "suspects": len(found), "suspected": int(near.any(axis=1).sum()),
    }  # fmt: skip


def suspects(asked: argparse.Namespace) -> dict:
    """How many microbleeds each network for boxes has among so many suspects."""
    entries = {path: json.loads(path.read_text(encoding="utf-8")) for path in asked.entries}
    asks = {path: load_trained_model(entry, path) for path, entry in entries.items()}
    pairs = [pair for data in asked.data for pair in with_truth(data)[: asked.scans]]
    found: dict[str, list] = {}
    phased = set()
    for at, (paths, truth) in enumerate(pairs, start=1):
        print(f"\r{at} of {len(pairs)}", end="", file=sys.stderr, flush=True)
        scan = training_data.load_scan_and_brain(paths)
        for path, entry in entries.items():
            grid, ways = Grid.from_card(entry["grid"]), {path.parent.name: None}
            if uses_phase(entry):
                ways = {name: training_data.load_phase_on_grid(paths, *scan, grid) for name in ways}
                phased |= {at for phase in ways.values() if phase is not None}
                ways |= {f"{name}, phase left out": None for name in list(ways)}
            fed = preprocess(*scan, grid)
            for name, phase in ways.items():
                said = find_box_candidates(asks[path], entry, fed, FAINT, phase)
                places = fed.image.world(np.array([one.centre for one in said]).reshape(-1, 3))
                sure = np.array([one.confidence for one in said])
                found.setdefault(name, []).append((sure, best_near(places, sure, truth)))
    print(file=sys.stderr)
    first = next(iter(found.values()))
    drawn = np.random.default_rng(1).integers(len(pairs), size=(DRAWS, len(pairs)))

    def told(measure: Callable[[Sequence[int]], float]) -> list[float]:
        """With the interval of 95 % over scans."""
        low, high = np.quantile([measure(some) for some in drawn], [0.025, 0.975])
        return [round(float(one), 3) for one in (measure(range(len(pairs))), low, high)]

    def table(*, apart: bool) -> dict:
        return {
            name: {
                str(count): told(
                    lambda some, rows=rows, count=count: (
                        recall([rows[i] for i in some], count)
                        - (recall([first[i] for i in some], count) if apart else 0)
                    )
                )
                for count in ASKED_ABOUT
            }
            for name, rows in found.items()
            if not (apart and rows is first)
        }

    return {
        "scans": len(pairs),
        "with phase": len(phased),
        "microbleeds": sum(len(best) for _, best in first),
        "suspects": {
            name: round(sum(len(sure) for sure, _ in rows) / len(pairs), 1)
            for name, rows in found.items()
        },
        "sensitivity by suspects per scan": table(apart=False),
        "more than the first": table(apart=True),
    }


def best_near(places: np.ndarray, sure: np.ndarray, truth: LesionAnnotations) -> np.ndarray:
    """For each sure lesion the highest confidence of a suspect near it, 0 if there is none."""
    lesions = truth.lesions[~truth.lesions["uncertain"].to_numpy(bool)]
    true = lesions[POSITION_COLUMNS].to_numpy(float).reshape(-1, 1, 3)
    near = np.linalg.norm(true - places, axis=-1) <= FAR_MM
    return np.where(near, sure, 0).max(axis=1, initial=0)


def recall(rows: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> float:
    """Share of lesions among the ``count`` surest suspects per scan of all scans together."""
    sure = np.sort(np.concatenate([one for one, _ in rows]))[::-1]
    threshold = sure[min(count * len(rows), len(sure)) - 1]
    return float(np.mean(np.concatenate([best for _, best in rows]) >= threshold))


if __name__ == "__main__":
    main()
