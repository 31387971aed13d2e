"""Several detectors together: the mean of their maps against lesions that at least k agree on.

    python benchmarks/fusion.py RESULT.json DATA [DATA ...] [--detectors A B C] [--maps FOLDER]

Each DATA is a simulated dataset with its truth. Every detector sees every scan once; ``--maps``
keeps what it says, so that a broken run can be gone on with. Then, for every group of two or more:

- mean: the maps are averaged and cut at many thresholds, as ``operating_points.py`` does it;
- k of n: each map is cut at a threshold of its own (that of its card, and a low one); lesions of
  two detectors agree if they share a voxel or their centres lie within `NEAR_MM`; what at least k
  detectors agree on is kept, at the mean of their centres and with the mean of their highest
  chances; and that mean is held against many thresholds.

The threshold with the best F1 is chosen on every other scan and judged on those between, and the
other way round: the ``judged`` figures are of scans that had no say. ``f1_above_mean``
compares with the mean of the same detectors; a detector alone, with the mean of all.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from operating_points import THRESHOLDS, counted, cuts, summed, with_truth
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components

from bids_cmb.detection.ensemble import detect
from bids_cmb.evaluation.annotations import LesionAnnotations
from bids_cmb.imaging.preprocessing import find_bounds
from bids_cmb.imaging.volume import Volume, crop, load, load_labels
from bids_cmb.lesions.measure import CONNECTIVITY_26
from bids_cmb.networks.inference import set_threads
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.data import ScanFiles

NEAR_MM = 2.5
LOW = 0.3
STEPS = 10_000  # of a chance in a kept map
DRAWS = 2000  # of the bootstrap over scans


@dataclass(frozen=True, eq=False)
class Cut:
    """The lesions of one detector at one threshold: labels, centres (N, 3), highest chances."""

    labels: np.ndarray
    centres: np.ndarray
    tops: np.ndarray


def main() -> None:
    """Measure, print and write."""
    asked = arguments()
    set_threads(asked.threads)
    pairs = [pair for data in asked.data for pair in with_truth(data)]
    pairs = [one for one in pairs if not asked.kept or map_file(asked, one[0]).is_file()]
    rows = []
    for at, (paths, truth) in enumerate(pairs, start=1):
        print(f"\r{at} of {len(pairs)}", end="", file=sys.stderr, flush=True)
        rows += [{"scan": at, **row} for row in measured(paths, truth, asked)]
    print(file=sys.stderr)
    names = list(dict.fromkeys(row["members"] for row in rows))
    by_rule = {name: [row for row in rows if row["members"] == name] for name in names}
    result = {
        name: {"judged": judged(own), "points": summed(own, name, len(pairs))}
        for name, own in by_rule.items()
    }
    for name, own in by_rule.items():
        group = name.partition(":")[0] if ":" in name else " ".join(asked.detectors)
        result[name]["f1_above_mean"] = above(own, by_rule[f"{group}: mean"], len(pairs))
    report = {"scans": len(pairs), "near_mm": NEAR_MM, "rules": result}
    asked.result.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name in sorted(result, key=lambda name: -result[name]["judged"]["f1"]):
        print(name, result[name]["judged"], result[name]["f1_above_mean"])


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("result", type=Path, help="where to")
    parser.add_argument("data", type=Path, nargs="+", help="simulated datasets")
    parser.add_argument("--detectors", nargs="+", default=["ensemble", "cascade", "gated"])
    parser.add_argument("--maps", type=Path, help="folder that keeps what the detectors say")
    parser.add_argument("--kept", action="store_true", help="only scans whose maps lie there")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    return parser.parse_args()


def map_file(asked: argparse.Namespace, paths: ScanFiles) -> Path:
    """Where the maps of a scan are kept."""
    return asked.maps / f"{paths.image.parents[2].name}_{paths.image.name}.npz"


def said(paths: ScanFiles, image: Volume, asked: argparse.Namespace) -> dict[str, np.ndarray]:
    """What each detector says of a scan, 0 to 1."""
    file = map_file(asked, paths) if asked.maps else None
    maps = dict(np.load(file)) if file and file.is_file() else {}
    brain = Volume(load_labels(paths.brain).data > 0, image.affine)
    missing = [name for name in asked.detectors if name not in maps]
    for name in missing:
        chance = detect(name, image, brain).mean.data
        maps[name] = np.round(chance * STEPS).astype(np.uint16)
    if missing and file:
        np.savez_compressed(file, **maps)
    return {name: maps[name] / np.float32(STEPS) for name in asked.detectors}


def measured(paths: ScanFiles, truth: LesionAnnotations, asked: argparse.Namespace) -> list[dict]:
    """Hits, misses and false alarms by each rule at each threshold."""
    image, _ = load(paths.image)
    maps, image = cropped(said(paths, image, asked), image)
    cards = {name: load_card(name) for name in maps}
    rows = []

    def note(name: str, threshold: float, centres: np.ndarray, tops: np.ndarray) -> None:
        told = counted(centres, tops, truth)
        rows.append({"members": name, "threshold": float(threshold), **told})

    groups = [
        group for size in range(1, 1 + len(maps)) for group in combinations(asked.detectors, size)
    ]
    for group in groups:
        least = float(np.mean([cards[name]["min_volume_mm3"] for name in group]))
        mean = np.mean([maps[name] for name in group], axis=0)
        label = " ".join(group) + (": mean" if len(group) > 1 else "")
        for threshold, (centres, tops) in cuts(mean, image, least):
            note(label, threshold, centres, tops)
    for start in ("own", "low"):
        levels = {name: cards[name]["threshold"] if start == "own" else LOW for name in maps}
        found = {
            name: lesions(chance, image, levels[name], cards[name]["min_volume_mm3"])
            for name, chance in maps.items()
        }
        for group in (group for group in groups if len(group) > 1):
            size, centres, tops = agreed([found[name] for name in group])
            for k in range(2, 1 + len(group)):
                label = f"{' '.join(group)}: {k} of {len(group)}, {start} thresholds"
                for threshold in THRESHOLDS:
                    on = (size >= k) & (tops >= threshold)
                    note(label, threshold, centres[on], tops[on])
    return rows


def cropped(maps: dict[str, np.ndarray], image: Volume) -> tuple[dict[str, np.ndarray], Volume]:
    """The part of a scan and of its maps where any of them says anything."""
    there = np.any([chance >= min(THRESHOLDS) for chance in maps.values()], axis=0)
    low, high = find_bounds(there) if there.any() else (np.zeros(3, int), np.ones(3, int))
    box = tuple(map(slice, low, high))
    return {name: chance[box] for name, chance in maps.items()}, crop(image, low, high)


def lesions(chance: np.ndarray, grid: Volume, threshold: float, least: float) -> Cut:
    """The lesions of a map, as `find_lesions` cuts them."""
    labels, count = ndimage.label(chance >= threshold, structure=CONNECTIVITY_26)
    voxels = np.argwhere(labels)
    piece, weight = labels[tuple(voxels.T)], chance[tuple(voxels.T)]
    new, centres, tops = np.zeros(1 + count, int), [], []
    for number in range(1, 1 + count):
        own = piece == number
        if own.sum() * grid.voxel_volume >= least:
            centres.append(np.average(voxels[own], axis=0, weights=weight[own]))
            tops.append(weight[own].max())
            new[number] = len(tops)
    middles = np.array(centres, float).reshape(-1, 3)
    return Cut(new[labels], grid.world(middles), np.array(tops, float))


def agreed(cuts_: Sequence[Cut]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What several detectors found, each thing once.

    Returns:
        How many detectors found it (N,); the mean of their centres (N, 3); the mean of the highest
        chance of each of them (N,).
    """
    first = np.cumsum([0, *(len(cut.tops) for cut in cuts_)])
    total = int(first[-1])
    links = sparse.lil_matrix((total, total), dtype=bool)
    for (a, one), (b, other) in combinations(enumerate(cuts_), 2):
        near = np.linalg.norm(one.centres[:, None] - other.centres[None], axis=-1) <= NEAR_MM
        both = (one.labels > 0) & (other.labels > 0)
        shared = np.stack([one.labels[both], other.labels[both]])
        near[tuple(shared - 1)] = True
        for i, j in np.argwhere(near):
            links[first[a] + i, first[b] + j] = True
    count, owner = connected_components(links, directed=False) if total else (0, np.zeros(0, int))
    who = np.repeat(np.arange(len(cuts_)), np.diff(first))
    centres = np.concatenate([cut.centres for cut in cuts_])
    tops = np.concatenate([cut.tops for cut in cuts_])
    sizes, means, chances = [], [], []
    for thing in range(count):
        members = np.flatnonzero(owner == thing)
        asked = np.unique(who[members])
        sizes.append(len(asked))
        means.append(centres[members].mean(axis=0))
        chances.append(np.mean([tops[members[who[members] == one]].max() for one in asked]))
    return np.array(sizes, int), np.array(means, float).reshape(-1, 3), np.array(chances, float)


def held_out(rows: Sequence[dict]) -> list[dict]:
    """A row for each scan, at the threshold that has the best F1 over the scans of other parity."""
    chosen = []
    for parity in (0, 1):
        name = rows[0]["members"]
        points = summed([row for row in rows if row["scan"] % 2 != parity], name, 1)
        best = max(points, key=lambda point: point["f1"])["threshold"]
        chosen += [row for row in rows if row["scan"] % 2 == parity and row["threshold"] == best]
    return sorted(chosen, key=lambda row: row["scan"])


def judged(rows: Sequence[dict]) -> dict[str, float]:
    """The figures of scans that had no say in the threshold."""
    own = held_out(rows)
    total = {key: sum(row[key] for row in own) for key in ("true", "hits", "missed", "false")}
    return {
        "sensitivity": round(1 - total["missed"] / max(total["true"], 1), 3),
        "false_per_scan": round(total["false"] / len(own), 3),
        "f1": round(f1(own), 3),
        "thresholds": sorted({row["threshold"] for row in own}),
    }


def f1(rows: Sequence[dict]) -> float:
    """Over all lesions of some scans."""
    hits, wrong, missed = (sum(row[key] for row in rows) for key in ("hits", "false", "missed"))
    return 2 * hits / max(2 * hits + wrong + missed, 1)


def above(rows: Sequence[dict], others: Sequence[dict], scans: int) -> dict[str, float]:
    """How far the F1 of a rule lies above another's, with its 95 % interval over the scans."""
    one, other = held_out(rows), held_out(others)
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(DRAWS):
        drawn = rng.integers(0, scans, scans)
        gaps.append(f1([one[at] for at in drawn]) - f1([other[at] for at in drawn]))
    low, high = np.percentile(gaps, [2.5, 97.5])
    gap = f1(one) - f1(other)
    return {"f1": round(gap, 3), "low": round(float(low), 3), "high": round(float(high), 3)}


if __name__ == "__main__":
    main()
