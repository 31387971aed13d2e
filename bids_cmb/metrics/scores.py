"""Detection metrics: sensitivity, precision, FROC, ranks, and their bootstrap intervals.

Most figures follow from a few counts per scan. Pooled figures add the counts of all scans first;
figures of a subject add those of its scans, and their median stands for all (as VALDO does it).
The ranks of true lesions among the found ones of their scan need no threshold.

Intervals are 95 % of a bootstrap over subjects. Where the figure is a ratio of counts they are
never narrower than the exact interval of the bare counts: five subjects that all agree would
otherwise leave no width at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import beta, chi2

from bids_cmb.bids.tables import read_columns
from bids_cmb.lesions.table import burden
from bids_cmb.metrics.agreement import intraclass_correlation, weighted_kappa
from bids_cmb.metrics.matching import Match, Rule

FALSE_ALARM_RATES = (0.5, 1.0, 2.0, 4.0, 8.0)  # per scan, at which the FROC is read
LARGE_MM = 2.5  # diameter from which a lesion is `large` here: clear to most readers
LARGE_FALSE_ALARM_RATE = 0.5  # false alarms per scan at which sensitivity for them is read
CONFIDENCE_LEVEL = 0.95  # of the intervals
MAX_FROC_THRESHOLDS = (
    1000  # thresholds at which a drawn FROC is read: few enough for thousands of scans
)
UNKNOWN_CLASS = "unknown"  # the class of what has none
BURDENS = tuple(read_columns("scan")["burden"]["Levels"])
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


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval over subjects; NaN where it is not defined.

    One subject tells nothing of the next: what rests on fewer than two has no interval.
    """

    value: float
    low: float
    high: float


def compute_metrics(cases: Sequence[ScanMatches], rule: Rule, *, threshold: float = 0.0) -> Metrics:
    """Compute the metrics over all scans at one threshold.

    Args:
        cases: One per scan.
        rule: Which found lesion belongs to which true one.
        threshold: Found lesions of a lower probability are left out.
    """
    return _pool(sum(case.tally(rule).read(np.array([threshold]))[0] for case in cases))


def compute_froc(cases: Sequence[ScanMatches], rule: Rule) -> FROCCurve:
    """Compute the metrics at every threshold that makes a difference."""
    return _compute_curve(cases, rule, _list_thresholds(cases))


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


def compute_figures(
    cases: Sequence[ScanMatches], rule: Rule, *, threshold: float, seed: int, draws: int
) -> dict[str, Figure]:
    """Give every figure with its interval when subjects are drawn with replacement.

    Beside the fields of `Metrics` at the threshold:

    - ``sensitivity_at_0.5_fp`` and so on: the best sensitivity that costs at most so many false
      alarms per scan, over all thresholds; ``sensitivity_large_at_0.5_fp``: that of the lesions of
      ``LARGE_MM`` or more at the same threshold as ``sensitivity_at_0.5_fp``.
    - ``best_f1``, ``best_f1_threshold``, ``best_f1_fp_per_scan``: the highest F1 of all thresholds.
    - ``rank_median``, ``rank_mean``, ``false_above_median``, ``rank_auc`` (a mean over lesions):
      of all sure true lesions, as `Ranks` has them. They are of the list of found lesions as it
      came: the lower its own threshold, the longer it is and the higher the AUC.
    - ``subject_…``: median and quartiles over subjects.
    - ``count_…``, ``burden_kappa``: how near the counts of scans come to the true ones.

    Args:
        cases: One per scan; the scans of a subject are drawn together.
        rule: Which found lesion belongs to which true one.
        threshold: Found lesions of a lower probability are left out; FROC and ranks take all.
        seed: Of the draws.
        draws: How many; with 0 every interval is NaN. Of a drawn FROC at most
            ``MAX_FROC_THRESHOLDS`` thresholds are read, so that its interval may lie a hair below
            that of all.
    """
    subjects, owner = np.unique([case.subject for case in cases], return_inverse=True)
    sample = _Sample(cases, rule, threshold, owner)
    values = sample.summarize_all()
    draws = draws if len(subjects) > 1 else 0
    spread = [sample.summarize_draw(times) for times in _draw_subjects(len(subjects), seed, draws)]
    bare = sample.compute_exact_intervals()
    drawn = {name: _compute_interval(np.array([each[name] for each in spread])) for name in values}
    return {
        name: Figure(value, *_widen(drawn[name], bare.get(name))) for name, value in values.items()
    }


def compare_figures(
    first: Sequence[ScanMatches],
    second: Sequence[ScanMatches],
    rule: Rule,
    *,
    thresholds: tuple[float, float],
    seed: int,
    draws: int,
) -> dict[str, tuple[float, float, Figure]]:
    """Give every figure of two detectors on the same scans, and what the second has more.

    The same subjects are drawn for both, so the interval of the difference is that of a paired
    comparison. Ranks and their AUC are held against lists of equal length: a lesion that one
    detector never found ranks behind the longer list of both, and false alarms that the shorter
    list lacks come last.

    Args:
        first: One per scan.
        second: The same scans in the same order.
        rule: Which found lesion belongs to which true one.
        thresholds: Of each detector; FROC and ranks take all.
        seed: Of the draws.
        draws: How many; with 0 the interval is NaN.

    Returns:
        By name: the first detector's, the second's, and the difference, second minus first.

    Raises:
        ValueError: If the two are not of the same scans and true lesions.
    """
    for left, right in zip(first, second, strict=True):
        same = (left.subject, left.name, len(left.uncertain)) == (
            right.subject, right.name, len(right.uncertain)
        )  # fmt: skip
        if not same or (left.uncertain != right.uncertain).any():
            raise ValueError(
                "two detectors must be compared on the same scans and true lesions; found "
                f"{left.name or left.subject} beside {right.name or right.subject}."
            )
    subjects, owner = np.unique([case.subject for case in first], return_inverse=True)
    ranks = [[rank_lesions(case, rule) for case in cases] for cases in (first, second)]
    lengths = [
        (max(a.candidates, b.candidates), max(a.false_alarms, b.false_alarms))
        for a, b in zip(*ranks, strict=True)
    ]
    samples = [
        _Sample(cases, rule, threshold, owner, lengths)
        for cases, threshold in zip((first, second), thresholds, strict=True)
    ]
    values = [sample.summarize_all() for sample in samples]
    draws = draws if len(subjects) > 1 else 0
    spread = [
        [sample.summarize_draw(times) for sample in samples]
        for times in _draw_subjects(len(subjects), seed, draws)
    ]
    return {
        name: (
            values[0][name],
            values[1][name],
            Figure(
                values[1][name] - values[0][name],
                *_compute_interval(np.array([right[name] - left[name] for left, right in spread])),
            ),
        )
        for name in values[0]
    }


class _Sample:
    """The scans of an evaluation, to be summed up as they are or as they were drawn.

    Args:
        cases: One per scan.
        rule: Which found lesion belongs to which true one.
        threshold: Of the figures that have one.
        owner: Number of the subject of every scan, shape (scans,).
        lengths: For every scan the number of candidates and of false alarms that ranks are held
            against; its own if left out.
    """

    def __init__(
        self,
        cases: Sequence[ScanMatches],
        rule: Rule,
        threshold: float,
        owner: np.ndarray,
        lengths: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.owner = owner
        self.counts = np.concatenate(
            [case.tally(rule).read(np.array([threshold])) for case in cases]
        )
        exact = _list_thresholds(cases)
        self.curve = _compute_curve(cases, rule, exact)
        self.coarse = exact[
            np.unique(np.linspace(0, len(exact) - 1, MAX_FROC_THRESHOLDS).round().astype(int))
        ]
        number = owner.max() + 1
        self.curves = np.zeros((number, len(self.coarse), len(COUNT_NAMES)))
        for subject, case in zip(owner, cases, strict=True):
            self.curves[subject] += case.tally(rule).read(self.coarse)
        self.scans_of = [np.flatnonzero(owner == subject) for subject in range(number)]
        self.ranks = []
        for index, case in enumerate(cases):
            ranks = rank_lesions(case, rule)
            most, false = lengths[index] if lengths else (ranks.candidates, ranks.false_alarms)
            rank = np.where(ranks.found, ranks.rank, most + 1)
            above = np.where(ranks.found, ranks.false_above, false)
            self.ranks.append(np.stack([rank, above, ranks.auc(false)], axis=1))

    def summarize_all(self) -> dict[str, float]:
        """Sum up the scans as they are."""
        return summarize(self.counts, self.owner, self.curve) | _summarize_ranks(
            np.concatenate(self.ranks)
        )

    def summarize_draw(self, times: np.ndarray) -> dict[str, float]:
        """Sum up when every subject comes as often as ``times`` says, shape (subjects,)."""
        rows = [self.scans_of[subject] for subject in np.repeat(np.arange(len(times)), times)]
        again = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        scans = np.concatenate(rows)
        curve = FROCCurve(self.coarse, _compute_metrics(np.tensordot(times, self.curves, axes=1)))
        ranks = np.concatenate([self.ranks[scan] for scan in scans])
        return summarize(self.counts[scans], again, curve) | _summarize_ranks(ranks)

    def compute_exact_intervals(self) -> dict[str, tuple[float, float]]:
        """Give the exact intervals of the figures that are ratios of counts."""
        pooled, curve = _pool(self.counts.sum(axis=0)), self.curve.metrics
        intervals = {
            "sensitivity": proportion_interval(pooled.lesions - pooled.misses, pooled.lesions),
            "sensitivity_large": proportion_interval(
                pooled.lesions_large - pooled.misses_large, pooled.lesions_large
            ),
            "precision": proportion_interval(pooled.hits, pooled.hits + pooled.false_alarms),
            "f1": f1_interval(pooled.hits, pooled.false_alarms + pooled.misses),
            "fp_per_scan": count_interval(pooled.false_alarms, pooled.scans),
            "fp_per_lesion": count_interval(pooled.false_alarms, pooled.lesions),
        }
        for fp in FALSE_ALARM_RATES:
            index = self.curve.reading(fp)
            lesions, misses = curve.lesions[index], curve.misses[index]
            intervals[f"sensitivity_at_{fp:g}_fp"] = proportion_interval(lesions - misses, lesions)
        index = self.curve.reading(LARGE_FALSE_ALARM_RATE)
        lesions, misses = curve.lesions_large[index], curve.misses_large[index]
        intervals[_LARGE_NAME] = proportion_interval(lesions - misses, lesions)
        index = self.curve.best()
        intervals["best_f1"] = f1_interval(
            curve.hits[index], curve.false_alarms[index] + curve.misses[index]
        )
        return intervals


_LARGE_NAME = f"sensitivity_large_at_{LARGE_FALSE_ALARM_RATE:g}_fp"


def _summarize_ranks(ranks: np.ndarray) -> dict[str, float]:
    """Summarize rank, false alarms above and AUC of every lesion, (N, 3)."""
    if not len(ranks):
        names = ("rank_median", "rank_mean", "false_above_median", "rank_auc")
        return dict.fromkeys(names, float("nan"))
    return {
        "rank_median": float(np.median(ranks[:, 0])),
        "rank_mean": float(ranks[:, 0].mean()),
        "false_above_median": float(np.median(ranks[:, 1])),
        "rank_auc": float(ranks[:, 2].mean()),
    }


def summarize(counted: np.ndarray, owner: np.ndarray, curve: FROCCurve) -> dict[str, float]:
    """Give all figures that follow from counts, by name.

    Args:
        counted: The ``COUNT_NAMES`` of every scan at the threshold, shape (scans, 8).
        owner: Number of its subject, shape (scans,).
        curve: The FROC of the same scans.
    """
    pooled, best = _pool(counted.sum(axis=0)), curve.best()
    best_threshold = float(curve.threshold[best])
    return {
        **{each.name: getattr(pooled, each.name) for each in fields(pooled)},
        **{f"sensitivity_at_{fp:g}_fp": curve.sensitivity_at(fp) for fp in FALSE_ALARM_RATES},
        _LARGE_NAME: float(curve.metrics.sensitivity_large[curve.reading(LARGE_FALSE_ALARM_RATE)]),
        "best_f1": float(curve.metrics.f1[best]),
        "best_f1_threshold": best_threshold if np.isfinite(best_threshold) else float("nan"),
        "best_f1_fp_per_scan": float(curve.metrics.fp_per_scan[best]),
        **_summarize_subjects(counted, owner),
        **measure_count_agreement(counted[:, 2], counted[:, 1]),
    }


def measure_count_agreement(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Measure how near the numbers of lesions of scans come to the true ones, (scans,) both."""
    classes = [[BURDENS.index(burden(int(n))) for n in counts] for counts in (predicted, truth)]
    return {
        "count_icc": intraclass_correlation(np.stack([predicted, truth], axis=1)),
        "count_mae": float(np.abs(predicted - truth).mean()),
        "count_bias": float((predicted - truth).mean()),
        "burden_kappa": weighted_kappa(*classes, classes=len(BURDENS)),
    }


def compute_rates(
    part: np.ndarray, whole: np.ndarray, *, seed: int, draws: int, bare: "Interval | None" = None
) -> list[Figure]:
    """Divide the sum of parts by that of wholes for every class, subjects drawn with replacement.

    Args:
        part: A row for each subject, a column for each class, shape (U, C).
        whole: The same.
        seed: Of the draws.
        draws: How many.
        bare: The exact interval of a sum of parts and a sum of wholes; no interval becomes
            narrower. A proportion's if left out.
    """
    values = _divide(part.sum(axis=0), whole.sum(axis=0))
    times = _draw_subjects(len(part), seed, draws)
    spread = _divide(times @ part, times @ whole)  # (draws, C)
    spread[:, (whole > 0).sum(axis=0) < 2] = np.nan
    return [
        Figure(
            float(value), *_widen(_compute_interval(column), (bare or proportion_interval)(*sums))
        )
        for value, column, *sums in zip(
            values, spread.T, part.sum(axis=0), whole.sum(axis=0), strict=True
        )
    ]


Interval = Callable[[float, float], tuple[float, float]]


def proportion_interval(part: float, whole: float) -> tuple[float, float]:
    """Give the exact interval of ``part`` of ``whole`` (Clopper & Pearson 1934); NaN of nothing."""
    if not whole > 0:
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE_LEVEL) / 2
    low = beta.ppf(tail, part, whole - part + 1) if part > 0 else 0.0
    high = beta.ppf(1 - tail, part + 1, whole - part) if part < whole else 1.0
    return float(low), float(high)


def f1_interval(hits: float, errors: float) -> tuple[float, float]:
    """Give the interval of F1 from the exact one of hits / (hits + errors), with which it rises.

    Args:
        hits: True positives.
        errors: False alarms and misses together.
    """
    low, high = proportion_interval(hits, hits + errors)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def count_interval(count: float, whole: float) -> tuple[float, float]:
    """Give the exact interval of a Poisson count (Garwood 1936), per ``whole``; NaN of nothing."""
    if not whole > 0:
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE_LEVEL) / 2
    low = chi2.ppf(tail, 2 * count) / 2 if count > 0 else 0.0
    return float(low / whole), float(chi2.ppf(1 - tail, 2 * (count + 1)) / 2 / whole)


def _widen(drawn: list[float], bare: tuple[float, float] | None) -> tuple[float, float]:
    """Widen a bootstrap interval to at least that of the bare counts."""
    low, high = drawn
    if bare is None or np.isnan([low, *bare]).any():
        return low, high
    return min(low, bare[0]), max(high, bare[1])


def _draw_subjects(subjects: int, seed: int, draws: int) -> np.ndarray:
    """Draw how often each subject comes in each bootstrap sample, (draws, subjects)."""
    even = np.full(subjects, 1 / subjects)
    return np.random.default_rng(seed).multinomial(subjects, even, size=draws)


def _summarize_subjects(counted: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Compute median and quartiles of the figures of single subjects.

    Sensitivity and F1 of a subject without lesions are not defined, as in VALDO, and left out.
    """
    each = np.zeros((owner.max() + 1, len(COUNT_NAMES)))
    np.add.at(each, owner, counted)
    metrics = _compute_metrics(each)
    f1 = np.where(each[:, 1] > 0, metrics.f1, np.nan)
    named = {"sensitivity": metrics.sensitivity, "precision": metrics.precision, "f1": f1}
    return {
        f"subject_{name}_{part}": value
        for name, values in {**named, "fp_per_scan": metrics.fp_per_scan}.items()
        for part, value in zip(
            ("median", "q1", "q3"), _compute_quantiles(values, 0.5, 0.25, 0.75), strict=True
        )
    }


def _list_thresholds(cases: Sequence[ScanMatches]) -> np.ndarray:
    """List infinity, at which nothing counts, then every probability that occurs, falling."""
    occurring = np.unique(np.concatenate([[], *(case.probability for case in cases)]))
    return np.append(np.inf, occurring[::-1])


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


def _compute_curve(cases: Sequence[ScanMatches], rule: Rule, thresholds: np.ndarray) -> FROCCurve:
    return FROCCurve(
        thresholds, _compute_metrics(sum(case.tally(rule).read(thresholds) for case in cases))
    )


def _pool(counted: np.ndarray) -> Metrics:
    metrics = _compute_metrics(counted)
    return Metrics(*(float(getattr(metrics, each.name)) for each in fields(metrics)))


def _compute_metrics(counted: np.ndarray) -> Metrics:
    """Compute the metrics from counts (..., 8), every field of shape (...)."""
    counts = Counts(*np.moveaxis(counted, -1, 0))
    return Metrics(
        **vars(counts),
        sensitivity=_divide(counts.lesions - counts.misses, counts.lesions),
        precision=_divide(counts.hits, counts.hits + counts.false_alarms),
        f1=_divide(2 * counts.hits, 2 * counts.hits + counts.false_alarms + counts.misses),
        fp_per_scan=_divide(counts.false_alarms, counts.scans),
        fp_per_lesion=_divide(counts.false_alarms, counts.lesions),
        sensitivity_large=_divide(counts.lesions_large - counts.misses_large, counts.lesions_large),
    )


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _compute_interval(values: np.ndarray) -> list[float]:
    return _compute_quantiles(values, (1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2)


def _compute_quantiles(values: np.ndarray, *parts: float) -> list[float]:
    """Compute quantiles of what is defined; NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return np.quantile(defined, parts).tolist() if len(defined) else [float("nan")] * len(parts)
