"""How tests run the app without the cost of processes that are not their point."""

from bids_cmb.parallel import processes


def in_this_process(work, jobs, *, workers):
    """Do what `parallel.processes.run` does, without a process of its own."""
    assert workers
    for at, job in enumerate(jobs):
        yield processes.Outcome(at, **processes.attempt(work, job))
