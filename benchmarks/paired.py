"""What one run finds more than another on the same scans: differences and their intervals.

    python benchmarks/paired.py BEFORE AFTER TRUTH --name fine-tuning-longer --threshold 0.1

BEFORE and AFTER are output folders of the app, read with a threshold as low as the one given here.
Sensitivity at equal false alarms per scan and the best F1, by the VALDO rule, with what AFTER has
more, and its 95 % interval by drawing scans, the same ones for both. Lesions are matched once, at
the lowest threshold. Results go to ``benchmarks/results/NAME.json``.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bids_cmb.evaluation import Asked, measure
from bids_cmb.files import write_json
from bids_cmb.provenance import software

RESULTS = Path(__file__).parent / "results"
RATES = (2, 4, 8)
DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Seen:
    """A scan: chances of the lesions that are hits, and of false alarms; true lesions."""

    hits: np.ndarray
    false: np.ndarray
    lesions: int


def main() -> None:
    """Count both, compare, print and write."""
    asked = arguments()
    both = [counted(folder, asked.truth, asked.threshold) for folder in (asked.before, asked.after)]
    scans = sorted(set(both[0]) & set(both[1]))
    before, after = ([one[scan] for scan in scans] for one in both)
    rng = np.random.default_rng(asked.seed)
    draws = rng.integers(0, len(scans), (DRAWS, len(scans)))
    report = {
        "scans": len(scans),
        "lesions": sum(one.lesions for one in before),
        "threshold": asked.threshold,
        "seed": asked.seed,
        "versions": software(),
        "figures": {},
    }
    for name, figure in figures().items():
        more = [
            figure([after[at] for at in draw]) - figure([before[at] for at in draw])
            for draw in draws
        ]
        low, high = np.percentile(more, [2.5, 97.5])
        told = {"before": figure(before), "after": figure(after)}
        told |= {"more": told["after"] - told["before"], "low": low, "high": high}
        report["figures"][name] = {key: round(float(value), 4) for key, value in told.items()}
        print(name, report["figures"][name])
    write_json(RESULTS / f"{asked.name}.json", report)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("before", type=Path, help="output folder of the app")
    parser.add_argument("after", type=Path, help="another, of the same scans")
    parser.add_argument("truth", type=Path, help="derivative dataset, or TSV of coordinates")
    parser.add_argument("--name", required=True, help="of the file of results")
    parser.add_argument("--threshold", type=float, default=0.1, help="lowest prob_max that counts")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    return parser.parse_args()


def counted(folder: Path, truth: Path, threshold: float) -> dict[str, Seen]:
    """Every scan of a run, by name."""
    result = measure(folder, truth, Asked(threshold=threshold))
    by_scan = dict(tuple(result.lesions.groupby("scan")))
    nothing = result.lesions.iloc[:0]
    return {scan: seen(by_scan.get(scan, nothing)) for scan in result.scans["scan"]}


def seen(lesions: pd.DataFrame) -> Seen:
    """A scan's part of the table of fates."""

    def chances(fate: str) -> np.ndarray:
        return lesions["probability"][lesions["fate"] == fate].to_numpy(float)

    true = lesions["fate"].isin(["found", "missed"])
    return Seen(chances("hit"), chances("false alarm"), int(true.sum()))


def figures() -> dict:
    """Functions of scans."""
    named = {
        f"sensitivity_at_{rate}_fp": lambda scans, rate=rate: sensitivity_at(scans, rate)
        for rate in RATES
    }
    return named | {"best_f1": best_f1}


def sensitivity_at(scans: list[Seen], rate: float) -> float:
    """The share found above the threshold that lets just so many false alarms per scan pass."""
    false = np.sort(np.concatenate([one.false for one in scans]))[::-1]
    spared = int(rate * len(scans))
    threshold = false[spared] if spared < len(false) else 0.0
    hits = sum((one.hits > threshold).sum() for one in scans)
    return hits / max(1, sum(one.lesions for one in scans))


def best_f1(scans: list[Seen]) -> float:
    """The highest F1 over all thresholds."""
    hits = np.sort(np.concatenate([one.hits for one in scans]))
    false = np.sort(np.concatenate([one.false for one in scans]))
    at = np.concatenate([hits, false])
    found = len(hits) - np.searchsorted(hits, at)
    wrong = len(false) - np.searchsorted(false, at)
    lesions = sum(one.lesions for one in scans)
    return float((2 * found / np.maximum(found + wrong + lesions, 1)).max(initial=0.0))


if __name__ == "__main__":
    main()
