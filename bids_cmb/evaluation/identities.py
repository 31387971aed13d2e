"""Identities of lesions over time, against the truth of simulated sessions.

A lesion is truly new if it is definite at the later visit and cannot be seen at the earlier one.
Those that are possible at either are ignored. Two rules are scored on the same lesions: the
evidence rule of the follow-up, and the threshold rule, by which every lesion is new that was not
found at the earlier visit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from bids_cmb.bids.paths import locate_lesion_table
from bids_cmb.bids.tables import POSITION_COLUMNS, read_table
from bids_cmb.evaluation.annotations import LesionAnnotations, read_annotations
from bids_cmb.lesions.table import get_position
from bids_cmb.metrics.matching import match_one_to_one


@dataclass(frozen=True)
class PairScore:
    """Counts of a pair of visits.

    Attributes:
        true_new: Lesions that are truly new.
        true_new_detected: Of these, found at the later visit.
        new_by_threshold: Of these, called new by the threshold rule.
        new_by_evidence: Of these, called new by the evidence rule.
        false_by_threshold: Called new by the threshold rule, and not new.
        false_by_evidence: Called new by the evidence rule, and not new.
        in_both: Lesions that are visible at both visits and were found at both.
        identified: Of these, those with one identity.
    """

    true_new: int = 0
    true_new_detected: int = 0
    new_by_threshold: int = 0
    new_by_evidence: int = 0
    false_by_threshold: int = 0
    false_by_evidence: int = 0
    in_both: int = 0
    identified: int = 0


@dataclass(frozen=True, eq=False)
class _Visit:
    """Found and true lesions of a visit, and which are the same.

    Attributes:
        certainty: Of each true lesion by its identity.
        partners: Identity of the true lesion, or None, for each found one by its index.
    """

    certainty: Mapping[int, str]
    partners: Mapping[int, int | None]


def score_identities(predictions: Path, truth: Path) -> list[dict[str, object]]:
    """Score every pair of consecutive visits that was followed and has a truth with identities.

    Args:
        predictions: Output folder of the app.
        truth: Truth of simulated sessions.

    Returns:
        A row for each pair: its scans, and the counts of `PairScore`; none without follow-ups.

    Raises:
        ValueError: If a table cannot be used.
        OSError: If one cannot be read.
    """
    tables = sorted(predictions.glob("sub-*/anat/*_desc-longitudinal*_pairs.tsv"))
    if not tables or not truth.is_dir():
        return []
    known = read_annotations(truth)
    predicted = read_annotations(predictions)
    return [row for table in tables for row in _score_series(table, predictions, predicted, known)]


def _score_series(
    table: Path,
    predictions: Path,
    predicted: Sequence[LesionAnnotations],
    known: Sequence[LesionAnnotations],
) -> Iterator[dict[str, object]]:
    observations = read_table(table.with_name(table.name.replace("_pairs.", "_observations.")))
    by_table = {each.file.relative_to(predictions): each for each in predicted}
    for pair in read_table(table):
        names = [str(pair[f"filename_{number}"]) for number in (1, 2)]
        if pair["consecutive"] != "yes" or pair["status"] != "ok":
            continue
        visits = [_read_visit(by_table[locate_lesion_table(Path(name))], known) for name in names]
        if None in visits:
            continue
        rows = [[row for row in observations if row["filename"] == name] for name in names]
        score = score_pair(*visits, *rows)
        yield {"filename_1": names[0], "filename_2": names[1], **asdict(score)}


def _read_visit(predicted: LesionAnnotations, known: Sequence[LesionAnnotations]) -> _Visit | None:
    """Match found with true lesions of a visit; None without a truth that has identities."""
    true = next((each for each in known if each.may_match(predicted)), None)
    rows = read_table(true.file) if true is not None and true.file else []
    if true is None or (rows and rows[0].get("identity") is None):
        return None
    identities = [int(row["identity"]) for row in rows]
    certainty = {
        identity: str(row["certainty"]) for identity, row in zip(identities, rows, strict=True)
    }
    seen = [row for row in rows if row["certainty"] != "unseen"]
    points = np.array([get_position(row) for row in seen])
    lesions = predicted.lesions[predicted.lesions["included"]]
    places = lesions[list(POSITION_COLUMNS)].to_numpy(float)
    match = match_one_to_one(cdist(places, points.reshape(-1, 3)))
    partners = {
        int(index): int(seen[partner]["identity"]) if partner >= 0 else None
        for index, partner in zip(lesions["index"], match.partner, strict=True)
    }
    return _Visit(certainty, partners)


def score_pair(
    first: _Visit, second: _Visit, earlier: Sequence[Mapping], later: Sequence[Mapping]
) -> PairScore:
    """Score two visits.

    Args:
        first: The earlier one.
        second: The later one.
        earlier: Observations of the earlier one.
        later: Of the later one.
    """
    new = {
        identity
        for identity, certainty in second.certainty.items()
        if certainty == "definite" and first.certainty.get(identity, "unseen") == "unseen"
    }
    ignored = {
        identity
        for visit in (first, second)
        for identity, certainty in visit.certainty.items()
        if certainty == "possible"
    }
    states = {row["lesion"]: row for row in earlier}
    counts = dict.fromkeys((field.name for field in fields(PairScore)), 0)
    counts["true_new"] = len(new)
    for row in later:
        if row["state"] != "seen":
            continue
        identity = second.partners.get(int(row["index"]))
        counts["true_new_detected"] += identity in new
        by_threshold = states[row["lesion"]]["state"] != "seen"
        for rule, called in (
            ("threshold", by_threshold),
            ("evidence", row["change"] == "new"),
        ):
            if called and identity in new:
                counts[f"new_by_{rule}"] += 1
            elif called and identity not in ignored:
                counts[f"false_by_{rule}"] += 1
    names = [_name_identities(visit, rows) for visit, rows in ((first, earlier), (second, later))]
    both = names[0].keys() & names[1].keys()
    counts["in_both"] = len(both)
    counts["identified"] = sum(names[0][identity] == names[1][identity] for identity in both)
    return PairScore(**counts)


def _name_identities(visit: _Visit, rows: Sequence[Mapping]) -> dict[int, str]:
    """Name the followed lesion of each true lesion that was found at a visit."""
    names = {
        visit.partners.get(int(row["index"])): str(row["lesion"])
        for row in rows
        if row["state"] == "seen"
    }
    names.pop(None, None)
    return names


def summarize_identities(rows: Sequence[Mapping]) -> dict[str, float | None]:
    """Summarize pairs: sensitivity for new lesions, false new ones per pair, identities right.

    Args:
        rows: From `score_identities`, one at least.
    """
    total = {field.name: sum(int(row[field.name]) for row in rows) for field in fields(PairScore)}

    def divide(count: int, of: int) -> float | None:
        return round(count / of, 4) if of else None

    return {
        "pairs": len(rows),
        **total,
        "sensitivity_by_threshold": divide(total["new_by_threshold"], total["true_new"]),
        "sensitivity_by_evidence": divide(total["new_by_evidence"], total["true_new"]),
        "false_per_pair_by_threshold": divide(total["false_by_threshold"], len(rows)),
        "false_per_pair_by_evidence": divide(total["false_by_evidence"], len(rows)),
        "identities_right": divide(total["identified"], total["in_both"]),
    }
