"""The group level: what the participants wrote, in one table. It opens no image."""

import json
import logging
from pathlib import Path

from bids_cmb.derivatives import (
    columns,
    finished,
    homes,
    write_json,
    write_table,
)

log = logging.getLogger(__name__)


def write_group(folder: Path) -> dict[str, int]:
    """Write ``group_microbleeds.tsv`` and its sidecar from the results in a folder.

    Scans that failed and scans that no run came to have a row with their reason and no counts.

    Args:
        folder: What participant runs wrote to; the raw dataset is not needed.

    Returns:
        Scans by status: ``ok``, ``failed`` and ``missing``.

    Raises:
        ValueError: If the folder holds no results and no status of any scan.
    """
    rows = group_rows(folder)
    if not rows:
        raise ValueError(
            f"{folder}: the group level needs what the participant level wrote; found no result "
            "of any scan."
        )
    names = [*columns("group"), *columns("scan")]
    write_table(folder / "group_microbleeds.tsv", names, rows)
    write_json(folder / "group_microbleeds.json", {**columns("group"), **columns("scan")})
    tally = dict.fromkeys(columns("group")["status"]["Levels"], 0)
    for row in rows:
        tally[row["status"]] += 1
    return tally


def group_rows(folder: Path) -> list[dict[str, object]]:
    """One row for each scan that any run read, failed on or left, by name of its source."""
    rows = {}
    finish_times = {}
    for home in homes(folder):
        for sidecar, counts in finished(home):
            source = _source(sidecar)
            name = (home / counts["filename"]).relative_to(folder).as_posix()
            finish_times[source] = str(sidecar.get("Provenance", {}).get("Finished", ""))
            rows[source] = {
                **_who(source),
                "status": "ok",
                "reason": None,
                **counts,
                "filename": name,
            }
    for source, event in last_events(folder).items():
        stands = source in rows and event["time"] <= finish_times[source]
        if event["status"] == "ok" or stands:
            continue
        if event["status"] == "failed":
            rows[source] = _without_counts(source, "failed", event["reason"])
        elif source not in rows:
            rows[source] = _without_counts(source, "missing", "no run came to it")
    return [rows[source] for source in sorted(rows)]


def last_events(folder: Path) -> dict[str, dict]:
    """What the runs' status logs said last of each scan."""
    events = []
    for path in sorted(folder.glob("logs/*/status.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                event = json.loads(line)
                events.append(
                    {key: str(event[key]) for key in ("time", "source", "status", "reason")}
                )
            except (ValueError, KeyError, TypeError):
                log.warning("%s: a line is no status of a scan and was passed over.", path)
    order = {"selected": 0}  # of the same second, the selection came first
    events.sort(key=lambda event: (event["time"], order.get(event["status"], 1)))
    return {event["source"]: event for event in events}


def _without_counts(source: str, status: str, reason: str) -> dict[str, object]:
    empty = dict.fromkeys(columns("scan"))
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


def _source(sidecar: dict) -> str:
    """The scan that a result was made from, relative to the raw dataset."""
    sources = sidecar.get("Sources") or [""]
    return str(sources[0]).removeprefix("bids:raw:")
