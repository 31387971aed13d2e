"""A scan that hangs, or whose process is killed for memory, is one sentence; the rest goes on."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import QUICK, no_other_process

from bids_cmb.bids.tables import read_table
from bids_cmb.cli.run import main
from bids_cmb.files import replacing
from bids_cmb.parallel import processes

ROOT = Path(__file__).parents[2]
FLAGS = [
    *(flag for flag in QUICK if flag != "-q"), "--skip-brain-extraction", "--report", "none"
]  # fmt: skip
LIMIT_MIN = 0.5  # many times what a ball takes, for a busy machine
THREE = ["sub-01", "sub-02", "sub-03"]


@contextmanager
def begun(raw, out, *flags):
    """The app in a process of its own, whose worker is at the first scan, and that worker."""
    words = [sys.executable, ROOT / "run.py", raw, out, "participant", "--n-cpus", "1", "-v"]
    running = subprocess.Popen([*words, *FLAGS, *flags], stderr=subprocess.PIPE, text=True)
    lines = []
    for line in running.stderr:
        lines.append(line)
        if "sub-01_T2starw: loading" in line:
            break
    assert running.poll() is None, lines
    yield running, find_worker(running.pid)
    running.communicate()


def find_worker(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children}
    [worker] = [int(child) for child, command in commands.items() if "spawn_main" in command]
    return worker


def list_failures(log):
    return [line.split(" ", 1)[1] for line in log.splitlines() if " failed: " in line]


def list_statuses(raw, out):
    """The status of every participant in the group table, by a run of the group level."""
    assert main([str(raw), str(out), "group", *QUICK]) == 0
    return {
        row["participant_id"]: row["status"] for row in read_table(out / "group_microbleeds.tsv")
    }


def resume(raw, out):
    with no_other_process():
        return main([str(raw), str(out), "participant", "-q", *FLAGS])


def leave_half_a_file(path):
    """Write half a file, as a process does that is killed while it writes."""
    child = os.fork()
    if child == 0:
        with replacing(path) as beside:
            beside.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.fixture
def three(dataset):
    return dataset({f"{subject}/anat/{subject}_T2starw": "ball" for subject in THREE})


@pytest.mark.slow
def test_a_scan_that_hangs_is_given_up_in_a_sentence_and_the_next_run_tries_it_again(
    three, tmp_path
):
    out = tmp_path / "out"
    half = out / "sub-01" / "anat" / "sub-01_space-orig_label-CMB_desc-T2starw_mask.nii.gz"
    with begun(three, out, "--scan-time-limit", str(LIMIT_MIN)) as (app, worker):
        os.kill(worker, signal.SIGSTOP)  # not even SIGTERM ends it now
        since = time.monotonic()
        leave_half_a_file(half)
        log = app.stderr.read()
    assert app.wait() == 1
    assert time.monotonic() - since > 60 * LIMIT_MIN - 1
    [failure] = list_failures(log)
    assert re.match(
        r"sub-01/anat/sub-01_T2starw\.nii\.gz failed: given up after 0\.\d+ min, past its time "
        r"limit of 0\.5 min \(--scan-time-limit\); its last message: [a-z ]+\.$",
        failure,
    )
    assert "2 scans processed, 0 already complete, 1 failed, 0 not processed" in log
    assert not list(out.rglob("*.part"))
    assert not list((out / "sub-01").rglob("*.nii.gz"))
    assert not list(out.glob("logs/*/crash-*"))
    assert list_statuses(three, out) == {**dict.fromkeys(THREE, "ok"), "sub-01": "failed"}
    assert resume(three, out) == 0
    assert list_statuses(three, out) == dict.fromkeys(THREE, "ok")


def test_a_limit_in_minutes_is_kept_for_scans_and_pages_and_no_crash(three, tmp_path, monkeypatch):
    out, limits = tmp_path / "out", []

    def give_up_all(_work, jobs, *, workers, listen=processes.ignore, time_limit_s):
        limits.append(time_limit_s)
        for index, _ in enumerate(jobs):
            listen(index, 20, processes.STARTED)
            error = processes.describe_timeout(95, time_limit_s, "detecting")
            yield processes.Outcome(index, error=error, errno=errno.ETIMEDOUT, seconds=95)
        assert workers

    monkeypatch.setattr(processes, "run", give_up_all)
    words = [str(three), str(out), "participant", *FLAGS, "--scan-time-limit", "1.5"]
    assert main(words) == 1
    assert main([*words, "--reports-only"]) == 1
    assert limits == [90, 90]
    assert not list(out.glob("logs/*/crash-*"))
    status = next(out.glob("logs/*/status.jsonl")).read_text()
    assert status.count("given up after 1.58 min, past its time limit of 1.5 min") == 3


def test_a_process_that_is_killed_for_memory_costs_its_scan_only(three, tmp_path):
    """As the kernel does it: SIGKILL, which no process can hear."""
    out = tmp_path / "out"
    with begun(three, out) as (app, worker):
        os.kill(worker, signal.SIGKILL)
        log = app.stderr.read()
    assert app.wait() == 1
    assert list_failures(log) == [
        "sub-01/anat/sub-01_T2starw.nii.gz failed: the process was killed from outside, most "
        "likely because memory ran out (see --mem-mb)."
    ]
    assert "2 scans processed, 0 already complete, 1 failed, 0 not processed" in log
    assert not list(out.rglob("*.part"))
    assert list_statuses(three, out) == {**dict.fromkeys(THREE, "ok"), "sub-01": "failed"}
    assert resume(three, out) == 0
    assert list_statuses(three, out) == dict.fromkeys(THREE, "ok")
