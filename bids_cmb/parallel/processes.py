"""Run jobs in processes of this machine; a job that fails does not stop the others."""

import logging
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
) -> Iterator[Outcome]:
    """Run ``work(job)`` for every job in ``workers`` processes, and report how each one ended.

    A job that raises, or whose process dies, is one failed outcome; the others go on. Only as
    many jobs are running as there are processes, so memory does not grow with their number.
    Closing the generator ends the processes; files written by ``files.replacing`` stay whole.

    Args:
        work: A function at the top level of a module.
        jobs: Anything that can be pickled.
        workers: Processes, at least 1.
        listen: Called with a job's index, a level of `logging` and a message: `STARTED`, then what
            the app logs in its process.

    Yields:
        Outcomes, in the order in which the jobs end.
    """
    waiting = iter(enumerate(jobs))
    busy: dict[connection.Connection, _Worker] = {}

    def give_job(worker: _Worker, index: int, job: object) -> None:
        worker.give(index, job)
        busy[worker.pipe] = worker
        listen(index, logging.INFO, STARTED)

    try:
        for index, job in _take(waiting, min(workers, len(jobs))):
            give_job(_Worker.start_process(work), index, job)
        while busy:
            for pipe in connection.wait(list(busy)):
                worker = busy[pipe]
                received = worker.receive()
                if not isinstance(received, Outcome):
                    listen(worker.index, *received)
                    continue
                del busy[pipe]
                yield received
                following = next(waiting, None)
                if following is None:
                    worker.stop()
                    continue
                if not worker.process.is_alive():
                    worker = _Worker.start_process(work)
                give_job(worker, *following)
    finally:
        for worker in busy.values():
            worker.stop(at_once=True)


def _take(items: Iterator, count: int) -> Iterable:
    return [item for _, item in zip(range(count), items, strict=False)]


class _Worker:
    """A process and the pipe to it; it has one job at a time."""

    def __init__(self, process, pipe):
        self.process, self.pipe = process, pipe
        self.index, self.since = -1, 0.0
        self.send_error: dict | None = None

    @classmethod
    def start_process(cls, work: Callable) -> "_Worker":
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=_serve_jobs, args=(work, there), daemon=True)
        process.start()
        there.close()  # the process has its own end; so its death closes the pipe
        return cls(process, here)

    def give(self, index: int, job: object) -> None:
        self.index, self.since = index, time.monotonic()
        try:
            self.pipe.send(job)
        except OSError:
            pass  # it died: `receive` will find the pipe closed
        except Exception as error:  # the job cannot be sent: one failure, and another process
            self.send_error = describe_failure(error)
            self.process.terminate()

    def receive(self) -> Outcome | tuple[int, str]:
        """Receive an outcome, or a level and a message; say so if the process died."""
        try:
            received = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(SECONDS_TO_LEAVE)
            received = self.send_error or {
                "error": f"the process {_describe_end(self.process.exitcode)}."
            }
        if isinstance(received, tuple):
            return received
        return Outcome(self.index, seconds=time.monotonic() - self.since, **received)

    def stop(self, *, at_once: bool = False) -> None:
        self.pipe.close()  # the process ends then
        if at_once:
            self.process.terminate()
        self.process.join(SECONDS_TO_LEAVE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _describe_end(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "was killed from outside, most likely because memory ran out (see --mem-mb)"
    if exitcode is not None and exitcode < 0:
        return f"died of {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


def _serve_jobs(work: Callable, pipe: connection.Connection) -> None:
    """Receive jobs and send their outcomes until the pipe closes: the loop of a worker.

    Then exit at once: libraries that free their memory piece by piece take seconds for it.
    """
    for number in (signal.SIGINT, signal.SIGHUP):  # they reach the parent, which decides
        signal.signal(number, signal.SIG_IGN)
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
