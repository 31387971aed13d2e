"""Run `bids-cmb` as ``bids-cmb``."""

import sys

from bids_cmb.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
