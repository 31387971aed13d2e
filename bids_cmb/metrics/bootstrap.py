"""Figures of an evaluation with their bootstrap intervals, for one detector or for two.

Pooled figures add the counts of all scans first; figures of a subject add those of its scans, and
their median stands for all, as in VALDO. Subjects are drawn with replacement.
"""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from bids_cmb.metrics.agreement import measure_count_agreement
from bids_cmb.metrics.intervals import (
    Figure,
    compute_interval,
    compute_quantiles,
    count_interval,
    draw_subjects,
    f1_interval,
    proportion_interval,
    widen_interval,
)
from bids_cmb.metrics.matching import Rule
from bids_cmb.metrics.scores import (
    COUNT_NAMES,
    FROCCurve,
    ScanMatches,
    compute_curve,
    derive_metrics,
    list_thresholds,
    pool_counts,
    rank_lesions,
)

FALSE_ALARM_RATES = (0.5, 1.0, 2.0, 4.0, 8.0)  # per scan, at which the FROC is read
LARGE_FALSE_ALARM_RATE = 0.5  # per scan, at which the sensitivity for large lesions is read
MAX_FROC_THRESHOLDS = 1000  # of a drawn FROC: few enough for thousands of scans
_LARGE_NAME = f"sensitivity_large_at_{LARGE_FALSE_ALARM_RATE:g}_fp"


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
    spread = [sample.summarize_draw(times) for times in draw_subjects(len(subjects), seed, draws)]
    bare = sample.compute_exact_intervals()
    drawn = {name: compute_interval(np.array([each[name] for each in spread])) for name in values}
    return {
        name: Figure(value, *widen_interval(drawn[name], bare.get(name)))
        for name, value in values.items()
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
        for times in draw_subjects(len(subjects), seed, draws)
    ]
    return {
        name: (
            values[0][name],
            values[1][name],
            Figure(
                values[1][name] - values[0][name],
                *compute_interval(np.array([right[name] - left[name] for left, right in spread])),
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
        exact = list_thresholds(cases)
        self.curve = compute_curve(cases, rule, exact)
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
        curve = FROCCurve(self.coarse, derive_metrics(np.tensordot(times, self.curves, axes=1)))
        ranks = np.concatenate([self.ranks[scan] for scan in scans])
        return summarize(self.counts[scans], again, curve) | _summarize_ranks(ranks)

    def compute_exact_intervals(self) -> dict[str, tuple[float, float]]:
        """Give the exact intervals of the figures that are ratios of counts."""
        pooled, curve = pool_counts(self.counts.sum(axis=0)), self.curve.metrics
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
    pooled, best = pool_counts(counted.sum(axis=0)), curve.best()
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


def _summarize_subjects(counted: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Compute median and quartiles of the figures of single subjects.

    Sensitivity and F1 of a subject without lesions are not defined, as in VALDO, and left out.
    """
    each = np.zeros((owner.max() + 1, len(COUNT_NAMES)))
    np.add.at(each, owner, counted)
    metrics = derive_metrics(each)
    f1 = np.where(each[:, 1] > 0, metrics.f1, np.nan)
    named = {"sensitivity": metrics.sensitivity, "precision": metrics.precision, "f1": f1}
    return {
        f"subject_{name}_{part}": value
        for name, values in {**named, "fp_per_scan": metrics.fp_per_scan}.items()
        for part, value in zip(
            ("median", "q1", "q3"), compute_quantiles(values, 0.5, 0.25, 0.75), strict=True
        )
    }
