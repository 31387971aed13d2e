"""Scoring: from which lesions were hit and missed to the figures that papers report.

Every figure follows from six counts per scan. Pooled figures add the counts of all scans first;
figures of a subject add those of its scans, and their median stands for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from bids_cmb.agreement import intraclass_correlation, weighted_kappa
from bids_cmb.derivatives import burden, columns
from bids_cmb.matching import Match, Rule, match_sure_first

FALSE_ALARM_RATES = (0.5, 1.0, 2.0, 4.0, 8.0)  # per scan, at which the FROC is read
LEVEL = 0.95  # of the intervals
MOST = 1000  # thresholds at which a drawn FROC is read: few enough for thousands of scans
COUNTS = 6  # scans, lesions, found, hits, false alarms, misses
UNKNOWN = "unknown"  # the class of what has none
BURDENS = tuple(columns("scan")["burden"]["Levels"])


@dataclass(frozen=True, eq=False)
class Case:
    """One scan: how sure each found lesion is and how near it lies to each true one.

    Attributes:
        subject: Whose scan; intervals are over subjects, not scans.
        probability: Of every found lesion, 0 to 1, shape (F,).
        between: Found against true, as the rule reads it, shape (F, T).
        unsure: True lesions that count neither as found nor as missed, shape (T,).
    """

    subject: str
    probability: np.ndarray
    between: np.ndarray
    unsure: np.ndarray

    def match(self, rule: Rule, threshold: float) -> Match:
        """Pair what reaches the threshold; the lesions below it are left out of the match."""
        kept = self.probability >= threshold
        return match_sure_first(rule, self.between[kept], self.unsure)


@dataclass(frozen=True)
class Metrics:
    """How well lesions were found, all scans pooled; NaN where a figure is not defined.

    Attributes:
        scans: How many.
        lesions: True ones that a reader is sure of.
        found: Found ones, but for those set aside.
        hits: True positives as the rule counts them.
        false_alarms: Found lesions that are none.
        misses: True lesions that nothing found.
        sensitivity: Part of the true lesions that was found. Higher is better.
        precision: hits / (hits + false alarms). Higher is better.
        f1: 2 hits / (2 hits + false alarms + misses). Higher is better.
        fp_per_scan: False alarms per scan (FPavg). Lower is better.
        fp_per_lesion: False alarms per true lesion (FPcmb). Lower is better.
    """

    scans: float
    lesions: float
    found: float
    hits: float
    false_alarms: float
    misses: float
    sensitivity: float
    precision: float
    f1: float
    fp_per_scan: float
    fp_per_lesion: float


@dataclass(frozen=True, eq=False)
class Froc:
    """Sensitivity against false alarms while the threshold falls.

    Attributes:
        threshold: Probability from which lesions count, falling, the first above all, shape (K,).
        metrics: The figures at each, shape (K,) in every field.
    """

    threshold: np.ndarray
    metrics: Metrics

    def sensitivity_at(self, fp_per_scan: float) -> float:
        """The best sensitivity that costs no more than ``fp_per_scan`` false alarms per scan."""
        affordable = self.metrics.fp_per_scan <= fp_per_scan
        return float(np.max(self.metrics.sensitivity[affordable]))

    def best(self) -> int:
        """Where F1 is highest; the higher threshold of equals."""
        f1 = self.metrics.f1
        return int(np.argmax(np.where(np.isnan(f1), -1, f1)))


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval over subjects; NaN where it is not defined.

    One subject tells nothing of the next: what rests on fewer than two has no interval.
    """

    value: float
    low: float
    high: float


def score(cases: Sequence[Case], rule: Rule, *, threshold: float = 0.0) -> Metrics:
    """How well lesions were found over all scans.

    Args:
        cases: One per scan.
        rule: Which found lesion belongs to which true one.
        threshold: Found lesions of a lower probability are left out.
    """
    return _pooled(sum(_tally(case, rule).at(np.array([threshold]))[0] for case in cases))


def froc(cases: Sequence[Case], rule: Rule) -> Froc:
    """The figures at every threshold that makes a difference."""
    return _curve([_tally(case, rule) for case in cases], _thresholds(cases))


def figures(
    cases: Sequence[Case], rule: Rule, *, threshold: float, seed: int, draws: int
) -> dict[str, Figure]:
    """Every figure with its interval when subjects are drawn with replacement.

    Args:
        cases: One per scan; the scans of a subject are drawn together.
        rule: Which found lesion belongs to which true one.
        threshold: Found lesions of a lower probability are left out; the FROC takes all.
        seed: Of the draws.
        draws: How many; with 0 every interval is NaN. Of a drawn FROC at most ``MOST`` thresholds
            are read, so that its interval may lie a hair below that of all.
    """
    tallies = [_tally(case, rule) for case in cases]
    subjects, owner = np.unique([case.subject for case in cases], return_inverse=True)
    at = np.concatenate([tally.at(np.array([threshold])) for tally in tallies])  # (scans, 6)
    exact = _thresholds(cases)
    coarse = exact[np.unique(np.linspace(0, len(exact) - 1, MOST).round().astype(int))]
    curves = np.zeros((len(subjects), len(coarse), COUNTS))
    for subject, tally in zip(owner, tallies, strict=True):
        curves[subject] += tally.at(coarse)
    scans_of = [np.flatnonzero(owner == subject) for subject in range(len(subjects))]

    def drawn(times: np.ndarray) -> dict[str, float]:
        """All figures when every subject comes as often as it says."""
        rows = [scans_of[subject] for subject in np.repeat(np.arange(len(subjects)), times)]
        again = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        curve = Froc(coarse, _metrics(np.tensordot(times, curves, axes=1)))
        return summary(at[np.concatenate(rows)], again, curve)

    values = summary(at, owner, _curve(tallies, exact))
    draws = draws if len(subjects) > 1 else 0
    spread = [drawn(times) for times in _draws(len(subjects), seed, draws)]
    return {
        name: Figure(value, *_interval(np.array([one[name] for one in spread])))
        for name, value in values.items()
    }


def summary(counted: np.ndarray, owner: np.ndarray, curve: Froc) -> dict[str, float]:
    """All figures by name.

    Args:
        counted: The six counts of every scan at the threshold, shape (scans, 6).
        owner: Number of its subject, shape (scans,).
        curve: The FROC of the same scans.
    """
    pooled, best = _pooled(counted.sum(axis=0)), curve.best()
    return {
        **{field.name: getattr(pooled, field.name) for field in fields(pooled)},
        **{f"sensitivity_at_{rate:g}_fp": curve.sensitivity_at(rate) for rate in FALSE_ALARM_RATES},
        "best_f1": float(curve.metrics.f1[best]),
        "best_f1_fp_per_scan": float(curve.metrics.fp_per_scan[best]),
        **_by_subject(counted, owner),
        **count_agreement(counted[:, 2], counted[:, 1]),
    }


def count_agreement(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How near the numbers of lesions of every scan come to the true ones, shape (scans,) both."""
    classes = [[BURDENS.index(burden(int(n))) for n in counts] for counts in (found, truth)]
    return {
        "count_icc": intraclass_correlation(np.stack([found, truth], axis=1)),
        "count_mae": float(np.abs(found - truth).mean()),
        "count_bias": float((found - truth).mean()),
        "burden_kappa": weighted_kappa(*classes, classes=len(BURDENS)),
    }


def rate(part: np.ndarray, whole: np.ndarray, *, seed: int, draws: int) -> list[Figure]:
    """Sum of parts over sum of wholes for every class, subjects drawn with replacement.

    Args:
        part: A row for each subject, a column for each class, shape (U, C).
        whole: The same.
        seed: Of the draws.
        draws: How many.
    """
    values = _ratio(part.sum(axis=0), whole.sum(axis=0))
    times = _draws(len(part), seed, draws)
    spread = _ratio(times @ part, times @ whole)  # (draws, C)
    spread[:, (whole > 0).sum(axis=0) < 2] = np.nan
    return [
        Figure(float(value), *_interval(column))
        for value, column in zip(values, spread.T, strict=True)
    ]


def _draws(subjects: int, seed: int, draws: int) -> np.ndarray:
    """How often each subject comes in each draw, shape (draws, subjects)."""
    even = np.full(subjects, 1 / subjects)
    return np.random.default_rng(seed).multinomial(subjects, even, size=draws)


def _by_subject(counted: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Median and quartiles of the figures of single subjects.

    Sensitivity and F1 of a subject without lesions are not defined, as in VALDO, and left out.
    """
    each = np.zeros((owner.max() + 1, COUNTS))
    np.add.at(each, owner, counted)
    own = _metrics(each)
    f1 = np.where(each[:, 1] > 0, own.f1, np.nan)
    named = {"sensitivity": own.sensitivity, "precision": own.precision, "f1": f1}
    return {
        f"subject_{name}_{part}": value
        for name, values in {**named, "fp_per_scan": own.fp_per_scan}.items()
        for part, value in zip(
            ("median", "q1", "q3"), _quantiles(values, 0.5, 0.25, 0.75), strict=True
        )
    }


def _thresholds(cases: Sequence[Case]) -> np.ndarray:
    """Infinity, at which nothing counts, then every probability that occurs, falling."""
    occurring = np.unique(np.concatenate([[], *(case.probability for case in cases)]))
    return np.append(np.inf, occurring[::-1])


@dataclass(frozen=True, eq=False)
class _Tally:
    """The six counts of a scan at each of its own thresholds, rising to infinity: (M,), (M, 6)."""

    own: np.ndarray
    counted: np.ndarray

    def at(self, thresholds: np.ndarray) -> np.ndarray:
        """The counts at any thresholds (K,); between two of its own nothing changes: (K, 6)."""
        return self.counted[np.searchsorted(self.own, thresholds)]


def _tally(case: Case, rule: Rule) -> _Tally:
    own = np.append(np.unique(case.probability), np.inf)
    return _Tally(own, np.array([_count(case, level, rule) for level in own]))


def _curve(tallies: Sequence[_Tally], thresholds: np.ndarray) -> Froc:
    return Froc(thresholds, _metrics(sum(tally.at(thresholds) for tally in tallies)))


def _count(case: Case, threshold: float, rule: Rule) -> tuple[int, ...]:
    match = case.match(rule, threshold)
    alarms = int(((match.partner < 0) & ~match.aside).sum())
    found = len(match.partner) - int(match.aside.sum())
    return 1, int((~case.unsure).sum()), found, match.hits, alarms, int(match.missed.sum())


def _pooled(counted: np.ndarray) -> Metrics:
    metrics = _metrics(counted)
    return Metrics(*(float(getattr(metrics, field.name)) for field in fields(metrics)))


def _metrics(counted: np.ndarray) -> Metrics:
    """The figures from counts (..., 6), every field of shape (...)."""
    scans, lesions, found, hits, false_alarms, misses = np.moveaxis(counted, -1, 0)
    return Metrics(
        *(scans, lesions, found, hits, false_alarms, misses),
        sensitivity=_ratio(lesions - misses, lesions),
        precision=_ratio(hits, hits + false_alarms),
        f1=_ratio(2 * hits, 2 * hits + false_alarms + misses),
        fp_per_scan=_ratio(false_alarms, scans),
        fp_per_lesion=_ratio(false_alarms, lesions),
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _interval(values: np.ndarray) -> list[float]:
    return _quantiles(values, (1 - LEVEL) / 2, (1 + LEVEL) / 2)


def _quantiles(values: np.ndarray, *parts: float) -> list[float]:
    """Quantiles of what is defined; NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return np.quantile(defined, parts).tolist() if len(defined) else [float("nan")] * len(parts)
