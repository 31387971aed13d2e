"""The command `bids-cmb`: the words of a BIDS App, or first the name of another command."""

import sys
from collections.abc import Sequence

from bids_cmb.cli.parser import COMMANDS


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
