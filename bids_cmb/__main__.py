"""Runs the commands: python -m bids_cmb COMMAND."""

import sys

from bids_cmb.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
