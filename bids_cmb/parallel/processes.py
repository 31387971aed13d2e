"""Run jobs in processes of this machine; a job that fails does not stop the others."""

import errno
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from bids_cmb.files import lock_folder

# A fresh interpreter per worker: nothing of the parent's threads or open files comes along.
SPAWN = multiprocessing.get_context("spawn")
SECONDS_TO_LEAVE = 5
MAX_WAIT_S = 3600  # the operating system counts a wait in milliseconds, as an int
START_LIMIT_S = 600  # for a process to be ready, where its jobs have a time limit
BEGUN = "begun"  # what a process sends when it has a job
STARTED = "started"  # what a listener hears of a job when it is given to a process
Listener = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """How one job ended.

    Attributes:
        index: Position in the sequence of jobs, from 0.
        result: What it returned; None if it failed.
        error: One sentence; empty if it succeeded.
        details: The traceback, for the crash file.
        errno: Of the operating system, where that was the cause.
        seconds: Wall time.
    """

    index: int
    result: object = None
    error: str = ""
    details: str = ""
    errno: int | None = None
    seconds: float = 0.0


def ignore(_index: int, _level: int, _message: str) -> None:
    """Listen to nothing."""


def run(
    work: Callable[[object], object],
    jobs: Sequence[object],
    *,
    workers: int,
    listen: Listener = ignore,
    time_limit_s: float | None = None,
) -> Iterator[Outcome]:
    """Run ``work(job)`` for every job in ``workers`` processes, and report how each one ended.

    A job that raises, whose process dies, or that is not done within the time limit, is one failed
    outcome; the others go on. Only as many jobs are running as there are processes, so memory does
    not grow with their number. What runs past its limit is killed, whatever it hangs in: only a
    process that waits for a device in the kernel outlives that, until the device answers.
    Closing the generator ends the processes; files written by ``files.replacing`` stay whole.

    Args:
        work: A function at the top level of a module.
        jobs: Anything that can be pickled.
        workers: Processes, at least 1.
        listen: Called with a job's index, a level of `logging` and a message: `STARTED`, then what
            the app logs in its process.
        time_limit_s: For each job, from the moment at which its process has begun it.

    Yields:
        Outcomes, in the order in which the jobs end.
    """
    waiting = iter(enumerate(jobs))
    busy: dict[connection.Connection, _Worker] = {}

    def give_job(worker: _Worker, index: int, job: object) -> None:
        worker.give(index, job, time_limit_s)
        busy[worker.pipe] = worker
        listen(index, logging.INFO, STARTED)

    try:
        for index, job in _take(waiting, min(workers, len(jobs))):
            give_job(_Worker.start_process(work), index, job)
        while busy:
            for worker, received in _receive(busy):
                if received is None:
                    continue
                if not isinstance(received, Outcome):
                    listen(worker.index, *received)
                    continue
                del busy[worker.pipe]
                yield received
                following = next(waiting, None)
                if following is None:
                    worker.stop()
                    continue
                fit = worker if worker.is_fit() else _Worker.start_process(work)
                give_job(fit, *following)
    finally:
        for worker in busy.values():
            worker.stop(at_once=True)


def _take(items: Iterator, count: int) -> Iterable:
    return [item for _, item in zip(range(count), items, strict=False)]


def _receive(busy: dict) -> Iterator[tuple["_Worker", Outcome | tuple[int, str] | None]]:
    """Wait until workers send something or a time limit passes; give up what is overdue."""
    seconds_left = min(worker.deadline for worker in busy.values()) - time.monotonic()
    for pipe in connection.wait(list(busy), min(max(0, seconds_left), MAX_WAIT_S)):
        yield busy[pipe], busy[pipe].receive()
    for worker in list(busy.values()):
        if worker.is_overdue():
            yield worker, worker.give_up()


class OwnProcess:
    """A process that runs one job after the other, for a caller that must outlive a job that hangs.

    It begins with the first job, keeps what it has loaded for the next ones, and is followed by a
    fresh one after a job that killed it or was given up.
    """

    def __init__(self):
        self._worker: _Worker | None = None

    def run(
        self, work: Callable[[object], object], job: object, time_limit_s: float | None
    ) -> Outcome:
        """Run ``work(job)``, and wait for its end, its process's death or its time limit.

        Args:
            work: Anything that can be pickled and called; it may differ from job to job.
            job: Anything that can be pickled.
            time_limit_s: From the moment at which the process has begun the job.
        """
        if self._worker is None or not self._worker.is_fit():
            self._worker = _Worker.start_process(_call)
        self._worker.give(0, (work, job), time_limit_s)
        while True:
            for _, received in _receive({self._worker.pipe: self._worker}):
                if isinstance(received, Outcome):
                    return received

    def stop(self) -> None:
        """End the process."""
        if self._worker is not None and not self._worker.pipe.closed:
            self._worker.stop(at_once=True)


def _call(pair: tuple[Callable[[object], object], object]) -> object:
    work, job = pair
    return work(job)


class _Worker:
    """A process and the pipe to it; it has one job at a time, which may have a deadline."""

    def __init__(self, process, pipe):
        self.process, self.pipe = process, pipe
        self.index, self.since, self.deadline = -1, 0.0, math.inf
        self.time_limit_s: float | None = None
        self.begun, self.last_message = False, ""
        self.send_error: dict | None = None

    @classmethod
    def start_process(cls, work: Callable) -> "_Worker":
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=_serve_jobs, args=(work, there), daemon=True)
        process.start()
        there.close()  # the process has its own end; so its death closes the pipe
        return cls(process, here)

    def give(self, index: int, job: object, time_limit_s: float | None) -> None:
        self.index, self.since, self.time_limit_s = index, time.monotonic(), time_limit_s
        self.begun, self.last_message = False, ""
        self.deadline = math.inf if time_limit_s is None else self.since + START_LIMIT_S
        try:
            self.pipe.send(job)
        except OSError:
            pass  # it died: `receive` will find the pipe closed
        except Exception as error:  # the job cannot be sent: one failure, and another process
            self.send_error = describe_failure(error)
            self.process.terminate()

    def receive(self) -> Outcome | tuple[int, str] | None:
        """Receive an outcome, a level and a message, or None: the job has begun.

        If the process died, the outcome says so.
        """
        try:
            received = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(SECONDS_TO_LEAVE)
            received = self.send_error or {
                "error": f"the process {_describe_end(self.process.exitcode)}."
            }
        if received == BEGUN:
            return self._start_clock()
        if isinstance(received, tuple):
            self.last_message = received[1]
            return received
        return Outcome(self.index, seconds=time.monotonic() - self.since, **received)

    def _start_clock(self) -> None:
        """Count the seconds of the job from now on; until now they were those of its process."""
        self.begun, self.since = True, time.monotonic()
        if self.time_limit_s is not None:
            self.deadline = self.since + self.time_limit_s

    def is_overdue(self) -> bool:
        """Check whether the job is past its deadline; what is in the pipe is received first."""
        seconds_over = time.monotonic() - self.deadline
        return seconds_over >= 0 and (seconds_over > SECONDS_TO_LEAVE or not self.pipe.poll())

    def give_up(self) -> Outcome:
        """End the process, and say how long its job ran."""
        seconds = time.monotonic() - self.since
        self.stop(at_once=True)
        error = f"its process was not ready within {START_LIMIT_S / 60:g} min."
        if self.begun:
            error = describe_timeout(seconds, self.time_limit_s, self.last_message)
        return Outcome(self.index, error=error, errno=errno.ETIMEDOUT, seconds=seconds)

    def is_fit(self) -> bool:
        """Check whether the process can take another job."""
        return not self.pipe.closed and self.process.is_alive()

    def stop(self, *, at_once: bool = False) -> None:
        self.pipe.close()  # the process ends then
        if at_once:
            self.process.terminate()
        self.process.join(SECONDS_TO_LEAVE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(SECONDS_TO_LEAVE)


def _describe_end(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "was killed from outside, most likely because memory ran out (see --mem-mb)"
    if exitcode is not None and exitcode < 0:
        return f"died of {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


def describe_timeout(seconds: float, limit_s: float, last_message: str = "") -> str:
    """Describe in one sentence that a job was given up at its time limit."""
    stage = f"; its last message: {last_message.rstrip('.')}" if last_message else ""
    limit = f"{round(limit_s / 60, 2):g} min (--scan-time-limit)"
    return f"given up after {round(seconds / 60, 2):g} min, past its time limit of {limit}{stage}."


def leave_signals_to_parent() -> None:
    """Ignore the signals of a terminal in this process: they reach its parent, which decides."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _serve_jobs(work: Callable, pipe: connection.Connection) -> None:
    """Receive jobs and send their outcomes until the pipe closes: the loop of a worker.

    Then exit at once: libraries that free their memory piece by piece take seconds for it.
    """
    leave_signals_to_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    lock_folder(Path(tempfile.gettempdir()))
    reporter = _Reporter(pipe)
    app_log = logging.getLogger("bids_cmb")
    app_log.addHandler(reporter)
    app_log.setLevel(logging.DEBUG)
    app_log.propagate = False
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        with suppress(OSError):  # the parent is gone: the next `recv` ends the loop
            reporter.send(BEGUN)
            reporter.send(run_job(work, job))


class _Reporter(logging.Handler):
    """Sends what is logged in a worker, and outcomes, through its pipe, one after the other."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe

    def send(self, content: object) -> None:
        with self.lock:
            self.pipe.send(content)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self.send((record.levelno, record.getMessage()))


def run_job(work: Callable, job: object) -> dict:
    """Call ``work(job)``, and return what came of it as the fields of an `Outcome`."""
    try:
        return {"result": work(job)}
    except Exception as error:  # one failure is one failure, whatever it is
        return describe_failure(error)


def describe_failure(error: Exception) -> dict:
    """Describe an error as the fields of an `Outcome`."""
    return {
        "error": describe_error(error),
        "details": "".join(traceback.format_exception(error)),
        "errno": getattr(error, "errno", None),
    }


def describe_error(error: BaseException) -> str:
    """Describe an error in one sentence.

    A ValueError of ours is a sentence already; an OSError names the file and the reason; anything
    else is a defect of this program, and the sentence says so.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror[0].lower()}{error.strerror[1:]}."
    if isinstance(error, MemoryError):
        return "memory ran out (see --mem-mb)."
    message = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError):
        return message
    return f"unexpected {type(error).__name__}: {message}"


def count_cores() -> int:
    """Count the CPU cores this process may use, by its affinity and its control group."""
    if hasattr(os, "sched_getaffinity"):
        granted = len(os.sched_getaffinity(0))
    else:
        granted = os.cpu_count() or 1
    return max(1, min(granted, _count_cgroup_cores() or granted))


def measure_memory_mb() -> int:
    """Measure the memory this process may use, in MB: free now, and within its control group."""
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _read_first_line(path)
        if limit.isdigit():
            limits.append(int(limit) // 2**20)
    available = [line for line in _read_lines("/proc/meminfo") if line.startswith("MemAvailable")]
    if available:
        limits.append(int(available[0].split()[1]) // 2**10)
    return min(limits, default=4096)


def _count_cgroup_cores() -> int | None:
    quota, *period = _read_first_line("/sys/fs/cgroup/cpu.max").split() or [""]
    return max(1, int(quota) // int(period[0])) if quota.isdigit() and period else None


def _read_first_line(path: str) -> str:
    return next(iter(_read_lines(path)), "").strip()


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
