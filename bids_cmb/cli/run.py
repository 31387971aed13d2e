"""Run the app from its command line.

Nothing heavy is imported before the command line is parsed: --help must not wait.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bids_cmb.cli.parser import COMMANDS, Parser, make_parser, normalize_flag, sentence_of
from bids_cmb.cli.settings import configure, get_model_dir
from bids_cmb.config import (
    LEVELS,
    TENSORFLOW_SETTINGS,
    THREADS,
    Config,
)
from bids_cmb.errors import (
    NO_OUTPUT,
    OK,
    RESUME_HINT,
    SOME_FAILED,
    ExitError,
    guard_standard_output,
)
from bids_cmb.files import find_obstacle, temporary_folder
from bids_cmb.networks.backend import make_environment

CACHES = ("TMPDIR", "KERAS_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME")


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
    if "--bids-exec-spec" in map(normalize_flag, words):
        return _print_descriptor()
    config = configure(words)
    with _environment(config):
        from bids_cmb.workflow.run import run

        return run(config)


def _print_descriptor() -> int:
    """Print the command line as a Boutiques descriptor."""
    from bids_cmb.cli.descriptor import make_descriptor

    sys.stdout.write(json.dumps(make_descriptor(make_parser()), indent=2) + "\n")
    return OK


def run_selftest(words: Sequence[str]) -> int:
    """Load every network, process a simulated scan, print the outcome; returns the exit code."""
    flags = Parser(
        prog="bids-cmb selftest", description=sentence_of(COMMANDS["selftest"]), allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    flags.add_argument(
        "--model-dir", type=Path, metavar="DIR",
        help="folder of your own model cards and weights (default: $BIDS_CMB_MODEL_DIR)",
    )  # fmt: skip
    flags.add_argument(
        "--device", choices=("auto", "gpu", "cpu"),
        help="auto: a GPU if there is a usable one; gpu: fail without one; cpu: never use one "
        "(default: auto)",
    )  # fmt: skip
    flags.add_argument(
        "--gpu-id", metavar="N", help="GPU to use, numbered as by nvidia-smi (default: the first)"
    )
    flags.add_argument(
        "--work-dir", "-w", type=Path, metavar="DIR",
        help="folder for temporary files (default: that of the system)",
    )  # fmt: skip
    parsed = flags.parse_args([normalize_flag(word) for word in words])
    settings = {"model_dir": get_model_dir(), **vars(parsed)}
    with _environment(Config(Path(), Path(), LEVELS, **settings)):
        from bids_cmb.cli.selftest import run_tests

        with tempfile.TemporaryDirectory() as folder:
            faults = run_tests(
                Path(folder),
                models=settings["model_dir"],
                device=settings.get("device", "auto"),
                log=_print_line,
            )
    for fault in faults:
        sys.stderr.write(f"bids_cmb: {fault}\n")
    _print_line("self-test failed" if faults else "self-test passed")
    return SOME_FAILED if faults else OK


def _print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextmanager
def _end_on_signals() -> Iterator[None]:
    """End in order, with temporary files removed, on SIGTERM and (unless under nohup) on SIGHUP."""
    signals = [signal.SIGTERM, signal.SIGHUP]
    signals = [number for number in signals if signal.getsignal(number) == signal.SIG_DFL]
    for number in signals:
        signal.signal(number, _exit_on_signal)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


def _exit_on_signal(number: int, _: object) -> None:
    sys.stderr.write(f"bids_cmb: terminated by a signal. {RESUME_HINT}\n")
    sys.exit(128 + number)


@contextmanager
def _environment(config: Config) -> Iterator[None]:
    """Set threads and a temporary folder, removed at the end, for all libraries.

    Libraries read these variables when they are imported. A home folder may be missing or
    read-only; only a temporary folder is needed.
    """
    resources = ExitStack()
    resources.enter_context(_end_on_signals())
    try:
        if config.work_dir:
            config.work_dir.mkdir(parents=True, exist_ok=True)
        folder = resources.enter_context(temporary_folder("bids_cmb-", config.work_dir))
    except OSError as error:
        resources.close()
        reason = find_obstacle(config.work_dir or Path(tempfile.gettempdir())) or error
        message = f"a folder for temporary files must be writable ({reason}). See --work-dir."
        raise ExitError(NO_OUTPUT, message) from error
    threads = str(config.omp_nthreads or 1)
    variables = (
        dict.fromkeys(THREADS, threads) | dict.fromkeys(CACHES, str(folder)) | TENSORFLOW_SETTINGS
    )
    if config.gpu_id is not None:
        variables["CUDA_VISIBLE_DEVICES"] = config.gpu_id
    variables |= make_environment(config.device, config.engine)
    if "HOME" not in os.environ:  # pybids needs one, and the user may have no name either
        variables["HOME"] = str(folder)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    tempfile.tempdir = None  # so that it is determined anew
    try:
        yield
    finally:
        resources.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        tempfile.tempdir = None
        if config.clean_workdir and config.work_dir:
            with suppress(OSError):  # it holds other files
                config.work_dir.rmdir()
