"""Compare the engines of the networks: processor seconds and memory of a scan in a fresh process.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.engines DATA --name real --participants 320 101

Each scan is processed from file to derivatives and page by either engine in turn, one scan and one
thread at a time. Beside the seconds stands their ratio to those of a matrix product on the same
machine in the same run, so that figures of different machines compare. The tables of lesions and
candidates of both are compared. Writes ``benchmarks/results/engines-NAME.json``.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.measurements import RESULTS, make_app_command, measure_command
from bids_cmb.files import write_json
from bids_cmb.networks.backend import OPENVINO, TENSORFLOW
from bids_cmb.provenance import machine, software

SIDE, PRODUCTS = 2000, 8  # of the matrix product: of 8 x 16 thousand million operations
TABLES = "sub-*/**/*_seg-*_dseg.tsv"  # of lesions and of candidates


def main() -> None:
    """Run, compare, print and write."""
    options = make_parser().parse_args()
    scans = {
        label: compare_engines(options.bids_dir, label, options.repeats, options.more)
        for label in options.participants
    }
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0],
        "matrix_product_s": time_matrix_product(),
        "scans": scans,
        "software": software(),
        "machine": machine(),
    }
    write_json(RESULTS / f"engines-{options.name}.json", report)
    print(json.dumps(report, indent=2))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bids_dir", type=Path, help="the scans to process")
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--participants", nargs="+", required=True, metavar="LABEL")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each (default: 2)")
    parser.add_argument("--more", nargs="*", default=[], metavar="WORD", help="options of the app")
    return parser


def compare_engines(
    bids_dir: Path, label: str, repeats: int, more: list[str]
) -> dict[str, object]:  # fmt: skip
    """Process a participant by either engine in turn; the figures of each, and what differs."""
    runs: dict[str, list] = {OPENVINO: [], TENSORFLOW: []}
    tables = {}
    for _ in range(repeats):
        for engine, done in runs.items():
            product = time_matrix_product()
            with tempfile.TemporaryDirectory() as folder:
                words = ("--participant-label", label, "--n-cpus", "1", "--engine", engine, *more)
                command = make_app_command(bids_dir, Path(folder), "participant", *words)
                done.append((measure_command(command), product))
                tables[engine] = read_tables(Path(folder))
    return {
        **{engine: summarize_runs(done) for engine, done in runs.items()},
        "tables_that_differ": find_differences(*tables.values()),
    }


def summarize_runs(runs: list) -> dict[str, float]:
    """Summarize the runs of an engine: the medians, and the highest memory."""
    seconds = [cost.processor_seconds for cost, _ in runs]
    return {
        "processor_s": round(statistics.median(seconds), 1),
        "processor_s_of_runs": [round(value, 1) for value in seconds],
        "matrix_products": round(
            statistics.median(
                cost.processor_seconds / product for cost, product in runs
            ), 1
        ),
        "memory_mb": round(max(cost.peak_mb for cost, _ in runs)),
    }  # fmt: skip


def read_tables(folder: Path) -> dict[str, str]:
    """Read the tables of lesions and candidates, by name."""
    tables = {path.name: path.read_text() for path in sorted(folder.glob(TABLES))}
    if not tables:
        raise FileNotFoundError(f"{folder}: the app must have written tables; found none.")
    return tables


def find_differences(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """Find the tables that differ, each with the number of rows that do."""
    differing = []
    for name in sorted({*first, *second}):
        rows, others = (set(tables.get(name, "").splitlines()) for tables in (first, second))
        if rows != others:
            differing.append(f"{name}: {len(rows - others)} of {len(rows) - 1} rows")
    return differing


def time_matrix_product() -> float:
    """Time products of matrices of float32, processor seconds of one thread."""
    matrix = np.random.default_rng(1).random((SIDE, SIDE), np.float32)
    began = time.process_time()
    for _ in range(PRODUCTS):
        matrix @ matrix
    return time.process_time() - began


if __name__ == "__main__":
    main()
