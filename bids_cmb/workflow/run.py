"""A run of the app: the levels that its configuration asks for."""

import logging
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from bids_cmb.anatomy.atlases import find_archive, find_atlases
from bids_cmb.bids.filters import Query, read_filter_file
from bids_cmb.bids.scan import ScanDecision
from bids_cmb.bids.selection import Selection, find_scans, list_other_images
from bids_cmb.config import Config, to_toml
from bids_cmb.errors import (
    BAD_DATA,
    IO_ERROR,
    NO_INPUT,
    NOTHING_SELECTED,
    OK,
    RERUN_HINT,
    RESUME_HINT,
    SOME_FAILED,
    UNAVAILABLE,
    ExitError,
)
from bids_cmb.files import find_obstacle
from bids_cmb.provenance import command
from bids_cmb.report.html import get_page_path
from bids_cmb.workflow.checks import (
    check_detectors,
    check_device,
    check_networks,
    check_output,
    make_output_error,
    validate_dataset,
)
from bids_cmb.workflow.group import write_group
from bids_cmb.workflow.methods import describe_run
from bids_cmb.workflow.participant import process_all, write_selection
from bids_cmb.workflow.status import format_count

log = logging.getLogger("bids_cmb")


def run(config: Config) -> int:
    """Run the app as configured.

    Returns:
        The exit code.

    Raises:
        ExitError: If the run cannot start or cannot continue.
    """
    _configure_logging(config.verbosity)
    try:
        return _run_levels(config)
    finally:
        _close_logging()


def _run_levels(config: Config) -> int:
    if config.boilerplate_only:
        return _print_methods(config)
    code = OK
    if "participant" in config.analysis_level:
        code = _participant_level(config)
    if "group" in config.analysis_level and not config.dry_run:
        code = max(code, _group_level(config))
    return code


def _configure_logging(verbosity: int) -> None:
    """Send the log to stderr: from info up, with -v everything, with -q from warnings up."""
    level = {-1: logging.WARNING, 0: logging.INFO}.get(max(verbosity, -1), logging.DEBUG)
    logging.raiseExceptions = False  # a failure to log must not stop the run
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.setLevel(level)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False


def _close_logging() -> None:
    for handler in list(log.handlers):
        log.removeHandler(handler)
        with suppress(OSError):  # a full disk was reported already
            handler.close()


def _print_methods(config: Config) -> int:
    check_detectors(config)
    sys.stdout.write(describe_run(config))
    return OK


def _participant_level(config: Config) -> int:
    """Select the scans, process them, and log a summary.

    Raises:
        ExitError: If there is nothing to do, or nowhere to write to.
    """
    check_detectors(config)
    check_device(config)
    validate_dataset(config)
    query = _make_query(config)
    selection = _select(config, query)
    if selection.shard_is_empty:
        log.info("No participant is in shard %d/%d: nothing to do.", *config.shard)
        return OK
    if config.dry_run:
        others = list_other_images(config.bids_dir, query, selection)
        return _print_selection(selection, others)
    _find_atlases(config)
    check_networks(config)
    check_output(config)
    try:
        logs = _make_run_folder(config)
        write_selection(logs / "selection.tsv", selection)
        totals = process_all(selection, config, logs)
    except OSError as error:
        raise make_output_error(config, error) from error
    log.info(
        "%s processed, %d already complete, %d failed, %d not processed. Results: %s",
        format_count(totals.done, "scan"),
        *(totals.skipped, totals.failed, totals.not_processed, config.output_dir),
    )
    if config.report != "none" and (totals.done or totals.drawn):
        _name_pages(config, selection)
    if totals.drawn:
        log.info("Figures and reports added to %s.", format_count(totals.drawn, "scan"))
    if totals.failed and not config.reports_only:
        log.warning("The reasons of failures: %s", logs / "status.jsonl")
    if totals.removed:
        raise ExitError(IO_ERROR, f"{config.output_dir} was removed during the run. {RERUN_HINT}")
    if totals.output_unwritable:
        raise ExitError(
            IO_ERROR,
            f"{config.output_dir} cannot be written any more: the disk is full, a quota exceeded, "
            f"or it is read-only. {RESUME_HINT}",
        )
    some_failed = totals.failed or totals.not_processed or totals.follow_ups_failed
    return SOME_FAILED if some_failed else OK


def _name_pages(config: Config, selection: Selection) -> None:
    """Log where the pages of the participants are: of the first one, and how many others."""
    pages = [get_page_path(config.output_dir, scan.subject) for scan in selection.scans]
    pages = [page for page in dict.fromkeys(pages) if page.is_file()]
    if pages:
        others = f", and {len(pages) - 1} more" if len(pages) > 1 else ""
        log.info("Open in a browser: %s%s", pages[0], others)


def _find_atlases(config: Config) -> None:
    """Find the atlases, download them if requested, and log what is missing without them."""
    if config.anatomy != "network" and not config.derivatives:
        return
    try:
        atlases = find_atlases(fetch=config.templateflow_fetch)
    except ValueError as error:
        raise ExitError(UNAVAILABLE, str(error)) from error
    for path, label, missing in (
        (atlases.lobes, "Lobes", "Lobes by rules in MNI space: %s has no Harvard-Oxford atlas"),
        (atlases.nuclei, "Nuclei", "Nuclei will not be named: %s has no MASSP20 atlas"),
    ):
        if path:
            log.info("%s by %s.", label, path)
        else:
            archive = f"TemplateFlow's archive, {find_archive()},"
            log.info(f"{missing} (use --templateflow-fetch to download it).", archive)


def _make_query(config: Config) -> Query:
    """Make the query of a run, and log notes on its filter file.

    Raises:
        ExitError: If the filter file cannot be used.
    """
    filters, notes = {}, ()
    if config.bids_filter_file:
        try:
            filters, notes = read_filter_file(config.bids_filter_file)
        except ValueError as error:
            raise ExitError(BAD_DATA, str(error)) from error
        except OSError as error:
            rule = f"{config.bids_filter_file}: the filter file cannot be read"
            raise ExitError(NO_INPUT, f"{rule} ({error.strerror}).") from error
    for note in notes:
        log.warning("%s", note)
    return Query(
        suffixes=config.suffix,
        participants=config.participant_label,
        excluded=config.exclude_participant_label,
        sessions=config.session_label,
        echo=config.echo,
        acq=config.acq,
        rec=config.rec,
        run=config.run,
        filters=filters,
        shard=config.shard,
        database_dir=config.bids_database_dir,
        reset_database=config.reset_database,
    )


def _select(config: Config, query: Query) -> Selection:
    """Select the scans to process.

    Raises:
        ExitError: If a label is wrong, or nothing is left to process.
    """
    try:
        selection = find_scans(config.bids_dir, query)
    except ValueError as error:
        raise ExitError(NOTHING_SELECTED, str(error)) from error
    except OSError as error:
        path = Path(error.filename or config.bids_dir)
        rule = f"{path}: cannot be read ({find_obstacle(path) or error.strerror or error})."
        raise ExitError(NO_INPUT, rule) from error
    for note in selection.notes:
        log.warning("%s", note)
    log.info(
        "%d of %d susceptibility images selected.",
        *(len(selection.scans), len(selection.considered)),
    )
    if not selection.scans and not config.dry_run and not selection.shard_is_empty:
        _refuse_empty_selection(config, selection)
    return selection


def _refuse_empty_selection(config: Config, selection: Selection) -> None:
    """Log why there is no scan to process, and stop.

    Raises:
        ExitError: Always: scans are unusable, or none fits the selection.
    """
    unusable = [decision for decision in selection.considered if decision.unusable]
    if unusable:
        for decision in unusable:
            log.error("%s %s.", decision.relative_path, decision.reason)
        raise ExitError(
            NO_INPUT,
            f"{config.bids_dir}: no scan can be processed; unusable: {len(unusable)}.",
        )
    for decision in selection.considered[:20]:
        log.warning("Excluded: %s (%s)", decision.relative_path, decision.reason)
    hint = "; --dry-run lists what was considered" if selection.considered else ""
    raise ExitError(NOTHING_SELECTED, f"{config.bids_dir}: no scan fits the selection{hint}.")


def _print_selection(selection: Selection, others: Sequence[ScanDecision]) -> int:
    """Print which images of ``anat`` and ``swi`` would be processed and which not, and why."""
    listed = (*selection.considered, *others)
    for decision in sorted(listed, key=lambda decision: decision.relative_path):
        verb = "process" if decision.included else "skip"
        sys.stdout.write(f"{verb}\t{decision.relative_path}\t{decision.reason}\n")
    sys.stdout.write(f"Scans to process: {len(selection.scans)}\n")
    if selection.scans:
        return OK
    unusable = any(decision.unusable for decision in selection.considered)
    return NO_INPUT if unusable else NOTHING_SELECTED


def _make_run_folder(config: Config) -> Path:
    """Make the folder of the run in ``logs/``, save its settings, and log to it from now on."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    logs = config.output_dir / "logs" / f"{stamp}-{uuid.uuid4().hex[:8]}"
    logs.mkdir(parents=True)
    (logs / "config.toml").write_text(to_toml(config), encoding="utf-8")
    handler = logging.FileHandler(
        logs / "bids_cmb.log", encoding="utf-8", errors="backslashreplace"
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.debug("Command: %s", command())
    return logs


def _group_level(config: Config) -> int:
    """Write the tables of the group level, and log a summary.

    Raises:
        ExitError: If there are no results, or the tables cannot be written.
    """
    check_output(config)
    try:
        participants = config.bids_dir / "participants.tsv"
        totals = write_group(config.output_dir, participants, config.reviews, raw=config.bids_dir)
    except ValueError as error:
        raise ExitError(NO_INPUT, str(error)) from error
    except OSError as error:
        raise make_output_error(config, error) from error
    log.info(
        "Group table: %d processed, %d failed, %d missing, %d outdated, %d gone: %s",
        *(totals[status] for status in ("ok", "failed", "missing", "outdated", "gone")),
        config.output_dir / "group_microbleeds.tsv",
    )
    log.info("Open in a browser: %s", config.output_dir / "group_microbleeds.html")
    return OK
