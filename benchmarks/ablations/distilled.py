"""What the parts of the detector `distilled` are worth: one truth, one set of spots, many judges.

    python benchmarks/distilled.py RESULT.json CANDIDATES.json DATA [DATA ...] \
        --judge student=S.json teacher=T.json alone=A.json [--without-symmetry]

CANDIDATES and the judges are entries that training has written, their weights beside. Each DATA is
a simulated dataset with its truth. The candidate network sees a scan once; every judge is asked
about the same spots, and `candidates` takes the candidate network's own highest chance. `spots`
says how many there are per scan. Networks that learnt without the symmetry channel are measured
without it. Figures at each threshold as in ``operating_points.py``, by the VALDO rule. Never to be
run on scans that anything was trained on.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from operating_points import THRESHOLDS, counted, cuts, summed, with_truth

from bids_cmb.detection.distilled import (
    NetworkInput,
    classify_regions,
    find_regions,
    predict_candidates,
    prepare_input,
    render_probability,
)
from bids_cmb.evaluation.annotations import LesionAnnotations
from bids_cmb.imaging.preprocessing import Grid, preprocess
from bids_cmb.networks.inference import load_patch_model, set_threads
from bids_cmb.training import data as training_data

MIN_VOLUME_MM3 = 1.0


def main() -> None:
    """Measure, print and write."""
    asked = arguments()
    set_threads(asked.threads)
    find, grid = network(asked.candidates)
    judges = asked_of(asked.judge)
    pairs = [pair for data in asked.data for pair in with_truth(data)][: asked.first]
    rows = []
    for at, (paths, truth) in enumerate(pairs, start=1):
        print(f"\r{at} of {len(pairs)}", end="", file=sys.stderr, flush=True)
        rows += measured(paths, truth, asked, find, grid, judges)
    print(file=sys.stderr)
    names = sorted({row["members"] for row in rows})
    report = {
        "scans": len(pairs),
        "data": [data.name for data in asked.data],
        "candidate_threshold": asked.threshold,
        "symmetry": not asked.without_symmetry,
        "spots": {name: spots_of(rows, name, len(pairs)) for name in names},
        "judges": {name: summed(rows, name, len(pairs)) for name in names},
    }
    asked.result.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, points in report["judges"].items():
        print(name, report["spots"][name])
        for point in points:
            print("  " + "  ".join(f"{key} {value:g}" for key, value in point.items()))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("result", type=Path, help="where to")
    parser.add_argument("candidates", type=Path, help="entry of the candidate network")
    parser.add_argument("data", type=Path, nargs="+", help="simulated datasets")
    parser.add_argument("--judge", nargs="+", default=[], metavar="NAME=JSON")
    parser.add_argument("--without-symmetry", action="store_true", help="that channel is 0")
    parser.add_argument("--threshold", type=float, default=0.05, help="of spots (default: 0.05)")
    parser.add_argument("--most", type=int, default=300, help="spots (default: 300)")
    parser.add_argument("--first", type=int, help="so many scans only")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    return parser.parse_args()


def network(path: Path) -> tuple[Callable, Grid]:
    """How to ask a network, and what it is fed."""
    entry = json.loads(path.read_text(encoding="utf-8"))
    return load_patch_model(entry, path.with_name(entry["weights"])), Grid.from_card(entry["grid"])


def asked_of(given: list[str]) -> dict[str, Callable]:
    """By name, from patches to the two logits of a patch, (B, 2), of teachers too."""
    found = {}
    for one in given:
        name, _, path = one.partition("=")
        ask, _ = network(Path(path))
        found[name] = lambda patches, ask=ask: kinds(ask(patches))
    return found


def kinds(said: np.ndarray) -> np.ndarray:
    """The logits of a patch: a student's, or a teacher's, who repeats them at every voxel."""
    return said if said.ndim == 2 else said[:, 0, 0, 0, 2:]


def measured(
    paths: training_data.ScanFiles, truth: LesionAnnotations, asked: argparse.Namespace,
    find: Callable, grid: Grid, judges: dict[str, Callable],
) -> Iterator[dict]:  # fmt: skip
    """Hits, misses and false alarms of each judge at each threshold, on one scan."""
    image, brain = training_data.load_scan_and_brain(paths)
    seen = prepare_input(preprocess(image, brain, grid))
    if asked.without_symmetry:
        seen = NetworkInput(seen.channels * np.array([1, 0], np.float32), seen.brain)
    found = predict_candidates(find, seen)
    spots = find_regions(found, threshold=asked.threshold, most=asked.most)
    chances = {name: classify_regions(ask, seen.channels, spots) for name, ask in judges.items()}
    chances["candidates"] = np.array([spot.probability for spot in spots])
    for name, said in chances.items():
        rendered = render_probability(spots, said, seen.brain, image)
        chance = np.where(brain.data, rendered.data, 0)
        for threshold, cut in cuts(chance, image, MIN_VOLUME_MM3):
            yield {
                "members": name,
                "threshold": threshold,
                "spots": len(spots),
                **counted(*cut, truth),
            }


def spots_of(rows: list[dict], name: str, scans: int) -> float:
    """Spots per scan that a judge was asked about."""
    mine = [row for row in rows if row["members"] == name and row["threshold"] == THRESHOLDS[0]]
    return round(sum(row["spots"] for row in mine) / scans, 1)


if __name__ == "__main__":
    main()
