"""Measure the parts of the cascade: its anchors, and the 3D network after the boxes.

    python -m benchmarks.ablations.cascade anchors RESULT.json DATA [DATA ...] [--scans N]
    python -m benchmarks.ablations.cascade points RESULT.json DATA [DATA ...] [--model-dir DIR]
    python -m benchmarks.ablations.cascade suspects RESULT.json DATA [DATA ...]
        --entries RUN/NAME.json [RUN/NAME.json ...]

``anchors`` clusters the true boxes of simulated scans, and measures how well these anchors and the
published ones (Pascal VOC, YOLO v2, slices of 448 pixels that show 224 mm) fit them.

``points`` scores every candidate twice: by the 3D network, and by the confidence of its surest box
as if there were no 3D network. Both are rendered and cut at many thresholds, as the app does it,
and counted by the VALDO rule. It also counts what the first stage alone suspects and misses. The
card's threshold is set on validation scans, never on benchmark or real scans.

``suspects`` compares networks for boxes by the entries that training wrote: how many microbleeds
are among the surest candidates, at equal numbers of candidates per scan, and how many more than by
the first network, with intervals over scans. A network that takes phase runs with and without it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from benchmarks.measurements import (
    add_scan_arguments,
    count_at_thresholds,
    find_scans_with_truth,
    show_progress,
    tabulate_thresholds,
)
from bids_cmb.detection.boxes import CERTAIN, make_target_boxes
from bids_cmb.detection.cascade import (
    CandidateRules,
    detect_candidates,
    find_box_candidates,
    render_probability,
    uses_phase,
)
from bids_cmb.evaluation.annotations import LesionAnnotations
from bids_cmb.files import load_json, write_json
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.metrics.intervals import compute_interval
from bids_cmb.networks.backend import set_threads
from bids_cmb.networks.loading import ModelOptions, load_trained_model
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.reference_labels import LESION
from bids_cmb.training.scan_loading import (
    load_phase,
    load_phase_on_grid,
    load_scan_and_brain,
    make_training_scan,
)

CELL_MM = 32 * 224 / 448  # of the published detector
NEAR_MM = 5.0  # from a lesion's centre; a candidate further away is not that lesion
WITH, WITHOUT = "with the 3D network", "without"
CANDIDATES_PER_SCAN = (10, 20, 50, 100, 200)
FAINT = CandidateRules(confidence=0.005)
DRAWS = 2000
# Of one scan: confidences of all candidates, and of each sure lesion the highest near it.
Confidences = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Measure, print and write."""
    options = make_parser().parse_args()
    set_threads(options.threads)
    measure = {"anchors": fit_anchors, "points": measure_points, "suspects": compare_networks}
    report = measure[options.part](options)
    write_json(options.result, report)
    print(json.dumps(report, indent=1))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=("anchors", "points", "suspects"))
    add_scan_arguments(parser)
    parser.add_argument("--entries", type=Path, nargs="+", default=[], help="of networks for boxes")
    return parser


# --- Anchors --------------------------------------------------------------------------------------


def fit_anchors(options: argparse.Namespace) -> dict:
    """Fit anchors to the boxes of simulated scans, and compare them with the published ones."""
    from bids_cmb.networks.architectures.yolo import VOC_ANCHORS  # noqa: PLC0415
    from bids_cmb.training.train import read_recipe  # noqa: PLC0415

    recipe = read_recipe("cascade-boxes")
    grid = Grid.from_card(recipe.grid)
    boxes = []
    for paths, _ in show_progress(find_scans_with_truth(options.data, options.scans)):
        fed = preprocess(*load_scan_and_brain(paths), grid)
        scan = make_training_scan(paths, fed)
        for voxels in scan.sampling_centres["lesion"]:
            sure = scan.labels[tuple(voxels[0])] == LESION
            boxes.append(make_target_boxes(voxels.astype(int), grid.spacing[0], certain=sure))
    boxes = np.concatenate(boxes)
    sizes = boxes[boxes[:, 5] == CERTAIN][:, 3:5] * grid.spacing[0]  # mm
    clusters = {count: cluster_anchors(sizes, count) for count in (1, 2, 3, 4, 5)}
    sides = np.quantile(sizes, [0.05, 0.5, 0.95]).round(2).tolist()
    return {
        "boxes": len(sizes),
        "sides_mm": dict(zip(("5 %", "50 %", "95 %"), sides, strict=True)),
        "mean_iou": {
            "published (VOC)": measure_fit(sizes, CELL_MM * np.array(VOC_ANCHORS)),
            "of the recipe": measure_fit(sizes, np.array(recipe.arguments["anchors"])),
            **{f"k-means, {count}": measure_fit(sizes, each) for count, each in clusters.items()},
        },
        "anchors_mm": {str(count): each.round(2).tolist() for count, each in clusters.items()},
    }


def cluster_anchors(sizes: np.ndarray, count: int, *, rounds: int = 200) -> np.ndarray:
    """Cluster the sizes of boxes by k-means whose distance is 1 - IoU.

    Args:
        sizes: Sides of boxes, (N, 2), in any unit.
        count: Number of anchors.
        rounds: At most.

    Returns:
        The smallest first, (count, 2). Clustering begins with sizes at equal shares of the areas,
        so that the same sizes give the same anchors.

    Raises:
        ValueError: If there are fewer sizes than anchors.

    Source:
        Redmon & Farhadi 2017, doi:10.1109/CVPR.2017.690.
    """
    if len(sizes) < count:
        raise ValueError(f"Anchors must not be more than boxes, {len(sizes)}; found {count}.")
    sizes = np.asarray(sizes, float)
    ordered = sizes[np.argsort(sizes.prod(axis=1), kind="stable")]
    anchors = ordered[((np.arange(count) + 0.5) / count * len(sizes)).astype(int)]
    assigned = np.full(len(sizes), -1)
    for _ in range(rounds):
        nearest = compute_size_iou(sizes, anchors).argmax(axis=1)
        if (nearest == assigned).all():
            break
        assigned = nearest
        clusters = [sizes[assigned == number] for number in range(count)]
        anchors = np.array(
            [
                cluster.mean(axis=0) if len(cluster) else anchor
                for cluster, anchor in zip(clusters, anchors, strict=True)
            ]
        )
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def compute_size_iou(sizes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of boxes of one centre, (N, 2) and (M, 2): (N, M)."""
    common = np.minimum(sizes[:, None], others[None]).prod(axis=-1)
    return common / (sizes.prod(axis=1)[:, None] + others.prod(axis=1)[None] - common)


def measure_fit(sizes: np.ndarray, anchors: np.ndarray) -> float:
    """Measure the mean over the boxes of the best IoU with an anchor of the same centre."""
    return round(float(compute_size_iou(sizes, anchors).max(axis=1).mean()), 3)


# --- With and without the 3D network --------------------------------------------------------------


def measure_points(options: argparse.Namespace) -> dict:
    """Measure the detector at each threshold, with and without the 3D network."""
    card = load_card("cascade", options.model_dir)
    pairs = find_scans_with_truth(options.data, options.scans)
    counts: dict[str, list[np.ndarray]] = {WITH: [], WITHOUT: []}
    n_candidates, suspected = 0, []
    for paths, truth in show_progress(pairs):
        image, brain = load_scan_and_brain(paths)
        phase = None
        if any(map(uses_phase, card["members"])):
            phase = load_phase(paths, image, brain)
        models = ModelOptions(options.model_dir)
        fed, scored = detect_candidates(image, brain, card, models, phase)
        n_candidates += len(scored)
        suspected.append(find_near(np.array([each.centre for each in scored]), truth).any(axis=1))
        alone = [replace(each, probability=each.candidate.confidence) for each in scored]
        for name, candidates in ((WITH, scored), (WITHOUT, alone)):
            rendered = render_probability(image, fed.image.affine, candidates)
            inside = np.where(brain.data, rendered.data, 0)
            counts[name].append(count_at_thresholds(inside, image, card["min_volume_mm3"], truth))
    suspected = np.concatenate(suspected)
    return {
        "scans": len(pairs),
        "lesions": len(suspected),
        "suspects_per_scan": round(n_candidates / len(pairs), 1),
        "suspected": round(float(suspected.sum() / max(len(suspected), 1)), 3),
        "points": {name: tabulate_thresholds(scans) for name, scans in counts.items()},
    }


def find_near(positions: np.ndarray, truth: LesionAnnotations) -> np.ndarray:
    """Find which candidates (N, 3) lie near which sure lesions (T,), bool, (T, N)."""
    sure = truth.positions[~truth.lesions["uncertain"].to_numpy(bool)]
    return cdist(sure, positions.reshape(-1, 3)) <= NEAR_MM


# --- Networks for boxes beside each other ---------------------------------------------------------


def compare_networks(options: argparse.Namespace) -> dict:
    """Compare how many microbleeds networks for boxes have among as many candidates."""
    entries = {path: load_json(path) for path in options.entries}
    predictors = {path: load_trained_model(entry, path) for path, entry in entries.items()}
    pairs = find_scans_with_truth(options.data, options.scans)
    scans: dict[str, list[Confidences]] = {}
    n_phase = 0
    for paths, truth in show_progress(pairs):
        scan = load_scan_and_brain(paths)
        has_phase = False
        for path, entry in entries.items():
            grid, name = Grid.from_card(entry["grid"]), path.parent.name
            inputs = {name: None}
            if uses_phase(entry):
                phase = load_phase_on_grid(paths, *scan, grid)
                has_phase |= phase is not None
                inputs = {name: phase, f"{name}, phase left out": None}
            fed = preprocess(*scan, grid)
            for way, phase in inputs.items():
                boxes = find_box_candidates(predictors[path], entry, fed, FAINT, phase)
                voxels = np.array([box.centre for box in boxes]).reshape(-1, 3)
                confidence = np.array([box.confidence for box in boxes])
                best = find_best_confidence(fed.image.world(voxels), confidence, truth)
                scans.setdefault(way, []).append((confidence, best))
        n_phase += has_phase
    first, *others = scans
    return {
        "scans": len(pairs),
        "with phase": n_phase,
        "microbleeds": sum(len(best) for _, best in scans[first]),
        "suspects": {
            name: round(sum(len(confidence) for confidence, _ in rows) / len(pairs), 1)
            for name, rows in scans.items()
        },
        "sensitivity by suspects per scan": {
            name: tabulate_recall(rows) for name, rows in scans.items()
        },
        "more than the first": {
            name: tabulate_recall(scans[name], scans[first]) for name in others
        },
    }


def find_best_confidence(
    positions: np.ndarray, confidence: np.ndarray, truth: LesionAnnotations
) -> np.ndarray:
    """Find for each sure lesion the highest confidence of a candidate near it, 0 without, (T,)."""
    return np.where(find_near(positions, truth), confidence, 0).max(axis=1, initial=0)


def compute_recall(scans: Sequence[Confidences], count: int) -> float:
    """Compute the share of lesions among the ``count`` surest candidates per scan of all scans."""
    ordered = np.sort(np.concatenate([confidence for confidence, _ in scans]))[::-1]
    threshold = ordered[min(count * len(scans), len(ordered)) - 1]
    return float(np.mean(np.concatenate([best for _, best in scans]) >= threshold))


def tabulate_recall(
    scans: Sequence[Confidences], reference: Sequence[Confidences] | None = None
) -> dict[str, list[float]]:
    """Tabulate the recall by the number of candidates per scan: value, low and high.

    Args:
        scans: Of a network.
        reference: Of another on the same scans: then what the first has more.
    """
    n_scans = len(scans)
    drawn = np.random.default_rng(1).integers(n_scans, size=(DRAWS, n_scans))

    def measure(numbers: Sequence[int], count: int) -> float:
        recall = compute_recall([scans[number] for number in numbers], count)
        if reference is None:
            return recall
        return recall - compute_recall([reference[number] for number in numbers], count)

    table = {}
    for count in CANDIDATES_PER_SCAN:
        spread = np.array([measure(numbers, count) for numbers in drawn])
        figures = (measure(range(n_scans), count), *compute_interval(spread))
        table[str(count)] = [round(float(figure), 3) for figure in figures]
    return table


if __name__ == "__main__":
    main()
