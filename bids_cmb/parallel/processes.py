"""A job over many scans: a few at a time, each on its own, and one failure is one failure."""

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

from bids_cmb.files import hold_folder

# A fresh interpreter per worker: nothing of the parent's threads or open files comes along.
SPAWN = multiprocessing.get_context("spawn")
SECONDS_TO_LEAVE = 5


@dataclass(frozen=True)
class Outcome:
    """How one job ended.

    Attributes:
        at: Its place in the sequence of jobs, from 0.
        result: What it returned; None if it failed.
        error: One sentence; empty if it succeeded.
        details: The traceback, for the crash file.
        errno: Of the operating system, where that was the cause.
        seconds: Wall time.
    """

    at: int
    result: object = None
    error: str = ""
    details: str = ""
    errno: int | None = None
    seconds: float = 0.0


def run(
    work: Callable[[object], object], jobs: Sequence[object], *, workers: int
) -> Iterator[Outcome]:
    """Run ``work(job)`` for every job in ``workers`` processes, and tell how each one ended.

    A job that raises, or whose process dies, is one failed outcome; the others go on. Only as
    many jobs are under way as there are processes, so memory does not grow with their number.
    Closing the generator ends the processes; files written by ``files.replacing`` stay whole.

    Args:
        work: A function at the top level of a module.
        jobs: Anything that can be pickled.
        workers: Processes, at least 1.

    Yields:
        Outcomes, in the order in which the jobs end.
    """
    waiting = iter(enumerate(jobs))
    team: dict[connection.Connection, _Worker] = {}
    try:
        for at, job in _first(waiting, min(workers, len(jobs))):
            _give(team, _Worker.hired(work), at, job)
        while team:
            for line in connection.wait(list(team)):
                worker = team.pop(line)
                outcome = worker.outcome()
                yield outcome
                following = next(waiting, None)
                if following is None:
                    worker.dismiss()
                    continue
                if not worker.process.is_alive():
                    worker = _Worker.hired(work)
                _give(team, worker, *following)
    finally:
        for worker in team.values():
            worker.dismiss(at_once=True)


def _first(items: Iterator, count: int) -> Iterable:
    return [item for _, item in zip(range(count), items, strict=False)]


def _give(team: dict, worker: "_Worker", at: int, job: object) -> None:
    worker.start(at, job)
    team[worker.line] = worker


class _Worker:
    """A process and the line to it; it has one job at a time."""

    def __init__(self, process, line):
        self.process, self.line = process, line
        self.at, self.since = -1, 0.0
        self.refused: dict | None = None

    @classmethod
    def hired(cls, work: Callable) -> "_Worker":
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=_serve, args=(work, there), daemon=True)
        process.start()
        there.close()  # the process has its own; so its death ends the line
        return cls(process, here)

    def start(self, at: int, job: object) -> None:
        self.at, self.since = at, time.monotonic()
        try:
            self.line.send(job)
        except OSError:
            pass  # it died: `outcome` will find the line ended
        except Exception as error:  # the job cannot be sent: one failure, and another process
            self.refused = failure(error)
            self.process.terminate()

    def outcome(self) -> Outcome:
        """What the process sent, or that it died."""
        try:
            said = self.line.recv()
        except (EOFError, OSError):
            self.process.join(SECONDS_TO_LEAVE)
            said = self.refused or {"error": f"the process {_end(self.process.exitcode)}."}
        return Outcome(self.at, seconds=time.monotonic() - self.since, **said)

    def dismiss(self, *, at_once: bool = False) -> None:
        self.line.close()  # its end is the sign to leave
        if at_once:
            self.process.terminate()
        self.process.join(SECONDS_TO_LEAVE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _end(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "was killed from outside, most likely because memory ran out (see --mem-mb)"
    if exitcode is not None and exitcode < 0:
        return f"died of {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


def _serve(work: Callable, line: connection.Connection) -> None:
    """Receive jobs and send their outcomes until the pipe closes: the loop of a worker.

    Then it leaves at once: libraries that tidy up their memory one by one take seconds for it.
    """
    for one in (signal.SIGINT, signal.SIGHUP):  # they reach the parent, which decides
        signal.signal(one, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    hold_folder(Path(tempfile.gettempdir()))
    while True:
        try:
            job = line.recv()
        except (EOFError, OSError):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        with suppress(OSError):  # the parent is gone: the next turn ends
            line.send(attempt(work, job))


def attempt(work: Callable, job: object) -> dict:
    """Call ``work(job)``; what came of it as the fields of an ``Outcome``."""
    try:
        return {"result": work(job)}
    except Exception as error:  # one failure is one failure, whatever it is
        return failure(error)


def failure(error: Exception) -> dict:
    """Describe an error as the fields of an ``Outcome``."""
    return {
        "error": sentence(error),
        "details": "".join(traceback.format_exception(error)),
        "errno": getattr(error, "errno", None),
    }


def sentence(error: BaseException) -> str:
    """An error as one sentence for a reader.

    A ValueError of ours is a sentence already; an OSError names the file and the reason; anything
    else is a defect of this program, and says so.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror[0].lower()}{error.strerror[1:]}."
    if isinstance(error, MemoryError):
        return "memory ran out (see --mem-mb)."
    said = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError):
        return said
    return f"unexpected {type(error).__name__}: {said}"


def cores() -> int:
    """CPU cores this process may use: its affinity, and no more than its control group grants."""
    if hasattr(os, "sched_getaffinity"):
        granted = len(os.sched_getaffinity(0))
    else:
        granted = os.cpu_count() or 1
    return max(1, min(granted, _cgroup_cores() or granted))


def memory_mb() -> int:
    """Memory this process may use, in MB: free now, and no more than its control group grants."""
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        said = _first_line(path)
        if said.isdigit():
            limits.append(int(said) // 2**20)
    available = [line for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    if available:
        limits.append(int(available[0].split()[1]) // 2**10)
    return min(limits, default=4096)


def _cgroup_cores() -> int | None:
    quota, *period = _first_line("/sys/fs/cgroup/cpu.max").split() or [""]
    return max(1, int(quota) // int(period[0])) if quota.isdigit() and period else None


def _first_line(path: str) -> str:
    return next(iter(_lines(path)), "").strip()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
