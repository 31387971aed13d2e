"""How a run ends early: exit codes, and the sentence that goes with one."""

# The draft of the BIDS execution specification, and sysexits.h where that is silent
OK, SOME_FAILED = 0, 1
INVALID_BIDS, UNKNOWN_LEVEL, NOTHING_SELECTED = 16, 17, 18
USAGE, BAD_DATA, NO_INPUT, NO_DEVICE, NO_OUTPUT, IO_ERROR = 64, 65, 66, 69, 73, 74

GOES_ON = "What is done is kept; the same command goes on where this one stopped."


class ExitError(Exception):
    """A run ends here: one sentence for the user, and the exit code."""

    def __init__(self, code: int, said: str):
        super().__init__(said)
        self.code = code
