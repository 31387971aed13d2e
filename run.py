"""The BIDS App's door: python run.py bids_dir output_dir {participant,group} …"""

import sys

from bids_cmb.cli import main

if __name__ == "__main__":
    sys.exit(main())
