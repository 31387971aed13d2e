"""Keep a record of each scan whose last attempt did not end in a result; removed once one does.

A result is current if there is no such file. Clocks are not used: those of two machines differ,
and any may be set back.
"""

import hashlib
import logging
from pathlib import Path

from bids_cmb.files import read_json, write_json

RECORDS_FOLDER = "attempts"  # in logs/
SELECTED, FAILED, GONE = "selected", "failed", "gone"
log = logging.getLogger(__name__)


def note_attempt(folder: Path, source: str, status: str, reason: str = "") -> None:
    """Note that a run selected a scan, failed on it, or did not find it any more.

    Nothing is raised: a full disc must not hide the error of the scan.

    Args:
        folder: The derivative dataset.
        source: The scan, relative to the raw dataset.
        status: ``selected``, ``failed`` or ``gone``.
        reason: One sentence, of a failure.
    """
    try:
        write_json(
            _locate_record(folder, source), {"Source": source, "Status": status, "Reason": reason}
        )
    except (OSError, ValueError) as error:
        log.debug("The attempt at %r could not be noted: %s", source, error)


def forget_attempt(folder: Path, source: str) -> None:
    """Note that a scan has its result."""
    try:
        _locate_record(folder, source).unlink(missing_ok=True)
    except NotADirectoryError:
        log.debug("%s is not a folder.", folder)


def describe_open_attempt(folder: Path, source: str) -> str | None:
    """Describe in one sentence why the result of a scan is not current; None if it is."""
    path = _locate_record(folder, source)
    return _describe_record(read_json(path) or {}) if path.is_file() else None


def list_open_attempts(folder: Path) -> dict[str, tuple[str, str]]:
    """List the scans whose last attempt did not end in a result: source → (status, reason)."""
    attempts = {}
    for path in sorted((folder / "logs" / RECORDS_FOLDER).glob("*.json")):
        content = read_json(path) or {}
        source, status = content.get("Source"), content.get("Status")
        if isinstance(source, str) and status in (SELECTED, FAILED, GONE):
            attempts[source] = (status, str(content.get("Reason") or ""))
        else:
            log.warning("%s is damaged and was ignored.", path)
    return attempts


def _describe_record(content: dict) -> str:
    if content.get("Status") == FAILED:
        return f"The last attempt to process the scan failed: {content.get('Reason')}"
    if content.get("Status") == GONE:
        return "The dataset no longer has the scan."
    return "A later run selected the scan and has not processed it."


def _locate_record(folder: Path, source: str) -> Path:
    name = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return folder / "logs" / RECORDS_FOLDER / f"{name}.json"
