"""A job over many scans: one failure is one failure, a dead process too."""

import collections
import errno
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from bids_cmb.parallel import processes
from bids_cmb.parallel.processes import STARTED, count_cores, describe_error, measure_memory_mb, run


def square(number):
    if number == 3:
        raise ValueError("three: the rule is even; found 3.")
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 7:
        raise KeyError("seven")
    if number == 8:
        raise OSError(errno.ENOSPC, "No space left on device", "eight.nii")
    return number**2


def nap(path):
    path.write_text("begun")
    time.sleep(60)


def own_process(_):
    return os.getpid()


@pytest.fixture(scope="module")
def outcomes():
    return {outcome.index: outcome for outcome in run(square, list(range(10)), workers=2)}


def test_every_job_ends_once(outcomes):
    assert sorted(outcomes) == list(range(10))


def test_failures_do_not_touch_the_others(outcomes):
    results = {at: outcome.result for at, outcome in outcomes.items() if not outcome.error}
    assert results == {at: at**2 for at in (0, 1, 2, 4, 6, 9)}


def test_a_failed_job_gives_its_sentence_and_its_traceback(outcomes):
    assert outcomes[3].error == "three: the rule is even; found 3."
    assert "Traceback" in outcomes[3].details


def test_a_process_that_is_killed_is_one_failure(outcomes):
    assert "was killed from outside" in outcomes[5].error


def test_an_unexpected_error_is_called_so(outcomes):
    assert outcomes[7].error == "unexpected KeyError: 'seven'"


def test_an_error_of_the_system_keeps_its_number_and_its_file(outcomes):
    assert outcomes[8].errno == errno.ENOSPC
    assert outcomes[8].error == "eight.nii: no space left on device."


def test_no_more_processes_are_made_than_asked_for():
    pids = {outcome.result for outcome in run(own_process, list(range(6)), workers=2)}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids


def test_closing_ends_the_jobs_under_way_at_once(tmp_path):
    running = run(_nap_or_return, [None, tmp_path / "a"], workers=2)
    next(running)
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 10


def _nap_or_return(path):
    return nap(path) if path else None


def test_a_job_that_cannot_be_sent_is_one_failure():
    """Nested too deeply to be pickled, as a sidecar may be."""
    nested = []
    for _ in range(5000):
        nested = [nested]
    outcomes = {outcome.index: outcome for outcome in run(square, [2, nested, 4], workers=1)}
    assert [outcomes[at].result for at in (0, 2)] == [4, 16]
    assert "RecursionError" in outcomes[1].error


def test_nothing_to_do_is_done_at_once():
    assert list(run(square, [], workers=3)) == []


def test_sentences_are_whole():
    assert describe_error(MemoryError()) == "memory ran out (see --mem-mb)."
    assert describe_error(ValueError("one\n  two")) == "one two"


def test_this_machine_has_cores_and_memory():
    assert 1 <= count_cores() <= os.cpu_count()
    assert measure_memory_mb() > 100


PARENT = """
import sys, time
from pathlib import Path
from bids_cmb.parallel.processes import run

def work(path):
    path.write_text("begun")
    while not path.with_name("parent is gone").exists():
        time.sleep(0.02)
    return 1

if __name__ == "__main__":
    list(run(work, [Path(sys.argv[1])], workers=2))
"""


def test_a_worker_whose_parent_was_killed_leaves_without_a_traceback(tmp_path):
    """Its last result has nobody to take it."""
    script, begun, log = tmp_path / "parent.py", tmp_path / "begun", tmp_path / "log"
    script.write_text(PARENT)
    with log.open("w") as file:
        parent = subprocess.Popen([sys.executable, str(script), str(begun)], stderr=file)
        _wait_for(begun.exists)
        workers = _children(parent.pid)
        parent.kill()
        parent.wait()
    (tmp_path / "parent is gone").touch()
    _wait_for(lambda: not any(map(_runs, workers)))
    assert workers
    assert log.read_text() == ""


def _children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _runs(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def _wait_for(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def speak(number):
    log = logging.getLogger("bids_cmb.workflow.scan")
    log.debug("detecting %d", number)
    log.warning("odd")
    return number


def test_what_a_process_logs_is_heard_before_its_outcome():
    heard = []
    for outcome in run(speak, [7, 8], workers=1, listen=lambda *message: heard.append(message)):
        heard.append((outcome.index, "ended"))
    assert heard == [
        (0, logging.INFO, STARTED), (0, logging.DEBUG, "detecting 7"), (0, logging.WARNING, "odd"),
        (0, "ended"),
        (1, logging.INFO, STARTED), (1, logging.DEBUG, "detecting 8"), (1, logging.WARNING, "odd"),
        (1, "ended"),
    ]  # fmt: skip


LIMIT_S = 2.0


def hang_natively():
    """Never return to the interpreter: no signal, alarm or other thread is heard any more."""
    collections.deque(itertools.repeat(None), maxlen=0)


def work_or_hang(job):
    log = logging.getLogger("bids_cmb.workflow.scan")
    if job == "hangs in native code":
        log.debug("detecting")
        hang_natively()
    if job == "hangs and talks":
        for _ in itertools.repeat(None):
            log.debug("trying again.")
    time.sleep(job)
    return job


@pytest.fixture
def impatient(monkeypatch):
    """A process that is to end is killed after half a second."""
    monkeypatch.setattr(processes, "SECONDS_TO_LEAVE", 0.5)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_hangs_in_native_code_is_given_up_and_the_others_go_on(workers):
    """Each has the limit for itself: together they take longer."""
    jobs = [LIMIT_S / 4, "hangs in native code", *[LIMIT_S / 4] * 3]
    ended = {
        each.index: each for each in run(work_or_hang, jobs, workers=workers, time_limit_s=LIMIT_S)
    }
    assert [ended[index].result for index in (0, 2, 3, 4)] == [LIMIT_S / 4] * 4
    hung = ended[1]
    assert LIMIT_S <= hung.seconds < LIMIT_S + 20
    assert re.fullmatch(
        r"given up after 0\.\d+ min, past its time limit of 0\.03 min \(--scan-time-limit\); "
        r"its last message: detecting\.",
        hung.error,
    )
    assert hung.errno == errno.ETIMEDOUT


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("job", ["hangs in native code", "hangs and talks"])
def test_the_process_of_a_job_that_was_given_up_is_gone(job):
    heard = []
    running = run(
        *(work_or_hang, [job]),
        workers=1, time_limit_s=LIMIT_S, listen=lambda *_: heard.append(active_children()),
    )  # fmt: skip
    assert "past its time limit" in next(running).error
    [process] = heard[-1]  # while it was detecting
    assert not _runs(process.pid)


def test_a_process_that_does_not_become_ready_is_given_up(monkeypatch):
    monkeypatch.setattr(processes, "START_LIMIT_S", 0.001)
    (ended,) = run(work_or_hang, [0], workers=1, time_limit_s=1e6)
    assert "its process was not ready within" in ended.error


@pytest.mark.parametrize("limit", [None, 60 * 24 * 365 * 100, 1e300])
def test_no_limit_is_too_long_to_be_waited_for(limit):
    assert [ended.result for ended in run(work_or_hang, [0], workers=1, time_limit_s=limit)] == [0]
