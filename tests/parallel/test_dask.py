"""Scans on a Dask cluster: networks stay with their workers, and a worker may die."""

import collections
import errno
import itertools
import json
import logging
import os
import re
import signal
import time

import pytest
from distributed import Client, LocalCluster

from bids_cmb.cli.run import main
from bids_cmb.errors import ExitError
from bids_cmb.parallel.dask import run

LIMIT_S = 3.0
CLUSTER = ["--dask", "local", "--scan-time-limit", "60"]  # by a process of its own, too

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def square(job):
    """Squares a number; one number kills its worker the first time, another one is refused."""
    number, diary = job
    with diary.open("a") as file:
        file.write(f"{number} {os.getpid()} {os.environ['MARK']}\n")
    if number == 3:
        raise ValueError("three: the rule is even; found 3.")
    if number == 5 and diary.read_text().count("\n5 ") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def square_or_hang(job):
    """Square a number; 2 never returns to the interpreter, 6 kills its process."""
    number, diary = job
    with diary.open("a") as file:
        file.write(f"{number} {os.getpid()} {os.getppid()} {os.environ['MARK']}\n")
    if number == 2:
        logging.getLogger("bids_cmb.workflow.scan").debug("detecting")
        collections.deque(itertools.repeat(None), maxlen=0)
    if number == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def well():
    return ""


def unwell():
    return "it is unwell."


def on(address, jobs, fault=well, told=None):
    say = (told if told is not None else []).append
    settings = {"address": address, "workers": 2, "environment": {"MARK": "set"}}
    return list(run(square, jobs, **settings, find_fault=fault, log=say))


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def diary(tmp_path_factory):
    file = tmp_path_factory.mktemp("dask") / "diary"
    file.write_text("\n")
    return file


@pytest.fixture(scope="module")
def outcomes(diary):
    return {one.index: one for one in on("local", [(number, diary) for number in range(8)])}


@pytest.fixture
def cluster():
    settings = {"threads_per_worker": 4, "dashboard_address": None, "memory_limit": 0}
    with LocalCluster(n_workers=1, resources={"GPU": 1}, **settings) as made, Client(made):
        yield made.scheduler_address


def test_every_job_ends_once_though_a_worker_was_killed(outcomes):
    assert sorted(outcomes) == list(range(8))
    results = {at: one.result for at, one in outcomes.items() if not one.error}
    assert results == {at: at**2 for at in (0, 1, 2, 4, 5, 6, 7)}


def test_the_killed_job_was_tried_again_by_another_process(outcomes, diary):
    assert outcomes[5].result == 25
    pids = [line.split()[1] for line in diary.read_text().splitlines() if line.startswith("5 ")]
    assert len(set(pids)) == 2


def test_a_failed_job_gives_its_sentence_and_its_traceback(outcomes):
    assert outcomes[3].error == "three: the rule is even; found 3."
    assert "Traceback" in outcomes[3].details


def test_workers_know_the_environment(outcomes, diary):
    assert outcomes
    assert {line.split()[2] for line in diary.read_text().split("\n") if line} == {"set"}


def test_workers_with_a_gpu_are_asked_if_there_are_any(cluster, tmp_path):
    told = []
    (tmp_path / "diary").touch()
    (one,) = on(cluster, [(4, tmp_path / "diary")], told=told)
    assert one.result == 16
    assert told == ["Dask workers: 1, with a GPU of their own: 1."]


def test_what_a_worker_had_done_is_done_again_if_it_dies_before_it_is_fetched(cluster, tmp_path):
    diary = tmp_path / "diary"
    settings = {"address": cluster, "workers": 1, "environment": {"MARK": "set"}}
    told = run(square, [(at, diary) for at in (0, 1, 2)], **settings, find_fault=well, log=print)
    first = next(told)
    with Client(cluster) as client:
        until(lambda: diary.read_text().count("\n") == 3)
        (before,) = client.scheduler_info()["workers"]
        os.kill(int(diary.read_text().split()[1]), signal.SIGKILL)
        until(lambda: before not in client.scheduler_info()["workers"])
    assert {one.index: one.result for one in (first, *told)} == {0: 0, 1: 1, 2: 4}
    assert diary.read_text().count("\n") == 5  # the first one was fetched before


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """Seven jobs with a time limit on a cluster of one worker: their outcomes, and its diary."""
    diary = tmp_path_factory.mktemp("limited") / "diary"
    jobs = [(number, diary) for number in (0, 1, 2, 3, 6, 4, 5)]
    settings = {"address": "local", "workers": 1, "environment": {"MARK": "set"}}
    settings |= {"find_fault": well, "log": print, "time_limit_s": LIMIT_S}
    ended = {jobs[one.index][0]: one for one in run(square_or_hang, jobs, **settings)}
    return ended, [line.split() for line in diary.read_text().splitlines()]


def test_a_job_that_hangs_on_a_cluster_is_given_up_in_a_sentence(limited):
    hung = limited[0][2]
    assert re.fullmatch(
        r"given up after 0\.\d+ min, past its time limit of 0\.05 min \(--scan-time-limit\); "
        r"its last message: detecting\.",
        hung.error,
    )
    assert hung.errno == errno.ETIMEDOUT
    assert LIMIT_S <= hung.seconds < LIMIT_S + 30


def test_the_others_go_on_by_the_same_worker_which_is_not_lost(limited):
    ended, diary = limited
    assert {number: one.result for number, one in ended.items() if not one.error} == {
        number: number**2 for number in (0, 1, 3, 4, 5)
    }
    assert sorted(int(line[0]) for line in diary) == list(range(7))  # none was tried again
    assert len({line[2] for line in diary}) == 1  # one worker, the parent of all processes
    assert len({line[1] for line in diary}) == 3  # a fresh one after each of two that were ended
    assert {line[3] for line in diary} == {"set"}


def test_a_process_that_is_killed_costs_its_job_only(limited):
    assert "was killed from outside" in limited[0][6].error


def test_a_worker_that_is_not_fit_ends_the_run(cluster):
    with pytest.raises(ExitError, match=r"Dask worker tcp:.* it is unwell"):
        on(cluster, [None], fault=unwell)


def test_a_scheduler_that_does_not_answer_ends_the_run(monkeypatch):
    monkeypatch.setattr("bids_cmb.parallel.dask.ANSWER_TIMEOUT_S", 0.5)
    with pytest.raises(ExitError, match=r"tcp://127.0.0.1:9 did not") as end:
        on("tcp://127.0.0.1:9", [None])
    assert end.value.code == 69


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_the_app_reads_scans_on_a_cluster_as_it_does_alone(dataset, tmp_path):
    """The counts and lesion tables are the same bytes, whoever reads; so are those over time."""
    stems = ("sub-01/ses-1/anat/sub-01_ses-1", "sub-01/ses-2/anat/sub-01_ses-2")
    raw = dataset({f"{stem}_T2starw": "ball" for stem in (*stems, "sub-02/anat/sub-02")})
    plain = ["--detector", "radial", "--anatomy", "none", "--validate", "off", "-q"]
    plain += ["--skip-brain-extraction"]
    out = {}
    for name, flags in {"alone": [], "cluster": CLUSTER}.items():
        words = [str(raw), str(tmp_path / name), "participant", "group", "--n-cpus", "2"]
        assert main([*words, *plain, *flags]) == 0
        home = tmp_path / name
        tables = [path for path in sorted(home.rglob("*.tsv")) if "logs" not in path.parts]
        out[name] = {str(path.relative_to(home)): path.read_bytes() for path in tables}
    assert out["alone"] == out["cluster"]
    assert out["alone"]["group_microbleeds.tsv"]
    assert (
        b"persistent" in out["cluster"]["sub-01/anat/sub-01_desc-longitudinalT2starw_lesions.tsv"]
    )
    assert all(b"yes" in text for name, text in out["alone"].items() if "dseg" in name)  # lesions
    status = next((tmp_path / "cluster").glob("logs/*/status.jsonl")).read_text().splitlines()
    assert [json.loads(line)["status"] for line in status].count("ok") == 3
