"""The group level: tables and a map of what the participant level wrote.

It opens no image but the lesion mask and the region map of a scan to which a reader added a lesion.
"""

import logging
from collections.abc import Collection
from pathlib import Path

from bids_cmb.bids.filters import join_labels
from bids_cmb.bids.metadata import describe_read_error
from bids_cmb.bids.paths import locate_lesion_table
from bids_cmb.bids.tables import read_columns, read_table, write_table
from bids_cmb.files import write_json
from bids_cmb.lesions.table import MNI_COLUMNS, TERRITORIES, get_size
from bids_cmb.report.frequency_map import MAP_STEM, REVIEWED_MAP_STEM, write_map
from bids_cmb.report.html import Cohort, get_page_path, write_group_page, write_page
from bids_cmb.report.prevalence import make_region_rows
from bids_cmb.review.merging import ReviewedCounts, count_reviewed, has_mni_position
from bids_cmb.review.records import update_records
from bids_cmb.review.reviews import Review, make_agreement_rows, make_reviewed_rows, read_reviews
from bids_cmb.workflow.group_lesions import describe_lesion_columns, make_lesion_rows
from bids_cmb.workflow.group_longitudinal import describe_columns, make_group_pairs
from bids_cmb.workflow.group_table import describe_results, make_group_rows

LOCATION_COUNTS = (*(f"n_{name}" for name in TERRITORIES), "lobar_class", "pattern")  # after review
GROUP_COLUMNS = ("site", "center", "centre", "scanner", "manufacturer", "field_strength")
log = logging.getLogger(__name__)


def write_group(
    folder: Path,
    participants: Path | None = None,
    reviews: Path | None = None,
    *,
    raw: Path | None = None,
) -> dict[str, int]:
    """Write the group's tables and its map from the results in a folder.

    ``group_microbleeds.tsv`` has every scan; failed and missing ones have a reason and no counts.
    ``group_lesions.tsv`` has every lesion. ``group_regions.tsv`` has prevalence and number of
    lesions of every region of MARS, also by site and scanner. ``group_…_frequency.nii.gz`` is the
    map of lesion frequency in MNI space. With reviews, the first two tables have the counts after
    review, too; ``group_regions_reviewed.tsv`` and a second map are made of the lesions that count
    after review, ``group_agreement.tsv`` has the agreement of the readers, and the pages of their
    participants say what the review came to. Without, such files of an earlier call are removed,
    and these pages written again.

    Args:
        folder: Output folder of the participant level; the raw dataset is not needed.
        participants: ``participants.tsv`` of the raw dataset, if there is one.
        reviews: Folder of reviews that readers saved from the pages.
        raw: The raw dataset, to find which scans are gone from it; None if it is not there.

    Returns:
        Number of scans by status: ``ok``, ``failed``, ``missing``, ``outdated`` and ``gone``.

    Raises:
        ValueError: If the folder holds no results and no status of any scan, or a review cannot
            be used.
    """
    rows = make_group_rows(folder, raw if raw is not None and any(raw.glob("sub-*")) else None)
    if not rows:
        raise ValueError(
            f"{folder}: the group level needs what the participant level wrote; found no result "
            "of any scan."
        )
    mixed_settings, performance = describe_results(folder, rows)
    for sentence in mixed_settings:
        log.warning("%s", sentence)
    described = {**read_columns("group"), **read_columns("scan")}
    agreement: list[dict] = []
    reviewed: dict[str, ReviewedCounts] = {}
    by_scan: dict[str, list[Review]] = {}
    if reviews is not None:
        described |= read_columns("reviewed")
        by_scan = read_reviews(reviews, folder)
        reviewed = count_reviewed(folder, by_scan)
        agreement = _add_reviews(folder, by_scan, reviewed, rows)
    write_table(folder / "group_microbleeds.tsv", described, rows)
    write_json(folder / "group_microbleeds.json", described)
    processed = [row for row in rows if row["status"] == "ok"]
    groups = read_groups(participants, {str(row["participant_id"]) for row in processed})
    regions = make_region_rows(processed, groups)
    write_table(folder / "group_regions.tsv", read_columns("regions"), regions)
    write_json(folder / "group_regions.json", read_columns("regions"))
    _write_lesions(folder, processed, by_scan)
    _refresh_reviewed_pages(folder, by_scan)
    lesions = read_counted_lesions(folder, processed)
    positions = get_positions(lesions)
    by_participant = group_by_participant(processed, positions)
    write_map(folder, by_participant, len(by_participant))
    diameters = [get_size(lesion) for counted in lesions.values() for lesion in counted]
    regions_reviewed = _write_reviewed(folder, processed, groups, reviewed, positions)
    pairs = _write_pairs(folder, None if reviews is None else by_scan)
    cohort = Cohort(
        rows, regions, diameters, groups, agreement, regions_reviewed, performance, pairs
    )
    write_group_page(folder, cohort, f"{MAP_STEM}.png", f"{REVIEWED_MAP_STEM}.png")
    tally = dict.fromkeys(read_columns("group")["status"]["Levels"], 0)
    for row in rows:
        tally[row["status"]] += 1
    return tally


def _write_pairs(folder: Path, reviews: dict[str, list[Review]] | None) -> list[dict]:
    """Write the table of lesions over time, if anybody was followed; return its rows."""
    pairs = make_group_pairs(folder, reviews)
    table = folder / "group_longitudinal.tsv"
    if not pairs:
        for path in (table, table.with_suffix(".json")):
            path.unlink(missing_ok=True)
        return []
    columns = describe_columns(reviewed=reviews is not None)
    write_table(table, columns, pairs)
    write_json(table.with_suffix(".json"), columns)
    return pairs


def _write_lesions(
    folder: Path, processed: list[dict], reviews: dict[str, list[Review]]
) -> None:  # fmt: skip
    """Write the table of all lesions."""
    described = describe_lesion_columns(reviewed=bool(reviews))
    rows = make_lesion_rows(folder, processed, reviews)
    write_table(folder / "group_lesions.tsv", described, rows)
    write_json(folder / "group_lesions.json", described)


def _refresh_reviewed_pages(folder: Path, reviews: dict[str, list[Review]]) -> None:
    """Write the pages again whose scans have another review than before, or none any more."""
    for subject in update_records(folder, reviews):
        if get_page_path(folder, subject).is_file():
            write_page(folder, subject)


def read_groups(
    participants: Path | None, expected: Collection[str] = ()
) -> dict[str, dict[str, str]]:
    """Read site and scanner of each participant: column → participant → value.

    Args:
        participants: ``participants.tsv`` of the raw dataset, if there is one.
        expected: Participants with results; a warning names those that the table does not list.
    """
    if participants is None or not participants.is_file():
        return {}
    try:
        rows = read_table(participants)
    except OSError as error:
        log.warning("%s %s and is ignored.", participants, describe_read_error(error))
        return {}
    except ValueError as error:
        log.warning("%s The file is ignored.", error)
        return {}
    groups = {
        column: {str(row.get("participant_id")): row[column] for row in rows if row.get(column)}
        for column in GROUP_COLUMNS
        if any(row.get(column) for row in rows)
    }
    absent = sorted(set(expected) - {str(row.get("participant_id")) for row in rows})
    if absent and (groups or len(absent) == len(expected)):
        log.warning(
            "%s does not list %d of %d participants with results: %s. They belong to no site or "
            "scanner.",
            *(participants, len(absent), len(expected), join_labels(absent)),
        )
    return groups


def _add_reviews(
    folder: Path,
    reviews: dict[str, list[Review]],
    reviewed: dict[str, ReviewedCounts],
    rows: list[dict],
) -> list[dict]:
    """Add the counts after review to the rows, and write the agreement of the readers.

    Returns:
        Rows of agreement.
    """
    counts = make_reviewed_rows(folder, reviews)
    empty = dict.fromkeys(read_columns("reviewed"))
    for row in rows:
        mask = str(row["filename"])
        row.update(empty)
        if mask in counts:
            located = {f"{name}_reviewed": reviewed[mask].counts[name] for name in LOCATION_COUNTS}
            row.update({**counts[mask], **located})
    agreement = make_agreement_rows(folder, reviews)
    write_table(folder / "group_agreement.tsv", read_columns("agreement"), agreement)
    write_json(folder / "group_agreement.json", read_columns("agreement"))
    return agreement


def _write_reviewed(
    folder: Path,
    processed: list[dict],
    groups: dict,
    reviewed: dict[str, ReviewedCounts],
    positions: dict[str, list[tuple[float, ...]]],
) -> list[dict]:
    """Write regions and map after review, or remove them if there is none.

    Scans without a review are in them as before.

    Args:
        folder: The derivative dataset.
        processed: Rows of the processed scans.
        groups: From `read_groups`.
        reviewed: The reviewed scans.
        positions: MNI positions of each scan's counted lesions before review, by lesion mask.

    Returns:
        Rows of the regions after review.
    """
    tables = [folder / f"group_regions_reviewed{end}" for end in (".tsv", ".json")]
    if not reviewed:
        agreed = [folder / f"group_agreement{end}" for end in (".tsv", ".json")]
        for path in (*tables, *agreed):
            path.unlink(missing_ok=True)
        write_map(folder, {}, 0, REVIEWED_MAP_STEM)
        return []
    masks = [str(row["filename"]) for row in processed]
    rows = [
        {**row, **reviewed[mask].counts} if mask in reviewed else row
        for row, mask in zip(processed, masks, strict=True)
    ]
    positions = positions | {mask: reviewed[mask].mni for mask in masks if mask in reviewed}
    after = group_by_participant(processed, positions)
    regions = make_region_rows(rows, groups)
    write_table(tables[0], read_columns("regions"), regions)
    write_json(tables[1], read_columns("regions"))
    write_map(folder, after, len(after), REVIEWED_MAP_STEM)
    return regions


def read_counted_lesions(folder: Path, processed: list[dict]) -> dict[str, list[dict]]:
    """Read the counted lesions of each processed scan, as rows of its table, by lesion mask."""
    by_mask = {}
    for row in processed:
        mask = str(row["filename"])
        table = locate_lesion_table(folder / mask)
        if table.is_file():
            lesions = read_table(table)
        else:
            log.warning("%s is missing: its lesions are in no table and on no map.", table)
            lesions = []
        by_mask[mask] = [lesion for lesion in lesions if lesion.get("included") == "yes"]
    return by_mask


def get_positions(lesions: dict[str, list[dict]]) -> dict[str, list[tuple[float, ...]]]:
    """Get the MNI positions of each scan's lesions, mm, of those that have one."""
    return {
        mask: [
            tuple(float(lesion[axis]) for axis in MNI_COLUMNS)
            for lesion in rows
            if has_mni_position(lesion)
        ]
        for mask, rows in lesions.items()
    }


def group_by_participant(
    processed: list[dict], positions: dict[str, list[tuple[float, ...]]]
) -> dict[str, list[tuple[float, ...]]]:
    """Group the positions of scans, by lesion mask, by participant."""
    by_participant: dict[str, list[tuple[float, ...]]] = {}
    for row in processed:
        points = by_participant.setdefault(str(row["participant_id"]), [])
        points.extend(positions[str(row["filename"])])
    return by_participant
