"""Scans on a Dask cluster: networks stay with their workers, and a worker may die."""

import json
import os
import signal
import time

import pytest
from distributed import Client, LocalCluster

from bids_cmb.cli.run import main
from bids_cmb.errors import ExitError
from bids_cmb.parallel.dask import run

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


def test_a_worker_that_is_not_fit_ends_the_run(cluster):
    with pytest.raises(ExitError, match=r"Dask worker tcp:.* it is unwell"):
        on(cluster, [None], fault=unwell)


def test_a_scheduler_that_does_not_answer_ends_the_run(monkeypatch):
    monkeypatch.setattr("bids_cmb.parallel.dask.ANSWER_TIMEOUT_S", 0.5)
    with pytest.raises(ExitError, match=r"tcp://127.0.0.1:9 did not") as end:
        on("tcp://127.0.0.1:9", [None])
    assert end.value.code == 69


@pytest.mark.usefixtures("one_process")
def test_the_app_reads_scans_on_a_cluster_as_it_does_alone(dataset, tmp_path):
    """The counts and lesion tables are the same bytes, whoever reads; so are those over time."""
    stems = ("sub-01/ses-1/anat/sub-01_ses-1", "sub-01/ses-2/anat/sub-01_ses-2")
    raw = dataset({f"{stem}_T2starw": "ball" for stem in (*stems, "sub-02/anat/sub-02")})
    plain = ["--detector", "radial", "--anatomy", "none", "--validate", "off", "-q"]
    plain += ["--skip-brain-extraction"]
    out = {}
    for name, flags in {"alone": [], "cluster": ["--dask", "local"]}.items():
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
