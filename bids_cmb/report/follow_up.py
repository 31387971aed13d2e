"""The section of a participant's page on its lesions over time, from tables and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bids_cmb.bids.markers import read_marker
from bids_cmb.bids.paths import get_follow_up_stem, list_follow_ups, locate_figures
from bids_cmb.bids.tables import read_table
from bids_cmb.files import read_json
from bids_cmb.longitudinal.evidence import SEEN
from bids_cmb.longitudinal.follow_up import CHANGES
from bids_cmb.report.crops import CROPS, ORDER


def collect_follow_ups(folder: Path, subject: str) -> list[dict]:
    """Collect what the page shows of a participant's follow-ups.

    Args:
        folder: The derivative dataset.
        subject: Label, without ``sub-``.
    """
    return [_collect(folder, subject, marker) for marker in list_follow_ups(folder, subject)]


def _collect(folder: Path, subject: str, marker: Path) -> dict:
    stem = get_follow_up_stem(marker)
    sidecar = read_json(marker) or {}
    tables = {
        name: _read_rows(marker.with_name(f"{stem}_{name}.tsv"))
        for name in ("lesions", "observations", "pairs")
    }
    figures = locate_figures(folder, subject)
    crops = read_json(figures / f"{stem}{CROPS}") or {}
    lesions = [
        _make_lesion(row, tables["observations"], crops, figures, folder)
        for row in tables["lesions"]
    ]
    lesions.sort(key=lambda lesion: (ORDER.index(lesion["course"]), int(lesion["index"])))
    return {
        "stem": stem,
        "state": sidecar.get("Provenance", {}).get("Fingerprint", "")[:16],
        "current": is_current(folder, sidecar),
        "visits": crops.get("visits", []),
        "rule": sidecar.get("Rule", {}),
        "notes": sidecar.get("Notes", []),
        "pairs": tables["pairs"],
        "lesions": lesions,
        "courses": {course: _count(lesions, course) for course in CHANGES},
    }


def _count(lesions: list[dict], course: str) -> int:
    return sum(lesion["course"] == course for lesion in lesions)


def _read_rows(path: Path) -> list[dict]:
    try:
        return read_table(path)
    except FileNotFoundError:  # another process may be replacing the follow-up
        return []


def _make_lesion(
    row: dict, observations: list[dict], crops: dict, figures: Path, folder: Path
) -> dict:
    shown = [each for each in observations if each["lesion"] == row["name"]]
    seen = [each for each in shown if each["state"] == SEEN]
    picture = crops.get("files", {}).get(row["index"])
    path = figures / picture if picture else None
    return {
        **row,
        "observations": shown,
        "judged": seen[0] if row["course"] == "new" and seen else seen[-1] if seen else None,
        "picture": path.relative_to(folder).as_posix() if path and path.is_file() else None,
    }


def is_current(folder: Path, sidecar: dict) -> bool:
    """Check whether the results that a follow-up was made of are still those in the folder."""
    visits = sidecar.get("Visits", [])
    return bool(visits) and all(_is_same_result(folder, visit) for visit in visits)


def _is_same_result(folder: Path, visit: dict) -> bool:
    mask = folder / str(visit.get("Mask"))
    marker = read_marker(mask.with_name(mask.name.replace(".nii.gz", ".json")))
    return marker is not None and marker["Provenance"].get("Finished") == visit.get("Finished")


def list_crops(follow_ups: Sequence[Mapping]) -> list[str]:
    """List the pictures of followed lesions in the order in which the page shows them."""
    shown = (lesion["picture"] for series in follow_ups for lesion in series["lesions"])
    return [picture for picture in shown if picture]
