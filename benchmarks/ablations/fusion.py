"""Compare two ways to combine detectors: the mean of their maps, or lesions that k of them share.

    python -m benchmarks.ablations.fusion RESULT.json DATA [DATA ...] [--detectors A B C]
        [--maps FOLDER] [--model-dir DIR] [--scans N]

Each DATA is a simulated dataset with its truth. Every detector sees every scan once; ``--maps``
keeps the maps, so that an interrupted run can be continued. Then, for every group of two or more:

- mean: the maps are averaged and cut at many thresholds;
- k of n: each map is cut at its own threshold (that of its card, and a low one); lesions of two
  detectors agree if they share a voxel or their centres lie within `NEAR_MM`; lesions that at least
  k detectors agree on are kept, at the mean of their centres and with the mean of their highest
  probabilities, and that mean is compared with many thresholds.

The threshold with the best F1 is chosen on every other scan and applied to those between, and the
other way round: the ``judged`` figures are of held-out scans. ``f1_above_mean`` compares with the
mean of the same detectors; a detector alone, with the mean of all.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from benchmarks.measurements import (
    THRESHOLDS,
    add_scan_arguments,
    count_at_thresholds,
    count_detections,
    find_scans_with_truth,
    round_figure,
    show_progress,
    tabulate_thresholds,
)
from bids_cmb.detection.ensemble import detect
from bids_cmb.evaluation.annotations import LesionAnnotations
from bids_cmb.files import write_json
from bids_cmb.imaging.cropping import crop, find_bounds
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import CONNECTIVITY_26
from bids_cmb.metrics.intervals import compute_interval, draw_subjects
from bids_cmb.metrics.scores import derive_metrics
from bids_cmb.networks.backend import set_threads
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.scan_files import ScanFiles
from bids_cmb.training.scan_loading import load_scan_and_brain

NEAR_MM = 2.5
LOW_THRESHOLD = 0.3
STEPS = 10_000  # of a probability in a stored map
DRAWS = 2000  # of the bootstrap over scans


@dataclass(frozen=True, eq=False)
class LesionCut:
    """The lesions of one detector at one threshold.

    Attributes:
        labels: Number of the lesion from 1, 0 elsewhere, (X, Y, Z).
        centres: World mm, (N, 3).
        highest: Highest probability of each, (N,).
    """

    labels: np.ndarray
    centres: np.ndarray
    highest: np.ndarray


def main() -> None:
    """Measure, print and write."""
    options = make_parser().parse_args()
    set_threads(options.threads)
    pairs = find_scans_with_truth(options.data, options.scans)
    cards = {name: load_card(name, options.model_dir) for name in options.detectors}
    scans = []
    for paths, truth in show_progress(pairs):
        maps, grid = predict_maps(paths, options)
        scans.append(count_rules(*crop_to_lesions(maps, grid), cards, truth))
    counts = {rule: np.stack([scan[rule] for scan in scans]) for rule in scans[0]}
    held_out = {rule: hold_out(of_rule) for rule, of_rule in counts.items()}
    result = {}
    for rule, of_rule in counts.items():
        group = rule.partition(":")[0] if ":" in rule else " ".join(options.detectors)
        result[rule] = {
            "judged": summarize(*held_out[rule]),
            "points": tabulate_thresholds(of_rule),
            "f1_above_mean": compare_f1(held_out[rule][0], held_out[f"{group}: mean"][0]),
        }
    write_json(options.result, {"scans": len(pairs), "near_mm": NEAR_MM, "rules": result})
    for rule in sorted(result, key=lambda rule: -(result[rule]["judged"]["f1"] or 0)):
        print(rule, result[rule]["judged"], result[rule]["f1_above_mean"])


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_scan_arguments(parser)
    parser.add_argument(
        "--detectors", nargs="+", default=["ensemble", "cascade", "gated"], metavar="NAME"
    )
    parser.add_argument("--maps", type=Path, help="folder that keeps the detectors' maps")
    return parser


def predict_maps(
    paths: ScanFiles, options: argparse.Namespace
) -> tuple[dict[str, np.ndarray], Volume]:
    """Predict each detector's map of a scan, 0 to 1, or load it; and the scan."""
    image, brain = load_scan_and_brain(paths)
    file = None
    if options.maps:
        file = options.maps / f"{paths.image.parents[2].name}_{paths.image.name}.npz"
    maps = dict(np.load(file)) if file and file.is_file() else {}
    missing = [name for name in options.detectors if name not in maps]
    for name in missing:
        probability = detect(name, image, brain, ModelOptions(options.model_dir)).mean.data
        maps[name] = np.round(probability * STEPS).astype(np.uint16)
    if missing and file:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **maps)
    return {name: maps[name] / np.float32(STEPS) for name in options.detectors}, image


def crop_to_lesions(
    maps: dict[str, np.ndarray], grid: Volume
) -> tuple[dict[str, np.ndarray], Volume]:
    """Crop maps and scan to where any map reaches the lowest threshold."""
    inside = np.any([data >= min(THRESHOLDS) for data in maps.values()], axis=0)
    low, high = find_bounds(inside) if inside.any() else (np.zeros(3, int), np.ones(3, int))
    box = tuple(map(slice, low, high))
    return {name: data[box] for name, data in maps.items()}, crop(grid, low, high)


def count_rules(
    maps: Mapping[str, np.ndarray],
    grid: Volume,
    cards: Mapping[str, Mapping],
    truth: LesionAnnotations,
) -> dict[str, np.ndarray]:
    """Count hits, misses and false alarms by each rule at each threshold, (T, 8) each."""
    groups = [group for size in range(1, 1 + len(maps)) for group in combinations(maps, size)]
    counts = {}
    for group in groups:
        min_volume_mm3 = float(np.mean([cards[name]["min_volume_mm3"] for name in group]))
        mean = np.mean([maps[name] for name in group], axis=0)
        rule = " ".join(group) + (": mean" if len(group) > 1 else "")
        counts[rule] = count_at_thresholds(mean, grid, min_volume_mm3, truth)
    for level in ("own", "low"):
        cuts = {
            name: cut_lesions(
                data,
                grid,
                cards[name]["threshold"] if level == "own" else LOW_THRESHOLD,
                cards[name]["min_volume_mm3"],
            )
            for name, data in maps.items()
        }
        for group in (group for group in groups if len(group) > 1):
            voters, centres, highest = merge_lesions([cuts[name] for name in group])
            for k in range(2, 1 + len(group)):
                rule = f"{' '.join(group)}: {k} of {len(group)}, {level} thresholds"
                counts[rule] = np.stack(
                    [
                        count_detections(centres[(voters >= k) & (highest >= threshold)], truth)
                        for threshold in THRESHOLDS
                    ]
                )
    return counts


def cut_lesions(
    probability: np.ndarray, grid: Volume, threshold: float, min_volume_mm3: float
) -> LesionCut:
    """Cut a map into lesions, as `bids_cmb.lesions.measure.find_lesions` does."""
    labels, count = ndimage.label(probability >= threshold, structure=CONNECTIVITY_26)
    voxels = np.argwhere(labels)
    owner, weights = labels[tuple(voxels.T)], probability[tuple(voxels.T)]
    numbers, centres, highest = np.zeros(1 + count, int), [], []
    for number in range(1, 1 + count):
        inside = owner == number
        if inside.sum() * grid.voxel_volume >= min_volume_mm3:
            centres.append(np.average(voxels[inside], axis=0, weights=weights[inside]))
            highest.append(weights[inside].max())
            numbers[number] = len(highest)
    positions = grid.world(np.array(centres, float).reshape(-1, 3))
    return LesionCut(numbers[labels], positions, np.array(highest, float))


def merge_lesions(cuts: Sequence[LesionCut]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge the lesions of several detectors that agree.

    Returns:
        How many detectors have it, (N,); the mean of its centres, (N, 3); the mean over those
        detectors of its highest probability, (N,).
    """
    first = np.cumsum([0, *(len(cut.highest) for cut in cuts)])
    total = int(first[-1])
    links = sparse.lil_matrix((total, total), dtype=bool)
    for (a, left), (b, right) in combinations(enumerate(cuts), 2):
        near = cdist(left.centres, right.centres) <= NEAR_MM
        both = (left.labels > 0) & (right.labels > 0)
        near[left.labels[both] - 1, right.labels[both] - 1] = True
        for i, j in np.argwhere(near):
            links[first[a] + i, first[b] + j] = True
    count, owner = connected_components(links, directed=False) if total else (0, np.zeros(0, int))
    detector = np.repeat(np.arange(len(cuts)), np.diff(first))
    centres = np.concatenate([cut.centres for cut in cuts])
    highest = np.concatenate([cut.highest for cut in cuts])
    voters, means, probabilities = [], [], []
    for number in range(count):
        members = np.flatnonzero(owner == number)
        detectors = np.unique(detector[members])
        voters.append(len(detectors))
        means.append(centres[members].mean(axis=0))
        probabilities.append(
            np.mean([highest[members[detector[members] == each]].max() for each in detectors])
        )
    return (
        np.array(voters, int),
        np.array(means, float).reshape(-1, 3),
        np.array(probabilities, float),
    )


def hold_out(counts: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Count each scan at the threshold that has the best F1 over the scans of other parity.

    Args:
        counts: Of all scans at each of `THRESHOLDS`, (S, T, 8).

    Returns:
        The counts, (S, 8), and the thresholds that were chosen.
    """
    chosen = []
    for parity in (0, 1):
        others = counts[np.arange(len(counts)) % 2 != parity]
        f1 = np.nan_to_num(derive_metrics(others.sum(axis=0)).f1)
        chosen.append(int(np.argmax(f1.round(3))))  # of equals the lowest threshold
    picked = [scan[chosen[number % 2]] for number, scan in enumerate(counts)]
    return np.array(picked), sorted({THRESHOLDS[row] for row in chosen})


def summarize(counts: np.ndarray, thresholds: list[float]) -> dict[str, object]:
    """Compute the figures of held-out scans, (S, 8)."""
    metrics = derive_metrics(counts.sum(axis=0))
    return {
        "sensitivity": round_figure(metrics.sensitivity),
        "false_per_scan": round_figure(metrics.fp_per_scan),
        "f1": round_figure(metrics.f1),
        "thresholds": thresholds,
    }


def compare_f1(counts: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    """Compute how far the F1 lies above another's, with the 95 % interval over scans, (S, 8)."""
    gap = derive_metrics(counts.sum(axis=0)).f1 - derive_metrics(reference.sum(axis=0)).f1
    times = draw_subjects(len(counts), 0, DRAWS)
    gaps = derive_metrics(times @ counts).f1 - derive_metrics(times @ reference).f1
    figures = zip(("f1", "low", "high"), (gap, *compute_interval(gaps)), strict=True)
    return {name: round_figure(value) for name, value in figures}


if __name__ == "__main__":
    main()
