"""Lesions over time: follow those of a participant once its scans are done."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bids_cmb.anatomy.mni_fit import format_itk_affine
from bids_cmb.bids.markers import describe_outputs, is_whole
from bids_cmb.bids.paths import (
    LONGITUDINAL,
    get_follow_up_stem,
    list_dirs_of_participant,
    list_follow_ups,
    locate_figures,
    locate_follow_up,
    locate_follow_up_marker,
)
from bids_cmb.bids.tables import read_columns, read_results, write_table
from bids_cmb.config import Config
from bids_cmb.files import read_json, remove_leftovers, write_json, write_text
from bids_cmb.longitudinal.evidence import EvidenceRule
from bids_cmb.longitudinal.follow_up import FollowUp, follow
from bids_cmb.longitudinal.tables import (
    count_courses,
    make_lesion_rows,
    make_observation_rows,
    make_pair_rows,
)
from bids_cmb.longitudinal.visits import Series, Visit, group_into_series, list_visits
from bids_cmb.provenance import fingerprint, package_digest, software
from bids_cmb.report.crops import CROPS, draw_crops, remove_crops
from bids_cmb.report.html import get_page_path, refresh_page, shows_follow_ups

DESCRIPTIONS = {
    "lesions": "Lesions of the participant over its visits, one row for each.",
    "observations": "What shows of each lesion at each visit.",
    "pairs": "Changes between two visits, one row for each pair.",
}


@dataclass(frozen=True)
class FollowUpSummary:
    """Summary of a participant's follow-ups, for the log.

    Attributes:
        made: How many were made.
        sentences: On each of these.
        notes: On what was left out.
    """

    made: int = 0
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def lacks_follow_up(subject: str, config: Config) -> bool:
    """Check whether a participant has several results that were not followed, or no longer has.

    Args:
        subject: Label, without ``sub-``.
        config: Of the run.
    """
    folder = config.output_dir
    homes = list_dirs_of_participant(folder / f"sub-{subject}")
    n_results = sum(1 for home in homes for _ in read_results(home))
    if n_results < 2:
        return bool(list_follow_ups(folder, subject))
    series = group_into_series(subject, list_visits(folder, config.bids_dir, subject).visits)
    expected = {_locate(folder, each).name for each in series}
    present = set(map(get_follow_up_stem, list_follow_ups(folder, subject)))
    shown = config.report == "none" or shows_follow_ups(folder, subject)
    return bool(
        expected != present
        or (config.overwrite and series)
        or not shown
        or not all(is_complete(folder, each, config) for each in series)
    )


def follow_participant(subject: str, config: Config) -> FollowUpSummary:
    """Follow the lesions of a participant over all of its current results, where that is not done.

    A participant with one scan has none; follow-ups of results that are gone are removed.

    Args:
        subject: Label, without ``sub-``.
        config: Of the run.

    Raises:
        ValueError: If a file cannot be used; the sentence names it.
        OSError: If one cannot be read or written.
    """
    folder = config.output_dir
    listed = list_visits(folder, config.bids_dir, subject)
    series = group_into_series(subject, listed.visits)
    stale = _remove_others(folder, subject, series)
    waiting = [each for each in series if config.overwrite or not is_complete(folder, each, config)]
    sentences, notes = [], list(listed.notes) if waiting else []
    for each in waiting:
        follow_up = follow(each)
        _write(follow_up, config, listed.notes)
        sentences.append(_summarize(follow_up))
        notes += follow_up.problems
    if (waiting or stale or not shows_follow_ups(folder, subject)) and get_page_path(
        folder, subject
    ).is_file():
        refresh_page(folder, subject)
    return FollowUpSummary(len(waiting), tuple(sentences), tuple(notes))


def _summarize(follow_up: FollowUp) -> str:
    counts = count_courses(follow_up.lesions)
    listed = ", ".join(f"{count} {course}" for course, count in counts.items())
    visits = follow_up.series.visits
    return f"sub-{follow_up.series.subject}: {visits[0].name} to {visits[-1].name}: {listed}."


def is_complete(folder: Path, series: Series, config: Config) -> bool:
    """Check whether a follow-up is whole, of these results, and has its pictures if it needs any.

    Args:
        folder: Output folder of the participant level.
        series: To follow.
        config: Of the run.
    """
    stem = _locate(folder, series)
    sidecar = read_json(locate_follow_up_marker(stem))
    if sidecar is None or not isinstance(sidecar.get("Provenance"), dict):
        return False
    index = locate_figures(folder, series.subject) / f"{stem.name}{CROPS}"
    return (
        sidecar["Provenance"].get("Fingerprint") == compute_fingerprint(folder, series)
        and is_whole(stem.parent, sidecar)
        and all((folder / str(path)).is_file() for path in sidecar.get("Transforms", []))
        and (config.report == "none" or index.is_file())
    )


def compute_fingerprint(folder: Path, series: Series) -> str:
    """Compute a hash of the results that are followed, the rule and the software."""
    return fingerprint(
        visits=[_describe_visit(visit, folder) for visit in series.visits],
        rule=asdict(EvidenceRule()),
        code=package_digest(),
    )


def _describe_visit(visit: Visit, folder: Path) -> dict[str, object]:
    provenance = visit.sidecar["Provenance"]
    return {
        "Name": visit.name,
        "Mask": visit.mask.relative_to(folder).as_posix(),
        "Acquired": visit.acquired.isoformat() if visit.acquired else None,
        "Fingerprint": provenance.get("Fingerprint"),
        "Finished": provenance.get("Finished"),
    }


def _locate(folder: Path, series: Series) -> Path:
    return locate_follow_up(folder, series.subject, series.entities, series.contrast)


def _remove_others(folder: Path, subject: str, series: Sequence[Series]) -> bool:
    """Remove the follow-ups that no series has any more; tell whether there were any."""
    kept = {_locate(folder, each).name for each in series}
    removed = False
    for marker in list_follow_ups(folder, subject):
        stem = get_follow_up_stem(marker)
        if stem not in kept:
            _remove(folder, subject, marker.with_name(stem))
            removed = True
    return removed


def _remove(folder: Path, subject: str, stem: Path) -> None:
    """Remove a follow-up, its marker first."""
    marker = locate_follow_up_marker(stem)
    sidecar = read_json(marker) or {}
    marker.unlink(missing_ok=True)
    for name in DESCRIPTIONS:
        for ending in (".tsv", ".json"):
            stem.with_name(f"{stem.name}_{name}{ending}").unlink(missing_ok=True)
    for path in sidecar.get("Transforms", []):
        if f"_desc-{LONGITUDINAL}" in str(path):
            (folder / str(path)).unlink(missing_ok=True)
    remove_crops(locate_figures(folder, subject), stem.name)


def _write(follow_up: FollowUp, config: Config, notes: Sequence[str]) -> None:
    """Write tables, transforms and pictures of a follow-up, its marker last."""
    folder, series = config.output_dir, follow_up.series
    stem = _locate(folder, series)
    remove_leftovers(stem.parent)
    _remove(folder, series.subject, stem)
    rows = {
        "lesions": make_lesion_rows(follow_up),
        "observations": make_observation_rows(follow_up, folder),
        "pairs": make_pair_rows(follow_up, folder),
    }
    files = []
    for name, table in rows.items():
        path = stem.with_name(f"{stem.name}_{name}.tsv")
        columns = read_columns(f"followed_{name.removesuffix('s')}")
        write_table(path, columns, table)
        files.append(path)
        if name != "lesions":
            about = {"Description": DESCRIPTIONS[name], **columns}
            write_json(path.with_suffix(".json"), about)
            files.append(path.with_suffix(".json"))
    transforms = _write_transforms(follow_up, folder)
    if config.report != "none":
        draw_crops(follow_up, locate_figures(folder, series.subject), stem.name)
    sidecar = {
        "Description": DESCRIPTIONS["lesions"],
        **read_columns("followed_lesion"),
        "Sources": [
            f"bids::{visit.mask.relative_to(folder).as_posix()}" for visit in series.visits
        ],
        "Reference": series.visits[follow_up.reference].name,
        "Rule": asdict(follow_up.rule),
        "Visits": [_describe_visit(visit, folder) for visit in series.visits],
        "Notes": [*notes, *follow_up.problems],
        "Transforms": transforms,
        "Provenance": {
            "Fingerprint": compute_fingerprint(folder, series),
            "Software": software(),
            "Finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "Files": describe_outputs(files),
        },
    }
    write_json(locate_follow_up_marker(stem), sidecar)


def _write_transforms(follow_up: FollowUp, folder: Path) -> list[str]:
    """Write the transform of each aligned visit to the reference; return paths in the folder."""
    visits = follow_up.series.visits
    target = _label(visits[follow_up.reference])
    written = []
    for number in follow_up.aligned:
        if number == follow_up.reference:
            continue
        visit = visits[number]
        entities = [f"{key}-{value}" for key, value in visit.entities.items()]
        parts = [f"sub-{follow_up.series.subject}", *entities, f"from-{_label(visit)}"]
        parts += [f"to-{target}", "mode-image", f"desc-{LONGITUDINAL}", "xfm.txt"]
        path = visit.mask.with_name("_".join(parts))
        write_text(path, format_itk_affine(follow_up.alignments[number].to_reference))
        written.append(path.relative_to(folder).as_posix())
    return written


def _label(visit: Visit) -> str:
    """Make a label of letters and digits for a visit, such as ses2run1T2starw."""
    return "".join(letter for letter in visit.name if letter.isalnum())
