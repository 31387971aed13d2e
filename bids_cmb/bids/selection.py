"""Select the scans of a BIDS dataset, and give the reason for every file that is left out."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from bids_cmb.bids.disambiguation import choose_images
from bids_cmb.bids.filters import (
    Query,
    find_rejection_reason,
    find_unmatched,
    join_labels,
    match_labels,
    parse_image_path,
    read_labels,
    select_shard,
)
from bids_cmb.bids.indexing import list_labels, make_indexer, make_path_pattern, walk
from bids_cmb.bids.metadata import make_sidecar_reader
from bids_cmb.bids.scan import Scan, ScanDecision, exclude

# pybids needs 2.2 GB for an index of 5000 subjects, 70 MB for 100.
SUBJECTS_PER_INDEX = 100

# Files that look like susceptibility images are listed, included or not; T1w and the rest are not.
SUSCEPTIBILITY_PATTERN = (
    r"[tr]2star[a-z0-9]*|swi[a-z0-9]*|mi?n?ip|(?:me)?gre|veno[a-z0-9]*|chimap|qsm|[a-z0-9]*flash"
)
NAMING_HINT = (
    "No susceptibility image was found. BIDS names one sub-01/anat/sub-01_T2starw.nii.gz, or "
    "sub-01/anat/sub-01_swi.nii.gz."
)


@dataclass(frozen=True)
class Selection:
    """The scans to process, and every file considered.

    Attributes:
        scans: Sorted by path.
        considered: Sorted by path.
        notes: Sentences.
        shard_is_empty: Whether participants fit the request, but none of them is in its shard.
    """

    scans: tuple[Scan, ...]
    considered: tuple[ScanDecision, ...]
    notes: tuple[str, ...] = ()
    shard_is_empty: bool = False


def find_scans(bids_dir: Path, query: Query) -> Selection:
    """Find the scans to process; open none of them.

    Args:
        bids_dir: The root of a BIDS dataset, valid or not.
        query: The request.

    Returns:
        Every scan once, and a reason for every file that looks like a susceptibility image.

    Raises:
        ValueError: If ``bids_dir`` is no folder, its description is no object, a label names
            nobody, the shard is impossible, or the database was made from another dataset.
    """
    bids_dir = Path(bids_dir).absolute()
    chosen, query, notes = _resolve_query(bids_dir, query)
    subjects = select_shard(chosen, query.shard)
    shard_is_empty = bool(chosen) and not subjects
    index = make_indexer(bids_dir, query)
    suffixes = "|".join([SUSCEPTIBILITY_PATTERN, *map(re.escape, query.requested_suffixes)])
    read = make_sidecar_reader(bids_dir)

    scans, considered = [], []
    for start in range(0, len(subjects), SUBJECTS_PER_INDEX):
        batch = subjects[start : start + SUBJECTS_PER_INDEX]
        pattern = make_path_pattern(batch, suffixes)
        walked, unusable = walk(bids_dir, batch, pattern)
        try:
            paths = index(batch, pattern)
        except PermissionError:  # pybids stops at the first link that it may not follow
            paths = walked
        images = [parse_image_path(path, bids_dir) for path in paths]
        reasons = {image: find_rejection_reason(image, query) for image in images}
        suitable = [image for image, reason in reasons.items() if not reason]
        chosen, decisions = choose_images(suitable, query.echo, read)
        scans += chosen
        considered += unusable + decisions
        considered += [
            exclude(image.relative_path, reason) for image, reason in reasons.items() if reason
        ]

    notes += _note_missing_participants(subjects, scans)
    if not considered and not shard_is_empty:
        notes.append(NAMING_HINT)
    return Selection(
        tuple(sorted(scans, key=lambda scan: scan.relative_path)),
        tuple(sorted(considered, key=lambda file: file.relative_path)),
        tuple(notes),
        shard_is_empty,
    )


def list_other_images(bids_dir: Path, query: Query, selection: Selection) -> list[ScanDecision]:
    """List the other images in ``anat`` and ``swi``, and why they are no susceptibility images.

    Args:
        bids_dir: The root of the dataset.
        query: That the selection answers.
        selection: From `find_scans`.

    Raises:
        ValueError: As `find_scans`.
    """
    bids_dir = Path(bids_dir).absolute()
    chosen, query, _ = _resolve_query(bids_dir, query)
    subjects = select_shard(chosen, query.shard)
    files, _ = walk(bids_dir, subjects, make_path_pattern(subjects, r"[^/]+"))
    considered = {decision.relative_path for decision in selection.considered}
    others = sorted({path.relative_to(bids_dir).as_posix() for path in files} - considered)
    return [exclude(path, _describe_other(path)) for path in others]


def _describe_other(path: str) -> str:
    """Describe why an image is not taken for a susceptibility image, by its name."""
    stem = path.rpartition("/")[2].partition(".")[0]
    suffix = stem.rpartition("_")[2]
    return (
        f"has the suffix {suffix}, no susceptibility image's; if it is one, name it "
        f"{stem.removesuffix(suffix)}T2starw.nii.gz or {stem.removesuffix(suffix)}swi.nii.gz"
    )


# Subjects and labels


def list_subjects(bids_dir: Path) -> list[str]:
    """List the labels of the ``sub-`` folders, sorted, without ``sub-``.

    Raises:
        ValueError: If ``bids_dir`` is no folder.
    """
    if not Path(bids_dir).is_dir():
        raise ValueError(f"{bids_dir}: a BIDS dataset is a folder; found none there.")
    return list_labels(Path(bids_dir), "sub-")


def _resolve_query(bids_dir: Path, query: Query) -> tuple[list[str], Query, list[str]]:
    """Return the subjects of all shards, the query with its session labels read, and warnings."""
    present = list_subjects(bids_dir)
    notes = [] if present else [f"{bids_dir} has no `sub-` folders."]
    if query.database_dir:
        notes.append(f"Files are as {query.database_dir} lists them; newer ones are not seen.")

    wanted = read_labels(query.participants, "sub-")
    _refuse_unknown("participant", bids_dir, find_unmatched(wanted, present), present)
    excluded = read_labels(query.excluded, "sub-")
    if absent := find_unmatched(excluded, present):
        notes.append(f"Not in the dataset, though to be excluded: {join_labels(absent)}.")
    some = match_labels(wanted, present) if wanted else set(present)
    chosen = sorted(some - match_labels(excluded, present))

    query = replace(query, sessions=read_labels(query.sessions, "ses-"))
    _check_sessions(bids_dir, chosen, query.sessions)
    return chosen, query, notes


def _check_sessions(bids_dir: Path, subjects: list[str], sessions: tuple[str, ...]) -> None:
    """Refuse sessions that no subject has; stop as soon as every one was seen."""
    present, absent = set(), list(sessions)
    for subject in subjects:
        if not absent:
            return
        try:
            present.update(list_labels(bids_dir / f"sub-{subject}", "ses-"))
        except OSError:
            continue  # reported later, as a folder that cannot be read
        absent = find_unmatched(absent, present)
    _refuse_unknown("session", bids_dir, absent, sorted(present))


def _refuse_unknown(kind: str, bids_dir: Path, unknown: list[str], present: list[str]) -> None:
    if unknown:
        raise ValueError(
            f"Every {kind} label must exist in {bids_dir}; unknown: {join_labels(unknown)}; "
            f"there: {join_labels(present) or 'none'}."
        )


def _note_missing_participants(subjects: list[str], scans: list[Scan]) -> list[str]:
    served = {scan.subject for scan in scans}
    without = [subject for subject in subjects if subject not in served]
    if not without:
        return []
    count = f"{len(without)} of {len(subjects)} participants"
    return [f"No scan was selected for {count}: {join_labels(without)}."]
