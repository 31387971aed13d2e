"""The command `bids-cmb`: the words of a BIDS App, or first the name of another command."""

import sys
from collections.abc import Sequence

COMMANDS = {
    "simulate": "simulate a BIDS dataset of scans with reference labels",
    "train": "train a network on scans with reference labels",
    "release": "simulate, train and evaluate: a new detector by a plan",
    "evaluate": "compare predicted with true microbleeds",
    "compare": "compare two detectors on the same scans",
    "reviews": "make reference labels from readers' reviews",
    "models": "add, create, list or verify models",
    "import-labels": "convert other groups' labels to BIDS",
    "selftest": "load every network and process a simulated scan",
}


def sentence_of(description: str) -> str:
    """Turn the description of a command into a sentence."""
    return f"{description[0].upper()}{description[1:]}."


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
