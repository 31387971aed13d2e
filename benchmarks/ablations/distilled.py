"""Measure the parts of the detector `distilled`: several classifiers on the same candidates.

    python -m benchmarks.ablations.distilled CANDIDATES.json RESULT.json DATA [DATA ...]
        --classifiers student=S.json teacher=T.json alone=A.json [--without-symmetry]

CANDIDATES and the classifiers are entries that training has written, their weights beside. Each
DATA is a simulated dataset with its truth. The candidate network sees a scan once; every classifier
is given the same candidates, and `candidates` takes the candidate network's own highest
probability. `spots` says how many there are per scan. Networks that learnt without the symmetry
channel are measured without it. VALDO rule. Never to be run on scans that anything was trained on.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
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
from bids_cmb.detection.distilled import (
    NetworkInput,
    classify_regions,
    find_regions,
    predict_candidates,
    prepare_input,
    render_probability,
)
from bids_cmb.files import load_json, write_json
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.networks.backend import set_threads
from bids_cmb.networks.loading import load_trained_model
from bids_cmb.training.scan_loading import load_scan_and_brain

MIN_VOLUME_MM3 = 1.0
CANDIDATES = "candidates"
Predictor = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Measure, print and write."""
    options = make_parser().parse_args()
    set_threads(options.threads)
    entry = load_json(options.candidates)
    predict, grid = load_trained_model(entry, options.candidates), Grid.from_card(entry["grid"])
    classifiers = load_classifiers(options.classifiers)
    pairs = find_scans_with_truth(options.data, options.scans)
    counts: dict[str, list[np.ndarray]] = {name: [] for name in sorted([*classifiers, CANDIDATES])}
    n_candidates = 0
    for paths, truth in show_progress(pairs):
        image, brain = load_scan_and_brain(paths)
        fed = prepare_input(preprocess(image, brain, grid))
        if options.without_symmetry:
            fed = NetworkInput(fed.channels * np.array([1, 0], np.float32), fed.brain)
        regions = find_regions(
            predict_candidates(predict, fed), threshold=options.threshold, most=options.most
        )
        n_candidates += len(regions)
        probabilities = {
            CANDIDATES: np.array([region.probability for region in regions]),
            **classify_all(classifiers, fed, regions),
        }
        for name, probability in probabilities.items():
            rendered = render_probability(regions, probability, fed.brain, image)
            inside = np.where(brain.data, rendered.data, 0)
            counts[name].append(count_at_thresholds(inside, image, MIN_VOLUME_MM3, truth))
    report = {
        "scans": len(pairs),
        "data": [data.name for data in options.data],
        "candidate_threshold": options.threshold,
        "symmetry": not options.without_symmetry,
        "spots": round(n_candidates / len(pairs), 1),
        "judges": {name: tabulate_thresholds(scans) for name, scans in counts.items()},
    }
    write_json(options.result, report)
    print(f"{report['spots']} candidates per scan")
    for name, points in report["judges"].items():
        print_points(name, points)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("candidates", type=Path, help="entry of the candidate network")
    add_scan_arguments(parser)
    parser.add_argument("--classifiers", nargs="+", default=[], metavar="NAME=JSON")
    parser.add_argument("--without-symmetry", action="store_true", help="set that channel to 0")
    parser.add_argument(
        "--threshold", type=float, default=0.05, help="of candidates (default: 0.05)"
    )
    parser.add_argument("--most", type=int, default=300, help="candidates per scan (default: 300)")
    return parser


def load_classifiers(arguments: Sequence[str]) -> dict[str, Predictor]:
    """Load classifiers given as NAME=JSON."""
    paths = {name: Path(path) for name, _, path in (each.partition("=") for each in arguments)}
    return {name: load_trained_model(load_json(path), path) for name, path in paths.items()}


def classify_all(
    classifiers: Mapping[str, Predictor], fed: NetworkInput, regions: Sequence
) -> dict[str, np.ndarray]:
    """Compute each classifier's probability of each candidate."""
    return {
        name: classify_regions(
            lambda patches, predict=predict: get_patch_logits(predict(patches)),
            fed.channels,
            regions,
        )
        for name, predict in classifiers.items()
    }


def get_patch_logits(output: np.ndarray) -> np.ndarray:
    """Get the two logits of each patch, (B, 2): a teacher repeats them at every voxel."""
    return output if output.ndim == 2 else output[:, 0, 0, 0, 2:]


if __name__ == "__main__":
    main()
