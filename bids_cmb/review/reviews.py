"""Reviews: readers' verdicts on the detected lesions, from the tables that the pages save.

Where readers differ the majority decides: a lesion that more accept than reject counts, one that
more reject does not, and everything between is unsure. A lesion that the app missed counts if more
than half of a scan's readers marked it, each within ``MAX_DISTANCE_MM`` of the others' marks; one
that fewer marked is unsure. Lesions without a verdict are counted as before. Candidates, which a
page shows as worth a look, are judged like lesions and count if they are accepted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from bids_cmb.bids.paths import list_participant_dirs
from bids_cmb.bids.tables import POSITION_COLUMNS, read_results, read_table
from bids_cmb.imaging.nifti import load_labels
from bids_cmb.lesions.table import classify_burden, get_position, is_candidate, read_listed
from bids_cmb.metrics.agreement import intraclass_correlation, weighted_kappa
from bids_cmb.metrics.matching import MAX_DISTANCE_MM

VERDICTS = ("accept", "reject", "unsure")
MISSED, COMPLETE = "missed", "complete"
NOT_REVIEWED = "not_reviewed"  # after all readers
REQUIRED_COLUMNS = ("filename", "index", *POSITION_COLUMNS, "verdict", "reader", "date")
FORMULA_STARTS = ("=", "+", "-", "@")  # of cells that spreadsheets compute
POSITION_TOLERANCE_MM = 0.1  # between a lesion in a review and in the results


@dataclass(frozen=True, eq=False)
class Review:
    """Review of a scan by a reader.

    Attributes:
        reader: Name that the reader gave.
        mask: Lesion mask of the scan, relative to the derivative dataset.
        verdicts: Of each lesion or candidate with a verdict, by its index: one of ``VERDICTS``.
        positions: World mm of every lesion and candidate that the review lists, by its index.
        missed: World mm of the lesions that the reader added, shape (N, 3).
        complete: Whether the reader marked the scan complete.
        date: Of the last entry, ISO 8601.
        file: Its table.
    """

    reader: str
    mask: str
    verdicts: dict[int, str]
    positions: dict[int, tuple[float, ...]]
    missed: np.ndarray
    complete: bool
    date: str
    file: Path


@dataclass(frozen=True, eq=False)
class Consensus:
    """Verdicts on a scan, merged over its readers.

    Attributes:
        readers: Their names, sorted.
        verdicts: Of each lesion and candidate, by its index: one of ``VERDICTS``, or
            ``not_reviewed``.
        added: World mm of lesions that the app missed, shape (N, 3).
        doubtful: World mm of those that not enough readers marked, shape (M, 3).
    """

    readers: tuple[str, ...]
    verdicts: dict[int, str]
    added: np.ndarray
    doubtful: np.ndarray


def read_reviews(folder: Path, derivatives: Path) -> dict[str, list[Review]]:
    """Read the reviews in a folder, by scan, and check that they are of the current results.

    If a reader has several files on a scan the one with the latest date counts, of equals the last
    by name.

    Args:
        folder: Searched for ``.tsv`` files, recursively; or one such file.
        derivatives: The dataset that was reviewed.

    Returns:
        Lesion mask (relative to ``derivatives``) → its reviews, ordered by reader.

    Raises:
        ValueError: If there is no review, or one is malformed or not of these results; the
            sentence names the file and the line.
        OSError: If a file cannot be read.
    """
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.tsv"))
    if not files:
        raise ValueError(f"{folder}: reviews are tables (.tsv) that a page saved; found none.")
    masks = {
        (results_dir / str(row["filename"])).relative_to(derivatives).as_posix(): results_dir
        / str(row["filename"])
        for results_dir in list_participant_dirs(derivatives)
        for _, row in read_results(results_dir)
    }
    latest: dict[tuple[str, str], Review] = {}
    for file in files:
        for review in _read_file(file):
            _check_belongs(review, masks, derivatives)
            key = (review.mask, review.reader)
            if key not in latest or latest[key].date <= review.date:
                latest[key] = review
    by_scan: dict[str, list[Review]] = {}
    for mask, reader in sorted(latest):
        by_scan.setdefault(mask, []).append(latest[mask, reader])
    return by_scan


def _read_file(file: Path) -> list[Review]:
    """Read the reviews in a table, one for each scan and reader.

    Raises:
        ValueError: If it is malformed.
    """
    rows = read_table(file)
    missing = [name for name in REQUIRED_COLUMNS if rows and name not in rows[0]]
    if missing or not rows:
        present = ", ".join(map(str, rows[0])) if rows else "no line"
        raise ValueError(
            f"{file}: a review needs the columns {', '.join(REQUIRED_COLUMNS)}; found {present}."
        )
    by_scan: dict[tuple[str, str], list[tuple[int, dict]]] = {}
    for line, row in enumerate(rows, start=2):
        if not row["reader"] or not row["filename"]:
            raise ValueError(f"{file}: line {line} must name its reader and its scan.")
        if row["reader"].startswith(FORMULA_STARTS):
            raise ValueError(
                f"{file}: line {line}: a reader's name must not begin with "
                f"{' '.join(FORMULA_STARTS)}, by which spreadsheets know a formula; "
                f"found {row['reader']!r}."
            )
        by_scan.setdefault((str(row["filename"]), row["reader"]), []).append((line, row))
    return [_make_review(file, mask, reader, lines) for (mask, reader), lines in by_scan.items()]


def _make_review(file: Path, mask: str, reader: str, lines: list[tuple[int, dict]]) -> Review:
    verdicts: dict[int, str] = {}
    positions: dict[int, tuple[float, ...]] = {}
    missed, complete = [], False
    for line, row in lines:
        verdict = row["verdict"]
        if verdict not in (*VERDICTS, MISSED, COMPLETE, None):
            levels = ", ".join((*VERDICTS, MISSED, COMPLETE))
            raise ValueError(
                f"{file}: line {line}: a verdict must be one of {levels} or n/a; found {verdict!r}."
            )
        if verdict == COMPLETE:
            complete = True
            continue
        position = _parse_position(file, line, row)
        if verdict == MISSED:
            missed.append(position)
            continue
        index = _parse_index(file, line, row)
        positions[index] = position
        if verdict is not None:
            verdicts[index] = verdict
    date = max(str(row["date"] or "") for _, row in lines)
    points = np.array(missed, float).reshape(-1, 3)
    return Review(reader, mask, verdicts, positions, points, complete, date, file)


def _parse_position(file: Path, line: int, row: Mapping) -> tuple[float, ...]:
    try:
        position = tuple(float(row[axis]) for axis in POSITION_COLUMNS)
    except (TypeError, ValueError):
        position = (np.nan,)
    if not np.isfinite(position).all():
        raise ValueError(f"{file}: line {line}: x_mm, y_mm and z_mm must be numbers.")
    return position


def _parse_index(file: Path, line: int, row: Mapping) -> int:
    if not str(row["index"]).isdecimal():
        raise ValueError(
            f"{file}: line {line}: the index of a lesion must be a whole number; "
            f"found {row['index']!r}."
        )
    return int(row["index"])


def _check_belongs(review: Review, masks: Mapping[str, Path], derivatives: Path) -> None:
    """Check that a review is of the current results, in which an index may mean another lesion.

    Raises:
        ValueError: If it is not.
    """
    if review.mask not in masks:
        raise ValueError(
            f"{review.file}: a review must be of a scan of {derivatives}; it has no {review.mask}."
        )
    listed = read_listed(masks[review.mask])
    current = {int(row["index"]): get_position(row) for row in listed}
    for index, position in review.positions.items():
        if (
            index not in current
            or np.abs(np.subtract(position, current[index])).max() > POSITION_TOLERANCE_MM
        ):
            state = f"lies at {current[index]}" if index in current else "is not there"
            raise ValueError(
                f"{review.file}: a review must be of the current results: lesion {index} of "
                f"{review.mask} was reviewed at {position} and {state}. Was the scan processed "
                "again?"
            )
    _check_within(review, masks[review.mask])


def _check_within(review: Review, mask: Path) -> None:
    """Check that the lesions that a reader added lie in the scan.

    Raises:
        ValueError: If one does not.
    """
    if not len(review.missed):
        return
    grid = load_labels(mask)
    voxels = np.rint(grid.index(review.missed))
    beyond = ((voxels < 0) | (voxels >= grid.shape)).any(axis=1)
    if beyond.any():
        x, y, z = review.missed[beyond][0]
        raise ValueError(
            f"{review.file}: a lesion that was missed must lie in the scan {review.mask}; found "
            f"one at ({x:g}, {y:g}, {z:g}) mm, beyond its edge."
        )


def merge_reviews(indices: Iterable[int], reviews: Sequence[Review]) -> Consensus:
    """Merge the reviews of a scan: the majority decides.

    Args:
        indices: Of the detected lesions and candidates.
        reviews: Of that scan, one for each reader.
    """
    verdicts = {}
    for index in indices:
        given = [review.verdicts[index] for review in reviews if index in review.verdicts]
        balance = given.count("accept") - given.count("reject")
        n_sure = len(given) - given.count("unsure")
        if not given:
            verdicts[index] = NOT_REVIEWED
        elif 2 * n_sure <= len(given) or balance == 0:
            verdicts[index] = "unsure"
        else:
            verdicts[index] = "accept" if balance > 0 else "reject"
    added, doubtful = _merge_points([review.missed for review in reviews])
    readers = tuple(sorted(review.reader for review in reviews))
    return Consensus(readers, verdicts, added, doubtful)


def _merge_points(marked: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Merge nearby points to their mean: those of more than half of the readers, and the others."""
    groups: list[dict[int, np.ndarray]] = []
    for reader, points in enumerate(marked):
        for point in points:
            near = [
                (np.linalg.norm(np.mean(list(group.values()), axis=0) - point), nearest)
                for nearest, group in enumerate(groups)
                if reader not in group
            ]
            distance, nearest = min(near, default=(np.inf, -1))
            if distance < MAX_DISTANCE_MM:
                groups[nearest][reader] = point
            else:
                groups.append({reader: point})
    means = [np.mean(list(group.values()), axis=0) for group in groups]
    sure = [2 * len(group) > len(marked) for group in groups]
    return tuple(
        np.array(
            [mean for mean, is_sure in zip(means, sure, strict=True) if is_sure is wanted]
        ).reshape(-1, 3)
        for wanted in (True, False)
    )


def is_complete(review: Review, rows: Sequence[Mapping]) -> bool:
    """Check whether the reader gave every counted lesion a verdict, or marked the scan complete."""
    counted = {int(row["index"]) for row in rows if row["included"] == "yes"}
    return review.complete or (bool(counted) and counted <= review.verdicts.keys())


def select_accepted(rows: Sequence[Mapping], consensus: Consensus) -> list[Mapping]:
    """Select the rows of a scan's lesions and candidates that count after review."""
    return [
        row
        for row in rows
        if (verdict := consensus.verdicts[int(row["index"])]) == "accept"
        or (verdict == NOT_REVIEWED and row["included"] == "yes")
    ]


def count_verdicts(rows: Sequence[Mapping], consensus: Consensus) -> dict[str, object]:
    """Count the verdicts on a scan and its lesions after review, in the columns ``reviewed``.

    Args:
        rows: Of its lesions and candidates.
        consensus: Of its readers.
    """
    by_kind: dict[bool, list[str]] = {True: [], False: []}
    for row in rows:
        by_kind[is_candidate(row)].append(consensus.verdicts[int(row["index"])])
    verdicts = by_kind[False]
    count = len(select_accepted(rows, consensus)) + len(consensus.added)
    return {
        "reviewed_by": ", ".join(consensus.readers),
        "n_accepted": verdicts.count("accept"),
        "n_rejected": verdicts.count("reject"),
        "n_unsure": verdicts.count("unsure") + len(consensus.doubtful),
        "n_not_reviewed": verdicts.count(NOT_REVIEWED),
        "n_candidates_accepted": by_kind[True].count("accept"),
        "n_added": len(consensus.added),
        "n_cmb_reviewed": count,
        "burden_reviewed": classify_burden(count),
    }


def make_reviewed_rows(
    derivatives: Path, reviews: Mapping[str, Sequence[Review]]
) -> dict[str, dict]:
    """Count verdicts and lesions of every reviewed scan, by lesion mask; see `count_verdicts`."""
    counts = {}
    for mask, scan_reviews in reviews.items():
        rows = read_listed(derivatives / mask)
        counts[mask] = count_verdicts(
            rows, merge_reviews([int(row["index"]) for row in rows], scan_reviews)
        )
    return counts


def make_agreement_rows(
    derivatives: Path, reviews: Mapping[str, Sequence[Review]]
) -> list[dict[str, object]]:
    """Measure how far every two readers agree, in the columns ``agreement``.

    Verdicts, on candidates too, are compared where both accept or reject; counts (accepted and
    missed) on scans that
    both reviewed completely: a verdict on each counted lesion, or marked complete.
    """
    tables = {mask: read_listed(derivatives / mask) for mask in reviews}
    readers = sorted(
        {review.reader for scan_reviews in reviews.values() for review in scan_reviews}
    )
    return [
        {
            "reader_1": first,
            "reader_2": second,
            **_measure_agreement(reviews, tables, (first, second)),
        }
        for first, second in combinations(readers, 2)
    ]


def _measure_agreement(
    reviews: Mapping, tables: Mapping, pair: tuple[str, str]
) -> dict[str, object]:
    verdicts: list[tuple[int, int]] = []
    counts: list[tuple[int, int]] = []
    scans = 0
    for mask, scan_reviews in reviews.items():
        both = [
            next((review for review in scan_reviews if review.reader == reader), None)
            for reader in pair
        ]
        if None in both:
            continue
        scans += 1
        first, second = (
            {index: verdict for index, verdict in review.verdicts.items() if verdict != "unsure"}
            for review in both
        )
        verdicts += [
            (int(first[index] == "accept"), int(second[index] == "accept"))
            for index in sorted(first.keys() & second.keys())
        ]
        if all(is_complete(review, tables[mask]) for review in both):
            counts.append(tuple(_count_lesions(review) for review in both))
    pairs, numbers = np.array(verdicts).reshape(-1, 2), np.array(counts).reshape(-1, 2)
    kappa = weighted_kappa(pairs[:, 0], pairs[:, 1], classes=2) if len(pairs) else np.nan
    return {
        "n_scans": scans,
        "n_lesions": len(pairs),
        "n_agree": int((pairs[:, 0] == pairs[:, 1]).sum()),
        "kappa": _round_finite(kappa),
        "n_scans_complete": len(numbers),
        "icc": _round_finite(intraclass_correlation(numbers)),
    }


def _count_lesions(review: Review) -> int:
    return list(review.verdicts.values()).count("accept") + len(review.missed)


def _round_finite(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
