"""Measure many jobs on a Dask cluster and an array of shards, while workers die and others come.

    python -m benchmarks.speed.many_jobs --name made

**Dask**: 2000 jobs of a fiftieth of a second, such as a cohort has scans, on a cluster of two
processes of this machine. After a quarter of them one worker is killed, and after half of them one
is added. Every job must end once, without an error; how many were begun twice, because their worker
died, is told, and what a job costs beside its own time.

**Shards**: made participants with two sessions each are processed by an array of twelve runs of the
app, two at a time, as Slurm starts them. The third is killed when it has done its first scan, and
the whole array is submitted again. Every scan must have been processed once and be a row of the
group's table; the processor seconds of a scan are compared with those in a single run. Writes
``benchmarks/results/many-jobs-NAME.json``.
"""

import argparse
import collections
import functools
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.measurements import RESULTS, make_app_command, measure_command
from benchmarks.speed.size import APP, make_dataset, run_app
from bids_cmb.bids.tables import read_table
from bids_cmb.files import write_json
from bids_cmb.parallel import dask
from bids_cmb.provenance import machine, software

JOB_SECONDS = 0.02
SHARDS, AT_A_TIME, KILLED_SHARD = 12, 2, 3


def main() -> None:
    """Run, measure, check, print and write."""
    options = make_parser().parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        (diary := Path(folder, "diary")).mkdir()
        report = {
            "dask": measure_cluster(options.jobs, diary),
            "shards": measure_array(options.participants, Path(folder)),
            "software": software(),
            "machine": machine(),
        }
    write_json(RESULTS / f"many-jobs-{options.name}.json", report)
    print(json.dumps(report, indent=2))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--jobs", type=int, default=2000, help="on the cluster (default: 2000)")
    parser.add_argument("--participants", type=int, default=40, help="of the array (default: 40)")
    parser.add_argument("--work", type=Path, help="folder for the made dataset (default: /tmp)")
    return parser


# --- Dask -----------------------------------------------------------------------------------------


def note_and_wait(number: int, diary: Path) -> int:
    """Note that a job has begun, and take a moment; a job of the cluster."""
    with (diary / str(number)).open("a") as file:
        file.write("begun\n")
    time.sleep(JOB_SECONDS)
    return number


def find_no_fault() -> str:
    """Find nothing wrong with a worker."""
    return ""


def measure_cluster(jobs: int, diary: Path) -> dict[str, float]:
    """Run jobs on a cluster that loses a worker and gains one; check that each ends once."""
    from distributed import Client, LocalCluster  # noqa: PLC0415 an extra

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        events = {
            jobs // 4: functools.partial(os.kill, pids[0], signal.SIGKILL),
            jobs // 2: functools.partial(cluster.scale, 3),
        }
        began = time.monotonic()
        outcomes = dask.run(
            functools.partial(note_and_wait, diary=diary),
            range(jobs),
            address=cluster.scheduler_address,
            workers=2,
            environment={},
            find_fault=find_no_fault,
            log=print,
        )
        ended = collections.Counter()
        errors = []
        for count, outcome in enumerate(outcomes, start=1):
            ended[outcome.index] += 1
            errors += [outcome.error] if outcome.error else []
            events.pop(count, lambda: None)()
        seconds = time.monotonic() - began
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
    begun = [path.read_text().count("begun") for path in diary.iterdir()]
    if errors or ended != collections.Counter(range(jobs)) or len(begun) != jobs:
        raise SystemExit(
            f"{jobs} jobs must end once each without an error; found {len(ended)}, "
            f"{ended.total() - len(ended)} twice, errors {errors[:3]}."
        )
    return {
        "jobs": jobs,
        "workers_at_the_end": workers,
        "begun_twice": sum(count > 1 for count in begun),
        "seconds": round(seconds, 1),
        "ms_per_job_beside_its_own_time": round(
            1000 * (seconds - jobs * JOB_SECONDS / workers) / jobs, 1
        ),
    }


# --- Shards ---------------------------------------------------------------------------------------


def measure_array(participants: int, folder: Path) -> dict[str, float]:
    """Process a made dataset by an array of shards, one of them killed; check and compare."""
    data, output, alone = folder / "data", folder / "out", folder / "alone"
    make_dataset(data, participants)
    scans = {path.name for path in data.rglob("*_T2starw.nii.gz")}
    single = measure_command(make_app_command(data, alone, "participant", *APP))
    began, before = time.monotonic(), os.times().children_user + os.times().children_system
    run_array(data, output, kill=KILLED_SHARD)
    run_array(data, output)
    seconds = time.monotonic() - began
    processor = os.times().children_user + os.times().children_system - before
    run_app(data, output, "group")
    table = read_table(output / "group_microbleeds.tsv")
    rows = {row["source"].rpartition("/")[2] for row in table}
    done = collections.Counter(count_processed(output))
    if rows != scans or set(done) != scans or max(done.values()) > 1:
        raise SystemExit(
            f"Every one of {len(scans)} scans must be processed once; found {len(done)}, rows of "
            f"{len(rows)}, most often {max(done.values(), default=0)} times."
        )
    return {
        "participants": participants,
        "scans": len(scans),
        "shards": SHARDS,
        "seconds": round(seconds, 1),
        "processor_s_per_scan": round(processor / len(scans), 2),
        "processor_s_per_scan_in_one_run": round(single.processor_seconds / len(scans), 2),
    }


def run_array(data: Path, output: Path, kill: int | None = None) -> None:
    """Run all shards, some at a time; kill one of them when it has done a scan."""
    running: list[subprocess.Popen] = []
    for shard in range(1, SHARDS + 1):
        while sum(process.poll() is None for process in running) >= AT_A_TIME:
            time.sleep(0.1)
        command = make_app_command(
            data, output, "participant", *APP, "--shard", f"{shard}/{SHARDS}"
        )
        before = len(list(count_processed(output)))
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        running.append(process)
        if shard == kill:
            while len(list(count_processed(output))) == before and process.poll() is None:
                time.sleep(0.05)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    for process in running:
        process.wait()


def count_processed(output: Path) -> Iterator[str]:
    """List the scans that runs have processed, once for each time."""
    for path in output.glob("logs/*/status.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            with suppress(ValueError):  # the last line of a run that was killed
                row = json.loads(line)
                if row["status"] == "ok":
                    yield row["source"].rpartition("/")[2]


if __name__ == "__main__":
    main()
