"""Compare all detectors in one table: accuracy from earlier results, and cost measured here.

    python -m benchmarks.accuracy.detectors cost BIDS_DIR PARTICIPANT DETECTOR [DETECTOR ...]
    python -m benchmarks.accuracy.detectors table DETECTOR [DETECTOR ...]

``cost`` runs the app on one participant, a fresh process for each detector, one after the other on
two threads, with the anatomy network and the pages as a user has them: wall-clock and processor
seconds, GB of the largest process. ``table`` writes that, and what `benchmarks.accuracy.detection`
measured of each detector on simulated and real scans (VALDO rule, 95 % intervals over subjects), to
``benchmarks/results/detectors.md``.
"""

import argparse
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.measurements import RESULTS, make_app_command, measure_command
from bids_cmb.files import read_json, write_json, write_text
from bids_cmb.metrics.intervals import count_interval, f1_interval, proportion_interval
from bids_cmb.networks.model_cards import load_card, locate_weights
from bids_cmb.provenance import machine, software

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
    """Measure the cost, or write the table."""
    options = make_parser().parse_args()
    if options.part == "cost":
        for detector in options.detector:
            record_cost(options.bids_dir, options.participant, detector)
    else:
        lines = [*tabulate_sets(options.detector), "", *tabulate_protocols(options.detector), ""]
        write_text(RESULTS / "detectors.md", "\n".join(lines))
        print("\n".join(lines))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    cost = parts.add_parser("cost", help="measure seconds and memory of one scan")
    cost.add_argument("bids_dir", type=Path)
    cost.add_argument("participant", help="without sub-")
    table = parts.add_parser("table", help="write the table of all results")
    for part in (cost, table):
        part.add_argument("detector", nargs="+")
    return parser


def record_cost(bids_dir: Path, participant: str, detector: str) -> None:
    """Run the app once and record what it took, in place of an earlier run."""
    record = read_json(COST) or {"runs": []}
    others = [
        run
        for run in record["runs"]
        if (run["detector"], run["participant"]) != (detector, participant)
    ]
    run = {"detector": detector, **measure_cost(bids_dir, participant, detector)}
    record |= {"runs": [*others, run], "machine": machine(), "software": software()}
    write_json(COST, record)
    print(run, flush=True)


def measure_cost(bids_dir: Path, participant: str, detector: str) -> dict:
    """Measure what one participant takes, from the files to the page."""
    words = ["participant", "--participant-label", participant, "--detector", detector]
    words += ["--n-cpus", "2", "--omp-nthreads", "2", "-q"]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as output:
        cost = measure_command(make_app_command(bids_dir, Path(output), *words))
    return {
        "participant": participant,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": round(load, 1),
        "seconds": round(cost.seconds, 1),
        "processor_seconds": cost.processor_seconds,
        "gb": round(cost.peak_mb / 1024, 2),
    }


def tabulate_sets(detectors: list[str]) -> list[str]:
    """Make a Markdown table of the detectors for each set of scans."""
    heads = ["detector", "parameters", *FIGURES.values(), *COSTS.values()]
    costs = (read_json(COST) or {"runs": []})["runs"]
    lines = []
    for scans, title in SETS.items():
        lines += [f"**{title}**", "", format_row(heads), format_row(["---"] * len(heads))]
        for detector in detectors:
            if not (RESULTS / f"{detector}-{scans}.json").is_file():
                continue
            figures = [format_interval(*figure) for figure in read_figures(detector, scans)]
            runs = [run for run in costs if run["detector"] == detector]
            ranges = [format_range([run[key] for run in runs]) for key in COSTS]
            size = f"{count_parameters(detector):,}".replace(",", " ")
            lines.append(format_row([f"`{detector}`", size, *figures, *ranges]))
        lines.append("")
    return lines


def tabulate_protocols(detectors: list[str]) -> list[str]:
    """Make a Markdown table of sensitivity and false alarms by protocol of the simulated scans."""
    cells: dict[str, dict[str, str]] = {}
    for detector in detectors:
        result = read_json(RESULTS / f"{detector}-simulated-default.json")
        if not result:
            continue
        protocols: dict[str, dict[str, float]] = {}
        for row in result["breakdown"]["valdo"]:
            if row["by"] == "protocol":
                protocols.setdefault(row["class"], {})[row["figure"]] = row["value"]
        for protocol, values in protocols.items():
            name = f"{protocol} ({values['scans']:g}, {values['lesions']:g})"
            figures = (format_figure(values[key]) for key in ("sensitivity", "fp_per_scan"))
            cells.setdefault(name, {})[detector] = " at ".join(figures)
    heads = ["protocol (scans, microbleeds)", *(f"`{name}`" for name in detectors)]
    rows = [
        format_row([name, *(cell.get(detector, "") for detector in detectors)])
        for name, cell in sorted(cells.items())
    ]
    return [format_row(heads), format_row(["---"] * len(heads)), *rows]


def count_parameters(detector: str) -> int:
    """Count the numbers in the weights of a detector's networks, normalisations included."""
    total = 0
    for member in load_card(detector).get("members", ()):
        with np.load(locate_weights(detector, member)) as arrays:
            total += sum(arrays[name].size for name in arrays.files)
    return total


def read_figures(detector: str, scans: str) -> list[tuple[float, float, float]]:
    """Read the figures of a detector on a set of scans: value, low, high.

    Intervals are those over subjects, widened to the exact ones of the bare counts; results of
    before `bids_cmb.metrics.bootstrap` did so itself are widened here.
    """
    figures = read_json(RESULTS / f"{detector}-{scans}.json")["rules"]["valdo"]
    hits, false_alarms, misses, lesions, n_scans = (
        figures[key]["value"] for key in ("hits", "false_alarms", "misses", "lesions", "scans")
    )
    bare = {
        "sensitivity": proportion_interval(lesions - misses, lesions),
        "precision": proportion_interval(hits, hits + false_alarms),
        "f1": f1_interval(hits, false_alarms + misses),
        "fp_per_scan": count_interval(false_alarms, n_scans),
        "best_f1": f1_interval(*read_best_counts(detector, scans, lesions, n_scans)),
    }
    return [
        (figure["value"], min(figure["low"], bare[key][0]), max(figure["high"], bare[key][1]))
        for key, figure in ((key, figures[key]) for key in FIGURES)
    ]


def read_best_counts(
    detector: str, scans: str, lesions: float, n_scans: float
) -> tuple[float, float]:
    """Read hits and errors at the threshold of the best F1, from the table of the FROC."""
    rows = np.genfromtxt(RESULTS / f"{detector}-{scans}.tsv", names=True, delimiter="\t")
    best = rows[np.nanargmax(rows["f1"])]
    errors = (1 - best["sensitivity"]) * lesions + best["fp_per_scan"] * n_scans
    hits = best["f1"] * errors / (2 * (1 - best["f1"]))
    return float(np.round(hits)), float(np.round(errors))


def format_interval(value: float, low: float, high: float) -> str:
    """Format a figure with its interval."""
    return f"{format_figure(value)} [{format_figure(low)}, {format_figure(high)}]"


def format_figure(value: float | None) -> str:
    """Format a figure: two digits, one from 2 on."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value >= 1.995 else f"{value:.2f}"


def format_range(values: list[float]) -> str:
    """Format the lowest and the highest of several values."""
    if not values:
        return "–"
    low, high = (f"{value:.3g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def format_row(cells: list[str]) -> str:
    """Format a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
