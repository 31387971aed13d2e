"""The settings of a run: flags, config file and defaults, converted and checked."""

import argparse
import json
import math
import os
import re
from pathlib import Path

from bids_cmb.cli.parser import make_parser, normalize_flag
from bids_cmb.config import LEVELS, Config, read_config_file, read_path
from bids_cmb.errors import BAD_DATA, NO_INPUT, UNKNOWN_LEVEL, USAGE, ExitError

TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path, as a text",
}
MEMORY_UNITS = {"": 1, "M": 1, "K": 1 / 1024, "G": 1024, "T": 1024**2}


def configure(argv: list[str]) -> Config:
    """Make a Config of the command line: flags first, then the config file, then the defaults.

    Raises:
        ExitError: If the command line or the config file makes no sense.
    """
    parsed = vars(make_parser().parse_intermixed_args([normalize_flag(word) for word in argv]))
    # Positionals that were not given come as the word SUPPRESS itself (an oddity of argparse).
    given = {name: value for name, value in parsed.items() if str(value) != argparse.SUPPRESS}
    overwrite, resume = given.pop("overwrite", False), given.pop("resume", False)
    if overwrite or resume:
        given["overwrite"] = overwrite
    given.pop("notrack", None)
    verbosity = given.pop("verbose") - given.pop("quiet")
    if verbosity:
        given["verbosity"] = verbosity
    if not given.get("analysis_level"):
        given.pop("analysis_level", None)
    given = _read_config_file(given.pop("config_file", None)) | given
    settings = {name: _convert_value(name, value) for name, value in given.items()}
    settings.setdefault("model_dir", get_model_dir())

    absent = [
        name for name in ("bids_dir", "output_dir", "analysis_level") if not settings.get(name)
    ]
    if absent:
        raise ExitError(
            USAGE,
            f"bids_dir, output_dir and a level are needed; {absent[0]} is missing. "
            "See bids-cmb --help.",
        )
    config = Config(**settings)
    _check_settings(config)
    return config


def _read_config_file(path: Path | None) -> dict:
    if path is None:
        return {}
    actions = {action.dest: action for action in make_parser()._actions}
    actions |= {action.dest: action for action in make_parser()._actions if action.choices}
    try:
        settings = read_config_file(path)
        for name, value in settings.items():
            settings[name] = _convert_like_flag(f"{path}: {name}", actions.get(name), value)
        return settings
    except ValueError as error:
        raise ExitError(BAD_DATA, str(error)) from error
    except OSError as error:
        raise ExitError(
            NO_INPUT, f"{path}: the config file cannot be read ({error.strerror})."
        ) from error


def _convert_like_flag(place: str, action: argparse.Action | None, value: object) -> object:
    """Convert a value of a config file as argparse would for the flag of that name.

    Args:
        place: File and setting, for the message.
        action: The flag; None for ``verbosity``, which has two.
        value: As TOML gave it.

    Raises:
        ValueError: If the flag would not take it.
    """
    if action is not None and action.dest == "shard" and isinstance(value, list):
        value = "/".join(map(str, value))  # as a run saves it
    kind = int if action is None else bool if action.nargs == 0 else action.type or str
    takes_several = action is not None and action.nargs in ("+", "*")
    several = isinstance(value, list)
    items = value if several else [value]
    rule = TYPE_NAMES[kind]
    holds = all(_is_of_kind(item, kind) for item in items) and (takes_several or not several)
    if action is not None and action.choices:
        rule = f"one of {', '.join(action.choices)}"
        holds = holds and all(item in action.choices for item in items)
    if not holds:
        several = ", or a list of these" if takes_several else ""
        raise ValueError(f"{place} must be {rule}{several}; found {_format_value(value)}.")
    needed = getattr(Config, action.dest, None) if takes_several else None
    if not items and needed and action.nargs == "+":
        raise ValueError(f"{place} must name at least one; found an empty list.")
    if kind is Path:
        items = [read_path(item) for item in items]
    elif kind is str:
        items = [str(item) for item in items]
    return items if takes_several else items[0]


def _is_of_kind(value: object, kind: type) -> bool:
    """Check whether a value of TOML has the type of a flag; a text may be a whole number."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, {float: (int, float), Path: str, str: (str, int)}.get(kind, kind))


def _format_value(value: object) -> str:
    """Format a value as in TOML, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{json.dumps(value, ensure_ascii=False, default=str):.60}"


def _convert_value(name: str, value: object) -> object:
    """Convert the value of a flag to that of Config."""
    if name == "mem_mb":
        return _parse_megabytes(str(value))
    if name == "shard":
        return _parse_shard(str(value))
    if isinstance(value, Path):
        return value.absolute()
    if name == "derivatives":
        return tuple(folder.absolute() for folder in value)
    return tuple(value) if isinstance(value, list) else value


def _parse_megabytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", text.upper())
    if not match or float(match[1]) * MEMORY_UNITS[match[2]] < 1:
        raise ExitError(
            USAGE, f"--mem-mb must be an amount of memory like 8000 or 8G; found {text}."
        )
    return int(float(match[1]) * MEMORY_UNITS[match[2]])


def _check_settings(config: Config) -> None:
    """Refuse impossible settings, before anything is read or written.

    Raises:
        ExitError: With the argument, the rule and what was found.
    """
    for level in config.analysis_level:
        if level not in LEVELS:
            raise ExitError(
                UNKNOWN_LEVEL, f"the level must be participant or group; found {level}."
            )
    for name in ("n_cpus", "omp_nthreads"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ExitError(USAGE, f"--{name.replace('_', '-')} must be at least 1; found {value}.")
    if config.threshold is not None and not 0 < config.threshold <= 1:
        raise ExitError(
            USAGE, f"--threshold must lie above 0 and up to 1; found {config.threshold:g}."
        )
    if config.min_volume is not None and not 0 <= config.min_volume < math.inf:
        raise ExitError(USAGE, f"--min-volume must be 0 mm³ or more; found {config.min_volume:g}.")
    if not 0 <= config.deep_wm_distance_mm <= 50:
        raise ExitError(
            USAGE,
            f"--deep-wm-distance-mm must be 0 to 50 mm; found {config.deep_wm_distance_mm:g}.",
        )
    _check_time_limit(config)
    if len(set(config.detector)) < len(config.detector):
        raise ExitError(
            USAGE, f"--detector takes each name once; found {' '.join(config.detector)}."
        )
    _check_folders(config)


def _check_time_limit(config: Config) -> None:
    limit = config.scan_time_limit
    if limit is not None and not 0 < limit < math.inf:
        raise ExitError(USAGE, f"--scan-time-limit must be above 0 minutes; found {limit:g}.")


def _check_folders(config: Config) -> None:
    raw, out = config.bids_dir.resolve(), config.output_dir.resolve()
    if out == raw:
        raise ExitError(
            USAGE, f"output_dir must be another folder than bids_dir; found {out} for both."
        )
    if out.is_relative_to(raw) and not out.is_relative_to(raw / "derivatives"):
        raise ExitError(
            USAGE,
            f"output_dir must lie outside bids_dir or under its derivatives/; found {out}. "
            f"Suggested: {raw / 'derivatives' / 'bids_cmb'}.",
        )
    if config.work_dir and config.work_dir.resolve().is_relative_to(raw):
        raise ExitError(USAGE, f"--work-dir must lie outside bids_dir; found {config.work_dir}.")
    if "participant" not in config.analysis_level:
        return
    if not raw.is_dir():
        what = "found a file" if raw.exists() else "there is none"
        raise ExitError(NO_INPUT, f"{config.bids_dir}: bids_dir must be a folder; {what}.")
    if config.model_dir and not config.model_dir.is_dir():
        raise ExitError(
            NO_INPUT, f"{config.model_dir}: --model-dir must be a folder; there is none."
        )
    for folder in config.derivatives:
        if not folder.is_dir():
            raise ExitError(NO_INPUT, f"{folder}: --derivatives must be a folder; there is none.")


def _parse_shard(text: str) -> tuple[int, int]:
    """Parse the part of the participants to process: (I, N), from 1.

    Raises:
        ExitError: If it is no I/N, or ``auto`` outside a Slurm array.
    """
    if text == "auto":
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
        try:
            task, first, last = (int(os.environ[name]) for name in names)
        except (KeyError, ValueError) as error:
            message = f"--shard auto needs a Slurm array job; {names[0]} is not set."
            raise ExitError(USAGE, message) from error
        step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", "1"))
        tasks = (last - first) // step + 1
        if int(os.environ.get("SLURM_ARRAY_TASK_COUNT", tasks)) != tasks:
            raise ExitError(
                USAGE,
                f"--shard auto needs an array without gaps; this one has {tasks} places and "
                f"{os.environ['SLURM_ARRAY_TASK_COUNT']} tasks. --shard I/N says it outright.",
            )
        return (task - first) // step + 1, tasks
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ExitError(USAGE, f"--shard must be I/N with I from 1 to N, or auto; found {text}.")
    return int(match[1]), int(match[2])


def get_model_dir() -> Path | None:
    """Get the folder of models from the environment."""
    folder = os.environ.get("BIDS_CMB_MODEL_DIR")
    return Path(folder) if folder else None
