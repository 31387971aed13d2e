"""Reviews: what readers said of the lesions that were found, from the tables their pages save.

Where readers differ the majority decides: a lesion that more accept than reject counts, one that
more reject does not, and everything between is unsure. A lesion that the app missed counts if more
than half of a scan's readers marked it, each within ``MAX_DISTANCE_MM`` of the others' mark; one
that fewer marked is unsure. Lesions without a verdict stay as they were found.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from bids_cmb.bids.paths import list_participant_dirs, locate_lesion_table
from bids_cmb.bids.tables import POSITION_COLUMNS, read_results, read_table
from bids_cmb.lesions.table import burden
from bids_cmb.metrics.agreement import intraclass_correlation, weighted_kappa
from bids_cmb.metrics.matching import MAX_DISTANCE_MM

VERDICTS = ("accept", "reject", "unsure")
MISSED, COMPLETE = "missed", "complete"
NEEDED = ("filename", "index", *POSITION_COLUMNS, "verdict", "reader", "date")
FORMULA = ("=", "+", "-", "@")  # what a cell begins with that spreadsheets compute
SAME_MM = 0.1  # to which the place of a lesion in a review and in the results must agree


@dataclass(frozen=True, eq=False)
class Review:
    """What one reader said of one scan.

    Attributes:
        reader: Name, as the reader gave it.
        mask: Lesion mask of the scan, relative to the derivative dataset.
        verdicts: Of each lesion with a verdict, by its index: one of ``VERDICTS``.
        places: World mm of every lesion that the review lists, by its index.
        missed: World mm of the lesions that the reader found besides, shape (N, 3).
        complete: Whether the reader says to have looked at the whole scan.
        date: Of the last word, ISO 8601.
        file: Where it was read.
    """

    reader: str
    mask: str
    verdicts: dict[int, str]
    places: dict[int, tuple[float, ...]]
    missed: np.ndarray
    complete: bool
    date: str
    file: Path


@dataclass(frozen=True, eq=False)
class Consensus:
    """What the readers of a scan agreed on.

    Attributes:
        readers: Their names, sorted.
        verdicts: Of each lesion, by its index: one of ``VERDICTS``, or ``not_reviewed``.
        added: World mm of lesions that the app missed, shape (N, 3).
        doubtful: World mm of those that not enough readers marked, shape (M, 3).
    """

    readers: tuple[str, ...]
    verdicts: dict[int, str]
    added: np.ndarray
    doubtful: np.ndarray


def read_reviews(folder: Path, found: Path) -> dict[str, list[Review]]:
    """The reviews in a folder, by scan; each is checked against the results it speaks of.

    Of several files of one reader on one scan the one with the latest date counts, of equals the
    last by name.

    Args:
        folder: Reviews, ``.tsv``, also in folders within; or one such file.
        found: The derivative dataset that was reviewed.

    Returns:
        Lesion mask (relative to ``found``) → its reviews, by reader's name.

    Raises:
        ValueError: If there is no review, a file is none, or it is not of these results; the
            sentence names the file and the line.
        OSError: If a file cannot be read.
    """
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.tsv"))
    if not files:
        raise ValueError(f"{folder}: reviews are tables (.tsv) that a page saved; found none.")
    known = {
        (home / str(row["filename"])).relative_to(found).as_posix(): home / str(row["filename"])
        for home in list_participant_dirs(found)
        for _, row in read_results(home)
    }
    latest: dict[tuple[str, str], Review] = {}
    for file in files:
        for review in _read(file):
            _belongs(review, known, found)
            key = (review.mask, review.reader)
            if key not in latest or latest[key].date <= review.date:
                latest[key] = review
    by_scan: dict[str, list[Review]] = {}
    for mask, reader in sorted(latest):
        by_scan.setdefault(mask, []).append(latest[mask, reader])
    return by_scan


def _read(file: Path) -> list[Review]:
    rows = read_table(file)
    lacking = [name for name in NEEDED if rows and name not in rows[0]]
    if lacking or not rows:
        has = ", ".join(map(str, rows[0])) if rows else "no line"
        raise ValueError(f"{file}: a review needs the columns {', '.join(NEEDED)}; found {has}.")
    by_scan: dict[tuple[str, str], list[tuple[int, dict]]] = {}
    for line, row in enumerate(rows, start=2):
        if not row["reader"] or not row["filename"]:
            raise ValueError(f"{file}: line {line} must name its reader and its scan.")
        if row["reader"].startswith(FORMULA):
            raise ValueError(
                f"{file}: line {line}: a reader's name must not begin with {' '.join(FORMULA)}, "
                f"by which spreadsheets know a formula; found {row['reader']!r}."
            )
        by_scan.setdefault((str(row["filename"]), row["reader"]), []).append((line, row))
    return [_one(file, mask, reader, lines) for (mask, reader), lines in by_scan.items()]


def _one(file: Path, mask: str, reader: str, lines: list[tuple[int, dict]]) -> Review:
    verdicts: dict[int, str] = {}
    places: dict[int, tuple[float, ...]] = {}
    missed, complete = [], False
    for line, row in lines:
        said = row["verdict"]
        if said not in (*VERDICTS, MISSED, COMPLETE, None):
            levels = ", ".join((*VERDICTS, MISSED, COMPLETE))
            raise ValueError(
                f"{file}: line {line}: a verdict must be one of {levels} or n/a; found {said!r}."
            )
        if said == COMPLETE:
            complete = True
            continue
        place = _place(file, line, row)
        if said == MISSED:
            missed.append(place)
            continue
        index = _index(file, line, row)
        places[index] = place
        if said is not None:
            verdicts[index] = said
    dates = max(str(row["date"] or "") for _, row in lines)
    points = np.array(missed, float).reshape(-1, 3)
    return Review(reader, mask, verdicts, places, points, complete, dates, file)


def _place(file: Path, line: int, row: Mapping) -> tuple[float, ...]:
    try:
        place = tuple(float(row[axis]) for axis in POSITION_COLUMNS)
    except (TypeError, ValueError):
        place = (np.nan,)
    if not np.isfinite(place).all():
        raise ValueError(f"{file}: line {line}: x_mm, y_mm and z_mm must be numbers.")
    return place


def _index(file: Path, line: int, row: Mapping) -> int:
    if not str(row["index"]).isdecimal():
        raise ValueError(
            f"{file}: line {line}: the index of a lesion must be a whole number; "
            f"found {row['index']!r}."
        )
    return int(row["index"])


def _belongs(review: Review, known: Mapping[str, Path], found: Path) -> None:
    """Refuse a review of other results: a lesion's index alone may mean another lesion by now."""
    if review.mask not in known:
        raise ValueError(
            f"{review.file}: a review must be of a scan of {found}; it has no {review.mask}."
        )
    table = locate_lesion_table(known[review.mask])
    there = {int(row["index"]): place_of(row) for row in read_table(table)}
    for index, place in review.places.items():
        if index not in there or np.abs(np.subtract(place, there[index])).max() > SAME_MM:
            now = f"lies at {there[index]}" if index in there else "is not there"
            raise ValueError(
                f"{review.file}: a review must be of the current results: lesion {index} of "
                f"{review.mask} was reviewed at {place} and {now}. Was the scan processed again?"
            )


def place_of(row: Mapping) -> tuple[float, ...]:
    """World mm of a row of the lesion table."""
    return tuple(float(row[axis]) for axis in POSITION_COLUMNS)


def merge_reviews(indices: Iterable[int], reviews: Sequence[Review]) -> Consensus:
    """Merge the reviews of a scan: the majority decides.

    Args:
        indices: Of the lesions that were found.
        reviews: Of that scan, one for each reader.
    """
    verdicts = {}
    for index in indices:
        said = [one.verdicts[index] for one in reviews if index in one.verdicts]
        for_it = said.count("accept") - said.count("reject")
        sure = len(said) - said.count("unsure")
        if not said:
            verdicts[index] = "not_reviewed"
        elif 2 * sure <= len(said) or for_it == 0:
            verdicts[index] = "unsure"
        else:
            verdicts[index] = "accept" if for_it > 0 else "reject"
    added, doubtful = _shared([one.missed for one in reviews])
    readers = tuple(sorted(one.reader for one in reviews))
    return Consensus(readers, verdicts, added, doubtful)


def _shared(marked: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Points that more than half of the readers marked, as their mean, and the others."""
    groups: list[dict[int, np.ndarray]] = []
    for reader, points in enumerate(marked):
        for point in points:
            near = [
                (np.linalg.norm(np.mean(list(group.values()), axis=0) - point), at)
                for at, group in enumerate(groups)
                if reader not in group
            ]
            away, at = min(near, default=(np.inf, -1))
            if away < MAX_DISTANCE_MM:
                groups[at][reader] = point
            else:
                groups.append({reader: point})
    middles = [np.mean(list(group.values()), axis=0) for group in groups]
    sure = [2 * len(group) > len(marked) for group in groups]
    return tuple(
        np.array([m for m, s in zip(middles, sure, strict=True) if s is wanted]).reshape(-1, 3)
        for wanted in (True, False)
    )


def is_complete(review: Review, rows: Sequence[Mapping]) -> bool:
    """Whether the reader gave every counted lesion a verdict, or marked the scan complete."""
    counted = {int(row["index"]) for row in rows if row["included"] == "yes"}
    return review.complete or (bool(counted) and counted <= review.verdicts.keys())


def accepted_lesions(rows: Sequence[Mapping], consensus: Consensus) -> list[Mapping]:
    """Of a scan's lesion table, those that count after review."""
    return [
        row
        for row in rows
        if (said := consensus.verdicts[int(row["index"])]) == "accept"
        or (said == "not_reviewed" and row["included"] == "yes")
    ]


def counts_after_review(rows: Sequence[Mapping], consensus: Consensus) -> dict[str, object]:
    """The numbers of a scan after its review, in the columns ``reviewed``.

    Args:
        rows: Of its lesion table.
        consensus: What its readers agreed on.
    """
    said = list(consensus.verdicts.values())
    count = len(accepted_lesions(rows, consensus)) + len(consensus.added)
    return {
        "reviewed_by": ", ".join(consensus.readers),
        "n_accepted": said.count("accept"),
        "n_rejected": said.count("reject"),
        "n_unsure": said.count("unsure") + len(consensus.doubtful),
        "n_not_reviewed": said.count("not_reviewed"),
        "n_added": len(consensus.added),
        "n_cmb_reviewed": count,
        "burden_reviewed": burden(count),
    }


def reviewed_rows(found: Path, reviews: Mapping[str, Sequence[Review]]) -> dict[str, dict]:
    """The numbers after review of every scan that somebody reviewed, by lesion mask."""
    made = {}
    for mask, own in reviews.items():
        rows = read_table(locate_lesion_table(found / mask))
        made[mask] = counts_after_review(
            rows, merge_reviews([int(row["index"]) for row in rows], own)
        )
    return made


def agreement_rows(found: Path, reviews: Mapping[str, Sequence[Review]]) -> list[dict[str, object]]:
    """How far every two readers agree, in the columns ``agreement``.

    Verdicts are compared where both accept or reject; counts (accepted and missed) on scans that
    both reviewed completely: a verdict on each counted lesion, or marked complete.
    """
    tables = {mask: read_table(locate_lesion_table(found / mask)) for mask in reviews}
    readers = sorted({one.reader for own in reviews.values() for one in own})
    return [
        {"reader_1": first, "reader_2": second, **_agreement(reviews, tables, (first, second))}
        for first, second in combinations(readers, 2)
    ]


def _agreement(reviews: Mapping, tables: Mapping, pair: tuple[str, str]) -> dict[str, object]:
    verdicts: list[tuple[int, int]] = []
    counts: list[tuple[int, int]] = []
    scans = 0
    for mask, own in reviews.items():
        both = [next((one for one in own if one.reader == who), None) for who in pair]
        if None in both:
            continue
        scans += 1
        first, second = (
            {index: said for index, said in one.verdicts.items() if said != "unsure"}
            for one in both
        )
        verdicts += [
            (int(first[index] == "accept"), int(second[index] == "accept"))
            for index in sorted(first.keys() & second.keys())
        ]
        if all(is_complete(one, tables[mask]) for one in both):
            counts.append(tuple(_count(one) for one in both))
    said, numbers = np.array(verdicts).reshape(-1, 2), np.array(counts).reshape(-1, 2)
    kappa = weighted_kappa(said[:, 0], said[:, 1], classes=2) if len(said) else np.nan
    return {
        "n_scans": scans,
        "n_lesions": len(said),
        "n_agree": int((said[:, 0] == said[:, 1]).sum()),
        "kappa": _known(kappa),
        "n_scans_complete": len(numbers),
        "icc": _known(intraclass_correlation(numbers)),
    }


def _count(review: Review) -> int:
    return list(review.verdicts.values()).count("accept") + len(review.missed)


def _known(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
