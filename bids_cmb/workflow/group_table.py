"""The group's table: a row for each result, and for each scan without a current one."""

import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from bids_cmb.bids.attempts import FAILED, GONE, list_open_attempts
from bids_cmb.bids.metadata import describe_read_error
from bids_cmb.bids.paths import list_participant_dirs
from bids_cmb.bids.tables import get_source, read_columns, read_results
from bids_cmb.files import parse_json
from bids_cmb.report.performance import CLOSING, describe_performance

EARLIER_RESULT = "its earlier result is still in the folder"
log = logging.getLogger(__name__)


def make_group_rows(folder: Path, raw: Path | None = None) -> list[dict[str, object]]:
    """Make a row for each result, and for each scan without a current one; by source.

    A scan may have several results, such as of one echo and of all echoes combined.

    Args:
        folder: Output folder of the participant level.
        raw: The raw dataset, to find which scans are gone from it; None if it is not there.
    """
    results: dict[str, list[dict[str, object]]] = {}
    for results_dir in list_participant_dirs(folder):
        for sidecar, counts in read_results(results_dir):
            source = get_source(sidecar)
            name = (results_dir / counts["filename"]).relative_to(folder).as_posix()
            row = {**_get_identity(source), "status": "ok", "reason": None, **counts}
            results.setdefault(source, []).append({**row, "filename": name})
    for source, (status, reason) in find_states(folder, set(results), raw).items():
        results[source] = [_make_empty_row(source, status, reason)]
    return [row for source in sorted(results) for row in results[source]]


def find_states(
    folder: Path, with_results: Collection[str], raw: Path | None = None
) -> dict[str, tuple[str, str]]:
    """Find the states of the scans without current counts; no clock is used.

    Args:
        folder: Output folder of the participant level.
        with_results: Scans that have a result, relative to the raw dataset.
        raw: The raw dataset; None if it is not there.

    Returns:
        Scan → its status and the reason in words.
    """
    attempts, logged = list_open_attempts(folder), read_last_events(folder)
    states: dict[str, tuple[str, str]] = {}
    for source in {*with_results, *attempts, *logged}:
        has_result = source in with_results
        status, reason = attempts.get(source, ("", ""))
        is_gone = status == GONE if raw is None else not os.path.lexists(raw / source)
        if is_gone:
            if has_result:
                states[source] = ("gone", f"the dataset no longer has the scan; {EARLIER_RESULT}")
        elif has_result and status == FAILED:
            states[source] = ("outdated", f"the last attempt failed ({reason}); {EARLIER_RESULT}")
        elif has_result and status:
            states[source] = ("outdated", f"a later run did not reach it; {EARLIER_RESULT}")
        elif status == FAILED:
            states[source] = ("failed", reason)
        elif not has_result and logged.get(source, {}).get("status") == "failed" and not status:
            states[source] = ("failed", logged[source]["reason"])
        elif not has_result:
            states[source] = ("missing", "no run reached it")
    return states


def describe_results(folder: Path, rows: Sequence[dict]) -> tuple[list[str], list[str]]:
    """Describe how the results in a folder were made, reading each sidecar once.

    Args:
        folder: Output folder of the participant level.
        rows: Of the group table; only scans that are ``ok`` count.

    Returns:
        A sentence on how their settings differ, if they do; and sentences on what their detectors
        found and missed on real scans, once for each.
    """
    masks = {str(row["filename"]) for row in rows if row["status"] == "ok"}
    variants: dict[str, Counter] = {}
    performance: dict[str, None] = {}  # a set that keeps the order
    for results_dir in list_participant_dirs(folder):
        for sidecar, counts in read_results(results_dir):
            if (results_dir / counts["filename"]).relative_to(folder).as_posix() in masks:
                for key, value in _describe_settings(sidecar).items():
                    variants.setdefault(key, Counter())[value] += 1
                performance |= dict.fromkeys(_list_performance(sidecar))
    return (
        _describe_mixed_settings(folder, variants),
        [*performance, CLOSING] if performance else [],
    )


def _describe_mixed_settings(folder: Path, variants: Mapping[str, Counter]) -> list[str]:
    parts = [
        f"{key} ({', '.join(f'{value}: {count}' for value, count in sorted(values.items()))})"
        for key, values in variants.items()
        if len(values) > 1
    ]
    if not parts:
        return []
    return [
        f"{folder} holds results that were made in different ways, scans of each in brackets: "
        f"{'; '.join(parts)}. Counts, prevalence and map of the group mix them."
    ]


def _list_performance(sidecar: Mapping) -> list[str]:
    """List the first sentences on what a result's detector found and missed; none of old ones."""
    if not sidecar.get("Performance"):
        return []
    described = describe_performance(sidecar)
    return [sentence for sentence in (described["warning"], described["found"][0]) if sentence]


def _describe_settings(sidecar: dict) -> dict[str, str]:
    """Describe how a result was made, as far as that may differ within a folder."""
    provenance = sidecar.get("Provenance", {})
    settings = {
        key: json.dumps(value, sort_keys=True)
        for key, value in provenance.get("Settings", {}).items()
    }
    cards = provenance.get("Detectors")
    digests = (
        [str(card.get("CardSHA256"))[:8] for card in cards or () if isinstance(card, dict)]
        if isinstance(cards, list)
        else []
    )
    software = provenance.get("Software")
    version = software.get("bids_cmb") if isinstance(software, dict) else None
    return {
        **settings,
        "model cards": " ".join(digests),
        "version": str(version),
        "code": str(provenance.get("CodeSHA256"))[:8],
    }


def read_last_events(folder: Path) -> dict[str, dict]:
    """Read the last event of each scan from the status logs of all runs."""
    events = []
    for path in sorted(folder.glob("logs/*/status.jsonl")):
        events += _read_events(path)
    order = {"selected": 0}  # in the same second, the selection comes first
    events.sort(key=lambda event: (event["time"], order.get(event["status"], 1)))
    return {event["source"]: event for event in events}


def _read_events(path: Path) -> list[dict[str, str]]:
    """Read a status log; warn if lines are damaged or the file cannot be read."""
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


def _make_empty_row(source: str, status: str, reason: str) -> dict[str, object]:
    empty = dict.fromkeys(read_columns("scan"))
    return {**_get_identity(source), "status": status, "reason": " ".join(reason.split()), **empty}


def _get_identity(source: str) -> dict[str, object]:
    """Get participant, session and source of a scan from its path."""
    folders = source.split("/")[:-1]
    labels = {part.partition("-")[0]: part for part in folders if "-" in part}
    return {
        "participant_id": labels.get("sub"),
        "session_id": labels.get("ses"),
        "source": source,
    }
