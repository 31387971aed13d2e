"""The group's table of lesions: a row for each lesion of each processed scan."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bids_cmb.bids.paths import locate_lesion_table
from bids_cmb.bids.tables import LESION_INDEX, read_columns, read_table
from bids_cmb.lesions.table import is_candidate, read_listed
from bids_cmb.review.merging import make_added_rows
from bids_cmb.review.reviews import Review, merge_reviews, select_accepted

SCAN_COLUMNS = ("participant_id", "session_id", "source")


def describe_lesion_columns(*, reviewed: bool) -> dict[str, dict]:
    """Describe the columns of the group's table of lesions, in order."""
    scan = {name: read_columns("group")[name] for name in SCAN_COLUMNS}
    scan["filename"] = {"Description": "Lesion mask of the scan, relative to this table."}
    review = read_columns("lesion_review") if reviewed else {}
    return {**scan, **read_columns("lesion"), **review}


def make_lesion_rows(
    folder: Path, processed: Sequence[Mapping], reviews: Mapping[str, Sequence[Review]]
) -> Iterator[dict[str, object]]:
    """Make the rows of the group's table of lesions.

    Without reviews a lesion counts if it is ``included``; with reviews those with
    ``included_reviewed`` are the lesions of ``n_cmb_reviewed``: accepted candidates and lesions
    that readers added have rows, too.

    Args:
        folder: The derivative dataset.
        processed: Rows of the group table, of processed scans.
        reviews: Of each reviewed scan, by its lesion mask; empty without reviews.
    """
    for row in processed:
        mask = str(row["filename"])
        scan = {**{name: row[name] for name in SCAN_COLUMNS}, "filename": mask}
        if mask in reviews:
            lesions = _list_reviewed(folder / mask, reviews[mask])
        else:
            lesions = _list_detected(folder / mask, reviewed=bool(reviews))
        for lesion in lesions:
            yield {**scan, **lesion}


def _list_detected(mask: Path, *, reviewed: bool) -> Iterator[dict]:
    """List the lesions of a scan that nobody reviewed."""
    table = locate_lesion_table(mask)
    for row in read_table(table) if table.is_file() else []:
        more = {"verdict": None, "included_reviewed": row["included"]} if reviewed else {}
        yield {**row, **more}


def _list_reviewed(mask: Path, reviews: Sequence[Review]) -> Iterator[dict]:
    """List the lesions of a scan, the candidates that were accepted, and what readers added."""
    rows = read_listed(mask)
    consensus = merge_reviews([int(row["index"]) for row in rows], reviews)
    accepted = {row["index"] for row in select_accepted(rows, consensus)}
    for row in rows:
        counted = row["index"] in accepted
        if counted or not is_candidate(row):
            verdict = consensus.verdicts[int(row["index"])]
            yield {**row, "verdict": verdict, "included_reviewed": "yes" if counted else "no"}
    for row in make_added_rows(mask, consensus.added):
        unknown = dict.fromkeys(read_columns("lesion"))
        review = {"verdict": "added", "included_reviewed": "yes"}
        yield {**unknown, **row, "mapping": LESION_INDEX, **review}
