"""Every detector beside the others: accuracy from earlier results, cost measured, in one table.

    python benchmarks/detectors.py cost BIDS_DIR PARTICIPANT DETECTOR [DETECTOR ...]
    python benchmarks/detectors.py table DETECTOR [DETECTOR ...]

``cost`` runs the app on one participant, a fresh process for each detector, one after the other on
two threads, with the anatomy network and the pages as a user has them: wall-clock and processor
seconds, GB of the largest process. ``table`` puts that beside what ``detection.py`` left
of each detector on simulated and real scans, by the VALDO rule, with 95 % intervals over subjects,
into ``benchmarks/results/detectors.md``: text for readers. `tests/test_figures.py` holds README and
docs to it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bids_cmb.files import read_json, write_json
from bids_cmb.metrics.intervals import count_interval, f1_interval, proportion_interval
from bids_cmb.networks.model_cards import load_card, locate_weights
from bids_cmb.provenance import machine, software

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
COST = RESULTS / "detectors-cost.json"
SETS = {"simulated-default": "30 simulated scans", "real": "five real scans"}
FIGURES = {
    "sensitivity": "sensitivity",
    "precision": "precision",
    "f1": "F1",
    "fp_per_scan": "false per scan",
    "best_f1": "best F1",
}
COSTS = {"processor_seconds": "processor seconds", "gb": "GB"}


def main() -> None:
    """Measure, or tell."""
    asked = arguments()
    if asked.what == "cost":
        measure(asked.bids_dir, asked.participant, asked.detector)
    else:
        text = "\n".join([*overall(asked.detector), "", *by_protocol(asked.detector), ""])
        (RESULTS / "detectors.md").write_text(text, encoding="utf-8")
        print(text)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    what = parser.add_subparsers(dest="what", required=True)
    cost = what.add_parser("cost", help="seconds and memory of one scan")
    cost.add_argument("bids_dir", type=Path)
    cost.add_argument("participant", help="without sub-")
    table = what.add_parser("table", help="of all results")
    for one in (cost, table):
        one.add_argument("detector", nargs="+")
    return parser.parse_args()


def measure(bids_dir: Path, participant: str, detectors: list[str]) -> None:
    """Run the app once for each detector, and note down what it took."""
    told = read_json(COST) or {"runs": []}
    for detector in detectors:
        kept = [
            run
            for run in told["runs"]
            if (run["detector"], run["participant"]) != (detector, participant)
        ]
        told["runs"] = [*kept, {"detector": detector, **taken(bids_dir, participant, detector)}]
        told |= {"machine": machine(), "software": software()}
        write_json(COST, told)
        print(told["runs"][-1], flush=True)


def taken(bids_dir: Path, participant: str, detector: str) -> dict:
    """What one scan takes, from its file to its page."""
    with tempfile.TemporaryDirectory() as out:
        words = ["participant", "--participant-label", participant, "--detector", detector]
        words += ["--n-cpus", "2", "--omp-nthreads", "2", "-q"]
        before = time.monotonic()
        run = subprocess.Popen([sys.executable, ROOT / "run.py", bids_dir, out, *words])
        _, status, used = os.wait4(run.pid, 0)
        if status:
            sys.exit(f"The app failed with {detector}.")
    return {
        "participant": participant,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": round(os.getloadavg()[0], 1),
        "seconds": round(time.monotonic() - before, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "gb": round(used.ru_maxrss / 2**20, 2),
    }


def overall(detectors: list[str]) -> list[str]:
    """Rows of detectors by the two sets of scans, as Markdown."""
    heads = ["detector", "parameters", *FIGURES.values(), *COSTS.values()]
    costs = (read_json(COST) or {"runs": []})["runs"]
    lines = []
    for name, words in SETS.items():
        lines += [f"**{words}**", "", row(heads), row(["---"] * len(heads))]
        for detector in detectors:
            found = read_json(RESULTS / f"{detector}-{name}.json")
            if not found:
                continue
            said = [interval(*widened) for widened in figures(detector, name)]
            runs = [run for run in costs if run["detector"] == detector]
            spans = [span([run[key] for run in runs]) for key in COSTS]
            size = f"{parameters(detector):,}".replace(",", " ")
            lines.append(row([f"`{detector}`", size, *said, *spans]))
        lines.append("")
    return lines


def by_protocol(detectors: list[str]) -> list[str]:
    """Sensitivity and false alarms per scan by protocol of the simulated scans, as Markdown."""
    cells: dict[str, dict[str, str]] = {}
    for detector in detectors:
        found = read_json(RESULTS / f"{detector}-simulated-default.json")
        if not found:
            continue
        of = {}
        for line in found["breakdown"]["valdo"]:
            if line["by"] == "protocol":
                of.setdefault(line["class"], {})[line["figure"]] = line["value"]
        for protocol, values in of.items():
            name = f"{protocol} ({values['scans']:g}, {values['lesions']:g})"
            cell = f"{told(values['sensitivity'])} at {told(values['fp_per_scan'])}"
            cells.setdefault(name, {})[detector] = cell
    heads = ["protocol (scans, microbleeds)", *(f"`{name}`" for name in detectors)]
    rows = [
        row([name, *(cell.get(one, "") for one in detectors)])
        for name, cell in sorted(cells.items())
    ]
    return [row(heads), row(["---"] * len(heads)), *rows]


def parameters(detector: str) -> int:
    """Numbers in the weights of a detector's networks, those of normalisations included."""
    total = 0
    for member in load_card(detector).get("members", ()):
        with np.load(locate_weights(detector, member)) as arrays:
            total += sum(arrays[name].size for name in arrays.files)
    return total


def figures(detector: str, name: str) -> list[tuple[float, float, float]]:
    """The figures of a detector on a set of scans: value, low, high.

    Intervals are those over subjects, widened to the exact ones of the bare counts; results of
    before `evaluate` did so itself are widened here.
    """
    found = read_json(RESULTS / f"{detector}-{name}.json")["rules"]["valdo"]
    hits, false, misses, lesions, scans = (
        found[key]["value"] for key in ("hits", "false_alarms", "misses", "lesions", "scans")
    )
    bare = {
        "sensitivity": proportion_interval(lesions - misses, lesions),
        "precision": proportion_interval(hits, hits + false),
        "f1": f1_interval(hits, false + misses),
        "fp_per_scan": count_interval(false, scans),
        "best_f1": f1_interval(*best_counts(detector, name, lesions, scans)),
    }
    return [
        (value["value"], min(value["low"], bare[key][0]), max(value["high"], bare[key][1]))
        for key, value in ((key, found[key]) for key in FIGURES)
    ]


def best_counts(detector: str, name: str, lesions: float, scans: float) -> tuple[float, float]:
    """Hits and errors at the threshold of the best F1, from the table of all thresholds."""
    rows = np.genfromtxt(RESULTS / f"{detector}-{name}.tsv", names=True, delimiter="\t")
    best = rows[np.nanargmax(rows["f1"])]
    errors = (1 - best["sensitivity"]) * lesions + best["fp_per_scan"] * scans
    hits = best["f1"] * errors / (2 * (1 - best["f1"]))
    return float(np.round(hits)), float(np.round(errors))


def interval(value: float, low: float, high: float) -> str:
    """A figure with its interval."""
    return f"{told(value)} [{told(low)}, {told(high)}]"


def told(value: float | None) -> str:
    """A figure in two digits, or one."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value >= 1.995 else f"{value:.2f}"


def span(values: list[float]) -> str:
    """The least and the most."""
    if not values:
        return "–"
    low, high = (f"{value:.3g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def row(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
