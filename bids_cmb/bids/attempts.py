"""Scans whose last attempt did not end in a result: one small file each, gone once it does.

Whether a result is current follows from whether such a file is there, never from clocks: those of
two machines differ, and any may be set back.
"""

import hashlib
import logging
from pathlib import Path

from bids_cmb.files import read_json, write_json

FOLDER = "attempts"  # in logs/
SELECTED, FAILED = "selected", "failed"
log = logging.getLogger(__name__)


def note_attempt(folder: Path, source: str, status: str, reason: str = "") -> None:
    """Note that a run selected a scan, or failed on it.

    A full disc must not hide the sentence that said so, so nothing is raised.

    Args:
        folder: The derivative dataset.
        source: The scan, relative to the raw dataset.
        status: ``selected`` or ``failed``.
        reason: One sentence, of a failure.
    """
    try:
        write_json(_place(folder, source), {"Source": source, "Status": status, "Reason": reason})
    except (OSError, ValueError) as error:
        log.debug("The attempt at %r could not be noted: %s", source, error)


def forget_attempt(folder: Path, source: str) -> None:
    """Note that a scan has its result."""
    try:
        _place(folder, source).unlink(missing_ok=True)
    except NotADirectoryError:
        log.debug("%s is not a folder.", folder)


def open_attempt(folder: Path, source: str) -> str | None:
    """Say in one sentence why the result of a scan is not current; None if it is."""
    place = _place(folder, source)
    return _sentence(read_json(place) or {}) if place.is_file() else None


def open_attempts(folder: Path) -> dict[str, tuple[str, str]]:
    """List the scans whose last attempt did not end in a result: source → (status, reason)."""
    attempts = {}
    for path in sorted((folder / "logs" / FOLDER).glob("*.json")):
        content = read_json(path) or {}
        source, status = content.get("Source"), content.get("Status")
        if isinstance(source, str) and status in (SELECTED, FAILED):
            attempts[source] = (status, str(content.get("Reason") or ""))
        else:
            log.warning("%s is damaged and was ignored.", path)
    return attempts


def _sentence(content: dict) -> str:
    if content.get("Status") == FAILED:
        return f"The last attempt to process the scan failed: {content.get('Reason')}"
    return "A later run selected the scan and has not processed it."


def _place(folder: Path, source: str) -> Path:
    name = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return folder / "logs" / FOLDER / f"{name}.json"
