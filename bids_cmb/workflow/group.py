"""The group level: what the participants wrote, in tables and a map.

It opens no image but the map of regions of a scan in which a reader found a lesion more.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from bids_cmb.bids.attempts import FAILED, list_open_attempts
from bids_cmb.bids.filters import join_labels
from bids_cmb.bids.metadata import describe_read_error
from bids_cmb.bids.paths import list_participant_dirs, locate_lesion_table
from bids_cmb.bids.tables import get_source, read_columns, read_results, read_table, write_table
from bids_cmb.files import parse_json, write_json
from bids_cmb.lesions.table import MNI_COLUMNS, TERRITORIES, list_mars_columns
from bids_cmb.report.frequency_map import MAP_STEM, REVIEWED_MAP_STEM, write_map
from bids_cmb.report.html import Cohort, write_group_page
from bids_cmb.review.merging import ReviewedCounts, count_reviewed, has_mni_position
from bids_cmb.review.reviews import Review, make_agreement_rows, make_reviewed_rows, read_reviews

WHERE = (*(f"n_{name}" for name in TERRITORIES), "lobar_class", "pattern")  # after review too
GROUPING = ("site", "center", "centre", "scanner", "manufacturer", "field_strength")
STANDS = "its earlier result is still in the folder"
log = logging.getLogger(__name__)


def write_group(
    folder: Path,
    participants: Path | None = None,
    reviews: Path | None = None,
    *,
    raw: Path | None = None,
) -> dict[str, int]:
    """Write the group's tables and its map from the results in a folder.

    ``group_microbleeds.tsv`` has every scan: those that failed and those that no run came to with
    their reason and no counts. ``group_regions.tsv`` has prevalence and lesions of every region of
    MARS, also by site and scanner. ``group_…_frequency.nii.gz`` shows where lesions lie in MNI
    space, and how often. With reviews, the table has the counts after them too,
    ``group_regions_reviewed.tsv`` and a second map have what the first two have, of the lesions
    that count after review, and ``group_agreement.tsv`` says how far the readers agree; without,
    such files of an earlier call are taken back.

    Args:
        folder: What participant runs wrote to; the raw dataset is not needed.
        participants: ``participants.tsv`` of the raw dataset, if there is one.
        reviews: Folder of reviews that readers saved from the pages.
        raw: The raw dataset, to tell which scans are gone from it; None if it is not there.

    Returns:
        Scans by status: ``ok``, ``failed``, ``missing``, ``outdated`` and ``gone``.

    Raises:
        ValueError: If the folder holds no results and no status of any scan, or a review cannot
            be used.
    """
    rows = group_rows(folder, raw if raw is not None and any(raw.glob("sub-*")) else None)
    if not rows:
        raise ValueError(
            f"{folder}: the group level needs what the participant level wrote; found no result "
            "of any scan."
        )
    for said in mixed_settings(folder, rows):
        log.warning("%s", said)
    described = {**read_columns("group"), **read_columns("scan")}
    agreement: list[dict] = []
    reviewed: dict[str, ReviewedCounts] = {}
    if reviews is not None:
        described |= read_columns("reviewed")
        known = read_reviews(reviews, folder)
        reviewed = count_reviewed(folder, known)
        agreement = _take_in_reviews(folder, known, reviewed, rows)
    write_table(folder / "group_microbleeds.tsv", described, rows)
    write_json(folder / "group_microbleeds.json", described)
    read = [row for row in rows if row["status"] == "ok"]
    groups = grouping(participants, {str(row["participant_id"]) for row in read})
    table = region_rows(read, groups)
    write_table(folder / "group_regions.tsv", read_columns("regions"), table)
    write_json(folder / "group_regions.json", read_columns("regions"))
    lesions = counted_lesions(folder, read)
    write_map(folder, positions(lesions), len({row["participant_id"] for row in read}))
    diameters = [float(one["diameter_mm"]) for own in lesions.values() for one in own]
    after = _after_review(folder, read, groups, reviewed, positions(lesions))
    cohort = Cohort(rows, table, diameters, groups, agreement, after)
    write_group_page(folder, cohort, f"{MAP_STEM}.png", f"{REVIEWED_MAP_STEM}.png")
    tally = dict.fromkeys(read_columns("group")["status"]["Levels"], 0)
    for row in rows:
        tally[row["status"]] += 1
    return tally


def grouping(
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
        for column in GROUPING
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


def region_rows(read: list[dict], groups: dict[str, dict[str, str]]) -> list[dict[str, object]]:
    """Prevalence and number of lesions by region, over all and within each site or scanner.

    A participant with several scans counts once, by the scan with most lesions there.
    """
    made = []
    for column, value, chosen in _strata(read, groups):
        people = {str(row["participant_id"]) for row in chosen}
        for place in (
            "n_cmb",
            *(f"n_{name}" for name in TERRITORIES),
            *(c for c, _, _ in list_mars_columns()),
        ):
            most: dict[str, int] = {}
            for row in chosen:
                if row.get(place) is not None:
                    who = str(row["participant_id"])
                    most[who] = max(most.get(who, 0), int(row[place]))
            with_any = sum(count > 0 for count in most.values())
            low, high = wilson(with_any, len(most))
            made.append(
                {
                    "stratum_variable": column,
                    "stratum": value,
                    "region": place.removeprefix("n_"),
                    "n_participants": len(people),
                    "n_evaluable": len(most),
                    "n_lesions": sum(most.values()) if most else None,
                    "n_positive": with_any if most else None,
                    "prevalence": round(with_any / len(most), 4) if most else None,
                    "prevalence_low": low,
                    "prevalence_high": high,
                }
            )
    return made


def _strata(read: list[dict], groups: dict) -> Iterator[tuple[str, str, list[dict]]]:
    yield "all", "all", read
    for column, values in groups.items():
        by_value: dict[str, list[dict]] = {}
        for row in read:
            if value := values.get(str(row["participant_id"])):
                by_value.setdefault(value, []).append(row)
        for value, chosen in sorted(by_value.items()):
            yield column, value, chosen


@lru_cache(maxsize=4096)  # half a millisecond each, and many sites have as many participants
def wilson(successes: int, trials: int) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of a share (Wilson 1927); None, None without trials."""
    if not trials:
        return None, None
    from scipy.stats import binomtest  # noqa: PLC0415 half a second that no other level needs

    found = binomtest(successes, trials).proportion_ci(method="wilson")
    return round(float(found.low), 4), round(float(found.high), 4)


def _take_in_reviews(
    folder: Path,
    known: dict[str, list[Review]],
    reviewed: dict[str, ReviewedCounts],
    rows: list[dict],
) -> list[dict]:
    """Add the counts after review to the rows; how far the readers agree."""
    counts = make_reviewed_rows(folder, known)
    nothing = dict.fromkeys(read_columns("reviewed"))
    for row in rows:
        mask = str(row["filename"])
        row.update(nothing)
        if mask in counts:
            where = {name: reviewed[mask].counts[name] for name in WHERE}
            row.update({**counts[mask], **{f"{name}_reviewed": n for name, n in where.items()}})
    agreement = make_agreement_rows(folder, known)
    write_table(folder / "group_agreement.tsv", read_columns("agreement"), agreement)
    write_json(folder / "group_agreement.json", read_columns("agreement"))
    return agreement


def _after_review(
    folder: Path,
    read: list[dict],
    groups: dict,
    reviewed: dict[str, ReviewedCounts],
    before: dict[str, list[tuple[float, ...]]],
) -> list[dict]:
    """Write regions and map after review, or take them back; the rows of the former.

    Scans that nobody reviewed stay in them as they were found.

    Args:
        folder: The derivative dataset.
        read: Rows of the scans that were read.
        groups: As `grouping` gives them.
        reviewed: The scans that somebody reviewed.
        before: MNI positions of each participant's counted lesions.
    """
    tables = [folder / f"group_regions_reviewed{end}" for end in (".tsv", ".json")]
    if not reviewed:
        agreed = [folder / f"group_agreement{end}" for end in (".tsv", ".json")]
        for place in (*tables, *agreed):
            place.unlink(missing_ok=True)
        write_map(folder, {}, 0, REVIEWED_MAP_STEM)
        return []
    touched = {str(row["participant_id"]) for row in read if str(row["filename"]) in reviewed}
    rows, places = [], {who: own for who, own in before.items() if who not in touched}
    for row in read:
        one, who = reviewed.get(str(row["filename"])), str(row["participant_id"])
        rows.append({**row, **one.counts} if one else row)
        if who in touched:
            own = one.mni if one else positions(counted_lesions(folder, [row]))[who]
            places.setdefault(who, []).extend(own)
    made = region_rows(rows, groups)
    write_table(tables[0], read_columns("regions"), made)
    write_json(tables[1], read_columns("regions"))
    write_map(folder, places, len(places), REVIEWED_MAP_STEM)
    return made


def counted_lesions(folder: Path, read: list[dict]) -> dict[str, list[dict]]:
    """The counted lesions of each participant that was read, as rows of their tables."""
    found: dict[str, list[dict]] = {}
    for row in read:
        table = locate_lesion_table(folder / str(row["filename"]))
        own = read_table(table) if table.is_file() else []
        counted = [lesion for lesion in own if lesion.get("included") == "yes"]
        found.setdefault(str(row["participant_id"]), []).extend(counted)
    return found


def positions(lesions: dict[str, list[dict]]) -> dict[str, list[tuple[float, ...]]]:
    """MNI positions of each participant's lesions, mm, of those that have one."""
    return {
        who: [
            tuple(float(one[axis]) for axis in MNI_COLUMNS) for one in own if has_mni_position(one)
        ]
        for who, own in lesions.items()
    }


def group_rows(folder: Path, raw: Path | None = None) -> list[dict[str, object]]:
    """Make a row for each result, and for each scan without a current one; by source.

    A scan may have several results, such as of one echo and of all echoes combined.

    Args:
        folder: What participant runs wrote to.
        raw: The dataset that they read, to tell which scans are gone; None if it is not there.
    """
    results: dict[str, list[dict[str, object]]] = {}
    for home in list_participant_dirs(folder):
        for sidecar, counts in read_results(home):
            source = get_source(sidecar)
            name = (home / counts["filename"]).relative_to(folder).as_posix()
            row = {**_who(source), "status": "ok", "reason": None, **counts, "filename": name}
            results.setdefault(source, []).append(row)
    for source, (status, reason) in unsettled(folder, set(results), raw).items():
        results[source] = [_without_counts(source, status, reason)]
    return [row for source in sorted(results) for row in results[source]]


def unsettled(
    folder: Path, with_result: Collection[str], raw: Path | None = None
) -> dict[str, tuple[str, str]]:
    """Find the scans whose counts are not current, without a look at any clock.

    Args:
        folder: What participant runs wrote to.
        with_result: Scans that have a result, relative to the raw dataset.
        raw: That dataset; None if it is not there.

    Returns:
        Scan → its status and the reason in words.
    """
    attempts, logged = list_open_attempts(folder), last_events(folder)
    states: dict[str, tuple[str, str]] = {}
    for source in {*with_result, *attempts, *logged}:
        stands = source in with_result
        status, reason = attempts.get(source, ("", ""))
        if raw is not None and not os.path.lexists(raw / source):
            if stands:
                states[source] = ("gone", f"the dataset no longer has the scan; {STANDS}")
        elif stands and status == FAILED:
            states[source] = ("outdated", f"the last attempt failed ({reason}); {STANDS}")
        elif stands and status:
            states[source] = ("outdated", f"a later run did not reach it; {STANDS}")
        elif status == FAILED:
            states[source] = ("failed", reason)
        elif not stands and logged.get(source, {}).get("status") == "failed" and not status:
            states[source] = ("failed", logged[source]["reason"])
        elif not stands:
            states[source] = ("missing", "no run reached it")
    return states


def mixed_settings(folder: Path, rows: Sequence[dict]) -> list[str]:
    """Say in a sentence if the results in a folder were made in different ways.

    Args:
        folder: What participant runs wrote to.
        rows: Of the group table; only scans that are ``ok`` count.
    """
    masks = {str(row["filename"]) for row in rows if row["status"] == "ok"}
    ways: dict[str, Counter] = {}
    for home in list_participant_dirs(folder):
        for sidecar, counts in read_results(home):
            if (home / counts["filename"]).relative_to(folder).as_posix() in masks:
                for key, value in _way(sidecar).items():
                    ways.setdefault(key, Counter())[value] += 1
    parts = [
        f"{key} ({', '.join(f'{value}: {count}' for value, count in sorted(values.items()))})"
        for key, values in ways.items()
        if len(values) > 1
    ]
    if not parts:
        return []
    return [
        f"{folder} holds results that were made in different ways, scans of each in brackets: "
        f"{'; '.join(parts)}. Counts, prevalence and map of the group mix them."
    ]


def _way(sidecar: dict) -> dict[str, str]:
    """What made a result, as far as it may differ within a folder."""
    made = sidecar.get("Provenance", {})
    settings = {
        key: json.dumps(value, sort_keys=True) for key, value in made.get("Settings", {}).items()
    }
    cards = made.get("Detectors")
    digests = (
        [str(one.get("CardSHA256"))[:8] for one in cards or () if isinstance(one, dict)]
        if isinstance(cards, list)
        else []
    )
    software = made.get("Software")
    version = software.get("bids_cmb") if isinstance(software, dict) else None
    return {
        **settings,
        "model cards": " ".join(digests),
        "version": str(version),
        "code": str(made.get("CodeSHA256"))[:8],
    }


def last_events(folder: Path) -> dict[str, dict]:
    """What the runs' status logs said last of each scan."""
    events = []
    for path in sorted(folder.glob("logs/*/status.jsonl")):
        events += _events_in(path)
    order = {"selected": 0}  # of the same second, the selection came first
    events.sort(key=lambda event: (event["time"], order.get(event["status"], 1)))
    return {event["source"]: event for event in events}


def _events_in(path: Path) -> list[dict[str, str]]:
    """Read a status log; a warning tells of lines that are damaged, or of all if it is."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        log.warning("%s %s and is ignored.", path, describe_read_error(error))
        return []
    events = []
    for line in lines:
        try:
            event = parse_json(line)
            events.append({key: str(event[key]) for key in ("time", "source", "status", "reason")})
        except (ValueError, KeyError, TypeError):
            continue
    if len(events) < len(lines):
        log.warning(
            "%s: %d of %d lines are damaged and were ignored.",
            *(path, len(lines) - len(events), len(lines)),
        )
    return events


def _without_counts(source: str, status: str, reason: str) -> dict[str, object]:
    empty = dict.fromkeys(read_columns("scan"))
    return {**_who(source), "status": status, "reason": " ".join(reason.split()), **empty}


def _who(source: str) -> dict[str, object]:
    """Participant, session and source; the labels stand in the path."""
    folders = source.split("/")[:-1]
    found = {part.partition("-")[0]: part for part in folders if "-" in part}
    return {
        "participant_id": found.get("sub"),
        "session_id": found.get("ses"),
        "source": source,
    }
