"""The participant level: every scan of a run, and how each one ended."""

import errno
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from bids_cmb.bids.attempts import FAILED, SELECTED, note_attempt
from bids_cmb.bids.attempts import RECORDS_FOLDER as ATTEMPTS
from bids_cmb.bids.paths import Output
from bids_cmb.bids.scan import Scan, ScanDecision
from bids_cmb.bids.selection import Selection
from bids_cmb.bids.tables import write_dataset, write_table
from bids_cmb.config import TENSORFLOW, THREADS, Config, result_settings
from bids_cmb.files import remove_leftovers, write_text
from bids_cmb.networks.inference import find_device_problem
from bids_cmb.networks.model_cards import ANATOMY, load_card
from bids_cmb.parallel import dask as dask_cluster
from bids_cmb.parallel import processes
from bids_cmb.provenance import machine, software
from bids_cmb.report.html import write_status
from bids_cmb.report.methods import describe_methods
from bids_cmb.workflow.inputs import resolve_thresholds, uses_networks
from bids_cmb.workflow.outputs import show_state
from bids_cmb.workflow.scan import (
    NOTHING,
    REPORT,
    RESULT,
    complete,
    lacking,
    mark_current,
    regenerate_report,
)

log = logging.getLogger(__name__)

MB_PER_SCAN = 1500  # peak of one worker on a scan of 512 x 512 x 160 voxels, benchmarks/
MB_WITH_NETWORKS = 2500  # the same where TensorFlow runs
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # every further scan would end alike
LAST = 20  # scans that the status page names
SELECTION_COLUMNS = ("filename", "selected", "reason")


@dataclass
class RunSummary:
    """How the scans of a run ended.

    Attributes:
        done: Scans that were processed.
        skipped: Scans that were already complete.
        drawn: Of these, scans whose pictures and page were made.
        failed: (scan, sentence) of those that could not be used.
        not_processed: Scans that the run ended without processing.
        output_unwritable: Whether the output folder could not be written any more.
        removed: Whether the output folder was removed during the run.
        last: Sentences of the scans that were processed last.
    """

    done: int = 0
    skipped: int = 0
    drawn: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    not_processed: int = 0
    output_unwritable: bool = False
    removed: bool = False
    last: list[str] = field(default_factory=list)


def count_scans(number: int) -> str:
    """Write a number of scans in words, as in ``1 scan`` or ``3 scans``."""
    return f"{number} scan{'s' * (number != 1)}"


def write_selection(path: Path, selection: Selection) -> None:
    """Write what was considered, taken or not, and why."""
    rows = (
        {
            "filename": one.relative_path,
            "selected": "yes" if one.included else "no",
            "reason": one.reason,
        }
        for one in selection.considered
    )
    write_table(path, SELECTION_COLUMNS, rows)


def process_all(selection: Selection, config: Config, logs: Path) -> RunSummary:
    """Process every scan of a selection that is not done yet, a few at a time.

    Args:
        selection: What discovery found.
        config: What the run was asked to do.
        logs: The run's own folder, for its status and its crash files.
    """
    totals = RunSummary()
    if config.reports_only:  # the methods stay those of the run that made the results
        _regenerate_reports(selection.scans, config, totals)
        return totals
    write_dataset(config.output_dir, config.bids_dir)
    write_methods(config, logs)
    status = Status(logs / "status.jsonl")
    status.path.touch()
    for folder in (config.output_dir, config.output_dir / "logs" / ATTEMPTS):
        remove_leftovers(folder)
    for one in selection.considered:
        if one.unusable:
            _note_unusable(one, config, status, totals)
    waiting = _choose(selection.scans, config, status)
    totals.skipped = len(selection.scans) - len(waiting)
    if totals.skipped:
        log.info("%d of %s already complete.", totals.skipped, count_scans(len(selection.scans)))
    if waiting:
        _process_waiting(waiting, config, status, totals)
    totals.removed = totals.removed or not status.path.is_file()
    return totals


def _choose(scans: Sequence[Scan], config: Config, status: "Status") -> list[Scan]:
    """Choose the scans that lack anything of what this run would write, and note them down."""
    missing = [RESULT if config.overwrite else _lacking(scan, config) for scan in scans]
    if REPORT in missing:
        log.info("%s without figures and report.", count_scans(missing.count(REPORT)))
    chosen = [(scan, what) for scan, what in zip(scans, missing, strict=True) if what != NOTHING]
    for scan, what in chosen:
        status.add(scan.relative_path, "selected")
        if what == RESULT and Output(config.output_dir, scan).mask(".json").is_file():
            note_attempt(config.output_dir, scan.relative_path, SELECTED)  # not current till done
    return [scan for scan, _ in chosen]


def _note_unusable(
    image: ScanDecision, config: Config, status: "Status", totals: RunSummary
) -> None:
    """Say, note down and count that a scan which was asked for cannot be opened."""
    totals.failed.append((image.relative_path, image.reason))
    status.add(image.relative_path, "failed", reason=image.reason)
    note_attempt(config.output_dir, image.relative_path, FAILED, image.reason)
    log.error("%s %s.", image.relative_path, image.reason)


def _regenerate_reports(scans: list[Scan], config: Config, totals: RunSummary) -> None:
    """Regenerate the pages of scans, a few at a time; a failure is one failure."""
    work = functools.partial(regenerate_report, config=config)
    workers = workers_for(replace(config, detector=("radial",), anatomy="none"), len(scans))
    for outcome in processes.run(work, scans, workers=workers):
        if outcome.error:
            _failed(scans[outcome.index], outcome, totals)
        else:
            totals.done += 1


def _lacking(scan: Scan, config: Config) -> str:
    """What a scan lacks; where that is nothing but its row in a table, that is mended."""
    try:
        what = lacking(scan, config)
        if what == NOTHING:
            mark_current(scan, config)
    except OSError:
        return RESULT  # the attempt to process it will say what is wrong
    return what


def _process_waiting(
    scans: list[Scan], config: Config, status: "Status", totals: RunSummary
) -> None:
    workers = workers_for(config, len(scans))
    log.info("%s to process, %d at a time.", count_scans(len(scans)), workers)
    began, ended = time.monotonic(), 0
    page = StatusPage(status.path.with_suffix(".html"), len(scans), totals)
    page.write(ended, "")
    log.info("Progress page: %s", page.path)
    cores = config.n_cpus or processes.count_cores()
    given = replace(config, omp_nthreads=config.omp_nthreads or max(1, cores // workers))
    outcomes = _outcomes(functools.partial(complete, config=given), scans, given, workers)
    try:
        for outcome in outcomes:
            ended += 1
            totals.removed = not status.path.is_file()
            left = (time.monotonic() - began) / ended * (len(scans) - ended)
            _record_outcome(scans[outcome.index], outcome, config, status, totals)
            words = _duration(left) if left else ""
            log.info("%d of %d scans%s.", ended, len(scans), f"; {words} left" if left else "")
            page.write(ended, words)
            totals.output_unwritable = totals.output_unwritable or outcome.errno in UNWRITABLE
            if (
                totals.removed
                or totals.output_unwritable
                or (outcome.error and config.stop_on_first_crash)
            ):
                break
    finally:
        outcomes.close()
        page.write(ended, None)
        totals.not_processed = len(scans) - ended


def _outcomes(
    work: Callable, scans: list[Scan], config: Config, workers: int
) -> Iterator[processes.Outcome]:
    """Process the scans, by processes of ours or on a Dask cluster."""
    if not config.dask_scheduler:
        return processes.run(work, scans, workers=workers)
    environment = dict.fromkeys(THREADS, str(config.omp_nthreads)) | TENSORFLOW
    if config.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
    return dask_cluster.run(
        work,
        scans,
        address=config.dask_scheduler,
        workers=workers,
        environment=environment,
        find_fault=functools.partial(find_device_problem, config.device),
        log=log.info,
    )


def _record_outcome(
    scan: Scan, outcome: processes.Outcome, config: Config, status: "Status", totals: RunSummary
) -> None:
    """Say, note down and count how one scan ended."""
    if outcome.error:
        _failed(scan, outcome, totals)
        status.add(scan.relative_path, "failed", outcome.seconds, reason=_reason(scan, outcome))
        _note_failure(scan, outcome, config, totals)
        if is_defect(scan, outcome, config):
            status.crash(scan, outcome, config)
        else:
            log.debug("%s", outcome.details)
        return
    summary = outcome.result
    if summary.lacked != RESULT:
        totals.skipped += 1
        totals.drawn += summary.lacked == REPORT
        status.add(scan.relative_path, "ok", outcome.seconds)
        return
    totals.done += 1
    flags = f"; {', '.join(summary.quality_flags)}" if summary.quality_flags else ""
    said = f"{scan.name}: microbleeds {summary.n_cmb}, definite {summary.n_definite}; "
    said += f"{outcome.seconds:.1f} s{flags}."
    log.info("%s", said)
    totals.last = [*totals.last, said][-LAST:]
    for note in summary.notes:
        log.info("%s", note)
    status.add(scan.relative_path, "ok", outcome.seconds)


def _note_failure(
    scan: Scan, outcome: processes.Outcome, config: Config, totals: RunSummary
) -> None:
    """Note that a scan failed, so that an earlier result of it counts as such in no table."""
    if totals.removed or outcome.errno in UNWRITABLE:
        return
    note_attempt(config.output_dir, scan.relative_path, FAILED, _reason(scan, outcome))
    output = Output(config.output_dir, scan)
    try:
        if output.mask(".json").is_file():
            show_state(output)
    except (OSError, ValueError) as error:
        log.debug("The tables of %s could not be brought up to date: %s", scan.name, error)


def is_defect(scan: Scan, outcome: processes.Outcome, config: Config) -> bool:
    """Whether a failure is a matter for a developer, not of a file that cannot be used.

    The sentence on an unusable file names it; an error of the operating system has a number.
    """
    if outcome.errno is not None:
        return False
    inputs = [scan.path, *scan.more_echoes, *config.derivatives]
    unexpected = outcome.error.startswith("unexpected ")
    return unexpected or not any(str(path) in outcome.error for path in inputs)


def _failed(scan: Scan, outcome: processes.Outcome, totals: RunSummary) -> None:
    """Say and count that a scan failed."""
    reason = _reason(scan, outcome)
    totals.failed.append((scan.relative_path, reason))
    log.error("%s failed: %s", scan.relative_path, reason)


def _reason(scan: Scan, outcome: processes.Outcome) -> str:
    """Give the sentence on a failed scan without its path, for places that name the scan."""
    return outcome.error.removeprefix(f"{scan.path}: ")


def workers_for(config: Config, scans: int) -> int:
    """Scans to process at a time: what cores and memory allow, and no more than there are."""
    cores = config.n_cpus or processes.count_cores()
    memory = config.mem_mb or processes.measure_memory_mb()
    by_memory = max(1, memory // _mb_per_scan(config))
    by_cores = cores // (config.omp_nthreads or 1)
    if by_memory < by_cores:
        log.info("%d MB of memory allow %d scans at a time.", memory, by_memory)
    return max(1, min(by_cores, by_memory, scans))


def _mb_per_scan(config: Config) -> int:
    """Memory that one process needs, as the detectors' cards say it, or as it was measured."""
    said = [load_card(name, config.model_dir).get("memory_mb", 0) for name in config.detector]
    return max(MB_WITH_NETWORKS if uses_networks(config) else MB_PER_SCAN, *said)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Status:
    """A file with one line of JSON for each thing that happened to a scan."""

    path: Path

    def add(self, source: str, status: str, seconds: float = 0.0, *, reason: str = "") -> None:
        """Append a line; a full disc must not hide the sentence that said so."""
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

    def crash(self, scan: Scan, outcome: processes.Outcome, config: Config) -> None:
        """Write what a developer needs to know of a failed scan."""
        settings = json.dumps(result_settings(config), indent=2)
        about = json.dumps({**software(), **machine()}, indent=2)
        text = "\n".join(
            [f"{scan.path}", outcome.error, "", outcome.details, "Settings", settings, about, ""]
        )
        try:
            write_text(self.path.parent / f"crash-{scan.name}.txt", text)
        except OSError as error:
            log.debug("The crash file could not be written: %s", error)


@dataclass(frozen=True)
class StatusPage:
    """A page of how far a run is, which loads itself again.

    Attributes:
        path: Of the page.
        scans: To be read in this run.
        totals: How those that ended did.
        began: When, UTC.
    """

    path: Path
    scans: int
    totals: RunSummary
    began: str = field(default_factory=_now)

    def write(self, ended: int, left: str | None) -> None:
        """Write it anew.

        Args:
            ended: Scans that were read or failed.
            left: How long it will take, in words; empty if nobody knows yet, None at the end.
        """
        if not self.path.parent.is_dir():  # the output folder was removed: it is not made anew
            return
        try:
            write_status(
                self.path,
                scans=self.scans,
                ended=ended,
                done=self.totals.done,
                skipped=self.totals.skipped,
                failed=self.totals.failed,
                last=self.totals.last[::-1],
                left=left,
                began=self.began,
                time=_now(),
            )
        except OSError as error:
            log.debug("The status page could not be written: %s", error)


def write_methods(config: Config, logs: Path) -> str:
    """Write the methods section of this run to its log folder and to ``logs/CITATION.md``."""
    text = methods(config)
    write_text(logs / "CITATION.md", text)
    write_text(logs.parent / "CITATION.md", text)
    return text


def methods(config: Config) -> str:
    """The methods section of this run."""
    anatomy = load_card(ANATOMY, config.model_dir) if config.anatomy == "network" else None
    found = "outlined by the anatomy network" if anatomy else "outlined by intensity and shape"
    if config.skip_brain_extraction:
        brain = "The scans were skull-stripped; their non-zero voxels, filled, are the brain."
    elif config.derivatives:
        brain = (
            "Brain masks were given where the user's derivatives had one; elsewhere the brain was "
            f"{found}."
        )
    else:
        brain = f"The brain was {found}."
    return describe_methods(
        [load_card(name, config.model_dir) for name in config.detector],
        result_settings(config),
        thresholds=asdict(resolve_thresholds(config)),
        brain=brain,
        anatomy=anatomy,
    )


def _duration(seconds: float) -> str:
    """Seconds in words, as coarse as an estimate is: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s" if seconds >= 10 else "a few seconds"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
