"""Tables of a follow-up: its lesions, what shows of them at each visit, and its pairs of visits."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bids_cmb.bids.tables import round_or_none
from bids_cmb.longitudinal.evidence import FAINT, LOST, NEW, NOT_COMPARABLE, PERSISTENT, UNCERTAIN
from bids_cmb.longitudinal.follow_up import (
    CHANGES,
    FollowedLesion,
    FollowUp,
    classify_aria_h,
    list_pairs,
)
from bids_cmb.longitudinal.visits import measure_interval_days

DAYS_PER_YEAR = 365.25
CHANGE_COLUMNS = {
    NEW: "n_new",
    PERSISTENT: "n_persistent",
    LOST: "n_not_seen_again",
    UNCERTAIN: "n_uncertain",
    NOT_COMPARABLE: "n_not_comparable",
}
SIZE_COLUMNS = ("equivalent_diameter_mm", "half_depth_diameter_mm", "volume_mm3")
LOCATION_COLUMNS = ("territory", "side", "mars_region", "mars_side")


def name_lesion(index: int) -> str:
    """Name a followed lesion: F001."""
    return f"F{index:03d}"


def make_lesion_rows(follow_up: FollowUp) -> list[dict[str, object]]:
    """Make a row for each followed lesion."""
    return [
        _make_lesion_row(index, lesion, follow_up)
        for index, lesion in enumerate(follow_up.lesions, start=1)
    ]


def _make_lesion_row(index: int, lesion: FollowedLesion, follow_up: FollowUp) -> dict[str, object]:
    visits = follow_up.series.visits
    last = visits[lesion.last_seen].find_lesion(lesion.identity.indices[lesion.last_seen])
    x, y, z = lesion.identity.position
    rows = (f"{visits[v].name}={i}" for v, i in sorted(lesion.identity.indices.items()))
    faint = [visits[v].name for v, reading in lesion.readings.items() if reading.state == FAINT]
    return {
        "index": index,
        "name": name_lesion(index),
        "x_mm": round_or_none(float(x), 2),
        "y_mm": round_or_none(float(y), 2),
        "z_mm": round_or_none(float(z), 2),
        "course": lesion.course,
        "first_seen": visits[lesion.first_seen].name,
        "last_seen": visits[lesion.last_seen].name,
        "n_visits_seen": len(lesion.identity.indices),
        "rows": " ".join(rows),
        "faint_in": " ".join(faint) or None,
        **{name: last.get(name) for name in SIZE_COLUMNS},
        **{name: last.get(name) for name in LOCATION_COLUMNS},
    }


def make_observation_rows(follow_up: FollowUp, folder: Path) -> list[dict[str, object]]:
    """Make a row for each followed lesion at each visit.

    Args:
        follow_up: To tabulate.
        folder: The derivative dataset, to which file names are relative.
    """
    return [
        _make_observation_row(index, lesion, number, follow_up, folder)
        for index, lesion in enumerate(follow_up.lesions, start=1)
        for number in sorted(lesion.readings)
    ]


def _make_observation_row(
    index: int, lesion: FollowedLesion, number: int, follow_up: FollowUp, folder: Path
) -> dict[str, object]:
    visit, reading = follow_up.series.visits[number], lesion.readings[number]
    seen = number in lesion.identity.indices
    row = visit.find_lesion(lesion.identity.indices[number]) if seen else {}
    before = [other for other in follow_up.aligned if other < number]
    return {
        "lesion": name_lesion(index),
        "filename": visit.mask.relative_to(folder).as_posix(),
        "session_id": visit.session,
        "index": row.get("index"),
        "state": reading.state,
        "change": lesion.compare(before[-1], number) if before else None,
        "reason": reading.reason or None,
        "probability": round_or_none(reading.probability, 4),
        "contrast": round_or_none(reading.contrast, 3),
        "contrast_share": round_or_none(reading.contrast_share, 3),
        **{name: row.get(name) for name in SIZE_COLUMNS},
    }


def make_pair_rows(follow_up: FollowUp, folder: Path) -> list[dict[str, object]]:
    """Make a row for each pair of visits.

    Args:
        follow_up: To tabulate.
        folder: The derivative dataset, to which file names are relative.
    """
    return [_make_pair_row(follow_up, pair, folder) for pair in list_pairs(follow_up)]


def _make_pair_row(
    follow_up: FollowUp, pair: tuple[int, int], folder: Path
) -> dict[str, object]:  # fmt: skip
    visits = [follow_up.series.visits[number] for number in pair]
    fits = [follow_up.alignments[number] for number in pair]
    problem = next((fit.problem for fit in fits if fit.problem), "")
    later = fits[1] if pair[1] != follow_up.reference else fits[0]
    interval = measure_interval_days(*visits)
    counts = _count_changes(follow_up, pair) if not problem else dict.fromkeys(CHANGES)
    if visits[0].contrast != visits[1].contrast:
        counts |= {NEW: None, LOST: None}
    n_new = counts[NEW]
    return {
        "participant_id": f"sub-{follow_up.series.subject}",
        "session_1": visits[0].session,
        "session_2": visits[1].session,
        "filename_1": visits[0].mask.relative_to(folder).as_posix(),
        "filename_2": visits[1].mask.relative_to(folder).as_posix(),
        "consecutive": "yes" if _is_consecutive(follow_up, pair) else "no",
        "status": "refused" if problem else "ok",
        "reason": problem or None,
        "interval_days": interval,
        **{CHANGE_COLUMNS[change]: counts[change] for change in CHANGES},
        "new_per_year": _compute_rate(n_new, interval),
        "aria_h_class": None if n_new is None else classify_aria_h(n_new),
        "similarity": later.similarity,
        "overlap": later.overlap,
        "rotation_deg": later.rotation_deg,
        "shift_mm": later.shift_mm,
    }


def _is_consecutive(follow_up: FollowUp, pair: tuple[int, int]) -> bool:
    """Check whether no visit that could be compared lies between two."""
    return not any(pair[0] < number < pair[1] for number in follow_up.aligned)


def _count_changes(follow_up: FollowUp, pair: tuple[int, int]) -> dict[str, int | None]:
    changes = Counter(lesion.compare(*pair) for lesion in follow_up.lesions)
    return {change: changes[change] for change in CHANGES}


def _compute_rate(n_new: int | None, interval_days: float | None) -> float | None:
    """Compute new lesions per year; None where the interval is not known or shorter than a week."""
    if n_new is None or interval_days is None or interval_days < 7:
        return None
    return round(n_new * DAYS_PER_YEAR / interval_days, 2)


def count_courses(lesions: Iterable[FollowedLesion]) -> dict[str, int]:
    """Count followed lesions by what became of them."""
    counts = Counter(lesion.course for lesion in lesions)
    return {course: counts[course] for course in CHANGES}
