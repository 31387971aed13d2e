"""Checks before a run: detectors, device, weights, the dataset and the output folder."""

import logging

from bids_cmb.bids.validation import check_description, check_quickly, run_validator
from bids_cmb.config import BALANCED, Config
from bids_cmb.detection.calibration import apply_operating_point
from bids_cmb.detection.designs import check_detector
from bids_cmb.errors import (
    INVALID_BIDS,
    NO_OUTPUT,
    UNAVAILABLE,
    USAGE,
    ExitError,
)
from bids_cmb.files import find_obstacle, read_json
from bids_cmb.lesions.measure import FLAGS
from bids_cmb.networks.backend import find_device_problem, find_engine_problem
from bids_cmb.networks.loading import find_misfit
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
from bids_cmb.provenance import NAME

log = logging.getLogger("bids_cmb")


def check_detectors(config: Config) -> None:
    """Check detectors, their cards and weights, and the options that depend on them.

    Raises:
        ExitError: If one cannot be used.
    """
    try:
        for name in config.detector:
            check_detector(name, config.model_dir)
            apply_operating_point(load_card(name, config.model_dir), config.operating_point)
        for name in _list_cards(config):
            check_weights(name, load_card(name, config.model_dir), config.model_dir)
        members = {member for name in config.detector for member in _list_members(name, config)}
        if config.members and not members:
            raise ValueError(
                f"--members must name members of an ensemble; found {' '.join(config.members)} for "
                f"{config.detector[0]}, which has none."
            )
    except ValueError as error:
        raise ExitError(USAGE, str(error)) from error
    if len(config.detector) > 1 and config.operating_point != BALANCED:
        raise ExitError(
            USAGE,
            "--operating-point takes one detector, since several share a scale of their own; "
            f"found {', '.join(config.detector)}. Use --threshold.",
        )
    if config.members:
        log.info("Ensemble members selected: %s.", ", ".join(sorted(members)))
    unknown = set(config.exclude_flags) - set(FLAGS)
    if unknown:
        rule = f"--exclude-flags takes flags of {' '.join(FLAGS)}"
        raise ExitError(USAGE, f"{rule}; found {' '.join(sorted(unknown))}.")


def check_device(config: Config) -> None:
    """Stop before work if what is to compute the networks, or a GPU that must be there, cannot."""
    if problem := find_engine_problem(config.engine, config.device):
        raise ExitError(USAGE if config.device == "gpu" else UNAVAILABLE, problem)
    on_cluster = config.dask_scheduler not in (None, LOCAL)  # its workers check themselves
    if config.device != "gpu" or on_cluster:
        return
    # In another process, so that this one does not load TensorFlow.
    (outcome,) = processes.run(find_device_problem, [config.device], workers=1)
    if problem := outcome.error or outcome.result:
        raise ExitError(UNAVAILABLE, problem)


def check_networks(config: Config) -> None:
    """Stop before work if weights of the user's models do not fit their networks."""
    user_members = [
        (member, locate_weights(name, member, config.model_dir))
        for name in _list_cards(config)
        if not is_packaged(name, config.model_dir)
        for member in select_members(load_card(name, config.model_dir), config.members)
    ]
    if config.reports_only or not user_members:
        return
    (outcome,) = processes.run(find_misfit, [user_members], workers=1)  # as in `check_device`
    if reason := outcome.error or outcome.result:
        raise ExitError(USAGE, reason)


def validate_dataset(config: Config) -> None:
    """Validate the dataset as --validate asks; only ``strict`` stops at usable datasets.

    Raises:
        ExitError: If the dataset is not valid BIDS, or its description cannot be read safely.
    """
    try:
        check_description(config.bids_dir)
    except ValueError as error:
        raise ExitError(INVALID_BIDS, str(error)) from error
    if config.validate == "warn":
        for problem in check_quickly(config.bids_dir):
            log.warning("%s The run goes on.", problem)
    elif config.validate == "strict":
        try:
            errors = run_validator(config.bids_dir)
        except ValueError as error:
            raise ExitError(USAGE, str(error)) from error
        for problem in errors:
            log.error("%s", problem)
        if errors:
            problem = f"{config.bids_dir} must be valid BIDS for --validate strict"
            raise ExitError(INVALID_BIDS, f"{problem}; errors found: {len(errors)}.")


def check_output(config: Config) -> None:
    """Check that the folder does not hold another dataset, whose description would be replaced.

    Raises:
        ExitError: If its ``dataset_description.json`` is not of this app.
    """
    path = config.output_dir / "dataset_description.json"
    try:
        if not path.exists() or not path.stat().st_size:
            return
        description = read_json(path) or {}
    except OSError as error:
        raise make_output_error(config, error) from error
    made_by = description.get("GeneratedBy")
    tools = (
        [tool.get("Name") for tool in made_by or () if isinstance(tool, dict)]
        if isinstance(made_by, list)
        else []
    )
    if NAME not in tools:
        others = " and ".join(f"{tool}" for tool in tools if tool)
        dataset = (
            f"derivatives of {others}" if others else f"the dataset {description.get('Name')!r:.60}"
        )
        raise ExitError(
            NO_OUTPUT,
            f"{config.output_dir}: output_dir must be a new folder or hold results of {NAME}; "
            f"found {dataset}.",
        )


def make_output_error(config: Config, error: OSError) -> ExitError:
    """Make the error of an output folder that cannot be written."""
    reason = find_obstacle(config.output_dir) or describe_error(error).rstrip(".")
    return ExitError(NO_OUTPUT, f"{config.output_dir}: output_dir must be writable; {reason}.")


def _list_cards(config: Config) -> list[str]:
    """List the names of the model cards that a run uses."""
    return [*config.detector, *([ANATOMY] if config.anatomy == "network" else [])]


def _list_members(name: str, config: Config) -> list[str]:
    card = load_card(name, config.model_dir)
    return [member["name"] for member in select_members(card, config.members)]
