"""Status of a run: a summary, and a log of its scans."""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bids_cmb.bids.scan import Scan
from bids_cmb.config import Config, result_settings
from bids_cmb.files import write_text
from bids_cmb.parallel import processes
from bids_cmb.provenance import machine, software

log = logging.getLogger(__name__)


@dataclass
class RunSummary:
    """Outcomes of the scans of a run.

    Attributes:
        done: Scans that were processed.
        skipped: Scans that were already complete.
        drawn: Of these, scans whose figures and page were made.
        failed: Scans that failed.
        not_processed: Scans that were left when the run ended.
        follow_ups_failed: Participants whose lesions could not be followed over time.
        output_unwritable: Whether the output folder could not be written any more.
        removed: Whether the output folder was removed during the run.
    """

    done: int = 0
    skipped: int = 0
    drawn: int = 0
    failed: int = 0
    not_processed: int = 0
    follow_ups_failed: int = 0
    output_unwritable: bool = False
    removed: bool = False


@dataclass(frozen=True)
class StatusLog:
    """Log of a run's scans: a line of JSON for each event."""

    path: Path

    def add(self, source: str, status: str, seconds: float = 0.0, *, reason: str = "") -> None:
        """Append a line; if that fails, the log says so and the run goes on."""
        line = {
            "time": _now(),
            "source": source,
            "status": status,
            "seconds": round(seconds, 1),
            "reason": reason,
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            log.debug("The status log could not be written: %s", error)

    def write_crash(self, scan: Scan, outcome: processes.Outcome, config: Config) -> None:
        """Write a file with what a developer needs to know of a failed scan."""
        settings = json.dumps(result_settings(config), indent=2)
        environment = json.dumps({**software(), **machine()}, indent=2)
        error = [str(scan.path), outcome.error, "", outcome.details]
        text = "\n".join([*error, "Settings", settings, environment, ""])
        try:
            write_text(self.path.parent / f"crash-{scan.name}.txt", text)
        except OSError as error:
            log.debug("The crash file could not be written: %s", error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def format_count(number: int, noun: str) -> str:
    """Write how many there are of something, as in ``1 scan`` or ``3 scans``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def format_duration(seconds: float) -> str:
    """Write an estimated duration in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s" if seconds >= 10 else "a few seconds"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
