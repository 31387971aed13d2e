"""A process that answers the requests of the workers of a run, one after the other.

It has what only one process should have, such as a GPU and the networks on it. Requests are read,
and answers are sent, by threads beside the work, so that it need not wait for either. If it ends,
or works on for a worker that is gone, it is started anew, and the workers ask again; the request at
which it ended is refused from then on, so that one bad scan does not stop the others.
"""

import functools
import json
import multiprocessing
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from queue import Empty, Queue

import numpy as np

from bids_cmb.parallel.processes import (
    SECONDS_TO_LEAVE,
    SPAWN,
    describe_failure,
    leave_signals_to_parent,
)

ADDRESS_VARIABLE = "BIDS_CMB_SERVICE"  # where, and the key, for the workers: see `get_client`
TRACE_VARIABLE = "BIDS_CMB_SERVICE_TRACE"  # file to which each request's times are written
MAX_WAITING = 4  # requests that have been read and are not answered yet
MAX_ATTEMPTS = 6  # to have a request answered, each by a process that was started anew
MAX_FAILED_STARTS = 3  # of the process, one after the other
START_LIMIT_S = 120.0  # for it to listen
PATIENCE_S = 60.0  # for a request in work whose worker is gone, such as at its time limit
MAX_PATH_BYTES = 100  # of a socket; the operating systems allow 104 and more
ENDED = "the process that computes the networks ended"
Handler = Callable[[tuple, list[np.ndarray]], tuple[object, list[np.ndarray]]]


class ServiceError(OSError):
    """What a request came to where the process failed, in one sentence."""


@dataclass(eq=False)
class _Request:
    """One request, and where its answer is put."""

    number: int
    content: tuple
    arrays: list[np.ndarray]
    answer: Queue = field(default_factory=lambda: Queue(1))


# --- The run's side: one process, started anew if it ends -----------------------------------------


class Service:
    """A process that answers requests for as long as a ``with`` statement lasts.

    Within it, `ADDRESS_VARIABLE` tells processes that are started where to ask.
    """

    def __init__(self, handle: Handler, patience_s: float = PATIENCE_S):
        """Prepare.

        Args:
            handle: A function at the top level of a module, which makes from a request and its
                arrays the answer and its arrays.
            patience_s: How long the process may go on with a request whose worker is gone.
        """
        self._handle, self._key, self._patience_s = handle, secrets.token_bytes(32), patience_s
        self._current = SPAWN.Value("Q", 0, lock=False)  # number of the request in work
        self._times = SPAWN.Array("d", 3, lock=False)  # working, waiting for work; requests
        self._refused: set[int] = set()
        self._stopping, self._lock = False, threading.Lock()  # none is started once it stops

    def __enter__(self) -> "Service":
        """Start the process, and what watches over it."""
        self._folder = _make_socket_folder()
        self._path = str(Path(self._folder.name) / "socket")
        self._start()
        self._watch = threading.Thread(target=self._keep_running, daemon=True)
        self._watch.start()
        os.environ[ADDRESS_VARIABLE] = f"{self._key.hex()} {self._path}"
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        os.environ.pop(ADDRESS_VARIABLE, None)
        with self._lock:
            self._stopping = True
            self._pipe.close()  # it ends then
        self._process.join(SECONDS_TO_LEAVE)
        if self._process.is_alive():
            self._process.kill()
        self._watch.join(SECONDS_TO_LEAVE)
        with suppress(OSError):
            self._folder.cleanup()

    @property
    def busy_share(self) -> float:
        """Share of the time since the first request during which it worked, 0 to 1."""
        working, waiting, _ = self._times
        return working / max(working + waiting, 1e-9)

    @property
    def n_requests(self) -> int:
        """Number of requests that it has answered."""
        return int(self._times[2])

    def _start(self) -> None:
        Path(self._path).unlink(missing_ok=True)
        self._current.value = 0
        self._pipe, there = SPAWN.Pipe()
        self._process = SPAWN.Process(
            target=_serve,
            args=(self._handle, self._path, self._key, there),
            kwargs={
                "current": self._current, "times": self._times, "refused": set(self._refused),
                "patience_s": self._patience_s,
            },
            daemon=True,
        )  # fmt: skip
        self._process.start()
        there.close()

    def _keep_running(self) -> None:
        """Start the process anew whenever it ends; give up if it cannot even start."""
        failed_starts = 0
        while failed_starts < MAX_FAILED_STARTS:
            self._process.join()
            with self._lock:
                if self._stopping:
                    return
                failed_starts = 0 if self._current.value else failed_starts + 1
                self._refused.add(self._current.value)
                self._start()


def _make_socket_folder() -> tempfile.TemporaryDirectory:
    """Make a folder whose path is short enough for a socket in it."""
    folder = tempfile.TemporaryDirectory(prefix="cmb-")
    if len(os.fsencode(folder.name)) + len("/socket") > MAX_PATH_BYTES:
        folder.cleanup()
        folder = tempfile.TemporaryDirectory(prefix="cmb-", dir="/tmp")
    return folder


# --- The process ----------------------------------------------------------------------------------


def _serve(
    handle: Handler, path: str, key: bytes, parent: connection.Connection, *,
    current, times, refused: set[int], patience_s: float,
) -> None:  # fmt: skip
    """Answer requests until the pipe to the parent closes."""
    leave_signals_to_parent()
    os.environ.pop(ADDRESS_VARIABLE, None)
    waiting: Queue[_Request] = Queue(MAX_WAITING)
    listener = connection.Listener(path, "AF_UNIX", backlog=64, authkey=key)

    def end_if_working_on(request: _Request) -> None:
        if current.value == request.number:
            os._exit(1)

    converse = functools.partial(_converse, waiting, patience_s, end_if_working_on)
    threading.Thread(target=_accept, args=(listener, converse), daemon=True).start()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    trace = os.environ.get(TRACE_VARIABLE)
    while True:
        idle_since = time.monotonic()
        request = waiting.get()
        began = time.monotonic()
        if times[2]:
            times[1] += began - idle_since
        if request.number in refused:
            error = f"{ENDED} at this scan, most likely because memory ran out."
            request.answer.put(({"error": error}, []))
            continue
        current.value = request.number
        request.answer.put(_answer(handle, request))
        current.value = 0
        ended = time.monotonic()
        times[0] += ended - began
        times[2] += 1
        if trace:
            _write_trace(Path(trace), request, began, ended)


def _answer(handle: Handler, request: _Request) -> tuple[dict, list[np.ndarray]]:
    try:
        content, arrays = handle(request.content, request.arrays)
    except MemoryError:
        return {"error": "memory ran out (see --mem-mb)."}, []
    except Exception as error:  # one failure is one failure, whatever it is
        failure = describe_failure(error)
        return {"refused" if isinstance(error, ValueError) else "error": failure["error"]}, []
    return {"content": content}, [np.asarray(array, order="C") for array in arrays]


def _write_trace(path: Path, request: _Request, began: float, ended: float) -> None:
    row = {
        "worker": request.number >> 32, "request": request.content[0], "began": began,
        "ended": ended, "values": sum(array.size for array in request.arrays),
    }  # fmt: skip
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _accept(listener: connection.Listener, converse: Callable) -> None:
    """Accept workers, each read by a thread of its own."""
    while True:
        with suppress(OSError, EOFError, multiprocessing.AuthenticationError):
            pipe = listener.accept()
            threading.Thread(target=converse, args=(pipe,), daemon=True).start()


def _converse(
    waiting: Queue, patience_s: float, give_up: Callable, pipe: connection.Connection
) -> None:
    """Read the requests of a worker, and send the answers, until it leaves."""
    with suppress(OSError, EOFError):
        while True:
            (number, content), arrays = _receive(pipe)
            request = _Request(number, content, arrays)
            waiting.put(request)
            _send(pipe, *_await_answer(request, pipe, patience_s, give_up))


def _await_answer(
    request: _Request, pipe: connection.Connection, patience_s: float, give_up: Callable
) -> tuple[dict, list[np.ndarray]]:
    """Wait for an answer; give up a request that is worked on long after its worker left."""
    gone_since = None
    while True:
        with suppress(Empty):
            return request.answer.get(timeout=1)
        if gone_since is None and pipe.poll():  # a worker that waits sends nothing: it is gone
            gone_since = time.monotonic()
        if gone_since is not None and time.monotonic() - gone_since > patience_s:
            give_up(request)


def _end_with(parent: connection.Connection) -> None:
    with suppress(OSError, EOFError):
        parent.recv()
    os._exit(0)


def _send(pipe: connection.Connection, content: object, arrays: Sequence[np.ndarray]) -> None:
    pipe.send((content, [(array.shape, array.dtype.str) for array in arrays]))
    for array in arrays:
        if array.size:
            pipe.send_bytes(array.reshape(-1).view(np.uint8))


def _receive(pipe: connection.Connection) -> tuple[object, list[np.ndarray]]:
    content, forms = pipe.recv()
    arrays = [np.empty(shape, dtype) for shape, dtype in forms]
    for array in arrays:
        if array.size:
            pipe.recv_bytes_into(array.reshape(-1).view(np.uint8))
    return content, arrays


# --- A worker's side ------------------------------------------------------------------------------


class Client:
    """Asks the service of a run; one request at a time, whichever thread asks."""

    def __init__(self, path: str, key: bytes):
        self._path, self._key = path, key
        self._pipe: connection.Connection | None = None
        self._number, self._lock = os.getpid() << 32, threading.Lock()

    def ask(self, content: tuple, arrays: Sequence[np.ndarray] = ()) -> tuple:
        """Ask, and wait for the answer.

        Args:
            content: What the handler takes; anything that can be pickled.
            arrays: Sent beside it.

        Returns:
            What the handler returned, and its arrays.

        Raises:
            ValueError: If the handler raised one.
            ServiceError: If it failed otherwise, or its process ended while it worked on this.
        """
        arrays = [np.asarray(array, order="C") for array in arrays]
        with self._lock:
            self._number += 1
            answer, received = self._exchange((self._number, content), arrays)
        if "refused" in answer:
            raise ValueError(answer["refused"])
        if "error" in answer:
            raise ServiceError(answer["error"])
        return answer["content"], received

    def _exchange(self, content: tuple, arrays: Sequence[np.ndarray]) -> tuple[dict, list]:
        for _ in range(MAX_ATTEMPTS):
            pipe = self._connect()
            try:
                _send(pipe, content, arrays)
                return _receive(pipe)
            except (OSError, EOFError):
                self._disconnect()
        raise ServiceError(f"{ENDED} {MAX_ATTEMPTS} times.")

    def _connect(self) -> connection.Connection:
        deadline = time.monotonic() + START_LIMIT_S
        while self._pipe is None:
            try:
                self._pipe = connection.Client(self._path, "AF_UNIX", authkey=self._key)
            except (OSError, EOFError) as error:
                if time.monotonic() > deadline:
                    raise ServiceError(f"{ENDED}, and none has followed.") from error
                time.sleep(0.05)
        return self._pipe

    def _disconnect(self) -> None:
        if self._pipe is not None:
            with suppress(OSError):
                self._pipe.close()
        self._pipe = None


_clients: dict[str, Client] = {}  # by address


def get_client() -> Client | None:
    """Get the client of the run that has started this process; None where it has no service."""
    address = os.environ.get(ADDRESS_VARIABLE)
    if not address:
        return None
    if address not in _clients:
        key, _, path = address.partition(" ")
        _clients[address] = Client(path, bytes.fromhex(key))
    return _clients[address]
