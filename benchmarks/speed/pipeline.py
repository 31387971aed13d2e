"""Measure the throughput with one process for the networks of all workers, and with one each.

    python -m benchmarks.speed.pipeline REAL --name real --workers 2 --copies 3
    python -m benchmarks.speed.pipeline REAL --name gpu --workers 8 --copies 20 --device gpu \
        --precisions full mixed

Every scan of a dataset is processed several times over, under other names, by the app as users run
it. Beside seconds of a scan stands which share of the time the networks' process computed: from its
first request to the moment when the last scan is given out, after which not all workers have work.
The tables of lesions must be the same either way; between precisions, the largest difference of a
lesion's probability is told, and how many lesions are in one table only. Writes
``benchmarks/results/pipeline-NAME.json``.

The same on a GPU needs nothing but ``--device gpu``; ``--more`` passes further words on, such as
``--detector shiva-v1 --model-dir MODELS`` for networks of that size.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measurements import RESULTS, Cost, make_app_command, measure_command
from benchmarks.speed.engines import find_differences, read_tables
from bids_cmb.bids.tables import read_table
from bids_cmb.files import read_json, write_json
from bids_cmb.parallel.service import TRACE_VARIABLE
from bids_cmb.provenance import machine, software

SCANS = "sub-*/**/*_T2starw.nii.gz"
SHARED, ALONE = "one process", "one each"


def main() -> None:
    """Run, measure, print and write."""
    options = make_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        scans = copy_dataset(options.bids_dir, data, options.copies)
        words = ("--device", options.device, "--n-cpus", options.workers, "--omp-nthreads", 1)
        runs, tables, outputs = {}, {}, {}
        for precision in options.precisions:
            for way in (SHARED, ALONE):
                key = f"{way}, {precision}"
                outputs[key] = Path(folder) / key.replace(", ", "-").replace(" ", "-")
                trace = outputs[key].with_suffix(".jsonl")
                share = "on" if way == SHARED else "off"
                more = ("--precision", precision, "--share-networks", share, *options.more)
                command = make_app_command(data, outputs[key], "participant", *words, *more)
                began = time.monotonic()
                cost = measure_command(command, {**os.environ, TRACE_VARIABLE: str(trace)})
                runs[key] = describe_run(cost, scans, trace, began, outputs[key])
                tables[key] = read_tables(outputs[key])
        report = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "load": os.getloadavg()[0],
            "scans": scans,
            "workers": options.workers,
            "runs": runs,
            "tables_that_differ": {
                precision: find_differences(
                    *(tables[f"{way}, {precision}"] for way in (SHARED, ALONE))
                )
                for precision in options.precisions
            },
            "between_precisions": compare_probabilities(
                [outputs[f"{SHARED}, {precision}"] for precision in options.precisions]
            ),
            "software": software(),
            "machine": machine(),
        }
    write_json(RESULTS / f"pipeline-{options.name}.json", report)
    print(json.dumps(report, indent=2))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bids_dir", type=Path, help="the scans to process")
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--workers", type=int, default=2, help="that read scans (default: 2)")
    parser.add_argument("--copies", type=int, default=3, help="of each scan (default: 3)")
    parser.add_argument("--device", choices=("auto", "gpu", "cpu"), default="auto")
    parser.add_argument("--precisions", nargs="+", choices=("full", "mixed"), default=["full"])
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="words of the app")
    return parser


def copy_dataset(source: Path, target: Path, copies: int) -> int:
    """Link the scans of a dataset several times over, as other participants; how many there are."""
    target.mkdir()
    (target / "dataset_description.json").symlink_to(source.resolve() / "dataset_description.json")
    count = 0
    for copy in range(copies):
        for scan in sorted(source.resolve().glob(SCANS)):
            before, *rest = scan.relative_to(source.resolve()).parts
            after = f"{before}copy{copy}"
            path = target.joinpath(after, *rest[:-1], scan.name.replace(before, after))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(scan)
            count += 1
    return count


def describe_run(
    cost: Cost, scans: int, trace: Path, began: float, output: Path
) -> dict[str, float | None]:
    """Describe what a run took, and how busy the networks' process was if there was one."""
    figures = {
        "seconds_per_scan": round(cost.seconds / scans, 2),
        "processor_s_per_scan": round(cost.processor_seconds / scans, 1),
        "memory_mb_of_largest_process": round(cost.peak_mb),
        "busy_share": None,
        "device": read_device(output),
    }
    if trace.is_file():
        rows = [json.loads(line) for line in trace.read_text("utf-8").splitlines()]
        figures["busy_share"] = round(measure_busy_share(rows), 3)
        figures["first_request_s"] = round(min(row["began"] for row in rows) - began, 1)
    return figures


def measure_busy_share(rows: Sequence[dict]) -> float:
    """Measure the share of the time in which requests were computed while all workers had scans.

    Args:
        rows: Of the trace, each with its ``worker``, and when it ``began`` and ``ended``.

    Returns:
        From the first request to the last one of the worker that stops first, 0 to 1.
    """
    last = {}
    for row in rows:
        last[row["worker"]] = max(row["ended"], last.get(row["worker"], 0.0))
    first, end = min(row["began"] for row in rows), min(last.values())
    busy = sum(max(0.0, min(row["ended"], end) - row["began"]) for row in rows)
    return busy / (end - first)


def read_device(output: Path) -> str:
    """Read from a sidecar what computed the networks."""
    path = next(output.glob("sub-*/**/*_label-CMB_*_mask.json"))
    computer = read_json(path)["Provenance"]["Machine"]
    return f"{computer['Device']}, {computer.get('Engine', '')}"


def compare_probabilities(outputs: Sequence[Path]) -> dict[str, float] | None:
    """Compare the lesions of two runs by their places; None of one run."""
    if len(outputs) < 2:
        return None
    tables = [read_probabilities(output) for output in outputs]
    both = tables[0].keys() & tables[1].keys()
    return {
        "in_both": len(both),
        "in_one": len(tables[0].keys() ^ tables[1].keys()),
        "largest_difference": max(
            (abs(tables[0][place] - tables[1][place]) for place in both), default=0.0
        ),
    }


def read_probabilities(output: Path) -> dict[tuple, float]:
    """Read the probability of each lesion of a run by scan and place, whole mm."""
    return {
        (path.name, *(round(float(row[axis])) for axis in ("x_mm", "y_mm", "z_mm"))): float(
            row["probability_max"]
        )
        for path in output.glob("sub-*/**/*_seg-CMB*_dseg.tsv")
        for row in read_table(path)
    }


if __name__ == "__main__":
    main()
