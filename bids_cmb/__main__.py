"""The makers' door: python -m bids_cmb simulate."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Make something. Returns the exit code."""
    top = argparse.ArgumentParser(prog="python -m bids_cmb", allow_abbrev=False)
    makers = top.add_subparsers(dest="maker", required=True)
    maker = makers.add_parser("simulate", help="a BIDS dataset of phantoms with microbleeds")
    maker.add_argument("folder", type=Path, help="where to; must be empty")
    maker.add_argument("--n", type=int, default=3, help="scans (default: 3)")
    maker.add_argument("--seed", type=int, default=1, help="of chance (default: 1)")
    given = top.parse_args(argv)

    from bids_cmb.simulation import simulate

    try:
        numbers = simulate(given.folder, scans=given.n, seed=given.seed)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bids_cmb: {error}\n")
        return 1
    sys.stdout.write(f"{given.folder}: {len(numbers)} scans, {sum(numbers)} microbleeds.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
