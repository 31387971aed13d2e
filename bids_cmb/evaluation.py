"""Evaluation: what was found against what is there, as points in world mm.

A found lesion is a hit or a false alarm, a true lesion is found or missed; every figure follows
from counting these over scans. Two rules say which is which: `match_valdo`, the rule of the VALDO
challenge, and `match_one_to_one`, where every lesion has one partner at most.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

REACH = 5.0  # mm within which found and true are the same lesion
FALSE_ALARM_RATES = (0.5, 1.0, 2.0, 4.0, 8.0)  # per scan, at which the FROC is read
POSITION = ["x_mm", "y_mm", "z_mm"]


@dataclass(frozen=True, eq=False)
class Match:
    """Which found lesions are hits and which true ones were found.

    Attributes:
        partner: For every found lesion its true one, or -1 for a false alarm, shape (F,).
        missed: For every true lesion whether no found one took it, shape (T,).
    """

    partner: np.ndarray
    missed: np.ndarray


@dataclass(frozen=True, eq=False)
class Case:
    """One scan: what was found in it and what is there.

    Attributes:
        subject: Whose scan; intervals are over subjects, not scans.
        found: World mm, shape (F, 3).
        probability: Of every found lesion, 0 to 1, shape (F,).
        truth: World mm, shape (T, 3).
    """

    subject: str
    found: np.ndarray
    probability: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Metrics:
    """How well lesions were found, all scans pooled; NaN where a figure is not defined.

    Attributes:
        scans: How many.
        lesions: True ones.
        hits: Found lesions with a true partner.
        false_alarms: Found lesions without.
        misses: True lesions that nothing found.
        sensitivity: Part of the true lesions that was found. Higher is better.
        precision: Part of the found lesions that are hits. Higher is better.
        f1: 2 hits / (2 hits + false alarms + misses). Higher is better.
        fp_per_scan: False alarms per scan. Lower is better.
    """

    scans: float
    lesions: float
    hits: float
    false_alarms: float
    misses: float
    sensitivity: float
    precision: float
    f1: float
    fp_per_scan: float


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


Rule = Callable[[np.ndarray, np.ndarray], Match]


def match_valdo(found: np.ndarray, truth: np.ndarray, *, reach: float = REACH) -> Match:
    """Pair found and true lesions by the rule of the VALDO challenge.

    Every found lesion picks its nearest true one (the first of equals) if that is nearer than
    ``reach``. Of several that picked the same one the nearest is a hit and the others are false
    alarms; if they are equally near, all the nearest are hits.

    Args:
        found: World mm, shape (F, 3).
        truth: World mm, shape (T, 3).
        reach: mm.

    Source:
        Sudre et al. 2024, doi:10.1016/j.media.2023.103029.
    """
    partner, missed = np.full(len(found), -1), np.ones(len(truth), bool)
    if not len(found) or not len(truth):
        return Match(partner, missed)
    distance = cdist(found, truth)  # (F, T)
    picked = distance.argmin(axis=1)
    near = distance.min(axis=1)
    for k in np.unique(picked[near < reach]):
        rivals = np.flatnonzero((picked == k) & (near < reach))
        partner[rivals[near[rivals] == near[rivals].min()]] = k
        missed[k] = False
    return Match(partner, missed)


def match_one_to_one(found: np.ndarray, truth: np.ndarray, *, reach: float = REACH) -> Match:
    """Pair as many found and true lesions as can be, then those nearest to each other.

    Args:
        found: World mm, shape (F, 3).
        truth: World mm, shape (T, 3).
        reach: mm; pairs may be up to that far apart.
    """
    partner, missed = np.full(len(found), -1), np.ones(len(truth), bool)
    if not len(found) or not len(truth):
        return Match(partner, missed)
    distance = cdist(found, truth)  # (F, T)
    # One pair too far apart costs more than all near ones together, so none of those is given up.
    too_far = reach * (min(distance.shape) + 1)
    rows, columns = linear_sum_assignment(np.where(distance <= reach, distance, too_far))
    paired = distance[rows, columns] <= reach
    partner[rows[paired]] = columns[paired]
    missed[columns[paired]] = False
    return Match(partner, missed)


def score(cases: Sequence[Case], *, threshold: float = 0.0, rule: Rule = match_valdo) -> Metrics:
    """How well lesions were found over all scans.

    Args:
        cases: One per scan.
        threshold: Found lesions of a lower probability are left out.
        rule: Which found lesion belongs to which true one.
    """
    counted = _counts(cases, np.array([threshold]), rule).sum(axis=0)[0]
    return Metrics(*map(float, _figures(counted)))


def froc(cases: Sequence[Case], *, rule: Rule = match_valdo) -> Froc:
    """The figures at every threshold that makes a difference."""
    thresholds = _thresholds(cases)
    return Froc(thresholds, Metrics(*_figures(_counts(cases, thresholds, rule).sum(axis=0))))


def bootstrap(
    cases: Sequence[Case],
    *,
    threshold: float,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
    rule: Rule = match_valdo,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of every figure when subjects are drawn with replacement.

    Args:
        cases: One per scan; the scans of a subject are drawn together.
        threshold: Found lesions of a lower probability are left out; the FROC takes all.
        seed: Of the draws.
        draws: How many.
        level: Of the interval.
        rule: Which found lesion belongs to which true one.

    Returns:
        For every figure of `summary` the ends of its interval; NaN if it was never defined.
    """
    thresholds = np.append(threshold, _thresholds(cases))
    counted = _counts(cases, thresholds, rule)  # (scans, K, 5)
    subjects, belongs = np.unique([case.subject for case in cases], return_inverse=True)
    each = np.zeros((len(subjects), *counted.shape[1:]))
    np.add.at(each, belongs, counted)

    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(draws):
        total = each[rng.integers(len(subjects), size=len(subjects))].sum(axis=0)
        curve = Froc(thresholds[1:], Metrics(*_figures(total[1:])))
        for name, value in summary(Metrics(*map(float, _figures(total[0]))), curve).items():
            drawn.setdefault(name, []).append(value)
    return {name: _interval(np.array(values), level) for name, values in drawn.items()}


def summary(metrics: Metrics, curve: Froc) -> dict[str, float]:
    """The figures at a threshold and those read off the FROC, by name."""
    best = curve.best()
    return {
        **{field.name: getattr(metrics, field.name) for field in fields(metrics)},
        **{f"sensitivity_at_{rate:g}_fp": curve.sensitivity_at(rate) for rate in FALSE_ALARM_RATES},
        "best_f1": float(curve.metrics.f1[best]),
        "best_f1_fp_per_scan": float(curve.metrics.fp_per_scan[best]),
    }


def _thresholds(cases: Sequence[Case]) -> np.ndarray:
    """Infinity, at which nothing counts, then every probability that occurs, falling."""
    occurring = np.unique(np.concatenate([[], *(case.probability for case in cases)]))
    return np.append(np.inf, occurring[::-1])


def _counts(cases: Sequence[Case], thresholds: np.ndarray, rule: Rule) -> np.ndarray:
    """Scans, lesions, hits, false alarms and misses of every scan, shape (scans, K, 5)."""
    counted = np.empty((len(cases), len(thresholds), 5))
    for row, case in zip(counted, cases, strict=True):
        # Between two of a scan's own probabilities nothing changes, so each is matched once.
        own = np.append(np.unique(case.probability), np.inf)
        row[:] = np.array([_count(case, level, rule) for level in own])[
            np.searchsorted(own, thresholds)
        ]
    return counted


def _count(case: Case, threshold: float, rule: Rule) -> tuple[int, int, int, int, int]:
    match = rule(case.found[case.probability >= threshold], case.truth)
    hits = int((match.partner >= 0).sum())
    return 1, len(case.truth), hits, len(match.partner) - hits, int(match.missed.sum())


def _figures(counted: np.ndarray) -> list[np.ndarray]:
    """The fields of `Metrics` from counts (..., 5)."""
    scans, lesions, hits, false_alarms, misses = np.moveaxis(counted, -1, 0)
    return [
        *(scans, lesions, hits, false_alarms, misses),
        _ratio(lesions - misses, lesions),
        _ratio(hits, hits + false_alarms),
        _ratio(2 * hits, 2 * hits + false_alarms + misses),
        _ratio(false_alarms, scans),
    ]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def read_truth(path: Path) -> dict[tuple[str, str], np.ndarray]:
    """True lesions of every scan from a table of coordinates.

    Args:
        path: TSV, a row per lesion, with ``participant_id`` (or ``subject``), ``x_mm``, ``y_mm``,
            ``z_mm`` and, if there are several, ``session_id`` (or ``session``). A row with ``n/a``
            for its position says that a scan was read and has none.

    Returns:
        For each (subject, session), as ``sub-01`` and ``ses-1`` or an empty word: world mm, (T, 3).

    Raises:
        ValueError: If a column is missing or a position is half there.
        OSError: If the file cannot be read.
    """
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_values=["n/a", ""])
    table = table.rename(columns={"subject": "participant_id", "session": "session_id"})
    _need(path, table, ["participant_id", *POSITION])
    if "session_id" not in table:
        table["session_id"] = ""
    table = table.fillna({"session_id": ""})
    where = _numbers(path, table[POSITION])
    partly = where.isna().any(axis=1) & where.notna().any(axis=1)
    if partly.any():
        raise ValueError(
            f"{path}: a lesion must have x_mm, y_mm and z_mm, or n/a for all three; "
            f"line {int(np.flatnonzero(partly)[0]) + 2} has only some."
        )
    scans = zip(
        table["participant_id"].map(lambda label: _labelled("sub", label)),
        table["session_id"].map(lambda label: _labelled("ses", label)),
        strict=True,
    )
    keys = pd.Series(list(scans), index=table.index)
    return {
        key: where[(keys == key) & where.notna().all(axis=1)].to_numpy(float)
        for key in dict.fromkeys(keys)
    }


def read_found(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Found lesions of a scan from its lesion table.

    Args:
        path: ``…_seg-CMB_…dseg.tsv`` with ``x_mm``, ``y_mm``, ``z_mm`` and ``prob_max``.

    Returns:
        found: World mm, shape (F, 3).
        probability: The highest in each lesion, shape (F,).

    Raises:
        ValueError: If a column or a value is missing.
        OSError: If the file cannot be read.
    """
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_values=["n/a", ""])
    _need(path, table, [*POSITION, "prob_max"])
    numbers = _numbers(path, table[[*POSITION, "prob_max"]]).to_numpy(float)
    if np.isnan(numbers).any():
        line = int(np.flatnonzero(np.isnan(numbers).any(axis=1))[0]) + 2
        raise ValueError(
            f"{path}: every lesion must have a position and prob_max; line {line} has not."
        )
    return numbers[:, :3], numbers[:, 3]


def read_cases(derivatives: Path, truth: Path) -> list[Case]:
    """Every scan of an output folder with its truth; a scan that the truth leaves out has none.

    Args:
        derivatives: Output folder of the app.
        truth: As for `read_truth`.

    Raises:
        ValueError: If the folder has no lesion tables, two for one scan of the truth, or none for
            a scan that the truth names; or as the two readers.
        OSError: If a file cannot be read.
    """
    lesions = read_truth(truth)
    tables = sorted(derivatives.glob("sub-*/**/*_seg-CMB_*dseg.tsv"))
    if not tables:
        raise ValueError(
            f"{derivatives}: lesion tables (…_seg-CMB_…_dseg.tsv) are needed; found none."
        )
    scans = [_scan_of(table.name, lesions) for table in tables]
    _tell_apart(derivatives, truth, scans, lesions)
    nothing = np.empty((0, 3))
    return [
        Case(scan[0], *read_found(table), lesions.get(scan, nothing))
        for table, scan in zip(tables, scans, strict=True)
    ]


def _scan_of(name: str, lesions: dict) -> tuple[str, str]:
    """Subject and session of a file; without session where the truth knows none."""
    subject = re.match(r"sub-[0-9a-zA-Z]+", name).group()
    session = re.search(r"ses-[0-9a-zA-Z]+", name)
    if session is None or (subject, "") in lesions:
        return subject, ""
    return subject, session.group()


def _tell_apart(derivatives: Path, truth: Path, scans: list, lesions: dict) -> None:
    twice = sorted({scan for scan in scans if scans.count(scan) > 1 and scan in lesions})
    if twice:
        raise ValueError(
            f"{derivatives}: a scan of the truth needs one lesion table; "
            f"found several for {' '.join(twice[0]).strip()}."
        )
    absent = sorted(set(lesions) - set(scans))
    if absent:
        raise ValueError(
            f"{truth}: every scan of the truth needs a lesion table in {derivatives}; "
            f"found none for {', '.join(' '.join(scan).strip() for scan in absent)}."
        )


def _need(path: Path, table: pd.DataFrame, names: list[str]) -> None:
    lacking = [name for name in names if name not in table]
    if lacking:
        raise ValueError(
            f"{path}: the columns {', '.join(names)} are needed; "
            f"{', '.join(lacking)} not among {', '.join(table.columns)}."
        )


def _numbers(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    try:
        return table.astype(float)
    except ValueError as error:
        raise ValueError(f"{path}: positions and probabilities must be numbers; {error}.") from None


def _labelled(entity: str, label: str) -> str:
    return f"{entity}-{label.removeprefix(f'{entity}-')}" if label else ""
