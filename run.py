"""The BIDS App's door: python run.py bids_dir output_dir {participant,group}, and flags."""

import sys

from bids_cmb.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
