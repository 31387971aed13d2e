"""One run of the app: what a Config asks for, level by level."""

import logging
import sys
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from bids_cmb.anatomy.atlases import find_archive, find_atlases
from bids_cmb.bids.filters import Query, read_filter_file
from bids_cmb.bids.selection import Selection, find_scans
from bids_cmb.bids.validation import check_description, check_quickly, run_validator
from bids_cmb.config import BALANCED, Config, to_toml
from bids_cmb.detection.ensemble import at_operating_point, check_detector
from bids_cmb.errors import (
    BAD_DATA,
    INVALID_BIDS,
    IO_ERROR,
    NO_INPUT,
    NO_OUTPUT,
    NOTHING_SELECTED,
    OK,
    RERUN_HINT,
    RESUME_HINT,
    SOME_FAILED,
    UNAVAILABLE,
    USAGE,
    ExitError,
)
from bids_cmb.files import find_obstacle, read_json
from bids_cmb.lesions.measure import FLAGS
from bids_cmb.networks.inference import find_device_problem, find_misfit
from bids_cmb.networks.model_cards import (
    ANATOMY,
    is_packaged,
    load_card,
    locate_weights,
    select_members,
)
from bids_cmb.networks.weights import check_weights
from bids_cmb.parallel import processes
from bids_cmb.parallel.dask import LOCAL
from bids_cmb.parallel.processes import describe_error
from bids_cmb.provenance import NAME, command
from bids_cmb.workflow.group import write_group
from bids_cmb.workflow.participant import count_scans, methods, process_all, write_selection

log = logging.getLogger("bids_cmb")


def run(config: Config) -> int:
    """Do what the Config asks for.

    Raises:
        ExitError: If the run cannot begin or cannot go on.
    """
    _configure_logging(config.verbosity)
    try:
        return _levels(config)
    finally:
        _close_logging()


def _levels(config: Config) -> int:
    if config.boilerplate_only:
        return _boilerplate(config)
    code = OK
    if "participant" in config.analysis_level:
        code = _participant_level(config)
    if "group" in config.analysis_level and not config.dry_run:
        code = max(code, _group_level(config))
    return code


def _configure_logging(verbosity: int) -> None:
    """Send the log to stderr: from info on, with -v everything, with -q only what is wrong."""
    level = {-1: logging.WARNING, 0: logging.INFO}.get(max(verbosity, -1), logging.DEBUG)
    logging.raiseExceptions = False  # a log that is not taken must not stop the run
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.setLevel(level)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False


def _close_logging() -> None:
    for handler in list(log.handlers):
        log.removeHandler(handler)
        with suppress(OSError):  # a full disk, said already
            handler.close()


def _boilerplate(config: Config) -> int:
    _check_detectors(config)
    sys.stdout.write(methods(config))
    return OK


def _participant_level(config: Config) -> int:
    """Find the scans, process them, and say how it went.

    Raises:
        ExitError: If there is nothing to do, or nowhere to write to.
    """
    _check_detectors(config)
    _check_device(config)
    _validate(config)
    selection = _select(config)
    if config.dry_run:
        return _print_selection(selection)
    _look_for_atlases(config)
    _check_networks(config)
    _check_output(config)
    try:
        logs = _run_folder(config)
        write_selection(logs / "selection.tsv", selection)
        totals = process_all(selection, config, logs)
    except OSError as error:
        raise _unwritable(config, error) from error
    log.info(
        "%s processed, %d already complete, %d failed, %d not processed. Results: %s",
        count_scans(totals.done),
        *(totals.skipped, len(totals.failed), totals.not_processed, config.output_dir),
    )
    if totals.drawn:
        log.info("Figures and reports added to %s.", count_scans(totals.drawn))
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
    return SOME_FAILED if totals.failed or totals.not_processed else OK


def _check_detectors(config: Config) -> None:
    try:
        for name in config.detector:
            check_detector(name, config.model_dir)
            at_operating_point(load_card(name, config.model_dir), config.operating_point)
        for name in _cards_of(config):
            check_weights(name, load_card(name, config.model_dir), config.model_dir)
        folds = {fold for name in config.detector for fold in _folds(name, config)}
    except ValueError as error:
        raise ExitError(USAGE, str(error)) from error
    if len(config.detector) > 1 and config.operating_point != BALANCED:
        raise ExitError(
            USAGE,
            "--operating-point takes one detector, since several share a scale of their own; "
            f"found {', '.join(config.detector)}. Use --threshold.",
        )
    if config.members:
        log.info("Ensemble members selected: %s.", ", ".join(sorted(folds)))
    unknown = set(config.exclude_flags) - set(FLAGS)
    if unknown:
        rule = f"--exclude-flags takes flags of {' '.join(FLAGS)}"
        raise ExitError(USAGE, f"{rule}; found {' '.join(sorted(unknown))}.")


def _folds(name: str, config: Config) -> list[str]:
    return [
        one["name"] for one in select_members(load_card(name, config.model_dir), config.members)
    ]


def _check_device(config: Config) -> None:
    """Stop before work if a GPU was asked for and none can be used."""
    elsewhere = config.dask_scheduler not in (None, LOCAL)  # there the workers are asked
    if config.device != "gpu" or elsewhere:
        return
    (outcome,) = processes.run(
        find_device_problem, [config.device], workers=1
    )  # TensorFlow stays out of ours
    if said := outcome.error or outcome.result:
        raise ExitError(UNAVAILABLE, said)


def _check_networks(config: Config) -> None:
    """Stop before work if weights of the user's own cards do not fit their networks."""
    own = [
        (member, locate_weights(name, member, config.model_dir))
        for name in _cards_of(config)
        if not is_packaged(name, config.model_dir)
        for member in select_members(load_card(name, config.model_dir), config.members)
    ]
    if config.reports_only or not own:
        return
    (outcome,) = processes.run(find_misfit, [own], workers=1)  # TensorFlow stays out of ours
    if reason := outcome.error or outcome.result:
        raise ExitError(USAGE, reason)


def _cards_of(config: Config) -> list[str]:
    """Name the cards that a run uses."""
    return [*config.detector, *([ANATOMY] if config.anatomy == "network" else [])]


def _look_for_atlases(config: Config) -> None:
    """Say once what atlases add, and fetch them if that was asked for."""
    if config.anatomy != "network" and not config.derivatives:
        return
    try:
        atlases = find_atlases(fetch=config.templateflow_fetch)
    except ValueError as error:
        raise ExitError(UNAVAILABLE, str(error)) from error
    for path, gives, lacks in (
        (atlases.lobes, "Lobes", "Lobes will be n/a: %s has no Harvard-Oxford atlas"),
        (atlases.nuclei, "Nuclei", "Nuclei will not be named: %s has no MASSP20 atlas"),
    ):
        if path:
            log.info("%s by %s.", gives, path)
        else:
            place = f"TemplateFlow's archive, {find_archive()},"
            log.info(f"{lacks} (use --templateflow-fetch to download it).", place)


def _validate(config: Config) -> None:
    """Look at the dataset as --validate says; only ``strict`` stops at what can be used.

    Raises:
        ExitError: If the dataset is not valid BIDS, or its description cannot be read safely.
    """
    try:
        check_description(config.bids_dir)
    except ValueError as error:
        raise ExitError(INVALID_BIDS, str(error)) from error
    if config.validate == "warn":
        for said in check_quickly(config.bids_dir):
            log.warning("%s The run goes on.", said)
    elif config.validate == "strict":
        try:
            errors = run_validator(config.bids_dir)
        except ValueError as error:
            raise ExitError(USAGE, str(error)) from error
        for said in errors:
            log.error("%s", said)
        if errors:
            said = f"{config.bids_dir} must be valid BIDS for --validate strict"
            raise ExitError(INVALID_BIDS, f"{said}; errors found: {len(errors)}.")


def _select(config: Config) -> Selection:
    """What the dataset holds of what was asked for.

    Raises:
        ExitError: If a label or a filter is wrong, or nothing is left to process.
    """
    filters, notes = {}, ()
    if config.bids_filter_file:
        try:
            filters, notes = read_filter_file(config.bids_filter_file)
        except ValueError as error:
            raise ExitError(BAD_DATA, str(error)) from error
        except OSError as error:
            said = f"{config.bids_filter_file}: the filter file cannot be read"
            raise ExitError(NO_INPUT, f"{said} ({error.strerror}).") from error
    query = Query(
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
    try:
        selection = find_scans(config.bids_dir, query)
    except ValueError as error:
        raise ExitError(NOTHING_SELECTED, str(error)) from error
    except OSError as error:
        place = Path(error.filename or config.bids_dir)
        said = f"{place}: cannot be read ({find_obstacle(place) or error.strerror or error})."
        raise ExitError(NO_INPUT, said) from error
    for note in (*notes, *selection.notes):
        log.warning("%s", note)
    log.info(
        "Scans selected: %d, of %d susceptibility images.",
        *(len(selection.scans), len(selection.considered)),
    )
    if not selection.scans and not config.dry_run:
        _refuse_empty_selection(config, selection)
    return selection


def _refuse_empty_selection(config: Config, selection: Selection) -> None:
    """Say why there is no scan to process: broken files, or a selection that none fits."""
    broken = [one for one in selection.considered if one.unusable]
    if broken:
        for one in broken:
            log.error("%s %s.", one.relative_path, one.reason)
        raise ExitError(
            NO_INPUT,
            f"{config.bids_dir}: no scan can be processed; unusable: {len(broken)}.",
        )
    for one in selection.considered[:20]:
        log.warning("Excluded: %s (%s)", one.relative_path, one.reason)
    raise ExitError(
        NOTHING_SELECTED,
        f"{config.bids_dir}: no scan fits the selection; --dry-run lists what was considered.",
    )


def _print_selection(selection: Selection) -> int:
    """Print which scans would be processed and which not, and why."""
    for one in selection.considered:
        verb = "process" if one.included else "skip"
        sys.stdout.write(f"{verb}\t{one.relative_path}\t{one.reason}\n")
    sys.stdout.write(f"Scans to process: {len(selection.scans)}\n")
    if selection.scans:
        return OK
    return NO_INPUT if any(one.unusable for one in selection.considered) else NOTHING_SELECTED


def _unwritable(config: Config, error: OSError) -> ExitError:
    reason = find_obstacle(config.output_dir) or describe_error(error).rstrip(".")
    return ExitError(NO_OUTPUT, f"{config.output_dir}: output_dir must be writable; {reason}.")


def _check_output(config: Config) -> None:
    """Refuse a folder that holds another dataset, whose description would be replaced.

    Raises:
        ExitError: If its ``dataset_description.json`` is not of this app.
    """
    path = config.output_dir / "dataset_description.json"
    try:
        if not path.exists() or not path.stat().st_size:
            return
        said = read_json(path) or {}
    except OSError as error:
        raise _unwritable(config, error) from error
    made_by = said.get("GeneratedBy")
    tools = (
        [one.get("Name") for one in made_by or () if isinstance(one, dict)]
        if isinstance(made_by, list)
        else []
    )
    if NAME not in tools:
        known = " and ".join(f"{one}" for one in tools if one)
        what = f"derivatives of {known}" if known else f"the dataset {said.get('Name')!r:.60}"
        raise ExitError(
            NO_OUTPUT,
            f"{config.output_dir}: output_dir must be a new folder or hold results of {NAME}; "
            f"found {what}.",
        )


def _run_folder(config: Config) -> Path:
    """The run's own folder in ``logs/``, with its settings and from now on its log."""
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
    """Put together what the participants wrote.

    Raises:
        ExitError: If there is nothing to put together, or the table cannot be written.
    """
    _check_output(config)
    try:
        participants = config.bids_dir / "participants.tsv"
        totals = write_group(config.output_dir, participants, config.reviews, raw=config.bids_dir)
    except ValueError as error:
        raise ExitError(NO_INPUT, str(error)) from error
    except OSError as error:
        raise _unwritable(config, error) from error
    log.info(
        "Group table: %d processed, %d failed, %d missing, %d outdated, %d gone: %s",
        *(totals[status] for status in ("ok", "failed", "missing", "outdated", "gone")),
        config.output_dir / "group_microbleeds.tsv",
    )
    return OK
