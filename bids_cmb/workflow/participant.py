"""The participant level: schedule the scans of a run, and record their outcomes."""

import errno
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bids_cmb.bids.attempts import FAILED, GONE, SELECTED, describe_open_attempt, note_attempt
from bids_cmb.bids.attempts import RECORDS_FOLDER as ATTEMPTS
from bids_cmb.bids.description import write_derivative_dataset
from bids_cmb.bids.paths import Output, list_dirs_of_participant
from bids_cmb.bids.scan import Scan, ScanDecision
from bids_cmb.bids.selection import Selection
from bids_cmb.bids.tables import get_source, read_results, write_table
from bids_cmb.config import TENSORFLOW_SETTINGS, THREADS, Config
from bids_cmb.files import remove_leftovers
from bids_cmb.networks.backend import (
    OPENVINO,
    TENSORFLOW,
    choose_engine,
    find_device_problem,
    make_environment,
)
from bids_cmb.networks.model_cards import load_card
from bids_cmb.networks.sharing import share_networks, should_share
from bids_cmb.parallel import dask as dask_cluster
from bids_cmb.parallel import processes
from bids_cmb.workflow.inputs import uses_networks
from bids_cmb.workflow.longitudinal import follow_participant, lacks_follow_up
from bids_cmb.workflow.methods import write_methods
from bids_cmb.workflow.outputs import refresh_results, refresh_session, remove_half_written
from bids_cmb.workflow.progress import Progress
from bids_cmb.workflow.scan import (
    NOTHING,
    REPORT,
    RESULT,
    complete_scan,
    find_missing,
    mark_current,
    regenerate_report,
)
from bids_cmb.workflow.status import RunSummary, StatusLog, format_count, format_duration

log = logging.getLogger(__name__)

MB_PER_SCAN = 1500  # peak of one worker on a scan of about 512 x 512 x 160 voxels
MB_WITH_NETWORKS = {OPENVINO: 2000, TENSORFLOW: 3200}  # the same with the networks of the default
UNWRITABLE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # every further scan would fail, too
SELECTION_COLUMNS = ("filename", "selected", "reason")


def write_selection(path: Path, selection: Selection) -> None:
    """Write which images were considered, and why each was selected or not."""
    rows = (
        {
            "filename": decision.relative_path,
            "selected": "yes" if decision.included else "no",
            "reason": decision.reason,
        }
        for decision in selection.considered
    )
    write_table(path, SELECTION_COLUMNS, rows)


def process_all(selection: Selection, config: Config, logs: Path) -> RunSummary:
    """Process every scan of a selection that is not complete yet, a few at a time.

    Args:
        selection: Of scans.
        config: Of the run.
        logs: Folder of the run, for its status and its crash files.
    """
    totals = RunSummary()
    if config.reports_only:  # the methods stay those of the run that made the results
        _regenerate_reports(selection.scans, config, totals)
        return totals
    write_derivative_dataset(config.output_dir, config.bids_dir)
    write_methods(config, logs)
    status = StatusLog(logs / "status.jsonl")
    status.path.touch()
    for folder in (config.output_dir, config.output_dir / "logs" / ATTEMPTS):
        remove_leftovers(folder)
    for decision in selection.considered:
        if decision.unusable:
            _record_unusable(decision, config, status, totals)
    for subject in sorted({scan.subject for scan in selection.scans}):
        _note_gone(subject, config)
    waiting = _select_incomplete(selection.scans, config, status)
    totals.skipped = len(selection.scans) - len(waiting)
    if totals.skipped:
        log.info(
            "%d of %s already complete.", totals.skipped, format_count(len(selection.scans), "scan")
        )
    if waiting:
        _process_waiting(waiting, config, status, totals)
    totals.removed = totals.removed or not status.path.is_file()
    stopped = totals.removed or totals.output_unwritable or totals.not_processed
    if config.longitudinal == "on" and not stopped:
        _follow_participants(sorted({scan.subject for scan in selection.scans}), config, totals)
    return totals


def _follow_participants(subjects: Sequence[str], config: Config, totals: RunSummary) -> None:
    """Follow the lesions of every participant with several scans, a few at a time."""
    waiting = [subject for subject in subjects if lacks_follow_up(subject, config)]
    if not waiting:
        return
    log.info("Lesions of %s to follow over time.", format_count(len(waiting), "participant"))
    workers = choose_workers(replace(config, detector=("radial",), anatomy="none"), len(waiting))
    work = functools.partial(follow_participant, config=config)
    for outcome in _run_jobs(work, waiting, config, workers):
        if outcome.error:
            totals.follow_ups_failed += 1
            log.error("sub-%s: not followed over time: %s", waiting[outcome.index], outcome.error)
            log.debug("%s", outcome.details)
            continue
        for sentence in outcome.result.sentences:
            log.info("%s", sentence)
        for note in outcome.result.notes:
            log.warning("%s", note)


def _note_gone(subject: str, config: Config) -> None:
    """Note results whose scan the dataset no longer has: on the page they are not current."""
    for home in list_dirs_of_participant(config.output_dir / f"sub-{subject}"):
        for sidecar, _ in read_results(home):
            source = get_source(sidecar)
            if os.path.lexists(config.bids_dir / source):
                continue
            if not describe_open_attempt(config.output_dir, source):
                note_attempt(config.output_dir, source, GONE)
                refresh_session(config.output_dir, subject, home)


def _select_incomplete(scans: Sequence[Scan], config: Config, status: StatusLog) -> list[Scan]:
    """Select the scans that lack any output of this run, and record their selection."""
    missing = [RESULT if config.overwrite else _find_missing(scan, config) for scan in scans]
    if REPORT in missing:
        log.info("%s without figures and report.", format_count(missing.count(REPORT), "scan"))
    chosen = [(scan, lack) for scan, lack in zip(scans, missing, strict=True) if lack != NOTHING]
    for scan, lack in chosen:
        status.add(scan.relative_path, "selected")
        if lack == RESULT and Output(config.output_dir, scan).mask(".json").is_file():
            note_attempt(config.output_dir, scan.relative_path, SELECTED)  # outdated until done
    return [scan for scan, _ in chosen]


def _record_unusable(
    image: ScanDecision, config: Config, status: StatusLog, totals: RunSummary
) -> None:
    """Log, record and count a selected scan that cannot be opened."""
    totals.failed += 1
    status.add(image.relative_path, "failed", reason=image.reason)
    note_attempt(config.output_dir, image.relative_path, FAILED, image.reason)
    log.error("%s %s.", image.relative_path, image.reason)


def _regenerate_reports(scans: list[Scan], config: Config, totals: RunSummary) -> None:
    """Regenerate the reports of scans, a few at a time."""
    work = functools.partial(regenerate_report, config=config)
    workers = choose_workers(replace(config, detector=("radial",), anatomy="none"), len(scans))
    limit_s = _get_time_limit_s(config)
    for outcome in processes.run(work, scans, workers=workers, time_limit_s=limit_s):
        if outcome.error:
            _count_failure(scans[outcome.index], outcome, totals)
        else:
            totals.done += 1


def _find_missing(scan: Scan, config: Config) -> str:
    """Find what a scan lacks; if only its row in a table is missing, add it."""
    try:
        missing = find_missing(scan, config)
        if missing == NOTHING:
            mark_current(scan, config)
    except OSError:
        return RESULT  # processing it will report what is wrong
    return missing


def _process_waiting(
    scans: list[Scan], config: Config, status: StatusLog, totals: RunSummary
) -> None:
    """Process scans, and record each outcome when it comes; stop where the run cannot go on."""
    workers = choose_workers(config, len(scans))
    log.info("%s to process, %d at a time.", format_count(len(scans), "scan"), workers)
    progress = Progress(len(scans), workers)
    cores = config.n_cpus or processes.count_cores()
    job_config = replace(config, omp_nthreads=config.omp_nthreads or max(1, cores // workers))
    work = functools.partial(complete_scan, config=job_config)
    listen = functools.partial(_log_message, scans, progress)
    with share_networks(shared=_shares_networks(config, workers)) as service:
        outcomes = _run_jobs(work, scans, job_config, workers, listen, _get_time_limit_s(config))
        try:
            for outcome in outcomes:
                progress.end(outcome.index, outcome.seconds)
                totals.removed = not status.path.is_file()
                _record_outcome(scans[outcome.index], outcome, config, status, totals)
                log.info("%s", _describe_progress(progress))
                totals.output_unwritable |= outcome.errno in UNWRITABLE_ERRNOS
                stopped = outcome.error and config.stop_on_first_crash
                if totals.removed or totals.output_unwritable or stopped:
                    break
        finally:
            outcomes.close()
            totals.not_processed = len(scans) - progress.n_ended
    if service is not None and service.n_requests:
        log.info(
            "The networks' process computed %.0f %% of the time, and waited for scans else.",
            100 * service.busy_share,
        )


def _shares_networks(config: Config, workers: int) -> bool:
    """Whether one process computes the networks of all workers here."""
    here = config.dask_scheduler is None and uses_networks(config)
    return here and should_share(config.share_networks, workers)


def _log_message(
    scans: list[Scan], progress: Progress, index: int, level: int, message: str
) -> None:
    """Log that a scan begins, or what its process logs: its stages, with ``-v``."""
    if message != processes.STARTED:
        log.log(level, "%s: %s", scans[index].name, message)
        return
    progress.start(index, time.monotonic())
    log.info("Started %s (%d of %d).", scans[index].name, progress.n_started, progress.scans)


def _describe_progress(progress: Progress) -> str:
    done = f"{progress.n_ended} of {progress.scans} scans done"
    if progress.n_ended == progress.scans:
        return f"{done}."
    left = format_duration(progress.estimate_seconds_left(time.monotonic()))
    return f"{done}; {left} left."


def _get_time_limit_s(config: Config) -> float | None:
    return None if config.scan_time_limit is None else 60 * config.scan_time_limit


def _run_jobs(
    work: Callable,
    jobs: list,
    config: Config,
    workers: int,
    listen: processes.Listener = processes.ignore,
    time_limit_s: float | None = None,
) -> Iterator[processes.Outcome]:
    """Run jobs, one for each scan or participant, in processes here or on a Dask cluster.

    Nobody listens to those of a cluster.
    """
    if not config.dask_scheduler:
        return processes.run(work, jobs, workers=workers, listen=listen, time_limit_s=time_limit_s)
    environment = (
        dict.fromkeys(THREADS, str(config.omp_nthreads))
        | TENSORFLOW_SETTINGS
        | make_environment(config.device, config.engine)
    )
    return dask_cluster.run(
        work,
        jobs,
        address=config.dask_scheduler,
        workers=workers,
        environment=environment,
        find_fault=functools.partial(find_device_problem, config.device),
        log=log.info,
        time_limit_s=time_limit_s,
    )


def _record_outcome(
    scan: Scan, outcome: processes.Outcome, config: Config, status: StatusLog, totals: RunSummary
) -> None:
    """Log, record and count the outcome of a scan."""
    if outcome.error:
        _count_failure(scan, outcome, totals)
        status.add(scan.relative_path, "failed", outcome.seconds, reason=_get_reason(scan, outcome))
        _record_failure(scan, outcome, config, totals)
        if is_defect(scan, outcome, config):
            status.write_crash(scan, outcome, config)
        else:
            log.debug("%s", outcome.details)
        return
    summary = outcome.result
    if summary.made != RESULT:
        totals.skipped += 1
        totals.drawn += summary.made == REPORT
        status.add(scan.relative_path, "ok", outcome.seconds)
        return
    totals.done += 1
    flags = f"; flags: {', '.join(summary.quality_flags)}" if summary.quality_flags else ""
    log.info(
        "%s: %s, %d definite; %.1f s%s.",
        scan.name,
        format_count(summary.n_cmb, "microbleed"),
        *(summary.n_definite, outcome.seconds, flags),
    )
    for note in summary.notes:
        log.info("%s", note)
    status.add(scan.relative_path, "ok", outcome.seconds)


def _record_failure(
    scan: Scan, outcome: processes.Outcome, config: Config, totals: RunSummary
) -> None:
    """Record that a scan failed, so that its earlier result is shown as outdated."""
    if totals.removed or outcome.errno in UNWRITABLE_ERRNOS:
        return
    note_attempt(config.output_dir, scan.relative_path, FAILED, _get_reason(scan, outcome))
    output = Output(config.output_dir, scan)
    try:
        remove_half_written(output)  # of a process that was killed
        if output.mask(".json").is_file():
            refresh_results(output)
    except (OSError, ValueError) as error:
        log.debug("The tables of %s could not be brought up to date: %s", scan.name, error)


def is_defect(scan: Scan, outcome: processes.Outcome, config: Config) -> bool:
    """Check whether a failure is a defect of the app, not an unusable file.

    The sentence on an unusable file names it; an error of the operating system has a number.
    """
    if outcome.errno is not None:
        return False
    inputs = [scan.path, *scan.more_echoes, *config.derivatives]
    unexpected = outcome.error.startswith("unexpected ")
    return unexpected or not any(str(path) in outcome.error for path in inputs)


def _count_failure(scan: Scan, outcome: processes.Outcome, totals: RunSummary) -> None:
    """Log and count that a scan failed."""
    totals.failed += 1
    log.error("%s failed: %s", scan.relative_path, _get_reason(scan, outcome))


def _get_reason(scan: Scan, outcome: processes.Outcome) -> str:
    """Get the sentence on a failed scan without its path."""
    return outcome.error.removeprefix(f"{scan.path}: ")


def choose_workers(config: Config, scans: int) -> int:
    """Choose how many scans to process at a time, by cores, memory and number of scans."""
    cores = config.n_cpus or processes.count_cores()
    memory = config.mem_mb or processes.measure_memory_mb()
    by_cores = cores // (config.omp_nthreads or 1)
    shared = _shares_networks(config, workers=2)
    if shared:
        memory -= MB_WITH_NETWORKS[choose_engine()]  # of the process that has them
        by_cores += 1  # since they wait for it in turn
    by_memory = max(1, memory // _estimate_memory(config, shared=shared))
    if by_memory < by_cores:
        log.info("%d MB of memory allow %d scans at a time.", memory, by_memory)
    return max(1, min(by_cores, by_memory, scans))


def _estimate_memory(config: Config, *, shared: bool) -> int:
    """Estimate the memory of a process, MB, by the detectors' cards and the measured peaks."""
    stated = [load_card(name, config.model_dir).get("memory_mb", 0) for name in config.detector]
    alone = uses_networks(config) and not shared
    networks = MB_WITH_NETWORKS[choose_engine()] if alone else 0
    return max(MB_PER_SCAN, networks, *stated)
