"""Build the simulated benchmark: a BIDS dataset with its truth for each set of lesion priors.

    python -m benchmarks.simulated benchmarks/simulated.json ANATOMY OUT [--scans N] [--workers N]

ANATOMY holds the label maps that the definition names. Each dataset goes to ``OUT/NAME``; one that
is complete already is left as it is, so that an interrupted build can be continued after its
half-made folder was removed. Then, for each:

    python run.py OUT/default FOUND participant --threshold 0.1
    bids-cmb evaluate FOUND OUT/default/derivatives/truth RESULT
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bids_cmb.simulation.dataset import DatasetPlan, simulate_dataset


def main() -> None:
    """Build the datasets of the definition."""
    options = make_parser().parse_args()
    definition = json.loads(options.definition.read_text(encoding="utf-8"))
    scans = options.scans or definition["scans"]
    for priors in options.lesion_priors or definition["lesion_priors"]:
        folder = options.out / priors
        if (folder / "dataset_description.json").exists():  # written last
            print(f"{folder}: complete already.")
            continue
        with tempfile.TemporaryDirectory() as chosen:
            plan = DatasetPlan(
                scans=scans,
                seed=definition["seed"],
                anatomy=link_heads(definition["anatomy"], options.anatomy, Path(chosen)),
                protocols=assign_protocols(definition["protocols"], scans),
                priors=priors,
            )
            numbers = simulate_dataset(
                folder, plan, workers=options.workers, progress=show_progress
            )
        print(f"\n{folder}: {len(numbers)} scans, {sum(numbers)} microbleeds.")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("definition", type=Path, help="benchmarks/simulated.json")
    parser.add_argument("anatomy", type=Path, help="folder of label maps")
    parser.add_argument("out", type=Path, help="folder for the datasets")
    parser.add_argument(
        "--lesion-priors", action="append", metavar="NAME", help="only these (default: all)"
    )
    parser.add_argument("--scans", type=int, help="fewer, for a trial (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    return parser


def link_heads(names: list[str], anatomy: Path, chosen: Path) -> Path:
    """Link these heads, and no others, into a folder; return it."""
    absent = [name for name in names if not (anatomy / name).is_file()]
    if absent:
        sys.exit(
            f"{anatomy}: the benchmark needs {', '.join(names)}; {', '.join(absent)} not found."
        )
    for name in names:
        (chosen / name).symlink_to((anatomy / name).resolve())
    return chosen


def assign_protocols(protocols: list[str], scans: int) -> list[str]:
    """Assign a protocol to each scan; rounds start one later each, so that all meet every head."""
    count = len(protocols)
    return [protocols[(scan + scan // count) % count] for scan in range(scans)]


def show_progress(done: int, scans: int, seconds: float) -> None:
    """Show how many scans are done."""
    print(f"\r{done}/{scans} scans, {seconds:.0f} s", end="", flush=True)


if __name__ == "__main__":
    main()
