"""Run jobs on a Dask cluster; networks are loaded once per worker, and a worker may die.

The scans, the output folder and this version of bids_cmb must be there for every worker, under
the same names: a shared file system and one image do that.
"""

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields

from bids_cmb import __version__
from bids_cmb.errors import UNAVAILABLE, ExitError
from bids_cmb.parallel.processes import Outcome, OwnProcess, run_job

LOCAL = "local"  # in place of an address: a cluster of processes on this machine
GPU = "GPU"  # the resource that a worker with a GPU of its own announces
ANSWER_TIMEOUT_S = 30  # for the scheduler to answer
WORKER_TIMEOUT_S = 600  # for the first worker: they may wait in a queue
_one_at_a_time_lock = threading.Lock()  # also for a worker with several threads
_own_process = OwnProcess()  # of a worker, for jobs with a time limit


def run(
    work: Callable[[object], object],
    jobs: Sequence[object],
    *,
    address: str,
    workers: int,
    environment: Mapping[str, str],
    find_fault: Callable[[], str],
    log: Callable[[str], None],
    time_limit_s: float | None = None,
) -> Iterator[Outcome]:
    """Run ``work(job)`` for every job on a cluster, and report how each one ended.

    Like `parallel.processes.run`, but a job whose worker dies is tried again on another one, as
    often as the scheduler allows (three times by default), and one that was done, but whose outcome
    died with its worker before it was fetched, is done again. Where any worker announces a ``GPU``,
    only such workers get jobs. Closing the generator cancels what has not begun.

    With a time limit each worker runs its jobs in a process of its own, which is killed with the
    job that runs past its limit, whatever that hangs in. The worker stays for the others. A job
    whose process dies is failed then, not tried again.

    Args:
        work: A function at the top level of a module.
        jobs: Anything that can be pickled.
        address: Of the scheduler, ``tcp://host:8786``; or ``local``.
        workers: Processes, of a local cluster.
        environment: Variables for the workers, set before the first job.
        find_fault: Called on every worker that gets jobs; returns what is wrong with it, or
            nothing.
        log: Called with a sentence on the workers.
        time_limit_s: For each job, from the moment at which its process has begun it.

    Yields:
        Outcomes, in the order in which the jobs end.

    Raises:
        ExitError: If there is no such scheduler, no worker comes, or one is not fit to work.
    """
    with _connect(address, workers) as client:
        resources = _prepare_workers(client, environment, find_fault, log)
        waiting = {
            client.submit(
                *(_run_on_worker, work, job, dict(environment), time_limit_s),
                pure=False,
                retries=0,
                resources=resources,
            ): index
            for index, job in enumerate(jobs)
        }
        try:
            ended = _import_distributed().as_completed(list(waiting))
            for future in ended:
                if future.status == "lost":
                    ended.add(future)  # the scheduler repeats it by itself
                    continue
                outcome = Outcome(waiting.pop(future), **_fields_of(future))
                future.release()  # now it need not be repeated if a worker dies
                yield outcome
        finally:
            client.cancel(list(waiting))


def _import_distributed():
    try:
        import distributed  # noqa: PLC0415  an extra, imported only where it is used
    except ImportError as error:
        message = "--dask-scheduler needs the package distributed: pip install 'bids-cmb[dask]'."
        raise ExitError(UNAVAILABLE, message) from error
    return distributed


@contextmanager
def _connect(address: str, workers: int) -> Iterator:
    library = _import_distributed()
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
        client = library.Client(address, timeout=ANSWER_TIMEOUT_S)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        message = f"--dask-scheduler needs a scheduler that answers; {address} did not"
        raise ExitError(UNAVAILABLE, f"{message} ({error}).") from error
    with client:
        yield client


def _prepare_workers(
    client, environment: Mapping, find_fault: Callable, log: Callable
) -> dict[str, int] | None:
    """Wait for a worker, check all, and return the resources that a job asks for."""
    try:
        client.wait_for_workers(1, timeout=WORKER_TIMEOUT_S)
    except TimeoutError as error:
        message = f"--dask-scheduler needs workers; none came within {WORKER_TIMEOUT_S} s."
        raise ExitError(UNAVAILABLE, message) from error
    workers = client.scheduler_info(n_workers=-1)["workers"]
    with_gpu = [name for name, worker in workers.items() if GPU in worker.get("resources", {})]
    log(f"Dask workers: {len(workers)}, with a GPU of their own: {len(with_gpu)}.")
    chosen = with_gpu or list(workers)
    states = client.run(_check_on_worker, find_fault, dict(environment), workers=chosen)
    for name, (version, fault) in states.items():
        if fault:
            raise ExitError(UNAVAILABLE, f"Dask worker {name}: {fault}")
        if version != __version__:
            rule = f"its bids_cmb must be {__version__} like here; found {version}."
            raise ExitError(UNAVAILABLE, f"Dask worker {name}: {rule}")
    return {GPU: 1} if with_gpu else None


def _check_on_worker(find_fault: Callable[[], str], environment: dict[str, str]) -> tuple[str, str]:
    """Return the version of bids_cmb on this worker, and what is wrong with it."""
    os.environ.update(environment)
    return __version__, find_fault()


def _run_on_worker(
    work: Callable, job: object, environment: dict[str, str], time_limit_s: float | None
) -> dict:
    """Run a job on this worker, and return the fields of its `Outcome`."""
    with _one_at_a_time_lock:
        os.environ.update(environment)
        if time_limit_s is not None:
            return _run_within_limit(
                functools.partial(_work_in, environment, work), job, time_limit_s
            )
        began = time.monotonic()
        return {**run_job(work, job), "seconds": time.monotonic() - began}


def _run_within_limit(work: Callable, job: object, time_limit_s: float) -> dict:
    """Run a job in this worker's own process, and return the fields of its `Outcome`."""
    # Dask's nannies start workers as daemons, which may have no processes; this one ends its own.
    multiprocessing.current_process().daemon = False
    outcome = _own_process.run(work, job, time_limit_s)
    return {
        part.name: getattr(outcome, part.name) for part in fields(outcome) if part.name != "index"
    }


def _work_in(environment: dict[str, str], work: Callable, job: object) -> object:
    os.environ.update(environment)
    return work(job)


def _fields_of(future) -> dict:
    """Return the fields of the `Outcome` of a job that ended, one way or another."""
    library = _import_distributed()
    try:
        return future.result()
    except library.CancelledError:
        message = "the Dask scheduler gave the job up."
    except library.KilledWorker:
        message = "its worker died, and so did those that tried again (memory, most likely)."
    except Exception as error:
        message = f"the Dask worker failed: {' '.join(str(error).split())}"
    return {"error": message}
