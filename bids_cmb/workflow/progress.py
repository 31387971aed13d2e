"""How far a run has come, and the time that is left."""

import heapq
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Scans that began and ended, and when.

    Attributes:
        scans: To process.
        workers: Scans at a time.
        n_started: Scans that began, as far as it is known.
        running: When each scan that is being processed began, s, by its index.
        durations: Of the scans that ended, s.
    """

    scans: int
    workers: int
    n_started: int = 0
    running: dict[int, float] = field(default_factory=dict)
    durations: list[float] = field(default_factory=list)

    @property
    def n_ended(self) -> int:
        """Number of scans that ended."""
        return len(self.durations)

    def start(self, index: int, now: float) -> None:
        """Note that a scan begins."""
        self.n_started += 1
        self.running[index] = now

    def end(self, index: int, seconds: float) -> None:
        """Note that a scan ended, and how long it took."""
        self.running.pop(index, None)
        self.durations.append(seconds)

    def estimate_seconds_left(self, now: float) -> float:
        """Estimate the time left: every scan takes the mean, those being processed the rest of it.

        Scans that wait go to whichever worker is free first; one whose begin is not known (on a
        cluster) counts as waiting.
        """
        mean = sum(self.durations) / self.n_ended
        ends = [max(0.0, mean - (now - since)) for since in self.running.values()]
        waiting = self.scans - self.n_ended - len(self.running)
        ends += [0.0] * max(0, self.workers - len(ends))
        heapq.heapify(ends)
        for _ in range(waiting):
            heapq.heapreplace(ends, ends[0] + mean)
        return max(ends)
