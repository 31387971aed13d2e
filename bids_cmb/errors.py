"""End a run early: with an exit code, and a sentence for the user."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# The draft of the BIDS execution specification, and sysexits.h where that is silent
OK, SOME_FAILED = 0, 1
INVALID_BIDS, UNKNOWN_LEVEL, NOTHING_SELECTED = 16, 17, 18
USAGE, BAD_DATA, NO_INPUT, UNAVAILABLE, NO_OUTPUT, IO_ERROR = 64, 65, 66, 69, 73, 74

MEANINGS = {
    SOME_FAILED: "Some of the selected scans have no result.",
    INVALID_BIDS: "The dataset is not valid BIDS (--validate strict), or its description "
    "cannot be used.",
    UNKNOWN_LEVEL: "The analysis level is unknown.",
    NOTHING_SELECTED: "No scan fits the selection.",
    USAGE: "The command line makes no sense.",
    BAD_DATA: "The filter or config file makes no sense.",
    NO_INPUT: "There is no usable input.",
    UNAVAILABLE: "There is no usable GPU, or no Dask cluster, though one was requested.",
    NO_OUTPUT: "The output cannot be written, or its folder holds another dataset.",
    IO_ERROR: "The output folder cannot be written any more.",
}

RESUME_HINT = "Completed scans are kept; run the same command again to resume."
RERUN_HINT = "Run the same command again to make what is missing."


class ExitError(Exception):
    """The end of a run: one sentence for the user, and the exit code."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


@contextmanager
def guard_standard_output() -> Iterator[None]:
    """Make printing safe on any terminal, and end in order if the output cannot be written.

    Characters that the terminal does not know are escaped. If the reader closes the pipe, as
    ``head`` does, the process ends as if by SIGPIPE, without a message.

    Raises:
        ExitError: If standard output cannot be written.
        SystemExit: If its reader is gone.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a stream of another kind, or none
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError as error:
        _discard_output()
        raise SystemExit(128 + signal.SIGPIPE) from error
    except OSError as error:
        _discard_output()
        reason = (error.strerror or str(error)).lower()
        place = error.filename or "standard output"
        raise ExitError(IO_ERROR, f"{place} cannot be written; {reason}.") from error


def _discard_output() -> None:
    """Send standard output to nowhere: the interpreter flushes it once more at its end."""
    with suppress(AttributeError, OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
