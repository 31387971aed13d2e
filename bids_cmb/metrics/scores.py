"""Detection metrics: sensitivity, precision, F1, FROC, and ranks of true lesions.

They follow from a few counts per scan, at one threshold or at all; pooled metrics add the counts of
all scans first. Ranks of true lesions among the found ones of their scan need no threshold.
`metrics.bootstrap` adds intervals, and figures of subjects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from scipy.spatial.distance import cdist

from bids_cmb.metrics.matching import Match, Rule

LARGE_MM = 2.5  # diameter from which a lesion is `large` here: clear to most readers
Point = Sequence[float]  # x, y, z, world mm


@dataclass(frozen=True, eq=False)
class ScanMatches:
    """Detections of one scan: their probabilities and distances to the true lesions.

    Attributes:
        subject: Whose scan; intervals are over subjects, not scans.
        probability: Of every found lesion, 0 to 1 or any score that rises with it, (F,).
        between: Found against true, as the rule reads it, (F, T).
        uncertain: True lesions that count neither as found nor as missed, (T,).
        diameter_mm: Of every true lesion, NaN where not known, (T,); None for all unknown.
        name: Of the scan.
    """

    subject: str
    probability: np.ndarray
    between: np.ndarray
    uncertain: np.ndarray
    diameter_mm: np.ndarray | None = None
    name: str = ""
    _tallies: dict = field(default_factory=dict, init=False, repr=False)

    def match(self, rule: Rule, threshold: float) -> Match:
        """Match what reaches the threshold; the lesions below it are left out of the match."""
        kept = self.probability >= threshold
        return rule(self.between[kept], self.uncertain)

    def tally(self, rule: Rule) -> "ThresholdCounts":
        """Count at every threshold that makes a difference, once for each rule."""
        if rule not in self._tallies:
            self._tallies[rule] = _count_at_thresholds(self, rule)
        return self._tallies[rule]


def make_scan_matches(
    candidates: Sequence[tuple[Point, float]],
    lesions: Sequence[tuple[Point, float, bool]],
    *,
    name: str,
    subject: str | None = None,
) -> ScanMatches:
    """Make a `ScanMatches` of plain lists, for the rules that go by distance.

    Args:
        candidates: Position (world mm) and score of every found lesion.
        lesions: Position (world mm), diameter (mm, NaN if not known) of every true lesion, and
            whether it is certain; an uncertain one is neither missed nor found.
        name: Of the scan.
        subject: Whose scan; the name of the scan if left out.

    Raises:
        ValueError: If a position is not three finite numbers or a score is NaN.
    """
    positions = _check_positions([place for place, _ in candidates], f"{name}: candidates")
    true_positions = _check_positions([place for place, _, _ in lesions], f"{name}: lesions")
    scores = np.array([score for _, score in candidates], float)
    if np.isnan(scores).any():
        raise ValueError(f"{name}: every candidate needs a score; found NaN.")
    return ScanMatches(
        subject or name,
        scores,
        cdist(positions, true_positions),
        np.array([not sure for _, _, sure in lesions], bool),
        np.array([diameter for _, diameter, _ in lesions], float),
        name,
    )


def _check_positions(places: Sequence[Point], what: str) -> np.ndarray:
    if any(len(place) != 3 or not np.isfinite(place).all() for place in places):
        raise ValueError(f"{what} need positions of three finite numbers, world mm.")
    return np.array(places, float).reshape(-1, 3)


@dataclass(frozen=True)
class Counts:
    """Counts of a scan at a threshold; the sums over scans give `Metrics`.

    Attributes:
        scans: 1.
        lesions: True ones that are certain.
        found: Found ones, but for those ignored.
        hits: True positives as the rule counts them.
        false_alarms: Found lesions that are none.
        misses: Of ``lesions``, those that nothing found.
        lesions_large: Of ``lesions``, those of ``LARGE_MM`` or more.
        misses_large: Of ``misses``, likewise.
    """

    scans: float
    lesions: float
    found: float
    hits: float
    false_alarms: float
    misses: float
    lesions_large: float
    misses_large: float


COUNT_NAMES = tuple(each.name for each in fields(Counts))


@dataclass(frozen=True)
class Metrics(Counts):
    """How well lesions were found, all scans pooled; NaN where a figure is not defined.

    Attributes:
        sensitivity: Part of the true lesions that was found. Higher is better.
        precision: hits / (hits + false alarms). Higher is better.
        f1: 2 hits / (2 hits + false alarms + misses). Higher is better.
        fp_per_scan: False alarms per scan (FPavg). Lower is better.
        fp_per_lesion: False alarms per true lesion (FPcmb). Lower is better.
        sensitivity_large: Of lesions of ``LARGE_MM`` or more. Higher is better.
    """

    sensitivity: float
    precision: float
    f1: float
    fp_per_scan: float
    fp_per_lesion: float
    sensitivity_large: float


@dataclass(frozen=True, eq=False)
class FROCCurve:
    """Sensitivity against false alarms while the threshold falls.

    Attributes:
        threshold: Probability from which lesions count, falling, the first above all, shape (K,).
        metrics: The figures at each, shape (K,) in every field.
    """

    threshold: np.ndarray
    metrics: Metrics

    def sensitivity_at(self, fp_per_scan: float) -> float:
        """Read the best sensitivity that costs at most ``fp_per_scan`` false alarms per scan."""
        return float(self.metrics.sensitivity[self.reading(fp_per_scan)])

    def reading(self, fp_per_scan: float) -> int:
        """Find the lowest threshold of the best sensitivity at so many false alarms per scan."""
        affordable = self.metrics.fp_per_scan <= fp_per_scan
        sensitivity = np.where(affordable, np.nan_to_num(self.metrics.sensitivity), -1)
        return int(np.flatnonzero(sensitivity == sensitivity.max())[-1])

    def best(self, fp_per_scan: float = np.inf) -> int:
        """Find where F1 is highest, at most that many false alarms per scan.

        Of equals the higher threshold.
        """
        f1 = np.where(self.metrics.fp_per_scan <= fp_per_scan, self.metrics.f1, -1)
        return int(np.argmax(np.where(np.isnan(f1), -1, f1)))


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of the true lesions of a scan in the list of its found lesions, likeliest first.

    A lesion is found at the highest threshold at which the rule leaves it no miss. Ignored found
    lesions are left out. Equal probabilities share their mean rank.

    Attributes:
        lesions: Which true lesions, certain ones only, (N,).
        rank: How many found lesions must be read until the lesion is found, from 1; of one that is
            never found one more than there are found lesions. (N,).
        false_above: How many of those are false alarms, of one that is never found all. (N,).
        found: Whether it is ever found, (N,).
        candidates: How many found lesions are to be read.
        false_alarms: How many of those are false alarms.
    """

    lesions: np.ndarray
    rank: np.ndarray
    false_above: np.ndarray
    found: np.ndarray
    candidates: int
    false_alarms: int

    def auc(self, false_alarms: int | None = None) -> np.ndarray:
        """Give the part of the scan's false alarms that come after each lesion, shape (N,).

        That is the chance that the found lesion that hits it has a higher probability than a false
        one of the same scan; equals count half, a lesion that is never found 0. Without any false
        alarm it is 1 for what is found.

        Args:
            false_alarms: To be held against more than the scan has, as if the rest came last: so
                two detectors with lists of other lengths can be compared.
        """
        whole = self.false_alarms if false_alarms is None else false_alarms
        after = 1 - self.false_above / whole if whole else np.ones(len(self.rank))
        return np.where(self.found, after, 0.0)


@dataclass(frozen=True, eq=False)
class ThresholdCounts:
    """Counts of a scan at each of its own thresholds.

    Attributes:
        thresholds: Every probability that occurs, rising, then infinity, (M,).
        counted: The ``COUNT_NAMES`` at each, (M, 8).
        level: For every true lesion the number of the highest threshold at which it is found, -1
            for none, (T,).
    """

    thresholds: np.ndarray
    counted: np.ndarray
    level: np.ndarray

    def read(self, thresholds: np.ndarray) -> np.ndarray:
        """Read at any thresholds (K,); between two of its own nothing changes: (K, 8)."""
        return self.counted[np.searchsorted(self.thresholds, thresholds)]


def compute_metrics(cases: Sequence[ScanMatches], rule: Rule, *, threshold: float = 0.0) -> Metrics:
    """Compute the metrics over all scans at one threshold.

    Args:
        cases: One per scan.
        rule: Which found lesion belongs to which true one.
        threshold: Found lesions of a lower probability are left out.
    """
    return pool_counts(sum(case.tally(rule).read(np.array([threshold]))[0] for case in cases))


def compute_froc(cases: Sequence[ScanMatches], rule: Rule) -> FROCCurve:
    """Compute the metrics at every threshold that makes a difference."""
    return compute_curve(cases, rule, list_thresholds(cases))


def compute_curve(cases: Sequence[ScanMatches], rule: Rule, thresholds: np.ndarray) -> FROCCurve:
    """Compute the metrics at these thresholds, shape (K,)."""
    return FROCCurve(
        thresholds, derive_metrics(sum(case.tally(rule).read(thresholds) for case in cases))
    )


def rank_lesions(case: ScanMatches, rule: Rule) -> Ranks:
    """Rank the certain true lesions of a scan among what was found there; see `Ranks`."""
    tally = case.tally(rule)
    sure = np.flatnonzero(~case.uncertain)
    found_counts, false_counts = (
        tally.counted[:, COUNT_NAMES.index(of)] for of in ("found", "false_alarms")
    )
    level = tally.level[sure]  # -1 for what is never found
    is_found = level >= 0
    before, until = found_counts[level + 1], found_counts[level]
    false_before, false_until = false_counts[level + 1], false_counts[level]
    candidates, false_alarms = int(found_counts[0]), int(false_counts[0])
    return Ranks(
        sure,
        np.where(is_found, (before + until + 1) / 2, candidates + 1.0),
        np.where(is_found, (false_before + false_until) / 2, float(false_alarms)),
        is_found,
        candidates,
        false_alarms,
    )


def list_thresholds(cases: Sequence[ScanMatches]) -> np.ndarray:
    """List infinity, at which nothing counts, then every probability that occurs, falling."""
    occurring = np.unique(np.concatenate([[], *(case.probability for case in cases)]))
    return np.append(np.inf, occurring[::-1])


def _count_at_thresholds(case: ScanMatches, rule: Rule) -> ThresholdCounts:
    thresholds = np.append(np.unique(case.probability), np.inf)
    large = np.zeros(len(case.uncertain), bool)
    if case.diameter_mm is not None:
        large = (case.diameter_mm >= LARGE_MM) & ~case.uncertain
    level = np.full(len(case.uncertain), -1)
    counted = np.zeros((len(thresholds), len(COUNT_NAMES)))
    for number, threshold in enumerate(thresholds):
        match = case.match(rule, threshold)
        level[~match.missed & ~case.uncertain] = number
        counted[number] = (
            1,
            (~case.uncertain).sum(),
            (~match.ignored).sum(),
            match.hits,
            ((match.partner < 0) & ~match.ignored).sum(),
            match.missed.sum(),
            large.sum(),
            (match.missed & large).sum(),
        )
    return ThresholdCounts(thresholds, counted, level)


def pool_counts(counted: np.ndarray) -> Metrics:
    """Compute the metrics from sums over scans of the ``COUNT_NAMES``, shape (8,)."""
    metrics = derive_metrics(counted)
    return Metrics(*(float(getattr(metrics, each.name)) for each in fields(metrics)))


def derive_metrics(counted: np.ndarray) -> Metrics:
    """Compute the metrics from counts (..., 8), every field of shape (...)."""
    counts = Counts(*np.moveaxis(counted, -1, 0))
    return Metrics(
        **vars(counts),
        sensitivity=divide(counts.lesions - counts.misses, counts.lesions),
        precision=divide(counts.hits, counts.hits + counts.false_alarms),
        f1=divide(2 * counts.hits, 2 * counts.hits + counts.false_alarms + counts.misses),
        fp_per_scan=divide(counts.false_alarms, counts.scans),
        fp_per_lesion=divide(counts.false_alarms, counts.lesions),
        sensitivity_large=divide(counts.lesions_large - counts.misses_large, counts.lesions_large),
    )


def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide elementwise; NaN where ``whole`` is not above 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
