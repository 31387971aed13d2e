"""Batches sampled by threads beside the steps of a training."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from bids_cmb.parallel.processes import count_cores

PREFETCHED_BATCHES = 4  # batches that are drawn before their step
PREFETCH_THREADS = max(1, min(4, count_cores() // 2))  # that draw; the steps have the other cores
BatchIndex = tuple[int, int]


class Prefetcher:
    """Prefetch batches by threads beside the steps, and return them in order.

    At most `PREFETCHED_BATCHES` wait. A batch depends on its index alone, never on timing.
    """

    def __init__(self, draw: Callable, places: Iterable[BatchIndex]):
        """Prepare; ``draw`` samples the batch of an epoch and a step."""
        self._draw, self._places = draw, iter(places)
        self._threads = ThreadPoolExecutor(PREFETCH_THREADS, "drawing")
        self._waiting: deque[Future] = deque()

    def __enter__(self) -> "Prefetcher":
        """Start to sample."""
        for _ in range(PREFETCHED_BATCHES):
            self._submit()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the threads."""
        self._threads.shutdown(cancel_futures=True)

    def take(self) -> tuple:
        """Return the next batch; what failed while it was sampled is raised here."""
        batch = self._waiting.popleft()
        self._submit()
        return batch.result()

    def _submit(self) -> None:
        place = next(self._places, None)
        if place is not None:
            self._waiting.append(self._threads.submit(self._draw, *place))
