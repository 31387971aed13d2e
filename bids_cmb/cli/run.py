"""The BIDS App's words: from a command line to a Config.

Nothing heavy is imported before the command line is understood: --help must not wait.
"""

import argparse
import json
import math
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bids_cmb import __version__
from bids_cmb.cli.main import COMMANDS, sentence_of
from bids_cmb.config import (
    DEFAULT_DETECTOR,
    LEVELS,
    OPERATING_POINTS,
    TENSORFLOW,
    THREADS,
    Config,
    read_config_file,
    read_path,
)
from bids_cmb.errors import (
    BAD_DATA,
    NO_INPUT,
    NO_OUTPUT,
    OK,
    RESUME_HINT,
    SOME_FAILED,
    UNKNOWN_LEVEL,
    USAGE,
    ExitError,
    guard_standard_output,
)
from bids_cmb.files import find_obstacle, temporary_folder

ALIASES = {
    "--session-id": "--session-label",
    "--nprocs": "--n-cpus",
    "--dask": "--dask-scheduler",
    "--nthreads": "--n-cpus",
    "--mem": "--mem-mb",
    "--min-size": "--min-volume",
}
CACHES = ("TMPDIR", "KERAS_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME")
SPOKEN = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path, as a text",
}
UNITS = {"": 1, "M": 1, "K": 1 / 1024, "G": 1024, "T": 1024**2}

LISTED = "\n".join(f"  {name:<14} {about}" for name, about in COMMANDS.items())
EPILOG = f"""\
commands:
{LISTED}

examples:
  bids-cmb DATA OUT participant group                     every scan, then the group
  bids-cmb DATA OUT participant --participant-label 01 --dry-run   what would be processed, and why
  bids-cmb DATA OUT participant --detector radial --anatomy none   without networks
  bids-cmb simulate SCANS --n-scans 3                     scans to try it on

Flags may be written with - or _. Exit codes: 0 all scans processed; 1 some failed; 16 not valid
BIDS; 17 unknown level; 18 nothing selected; 64 usage; 65 bad filter or config file; 66 no usable
input; 69 no GPU or no Dask cluster; 73 output cannot be written, or holds another dataset; 74
output cannot be written any more; 128 + N ended by signal N."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ExitError(USAGE, f"{message}. See --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app.

    Args:
        argv: The command line without the program's name; None for the process' own.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        with guard_standard_output():
            return _run(words)
    except ExitError as end:
        sys.stderr.write(f"bids_cmb: {end}\n")
        return end.code
    except KeyboardInterrupt:
        sys.stderr.write(f"bids_cmb: stopped. {RESUME_HINT}\n")
        return 128 + signal.SIGINT


def _run(words: list[str]) -> int:
    if words[:1] == ["selftest"]:
        return run_selftest(words[1:])
    if "--bids-exec-spec" in map(_normalize_flag, words):
        return _describe()
    config = configure(words)
    with _environment(config):
        from bids_cmb.workflow.run import run

        return run(config)


def _describe() -> int:
    """Print the command line as a Boutiques descriptor."""
    from bids_cmb.cli.descriptor import descriptor

    sys.stdout.write(json.dumps(descriptor(parser()), indent=2) + "\n")
    return OK


def run_selftest(words: Sequence[str]) -> int:
    """Load every network, process a simulated scan, print the outcome; returns the exit code."""
    given = _Parser(
        prog="bids-cmb selftest", description=sentence_of(COMMANDS["selftest"]), allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    given.add_argument(
        "--model-dir", type=Path, metavar="DIR",
        help="folder of your own model cards and weights (default: $BIDS_CMB_MODEL_DIR)",
    )  # fmt: skip
    given.add_argument(
        "--device", choices=("auto", "gpu", "cpu"),
        help="auto: a GPU if there is a usable one; gpu: fail without one; cpu: never use one "
        "(default: auto)",
    )  # fmt: skip
    given.add_argument(
        "--gpu-id", metavar="N", help="GPU to use, numbered as by nvidia-smi (default: the first)"
    )
    given.add_argument(
        "--work-dir", "-w", type=Path, metavar="DIR",
        help="folder for temporary files (default: that of the system)",
    )  # fmt: skip
    found = given.parse_args([_normalize_flag(word) for word in words])
    settings = {"model_dir": _model_dir(), **vars(found)}
    with _environment(Config(Path(), Path(), LEVELS, **settings)):
        from bids_cmb.cli.selftest import selftest

        with tempfile.TemporaryDirectory() as folder:
            wrong = selftest(
                Path(folder),
                models=settings["model_dir"],
                asked_device=settings.get("device", "auto"),
                say=_say,
            )
    for said in wrong:
        sys.stderr.write(f"bids_cmb: {said}\n")
    _say("self-test failed" if wrong else "self-test passed")
    return SOME_FAILED if wrong else OK


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _model_dir() -> Path | None:
    said = os.environ.get("BIDS_CMB_MODEL_DIR")
    return Path(said) if said else None


def parser() -> argparse.ArgumentParser:
    """Every flag, in groups, the most used first."""
    top = _Parser(
        prog="bids-cmb",
        description="Find, measure and count cerebral microbleeds on SWI or T2* scans. "
        "For research only.",
        usage="%(prog)s bids_dir output_dir {participant,group} [flags]\n"
        "       %(prog)s COMMAND [--help]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    top.add_argument("bids_dir", nargs="?", type=Path, help="the BIDS dataset; never changed")
    top.add_argument("output_dir", nargs="?", type=Path, help="folder for the derivatives")
    top.add_argument(
        "analysis_level", nargs="*", help="participant, group, or both, one after the other"
    )

    add = top.add_argument_group("most used").add_argument
    labels = {"nargs": "+", "metavar": "LABEL"}
    add(
        "--participant-label",
        **labels,
        help="process only these participants, with or without sub-; quoted globs ('10*'); @FILE "
        "for a list (default: all)",
    )
    add(
        "--suffix",
        nargs="+",
        metavar="SUFFIX",
        help="suffixes of the scans to process, of T2starw swi MEGRE GRE veno SWImag "
        f"(default: {' '.join(Config.suffix)})",
    )
    add("--n-cpus", type=int, metavar="N", help="cores to use (default: all that are available)")
    add("--overwrite", action="store_true", help="reprocess scans that already have results")
    add(
        "--dry-run",
        action="store_true",
        help="list the scans that would be processed and those that would not, and why; then exit",
    )

    _add_which(top.add_argument_group("which scans").add_argument, labels)
    _add_finding(top.add_argument_group("finding microbleeds").add_argument)
    _add_output(top.add_argument_group("output").add_argument)
    _add_running(top.add_argument_group("running").add_argument)
    return top


def _add_which(add: Callable, labels: dict) -> None:
    add("--exclude-participant-label", **labels, help="do not process these participants")
    add(
        "--session-label",
        **labels,
        help="process only these sessions, with or without ses- (default: all)",
    )
    for entity in ("acq", "rec", "run"):
        add(
            f"--{entity}",
            nargs="+",
            metavar="LABEL",
            help=f"process only scans with one of these {entity}- labels (default: all)",
        )
    add(
        "--echo",
        nargs="+",
        metavar="N",
        help="echo to process, or `combined` for the root mean square of all (default: the echo "
        "whose product of field strength and echo time is nearest to 60 T ms)",
    )
    add(
        "--bids-filter-file",
        type=Path,
        metavar="JSON",
        help="pybids filters: {query: {entity: value}}",
    )
    add(
        "--bids-database-dir",
        type=Path,
        metavar="DIR",
        help="pybids database to use, or to make if there is none",
    )
    add("--reset-database", action="store_true", help="rebuild that database")
    add(
        "--shard",
        metavar="I/N",
        help="process the I-th of N parts of the participants; auto: from the Slurm array",
    )
    add(
        "--validate",
        choices=("off", "warn", "strict"),
        help="off: do not check the dataset; warn: report what looks wrong and go on; strict: run "
        f"bids-validator-deno and stop at errors (default: {Config.validate})",
    )
    add(
        "--skip-bids-validation",
        dest="validate",
        action="store_const",
        const="off",
        help="the same as --validate off",
    )


def _add_finding(add: Callable) -> None:
    add(
        "--detector",
        nargs="+",
        metavar="NAME",
        help="detector, or several to average: two-stage, ensemble, cascade, distilled, gated, "
        f"radial, or a model card of --model-dir (default: {DEFAULT_DETECTOR})",
    )
    add(
        "--members",
        nargs="+",
        metavar="NAME",
        help="use only these members of an ensemble (default: all)",
    )
    add(
        "--model-dir",
        type=Path,
        metavar="DIR",
        help="folder of your own model cards and weights, which come before the bundled ones "
        "(default: $BIDS_CMB_MODEL_DIR)",
    )
    add(
        "--anatomy",
        choices=("network", "none"),
        help="network: segment the anatomy for brain mask and regions; none: brain mask by "
        f"intensity and shape, no regions (default: {Config.anatomy})",
    )
    add(
        "--operating-point",
        choices=OPERATING_POINTS,
        help="threshold of the model card: sensitive finds more with more false alarms, balanced "
        "is the detector's own, specific raises fewer; the figures are on the card "
        f"(default: {Config.operating_point})",
    )
    add(
        "--threshold",
        type=float,
        metavar="P",
        help="voxels of at least this probability belong to a lesion (default: that of the "
        "detector; of several detectors 0.5, on their common scale)",
    )
    add(
        "--min-volume",
        type=float,
        metavar="MM3",
        help="drop lesions smaller than this, in mm3 (default: that of the detector)",
    )
    add(
        "--exclude-flags",
        nargs="*",
        metavar="FLAG",
        help="list lesions with one of these flags but exclude them from the counts, of large "
        "small edge vessel csf; without a flag, count all "
        f"(default: {' '.join(Config.exclude_flags)})",
    )
    add(
        "--deep-wm-distance-mm",
        type=float,
        metavar="MM",
        help="white matter this close to a lateral ventricle is deep, not lobar "
        f"(default: {Config.deep_wm_distance_mm:g})",
    )
    add(
        "--templateflow-fetch",
        action="store_true",
        help="download the lobe and nucleus atlases that are not in the TemplateFlow archive",
    )
    add(
        "--derivatives",
        "-d",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="derivative datasets with your own brain masks and segmentations",
    )
    add(
        "--mask-desc",
        metavar="DESC",
        help=f"desc- label of these brain masks (default: {Config.mask_desc})",
    )
    add(
        "--skip-brain-extraction",
        action="store_true",
        help="the scans are skull-stripped already",
    )


def _add_output(add: Callable) -> None:
    add(
        "--output-level",
        choices=("minimal", "standard", "full"),
        help="minimal: lesions; standard: also probability and brain mask; full: also "
        "structures, regions and the preprocessed scan "
        f"(default: {Config.output_level})",
    )
    add(
        "--report",
        choices=("static", "interactive", "none"),
        help="static: an HTML page for each participant and one for the cohort; interactive: "
        f"also with the scan in a viewer; none: no pages (default: {Config.report})",
    )
    add(
        "--reports-only",
        action="store_true",
        help="regenerate HTML pages from existing derivatives",
    )
    add(
        "--reviews",
        type=Path,
        metavar="DIR",
        help="group level: folder of reviews saved from the pages, for the counts after review",
    )
    add("--boilerplate-only", action="store_true", help="print the methods section, then exit")


def _add_running(add: Callable) -> None:
    add("--resume", action="store_true", help="skip scans that are already complete (default)")
    add(
        "--omp-nthreads",
        type=int,
        metavar="N",
        help="threads for each scan (default: cores divided by scans processed at a time)",
    )
    add(
        "--device",
        choices=("auto", "gpu", "cpu"),
        help="auto: a GPU if there is a usable one; gpu: stop without one; cpu: never use one "
        f"(default: {Config.device})",
    )
    add("--gpu-id", metavar="N", help="GPU to use, numbered as by nvidia-smi (default: the first)")
    add(
        "--precision",
        choices=("auto", "full", "mixed"),
        help="precision of the networks; full: 32 bits; mixed: 16 bits where it costs little, for "
        "processors that support it; auto: full "
        f"(default: {Config.precision})",
    )
    add(
        "--dask-scheduler",
        metavar="ADDRESS",
        help="process the scans on a Dask cluster (tcp://host:8786), or `local`",
    )
    add(
        "--mem-mb",
        metavar="MB",
        help="memory to use in MB, or such as 8G (default: all that is available)",
    )
    add("--stop-on-first-crash", action="store_true", help="stop after the first failed scan")
    add(
        "--work-dir",
        "-w",
        type=Path,
        metavar="DIR",
        help="folder for temporary files (default: that of the system)",
    )
    add("--clean-workdir", action="store_true", help="remove the work folder at the end")
    add("--bids-exec-spec", action="store_true", help="print a Boutiques descriptor, then exit")
    add(
        "--config-file",
        type=Path,
        metavar="TOML",
        help="settings, as each run saves them in logs/; flags come before them",
    )
    add("--notrack", action="store_true", help="accepted without effect: nothing is tracked")
    add("-v", "--verbose", action="count", default=0, help="log more")
    add("-q", "--quiet", action="count", default=0, help="log only warnings and errors")
    add("--version", action="version", version=f"bids_cmb {__version__}")


def configure(argv: list[str]) -> Config:
    """From the command line to a Config: flags first, then the config file, then the defaults.

    Raises:
        ExitError: If the command line or the config file makes no sense.
    """
    parsed = vars(parser().parse_intermixed_args([_normalize_flag(word) for word in argv]))
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
    given = _from_file(given.pop("config_file", None)) | given
    settings = {name: _convert_value(name, value) for name, value in given.items()}
    settings.setdefault("model_dir", _model_dir())

    absent = [
        name for name in ("bids_dir", "output_dir", "analysis_level") if not settings.get(name)
    ]
    if absent:
        raise ExitError(
            USAGE, f"bids_dir, output_dir and a level are needed; {absent[0]} is missing."
        )
    config = Config(**settings)
    _check(config)
    return config


def _normalize_flag(word: str) -> str:
    """A flag with hyphens, and under its own name."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    flag = flag.replace("_", "-")
    return ALIASES.get(flag, flag) + equals + value


def _from_file(path: Path | None) -> dict:
    if path is None:
        return {}
    actions = {action.dest: action for action in parser()._actions}
    actions |= {action.dest: action for action in parser()._actions if action.choices}
    try:
        settings = read_config_file(path)
        for name, value in settings.items():
            settings[name] = _as_flag(f"{path}: {name}", actions.get(name), value)
        return settings
    except ValueError as error:
        raise ExitError(BAD_DATA, str(error)) from error
    except OSError as error:
        raise ExitError(
            NO_INPUT, f"{path}: the config file cannot be read ({error.strerror})."
        ) from error


def _as_flag(place: str, action: argparse.Action | None, value: object) -> object:
    """A value of a config file as argparse would have given it for the flag of that name.

    Args:
        place: File and setting, for the sentence.
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
    rule = SPOKEN[kind]
    holds = all(_is_of_kind(item, kind) for item in items) and (takes_several or not several)
    if action is not None and action.choices:
        rule = f"one of {', '.join(action.choices)}"
        holds = holds and all(item in action.choices for item in items)
    if not holds:
        several = ", or a list of these" if takes_several else ""
        raise ValueError(f"{place} must be {rule}{several}; found {_spoken(value)}.")
    needed = getattr(Config, action.dest, None) if takes_several else None
    if not items and needed and action.nargs == "+":
        raise ValueError(f"{place} must name at least one; found an empty list.")
    if kind is Path:
        items = [read_path(item) for item in items]
    elif kind is str:
        items = [str(item) for item in items]
    return items if takes_several else items[0]


def _is_of_kind(value: object, kind: type) -> bool:
    """Whether a value of TOML is what a flag of that type is; a text may be a whole number."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, {float: (int, float), Path: str, str: (str, int)}.get(kind, kind))


def _spoken(value: object) -> str:
    """A value as TOML writes it, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{json.dumps(value, ensure_ascii=False, default=str):.60}"


def _convert_value(name: str, value: object) -> object:
    """A flag's value as Config holds it."""
    if name == "mem_mb":
        return _megabytes(str(value))
    if name == "shard":
        return _shard(str(value))
    if isinstance(value, Path):
        return value.absolute()
    if name == "derivatives":
        return tuple(folder.absolute() for folder in value)
    return tuple(value) if isinstance(value, list) else value


def _megabytes(said: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", said.upper())
    if not found or float(found[1]) * UNITS[found[2]] < 1:
        raise ExitError(
            USAGE, f"--mem-mb must be an amount of memory like 8000 or 8G; found {said}."
        )
    return int(float(found[1]) * UNITS[found[2]])


def _check(config: Config) -> None:
    """Refuse what makes no sense, before anything is read or written.

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
    if len(set(config.detector)) < len(config.detector):
        raise ExitError(
            USAGE, f"--detector takes each name once; found {' '.join(config.detector)}."
        )
    _check_folders(config)


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


def _shard(said: str) -> tuple[int, int]:
    """The part of the participants that is ours: (I, N), from 1.

    Raises:
        ExitError: If it is no I/N, or ``auto`` outside a Slurm array.
    """
    if said == "auto":
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
        try:
            task, first, last = (int(os.environ[name]) for name in names)
        except (KeyError, ValueError) as error:
            said = f"--shard auto needs a Slurm array job; {names[0]} is not set."
            raise ExitError(USAGE, said) from error
        step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", "1"))
        tasks = (last - first) // step + 1
        if int(os.environ.get("SLURM_ARRAY_TASK_COUNT", tasks)) != tasks:
            raise ExitError(
                USAGE,
                f"--shard auto needs an array without gaps; this one has {tasks} places and "
                f"{os.environ['SLURM_ARRAY_TASK_COUNT']} tasks. --shard I/N says it outright.",
            )
        return (task - first) // step + 1, tasks
    found = re.fullmatch(r"(\d+)/(\d+)", said)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ExitError(USAGE, f"--shard must be I/N with I from 1 to N, or auto; found {said}.")
    return int(found[1]), int(found[2])


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """End in order, temporary files removed, on SIGTERM and, unless under nohup, on SIGHUP."""
    asked = [signal.SIGTERM, signal.SIGHUP]
    asked = [one for one in asked if signal.getsignal(one) == signal.SIG_DFL]
    for one in asked:
        signal.signal(one, _ended)
    try:
        yield
    finally:
        for one in asked:
            signal.signal(one, signal.SIG_DFL)


def _ended(number: int, _: object) -> None:
    sys.stderr.write(f"bids_cmb: terminated by a signal. {RESUME_HINT}\n")
    sys.exit(128 + number)


@contextmanager
def _environment(config: Config) -> Iterator[None]:
    """Threads and a folder for the temporary files of all libraries, removed at the end.

    Libraries look at these variables when they are imported. A home folder may be missing or
    read-only; only a temporary folder is needed.
    """
    held = ExitStack()
    held.enter_context(_ending_on_signals())
    try:
        if config.work_dir:
            config.work_dir.mkdir(parents=True, exist_ok=True)
        folder = held.enter_context(temporary_folder("bids_cmb-", config.work_dir))
    except OSError as error:
        held.close()
        reason = find_obstacle(config.work_dir or Path(tempfile.gettempdir())) or error
        said = f"a folder for temporary files must be writable ({reason}). See --work-dir."
        raise ExitError(NO_OUTPUT, said) from error
    threads = str(config.omp_nthreads or 1)
    ours = dict.fromkeys(THREADS, threads) | dict.fromkeys(CACHES, str(folder)) | TENSORFLOW
    if config.device == "cpu":
        ours["CUDA_VISIBLE_DEVICES"] = "-1"
    elif config.gpu_id is not None:
        ours["CUDA_VISIBLE_DEVICES"] = config.gpu_id
    if "HOME" not in os.environ:  # pybids looks for one, and the user may have no name either
        ours["HOME"] = str(folder)
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    tempfile.tempdir = None  # so that it is looked up anew
    try:
        yield
    finally:
        held.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        tempfile.tempdir = None
        if config.clean_workdir and config.work_dir:
            with suppress(OSError):  # somebody else's files are in it
                config.work_dir.rmdir()
