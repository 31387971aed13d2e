"""A job over many scans on a Dask cluster: networks loaded once per worker, and a worker may die.

The scans, the output folder and this version of bids_cmb must be there for every worker, under
the same names: a shared file system and one image do that.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from bids_cmb import __version__
from bids_cmb.errors import UNAVAILABLE, ExitError
from bids_cmb.parallel.processes import Outcome, attempt

LOCAL = "local"  # in place of an address: a cluster of processes on this machine
GPU = "GPU"  # the resource that a worker with a GPU of its own announces
SECONDS_TO_ANSWER = 30  # for the scheduler
SECONDS_FOR_WORKERS = 600  # for the first worker: they may wait in a queue
_in_turn = threading.Lock()  # a worker of many threads still reads one scan at a time


def run(
    work: Callable[[object], object],
    jobs: Sequence[object],
    *,
    address: str,
    workers: int,
    environment: Mapping[str, str],
    fault: Callable[[], str],
    say: Callable[[str], None],
) -> Iterator[Outcome]:
    """Run ``work(job)`` for every job on a cluster, and tell how each one ended.

    Like `parallel.processes.run`, but a job whose worker dies is tried again on another one, as
    often as the scheduler allows (three times by default), and one that was done, but whose outcome
    died with its worker before it was fetched, is done again. Where any worker announces a ``GPU``,
    only such workers are asked. Closing the generator cancels what has not begun.

    Args:
        work: A function at the top level of a module.
        jobs: Anything that can be pickled.
        address: Of the scheduler, ``tcp://host:8786``; or ``local``.
        workers: Processes, of a local cluster.
        environment: Variables for the workers, set before the first job.
        fault: Called on every worker that will work; what is wrong with it, or nothing.
        say: Told who works.

    Yields:
        Outcomes, in the order in which the jobs end.

    Raises:
        ExitError: If there is no such scheduler, no worker comes, or one is not fit to work.
    """
    with _client(address, workers) as client:
        resources = _ready(client, environment, fault, say)
        waiting = {
            client.submit(
                *(_one, work, job, dict(environment)), pure=False, retries=0, resources=resources
            ): at
            for at, job in enumerate(jobs)
        }
        try:
            ended = _library().as_completed(list(waiting))
            for future in ended:
                if future.status == "lost":
                    ended.add(future)  # the scheduler has it done again, without being asked
                    continue
                outcome = Outcome(waiting.pop(future), **_said(future))
                future.release()  # whoever dies now, this one need not be done again
                yield outcome
        finally:
            client.cancel(list(waiting))


def _library():
    try:
        import distributed  # noqa: PLC0415  an extra; nobody waits for it who does not ask
    except ImportError as error:
        said = "--dask-scheduler needs the package distributed: pip install 'bids-cmb[dask]'."
        raise ExitError(UNAVAILABLE, said) from error
    return distributed


@contextmanager
def _client(address: str, workers: int) -> Iterator:
    library = _library()
    if address == LOCAL:
        with (
            library.LocalCluster(
                n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None
            ) as cluster,
            library.Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = library.Client(address, timeout=SECONDS_TO_ANSWER)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        said = f"--dask-scheduler needs a scheduler that answers; {address} did not"
        raise ExitError(UNAVAILABLE, f"{said} ({error}).") from error
    with client:
        yield client


def _ready(client, environment: Mapping, fault: Callable, say: Callable) -> dict[str, int] | None:
    """Wait for a worker, see that all are fit, and say what those need whom jobs may go to."""
    try:
        client.wait_for_workers(1, timeout=SECONDS_FOR_WORKERS)
    except TimeoutError as error:
        said = f"--dask-scheduler needs workers; none came within {SECONDS_FOR_WORKERS} s."
        raise ExitError(UNAVAILABLE, said) from error
    known = client.scheduler_info(n_workers=-1)["workers"]
    with_gpu = [name for name, one in known.items() if GPU in one.get("resources", {})]
    say(f"Dask workers: {len(known)}, with a GPU of their own: {len(with_gpu)}.")
    chosen = with_gpu or list(known)
    told = client.run(_state, fault, dict(environment), workers=chosen)
    for name, (version, wrong) in told.items():
        if wrong:
            raise ExitError(UNAVAILABLE, f"Dask worker {name}: {wrong}")
        if version != __version__:
            rule = f"its bids_cmb must be {__version__} like here; found {version}."
            raise ExitError(UNAVAILABLE, f"Dask worker {name}: {rule}")
    return {GPU: 1} if with_gpu else None


def _state(fault: Callable[[], str], environment: dict[str, str]) -> tuple[str, str]:
    """On the worker: its version of bids_cmb, and what is wrong with it."""
    os.environ.update(environment)
    return __version__, fault()


def _one(work: Callable, job: object, environment: dict[str, str]) -> dict:
    """On the worker: one job, and how it ended, as the fields of an ``Outcome``."""
    with _in_turn:
        os.environ.update(environment)
        began = time.monotonic()
        return {**attempt(work, job), "seconds": time.monotonic() - began}


def _said(future) -> dict:
    """The fields of an ``Outcome`` from a job that came to an end, one way or another."""
    library = _library()
    try:
        return future.result()
    except library.CancelledError:
        said = "the Dask scheduler gave the job up."
    except library.KilledWorker:
        said = "its worker died, and so did those that tried again (memory, most likely)."
    except Exception as error:
        said = f"the Dask worker failed: {' '.join(str(error).split())}"
    return {"error": said}
