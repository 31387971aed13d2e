"""The group's table of lesions over time: a row for each pair of consecutive visits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bids_cmb.bids.paths import get_follow_up_stem, list_follow_ups
from bids_cmb.bids.tables import read_columns, read_table
from bids_cmb.files import read_json
from bids_cmb.lesions.table import read_listed
from bids_cmb.longitudinal.evidence import NEW
from bids_cmb.report.follow_up import is_current
from bids_cmb.review.reviews import Review, merge_reviews


def describe_columns(*, reviewed: bool) -> dict[str, dict]:
    """Describe the columns of the table, the counts after review last."""
    after = read_columns("followed_reviewed") if reviewed else {}
    return {**read_columns("followed_pair"), **after}


def make_group_pairs(
    folder: Path, reviews: Mapping[str, Sequence[Review]] | None = None
) -> list[dict[str, object]]:
    """Make a row for each two consecutive visits of every participant.

    Follow-ups of results that have changed since are left out.

    Args:
        folder: Output folder of the participant level.
        reviews: Of each scan by its lesion mask; None without.
    """
    return [
        row
        for subject in sorted(folder.glob("sub-*"))
        if subject.is_dir()
        for marker in list_follow_ups(folder, subject.name.removeprefix("sub-"))
        if is_current(folder, read_json(marker) or {})
        for row in _make_rows(folder, marker, reviews)
    ]


def _make_rows(
    folder: Path, marker: Path, reviews: Mapping[str, Sequence[Review]] | None
) -> list[dict[str, object]]:  # fmt: skip
    stem = get_follow_up_stem(marker)
    pairs = read_table(marker.with_name(f"{stem}_pairs.tsv"))
    observations = read_table(marker.with_name(f"{stem}_observations.tsv"))
    rows: list[dict[str, object]] = []
    for pair in pairs:
        if pair["consecutive"] != "yes":
            continue
        after = {}
        if reviews is not None:
            after["n_new_reviewed"] = _count_after_review(folder, pair, observations, reviews)
        rows.append({**pair, **after})
    return rows


def _count_after_review(
    folder: Path, pair: Mapping, observations: Sequence[Mapping], reviews: Mapping
) -> int | None:
    mask = pair["filename_2"]
    if pair["n_new"] is None or mask not in reviews:
        return None
    indices = [int(row["index"]) for row in read_listed(folder / mask)]
    verdicts = merge_reviews(indices, reviews[mask]).verdicts
    new = (row for row in observations if row["filename"] == mask and row["change"] == NEW)
    return sum(verdicts[int(row["index"])] in ("accept", "not_reviewed") for row in new)
