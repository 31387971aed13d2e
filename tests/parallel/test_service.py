"""One process answers all workers; whoever ends it is refused, and the others are answered."""

import os
import signal
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from bids_cmb.parallel.processes import run
from bids_cmb.parallel.service import ADDRESS_VARIABLE, Service, ServiceError, get_client


def answer(request, arrays):
    what = request[0]
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "odd":
        raise ValueError("the number must be even; found 3.")
    if what == "defect":
        raise KeyError("what")
    if what == "slow":
        time.sleep(1)
    if what == "hang":
        time.sleep(3600)
    if what == "full":
        raise MemoryError
    return (what, os.getpid()), [array * 2 for array in arrays]


def ask_from_a_worker(number):
    """What a worker of a run does: one of four ends the process that answers."""
    client = get_client()
    if number == 1:
        client.ask(("die",))
    return [client.ask(("double",), [np.full(5, number)])[1][0][0] for _ in range(5)]


def ask_slowly(_):
    return get_client().ask(("slow",))


def hang(_):
    return get_client().ask(("hang",))


@pytest.fixture
def client():
    with Service(answer):
        yield get_client()


def test_another_process_answers_and_arrays_come_back_as_they_are(client):
    arrays = [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::-1], np.zeros((0, 3), np.float32),
        np.array(2.5), np.ones((3, 2), ">f4"),
    ]  # fmt: skip
    (what, pid), doubled = client.ask(("double",), arrays)
    assert what == "double"
    assert pid != os.getpid()
    for array, other in zip(arrays, doubled, strict=True):
        np.testing.assert_array_equal(other, array * 2)
        assert other.shape == array.shape
    assert doubled[0].dtype == np.uint8


def test_what_is_asked_wrongly_is_a_sentence_and_nothing_else_is_hurt(client):
    with pytest.raises(ValueError, match="must be even; found 3"):
        client.ask(("odd",))
    with pytest.raises(ServiceError, match="unexpected KeyError"):
        client.ask(("defect",))
    with pytest.raises(ServiceError, match=r"memory ran out \(see --mem-mb\)"):
        client.ask(("full",))
    assert client.ask(("still",))[0][0] == "still"


def test_what_ends_the_process_is_refused_and_another_process_answers_the_next(client):
    before = client.ask(("who",))[0][1]
    with pytest.raises(ServiceError, match="ended at this scan, most likely because memory"):
        client.ask(("die",))
    assert client.ask(("who",))[0][1] != before


def test_one_worker_that_ends_it_does_not_stop_the_others():
    with Service(answer) as service:
        outcomes = list(run(ask_from_a_worker, list(range(4)), workers=3))
        assert service.n_requests >= 15
        assert 0 < service.busy_share < 1
    failed = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.index for outcome in failed] == [1]
    assert "ended at this scan" in failed[0].error
    assert "unexpected" not in failed[0].error
    assert all(one.result == [2 * one.index] * 5 for one in outcomes if not one.error)


def test_workers_that_are_given_up_while_they_wait_hold_nobody_up(client):
    """Their answers go nowhere; as do strangers, who know the place but not the key."""
    assert client.ask(("here",))[0][0] == "here"
    _, _, path = os.environ[ADDRESS_VARIABLE].partition(" ")
    for _ in range(6):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(path)
    outcomes = list(run(ask_slowly, [0, 1, 2], workers=3, time_limit_s=0.5))
    assert all("given up after" in outcome.error for outcome in outcomes)
    assert client.ask(("still",))[0][0] == "still"


def test_a_request_that_hangs_ends_with_the_time_limit_of_its_scan():
    with Service(answer, patience_s=0.5):
        before = get_client().ask(("who",))[0][1]
        (outcome,) = run(hang, [0], workers=1, time_limit_s=0.5)
        assert "given up after" in outcome.error
        began = time.monotonic()
        assert get_client().ask(("who",))[0][1] != before
        assert time.monotonic() - began < 20


def test_after_the_run_nobody_is_told_to_ask_and_nothing_is_left(tmp_path, monkeypatch):
    """Also where the folder for temporary files has a path that is too long for a socket."""
    deep = tmp_path / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with Service(answer):
        folder = Path(os.environ[ADDRESS_VARIABLE].partition(" ")[2]).parent
        assert folder.stat().st_mode & 0o077 == 0
        assert get_client().ask(("here",))[0][0] == "here"
    assert get_client() is None
    assert not folder.exists()
    assert not list(deep.iterdir())
