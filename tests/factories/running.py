"""How tests run the app without the cost of processes that are not their point."""

import logging
import shutil
from contextlib import contextmanager

from bids_cmb.cli.run import main
from bids_cmb.parallel import processes

QUICK = ["--detector", "radial", "--anatomy", "none", "-q", "--validate", "off"]


def in_this_process(work, jobs, *, workers, listen=processes.ignore, time_limit_s=None):
    """Do what `parallel.processes.run` does, without a process of its own to be ended in time."""
    assert workers
    assert time_limit_s is None
    for index, job in enumerate(jobs):
        listen(index, logging.INFO, processes.STARTED)
        yield processes.Outcome(index, **processes.run_job(work, job))


@contextmanager
def no_other_process():
    """Have the app read scans in this process: a second less for every other one."""
    before, processes.run = processes.run, in_this_process
    try:
        yield
    finally:
        processes.run = before


def run_on_two_scans(root, heads, *flags):
    """Run both levels on a dataset with six microbleeds in one scan and none in the other.

    Returns its arguments without flags, and the output folder.
    """
    for subject, head in (("01", "six"), ("02", "none")):
        path = root / f"raw/sub-{subject}/anat/sub-{subject}_T2starw.nii.gz"
        path.parent.mkdir(parents=True)
        shutil.copyfile(heads / f"{head}.nii.gz", path)
    (root / "raw/dataset_description.json").write_text('{"Name": "Two", "BIDSVersion": "1.11.1"}')
    words = [str(root / "raw"), str(root / "out"), "participant", "group"]
    with no_other_process():
        assert main([*words, *QUICK, "--threshold", "0.3", *flags]) == 0
    return words, root / "out"
