"""Batches wait in order, and no more of them than there is room for."""

import threading
import time

from bids_cmb.training import prefetching
from bids_cmb.training.prefetching import Prefetcher


def test_batches_come_in_order_whatever_the_timing(monkeypatch):
    monkeypatch.setattr(prefetching, "PREFETCH_THREADS", 3)

    def uneven(epoch, step):
        time.sleep(0.02 * (step % 2 == 0))
        return epoch, step

    places = [(epoch, step) for epoch in range(2) for step in range(5)]
    with Prefetcher(uneven, places) as drawn:
        assert [drawn.take() for _ in places] == places


def test_no_more_batches_wait_than_there_is_room_for():
    begun = []
    with Prefetcher(lambda *place: begun.append(place), ((0, step) for step in range(100))):
        time.sleep(0.2)
        assert len(begun) <= prefetching.PREFETCHED_BATCHES
    assert threading.active_count() < 20
