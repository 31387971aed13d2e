"""Outcome of every true and every predicted lesion, and figures by size, region and mimic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from bids_cmb.evaluation.annotations import (
    LOCATION_COLUMNS,
    POSITION_COLUMNS,
    LesionAnnotations,
    Mimics,
)
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
MIMIC_DISTANCE_MM = 3.0  # a false alarm this near to a labelled mimic is caused by it
SIZES = (  # by diameter, the upper bound in mm left out
    ("under 2.5 mm", 2.5),
    ("2.5 to 5 mm", 5.0),
    ("5 to 10 mm", 10.0),
    ("10 mm and more", np.inf),
)
COUNTED_OUTCOMES = ("found", "missed", "hit", "false alarm")  # that enter the figures
LESION_COLUMNS = (
    "scan", "participant_id", "set", "index", *POSITION_COLUMNS, "diameter_mm", "size",
    *LOCATION_COLUMNS, "protocol", "probability", "outcome", "partner", "distance_mm", "rank",
    "false_above", "mimic", "mimic_mm",
)  # fmt: skip
EXACT_INTERVALS = {  # of each ratio of counts
    "sensitivity": proportion_interval,
    "precision": proportion_interval,
    "share": proportion_interval,
    "f1": lambda part, whole: f1_interval(part / 2, whole - part),
    "fp_per_scan": count_interval,
}


@dataclass(frozen=True, eq=False)
class ScanComparison:
    """Predicted and true lesions of a scan.

    Attributes:
        name: Its entities, as in a file name.
        protocol: Name of its protocol.
        predicted: Counted lesions only.
        truth: All true lesions.
        matches: Of predicted with true lesions.
        mimics: Where they are labelled.
    """

    name: str
    protocol: str
    predicted: LesionAnnotations
    truth: LesionAnnotations
    matches: ScanMatches
    mimics: Mimics | None


def classify_lesions(scan: ScanComparison, rule: Rule, *, threshold: float) -> pd.DataFrame:
    """Classify every true and every predicted lesion of a scan by its outcome.

    Returns:
        A row each with ``LESION_COLUMNS``. ``outcome`` of a true lesion: ``found``, ``missed``,
        ``uncertain``; of a predicted one: ``hit``, ``false alarm``, ``ignored``,
        ``below threshold``. ``partner`` is the index of the lesion it is matched with. ``rank`` and
        ``false_above`` are those of a true lesion among all predicted ones of its scan, whatever
        the threshold, as in `Ranks`. ``mimic`` is the kind of labelled mimic within 3 mm of a false
        alarm, ``none`` if there is none, n/a where mimics are not labelled.
    """
    kept = np.flatnonzero(scan.matches.probability >= threshold)
    match = scan.matches.match(rule, threshold)
    partner = np.full(len(scan.predicted.lesions), -1)
    partner[kept] = match.partner
    distances = cdist(scan.predicted.positions, scan.truth.positions)
    scan_columns = {
        "scan": scan.name,
        "participant_id": scan.matches.subject,
        "protocol": scan.protocol,
    }
    tables = [
        classify(scan, match, kept, partner, distances)
        for classify in (_classify_true, _classify_predicted)
    ]
    lesions = pd.concat([table.astype(object) for table in tables], ignore_index=True)
    ranks = rank_lesions(scan.matches, rule)
    lesions["rank"] = lesions["false_above"] = np.nan
    # The true lesions come first.
    lesions.loc[ranks.lesions, ["rank", "false_above"]] = np.stack(
        [ranks.rank, ranks.false_above], axis=1
    )
    lesions["size"] = [classify_size(diameter) for diameter in lesions["diameter_mm"]]
    return lesions.assign(**scan_columns).reindex(columns=LESION_COLUMNS).astype(object)


def _classify_true(
    scan: ScanComparison, match: Match, kept: np.ndarray, partner: np.ndarray, distances: np.ndarray
) -> pd.DataFrame:
    """Classify the true lesions.

    Args:
        scan: To classify.
        match: Of the predicted lesions that reach the threshold.
        kept: Their indices, (K,).
        partner: For every predicted lesion its true one, or -1 for none, (F,).
        distances: Between centres, mm, (F, T).
    """
    outcomes, partners, partner_mm = [], [], []
    for index, (missed, uncertain) in enumerate(
        zip(match.missed, scan.matches.uncertain, strict=True)
    ):
        matched = np.flatnonzero(partner == index)
        if not len(matched) and not missed and not uncertain:  # by one over several true lesions
            matched = kept[scan.matches.between[kept, index] > 0]
        nearest = matched[distances[matched, index].argmin()] if len(matched) else None
        outcomes.append("uncertain" if uncertain else "missed" if missed else "found")
        partners.append(None if nearest is None else scan.predicted.lesions["index"][nearest])
        partner_mm.append(np.nan if nearest is None else distances[nearest, index])
    return scan.truth.lesions.assign(
        set="true", outcome=outcomes, partner=partners, distance_mm=partner_mm, probability=np.nan
    )


def _classify_predicted(
    scan: ScanComparison, match: Match, kept: np.ndarray, partner: np.ndarray, distances: np.ndarray
) -> pd.DataFrame:
    """Classify the predicted lesions; see `_classify_true`."""
    detections = scan.predicted.lesions
    outcome = np.full(len(detections), "below threshold", object)
    outcome[kept] = np.where(match.partner >= 0, "hit", "false alarm")
    outcome[kept[match.ignored]] = "ignored"
    paired = partner >= 0
    partners = np.full(len(detections), None, object)
    partners[paired] = scan.truth.lesions["index"].to_numpy()[partner[paired]]
    pair_distances = np.full(len(detections), np.nan)
    pair_distances[paired] = distances[paired, partner[paired]]
    alarms = outcome == "false alarm"
    mimic, mimic_mm = np.full(len(detections), None, object), np.full(len(detections), np.nan)
    if scan.mimics:
        kinds, distance_mm = scan.mimics.find_nearest(scan.predicted.positions[alarms])
        mimic[alarms] = np.where(distance_mm <= MIMIC_DISTANCE_MM, kinds, "none")
        mimic_mm[alarms] = np.where(distance_mm <= MIMIC_DISTANCE_MM, distance_mm, np.nan)
    return detections.assign(
        set="found",
        outcome=outcome,
        partner=partners,
        distance_mm=pair_distances,
        mimic=mimic,
        mimic_mm=mimic_mm,
    )


def classify_size(diameter_mm: float) -> str:
    """Classify a diameter by ``SIZES``."""
    if math.isnan(diameter_mm):
        return UNKNOWN_CLASS
    return next(name for name, bound in SIZES if diameter_mm < bound)


def make_scan_row(scan: ScanComparison, lesions: pd.DataFrame) -> dict[str, object]:
    """Make the row of a scan's counts."""
    outcomes = lesions["outcome"].value_counts()
    count = {outcome: int(outcomes.get(outcome, 0)) for outcome in COUNTED_OUTCOMES}
    return {
        "scan": scan.name,
        "participant_id": scan.matches.subject,
        "protocol": scan.protocol,
        "lesions": count["found"] + count["missed"],
        "found": count["hit"] + count["false alarm"],
        "false_alarms": count["false alarm"],
        "misses": count["missed"],
        "uncertain": int(outcomes.get("uncertain", 0)),
        "ignored": int(outcomes.get("ignored", 0)),
    }


def break_down(
    lesions: pd.DataFrame,
    counts: pd.DataFrame,
    scans: Sequence[ScanComparison],
    *,
    seed: int,
    draws: int,
) -> pd.DataFrame:
    """Break the figures down by size, location, protocol and mimic, as far as these are known.

    True lesions count in their own class, false alarms in theirs; hits are true lesions found.

    Args:
        lesions: Of all scans, from `classify_lesions`.
        counts: Of all scans, from `make_scan_row`.
        scans: All.
        seed: Of the bootstrap over subjects.
        draws: Of the bootstrap.

    Returns:
        A row for each figure of each class: ``by``, ``class``, ``figure``, ``value``, ``low``,
        ``high``.
    """
    tables = [_tabulate(by, lesions, counts) for by in ("size", *LOCATION_COLUMNS, "protocol")]
    tables.append(_tabulate_mimics(lesions, scans))
    rows = [row for table in tables if table for row in _make_rows(table, seed=seed, draws=draws)]
    return pd.DataFrame(rows, columns=["by", "class", "figure", "value", "low", "high"])


@dataclass(frozen=True, eq=False)
class _ClassTable:
    """Counts and ratios by class.

    Attributes:
        by: The variable.
        classes: Its classes.
        counts: By name, a row per subject and a column per class.
        ratios: By name, numerators and denominators, likewise.
    """

    by: str
    classes: list[str]
    counts: dict[str, np.ndarray]
    ratios: dict[str, tuple[np.ndarray, np.ndarray]]


def _tabulate(by: str, lesions: pd.DataFrame, counts: pd.DataFrame) -> _ClassTable | None:
    lesions = lesions[lesions["outcome"].isin(COUNTED_OUTCOMES)]
    if lesions[by].isna().all():
        return None
    lesions = lesions.assign(**{by: lesions[by].fillna(UNKNOWN_CLASS)})
    classes = _sort_classes(by, (counts if by == "protocol" else lesions)[by].unique())
    subjects = counts["participant_id"].unique()

    def cross(table: pd.DataFrame, column: str = by) -> np.ndarray:
        crossed = pd.crosstab(table["participant_id"], table[column])
        return crossed.reindex(index=subjects, columns=classes, fill_value=0).to_numpy(float)

    hits, misses, alarms = (
        cross(lesions[lesions["outcome"] == outcome])
        for outcome in ("found", "missed", "false alarm")
    )
    scans = counts["participant_id"].value_counts().reindex(subjects).to_numpy(float)[:, None]
    scans = cross(counts) if by == "protocol" else np.broadcast_to(scans, alarms.shape)
    totals = {"scans": scans, "lesions": hits + misses, "misses": misses, "false_alarms": alarms}
    ratios = {
        "sensitivity": (hits, hits + misses),
        "precision": (hits, hits + alarms),
        "f1": (2 * hits, 2 * hits + alarms + misses),
        "fp_per_scan": (alarms, scans),
    }
    return _ClassTable(by, classes, totals, ratios)


def _tabulate_mimics(lesions: pd.DataFrame, scans: Sequence[ScanComparison]) -> _ClassTable | None:
    """Tabulate which mimics cause the false alarms, over scans in which mimics are labelled."""
    labelled_scans = [scan for scan in scans if scan.mimics is not None]
    kinds = sorted({kind for scan in labelled_scans for kind in scan.mimics.counts})
    if not kinds:
        return None
    classes = [*kinds, "none"]
    subjects = sorted({scan.matches.subject for scan in labelled_scans})
    n_labelled, n_scans = np.zeros((2, len(subjects), len(classes)))
    for scan in labelled_scans:
        row = subjects.index(scan.matches.subject)
        n_labelled[row] += [scan.mimics.counts.get(kind, 0) for kind in classes]
        n_scans[row] += 1
    alarms = lesions[(lesions["outcome"] == "false alarm") & lesions["mimic"].notna()]
    crossed = pd.crosstab(alarms["participant_id"], alarms["mimic"])
    caused = crossed.reindex(index=subjects, columns=classes, fill_value=0).to_numpy(float)
    all_alarms = caused.sum(axis=1, keepdims=True) + np.zeros_like(caused)
    ratios = {"share": (caused, all_alarms), "fp_per_scan": (caused, n_scans)}
    counts = {"labelled": n_labelled, "false_alarms": caused}
    return _ClassTable("mimic", classes, counts, ratios)


def _make_rows(table: _ClassTable, *, seed: int, draws: int) -> list[dict]:
    """Make a row of every count and ratio of every class; counts have no interval."""
    counts = {
        name: [Figure(float(total), np.nan, np.nan) for total in column.sum(axis=0)]
        for name, column in table.counts.items()
    }
    ratios = {
        name: compute_rates(part, whole, seed=seed, draws=draws, bare=EXACT_INTERVALS[name])
        for name, (part, whole) in table.ratios.items()
    }
    return [
        {"by": table.by, "class": kind, "figure": name, **vars(values[index])}
        for index, kind in enumerate(table.classes)
        for name, values in {**counts, **ratios}.items()
    ]


def _sort_classes(by: str, classes: Sequence[str]) -> list[str]:
    """Sort sizes by size, other classes by name, and the unknown class last."""
    order = [name for name, _ in SIZES] if by == "size" else sorted(set(classes) - {UNKNOWN_CLASS})
    return [name for name in [*order, UNKNOWN_CLASS] if name in set(classes)]
