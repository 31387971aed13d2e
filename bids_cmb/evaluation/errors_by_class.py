"""Outcome of every true and every found lesion, by size, region and mimic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from bids_cmb.evaluation.annotations import PLACES, POSITION, LesionAnnotations, Mimics
from bids_cmb.metrics.intervals import (
    Figure,
    compute_rates,
    count_interval,
    f1_interval,
    proportion_interval,
)
from bids_cmb.metrics.matching import Match, Rule
from bids_cmb.metrics.scores import ScanMatches, rank_lesions

UNKNOWN_CLASS = "unknown"
MIMIC_MM = 3.0  # a false alarm this near to a labelled mimic is blamed on it
SIZES = (  # by diameter, the upper bound in mm left out
    ("under 2.5 mm", 2.5),
    ("2.5 to 5 mm", 5.0),
    ("5 to 10 mm", 10.0),
    ("10 mm and more", np.inf),
)
COUNTED = ("found", "missed", "hit", "false alarm")  # outcomes that enter the figures
COLUMNS = (
    *(
        "scan",
        "participant_id",
        "set",
        "index",
        *POSITION,
        "diameter_mm",
        "size",
        *PLACES,
        "protocol",
    ),
    *("probability", "outcome", "partner", "distance_mm", "rank", "false_above"),
    *("mimic", "mimic_mm"),
)
BARE = {  # the exact interval of each ratio of counts
    "sensitivity": proportion_interval,
    "precision": proportion_interval,
    "share": proportion_interval,
    "f1": lambda part, whole: f1_interval(part / 2, whole - part),
    "fp_per_scan": count_interval,
}


@dataclass(frozen=True, eq=False)
class ScanComparison:
    """One scan: what was found in it and what is there.

    Attributes:
        name: Its entities, as in a file name.
        protocol: How it was scanned, in words.
        found: Counted lesions only.
        truth: All of them.
        case: The two against each other.
        mimics: What is labelled as no microbleed, where that is known.
    """

    name: str
    protocol: str
    found: LesionAnnotations
    truth: LesionAnnotations
    case: ScanMatches
    mimics: Mimics | None


def classify_lesions(scan: ScanComparison, rule: Rule, *, threshold: float) -> pd.DataFrame:
    """Classify every true and every found lesion of a scan by its outcome.

    Returns:
        A row each with ``COLUMNS``. ``outcome`` of a true lesion: ``found``, ``missed``,
        ``uncertain``; of a found one: ``hit``, ``false alarm``, ``ignored``, ``below threshold``.
        ``partner`` is the index on the other side. ``rank`` and ``false_above`` are those of a
        true lesion among all that was found in its scan, whatever the threshold, as `Ranks` has
        them. ``mimic`` is the kind of labelled mimic within 3 mm of a false alarm, ``none`` if
        there is none, n/a where mimics are not labelled.
    """
    kept = np.flatnonzero(scan.case.probability >= threshold)
    match = scan.case.match(rule, threshold)
    partner = np.full(len(scan.found.lesions), -1)
    partner[kept] = match.partner
    away = cdist(scan.found.positions, scan.truth.positions)
    whose = {"scan": scan.name, "participant_id": scan.case.subject, "protocol": scan.protocol}
    sides = [of(scan, match, kept, partner, away) for of in (_of_truth, _of_found)]
    both = pd.concat([side.astype(object) for side in sides], ignore_index=True)
    ranks = rank_lesions(scan.case, rule)
    both["rank"] = both["false_above"] = np.nan
    both.loc[ranks.lesions, ["rank", "false_above"]] = np.stack(
        [ranks.rank, ranks.false_above], axis=1
    )  # the true lesions come first
    both["size"] = [size_class(diameter) for diameter in both["diameter_mm"]]
    return both.assign(**whose).reindex(columns=COLUMNS).astype(object)


def _of_truth(
    scan: ScanComparison, match: Match, kept: np.ndarray, partner: np.ndarray, away: np.ndarray
) -> pd.DataFrame:
    truth, between = scan.truth.lesions, scan.case.between
    outcomes, partners, distances = [], [], []
    for at, (missed, uncertain) in enumerate(zip(match.missed, scan.case.uncertain, strict=True)):
        takers = np.flatnonzero(partner == at)
        if (
            not len(takers) and not missed and not uncertain
        ):  # one found lesion over several true ones
            takers = kept[between[kept, at] > 0]
        taker = takers[away[takers, at].argmin()] if len(takers) else None
        outcomes.append("uncertain" if uncertain else "missed" if missed else "found")
        partners.append(None if taker is None else scan.found.lesions["index"][taker])
        distances.append(np.nan if taker is None else away[taker, at])
    return truth.assign(
        set="true", outcome=outcomes, partner=partners, distance_mm=distances, probability=np.nan
    )


def _of_found(
    scan: ScanComparison, match: Match, kept: np.ndarray, partner: np.ndarray, away: np.ndarray
) -> pd.DataFrame:
    found = scan.found.lesions
    outcome = np.full(len(found), "below threshold", object)
    outcome[kept] = np.where(match.partner >= 0, "hit", "false alarm")
    outcome[kept[match.ignored]] = "ignored"
    paired = partner >= 0
    index = np.full(len(found), None, object)
    index[paired] = scan.truth.lesions["index"].to_numpy()[partner[paired]]
    distance = np.full(len(found), np.nan)
    distance[paired] = away[paired, partner[paired]]
    alarms = outcome == "false alarm"
    mimic, mimic_mm = np.full(len(found), None, object), np.full(len(found), np.nan)
    if scan.mimics:
        kinds, mm = scan.mimics.nearest(scan.found.positions[alarms])
        mimic[alarms] = np.where(mm <= MIMIC_MM, kinds, "none")
        mimic_mm[alarms] = np.where(mm <= MIMIC_MM, mm, np.nan)
    return found.assign(
        set="found",
        outcome=outcome,
        partner=index,
        distance_mm=distance,
        mimic=mimic,
        mimic_mm=mimic_mm,
    )


def size_class(diameter_mm: float) -> str:
    """The class of a diameter, its upper bound left out."""
    if math.isnan(diameter_mm):
        return UNKNOWN_CLASS
    return next(name for name, bound in SIZES if diameter_mm < bound)


def scan_row(scan: ScanComparison, lesions: pd.DataFrame) -> dict[str, object]:
    """A scan's counts."""
    outcomes = lesions["outcome"].value_counts()
    count = {
        outcome: int(outcomes.get(outcome, 0))
        for outcome in ("found", "missed", "hit", "false alarm")
    }
    return {
        "scan": scan.name,
        "participant_id": scan.case.subject,
        "protocol": scan.protocol,
        "lesions": count["found"] + count["missed"],
        "found": count["hit"] + count["false alarm"],
        "false_alarms": count["false alarm"],
        "misses": count["missed"],
        "uncertain": int(outcomes.get("uncertain", 0)),
        "ignored": int(outcomes.get("ignored", 0)),
    }


def breakdown(
    lesions: pd.DataFrame,
    counts: pd.DataFrame,
    scans: Sequence[ScanComparison],
    *,
    seed: int,
    draws: int,
) -> pd.DataFrame:
    """The figures by size, place, protocol and mimic, where anything is known of them.

    True lesions count in their own class, false alarms in theirs; hits are true lesions found.

    Args:
        lesions: Of all scans, as `classify_lesions` gives them.
        counts: Of all scans, as `scan_row` has them.
        scans: All.
        seed: Of the bootstrap over subjects.
        draws: Of the same.

    Returns:
        A row for each figure of each class: ``by``, ``class``, ``figure``, ``value``, ``low``,
        ``high``.
    """
    tables = [_by(by, lesions, counts) for by in ("size", *PLACES, "protocol")]
    tables.append(_by_mimic(lesions, scans))
    rows = [row for table in tables if table for row in _rows(table, seed=seed, draws=draws)]
    return pd.DataFrame(rows, columns=["by", "class", "figure", "value", "low", "high"])


@dataclass(frozen=True, eq=False)
class _Table:
    """Counts and ratios by class; arrays of a row per subject and a column per class."""

    by: str
    classes: list[str]
    known: dict[str, np.ndarray]
    ratios: dict[str, tuple[np.ndarray, np.ndarray]]


def _by(by: str, lesions: pd.DataFrame, counts: pd.DataFrame) -> _Table | None:
    lesions = lesions[lesions["outcome"].isin(COUNTED)]
    if lesions[by].isna().all():
        return None
    lesions = lesions.assign(**{by: lesions[by].fillna(UNKNOWN_CLASS)})
    classes = _in_order(by, (counts if by == "protocol" else lesions)[by].unique())
    subjects = counts["participant_id"].unique()

    def of(table: pd.DataFrame, column: str = by) -> np.ndarray:
        crossed = pd.crosstab(table["participant_id"], table[column])
        return crossed.reindex(index=subjects, columns=classes, fill_value=0).to_numpy(float)

    hits, misses = (
        of(lesions[lesions["outcome"] == "found"]),
        of(lesions[lesions["outcome"] == "missed"]),
    )
    alarms = of(lesions[lesions["outcome"] == "false alarm"])
    scans = counts["participant_id"].value_counts().reindex(subjects).to_numpy(float)[:, None]
    scans = of(counts) if by == "protocol" else np.broadcast_to(scans, alarms.shape)
    known = {"scans": scans, "lesions": hits + misses, "misses": misses, "false_alarms": alarms}
    ratios = {
        "sensitivity": (hits, hits + misses),
        "precision": (hits, hits + alarms),
        "f1": (2 * hits, 2 * hits + alarms + misses),
        "fp_per_scan": (alarms, scans),
    }
    return _Table(by, classes, known, ratios)


def _by_mimic(lesions: pd.DataFrame, scans: Sequence[ScanComparison]) -> _Table | None:
    """Which mimics cause the false alarms, of the scans in which mimics are labelled."""
    known = [scan for scan in scans if scan.mimics is not None]
    kinds = sorted({kind for scan in known for kind in scan.mimics.numbers})
    if not kinds:
        return None
    classes = [*kinds, "none"]
    subjects = sorted({scan.case.subject for scan in known})
    labelled, of_scans = np.zeros((2, len(subjects), len(classes)))
    for scan in known:
        row = subjects.index(scan.case.subject)
        labelled[row] += [scan.mimics.numbers.get(kind, 0) for kind in classes]
        of_scans[row] += 1
    alarms = lesions[(lesions["outcome"] == "false alarm") & lesions["mimic"].notna()]
    crossed = pd.crosstab(alarms["participant_id"], alarms["mimic"])
    blamed = crossed.reindex(index=subjects, columns=classes, fill_value=0).to_numpy(float)
    every = blamed.sum(axis=1, keepdims=True) + np.zeros_like(blamed)
    ratios = {"share": (blamed, every), "fp_per_scan": (blamed, of_scans)}
    known_of = {"labelled": labelled, "false_alarms": blamed}
    return _Table("mimic", classes, known_of, ratios)


def _rows(table: _Table, *, seed: int, draws: int) -> list[dict]:
    """Counts and ratios of every class, a row each; counts have no interval."""
    counts = {
        name: [Figure(float(value), np.nan, np.nan) for value in each.sum(axis=0)]
        for name, each in table.known.items()
    }
    ratios = {
        name: compute_rates(part, whole, seed=seed, draws=draws, bare=BARE[name])
        for name, (part, whole) in table.ratios.items()
    }
    return [
        {"by": table.by, "class": kind, "figure": name, **vars(values[at])}
        for at, kind in enumerate(table.classes)
        for name, values in {**counts, **ratios}.items()
    ]


def _in_order(by: str, classes: Sequence[str]) -> list[str]:
    """Sizes by size, all else by name, and what is not known last."""
    order = [name for name, _ in SIZES] if by == "size" else sorted(set(classes) - {UNKNOWN_CLASS})
    return [name for name in [*order, UNKNOWN_CLASS] if name in set(classes)]
