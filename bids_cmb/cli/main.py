"""The command `bids-cmb`: the words of a BIDS App, or first the name of another command."""

import sys
from collections.abc import Sequence

COMMANDS = {
    "simulate": "make a BIDS dataset of simulated scans with their truth",
    "train": "train a network on scans with their truth",
    "release": "simulate, train and judge: from nothing to a detector",
    "evaluate": "compare what was found with the truth",
    "compare": "compare two detectors on the same scans",
    "reviews": "make a truth of readers' reviews",
    "models": "add, list or verify models, or make one of your networks",
    "import-labels": "bring other groups' labels into BIDS",
    "selftest": "load every network and count one made-up scan",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app or another command.

    Args:
        argv: The command line without the program's name; None for the process' own.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in COMMANDS and words[0] != "selftest":
        from bids_cmb.cli.commands import main as run_command

        return run_command(words)
    from bids_cmb.cli.run import main as run_app

    return run_app(words)
