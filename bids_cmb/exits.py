"""How a run ends early: exit codes, and the sentence that goes with one."""

# The draft of the BIDS execution specification, and sysexits.h where that is silent
OK, SOME_FAILED = 0, 1
INVALID_BIDS, UNKNOWN_LEVEL, NOTHING_SELECTED = 16, 17, 18
USAGE, BAD_DATA, NO_INPUT, UNAVAILABLE, NO_OUTPUT, IO_ERROR = 64, 65, 66, 69, 73, 74

MEANINGS = {
    SOME_FAILED: "Some of the selected scans have no result.",
    INVALID_BIDS: "The dataset is not valid BIDS (--validate strict).",
    UNKNOWN_LEVEL: "The analysis level is unknown.",
    NOTHING_SELECTED: "No scan fits the selection.",
    USAGE: "The command line makes no sense.",
    BAD_DATA: "The filter or config file makes no sense.",
    NO_INPUT: "There is no usable input.",
    UNAVAILABLE: "There is no usable GPU, or no Dask cluster, though one was asked for.",
    NO_OUTPUT: "The output cannot be written.",
    IO_ERROR: "The output folder takes no more files.",
}

GOES_ON = "What is done is kept; the same command goes on where this one stopped."
STARTS_ANEW = "The same command makes again what is not there."


class ExitError(Exception):
    """A run ends here: one sentence for the user, and the exit code."""

    def __init__(self, code: int, said: str):
        super().__init__(said)
        self.code = code
