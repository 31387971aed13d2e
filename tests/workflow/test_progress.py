"""The time left: a schedule of scans whose lengths are known is the truth."""

import heapq

import pytest

from bids_cmb.workflow.progress import Progress


def run_schedule(durations, workers):
    """Run scans of these lengths; return when each ended and what was left then, and the end."""
    progress, waiting, running = Progress(len(durations), workers), list(enumerate(durations)), []
    ends = []

    def start(now):
        if waiting:
            index, seconds = waiting.pop(0)
            progress.start(index, now)
            heapq.heappush(running, (now + seconds, index, seconds))

    for _ in range(workers):
        start(0.0)
    while running:
        now, index, seconds = heapq.heappop(running)
        progress.end(index, seconds)
        if progress.n_ended < len(durations):
            ends.append((now, progress.estimate_seconds_left(now)))
        start(now)
    return ends, now


@pytest.mark.parametrize(
    ("durations", "workers"),
    [
        ([163, 170, 155, 160, 168], 2),
        ([53, 50], 2),
        ([86, 80, 84], 2),
        ([60] * 20, 4),
        ([75, 82, 68, 71, 90, 77, 80], 1),
    ],
)
def test_the_time_left_is_right_within_a_third_after_the_first_scan(durations, workers):
    """Scans of similar length, on one or several processes."""
    ends, whole = run_schedule(durations, workers)
    for now, said in ends:
        left = whole - now
        assert said == pytest.approx(left, rel=1 / 3, abs=10)


def test_scans_whose_begin_is_not_known_count_as_waiting():
    """On a cluster: three of four scans are left for two workers, 10 s each."""
    progress = Progress(scans=4, workers=2)
    progress.end(0, 10.0)
    assert progress.estimate_seconds_left(10.0) == 20
