"""Build the simulated benchmark: one BIDS dataset with its truth for each set of priors.

    python benchmarks/simulated.py benchmarks/simulated.json ANATOMY OUT

ANATOMY holds the label maps that the definition names. Those of each go to ``OUT/NAME``; one
that is there already and whole is left as it is, so that a broken build can be gone on with after
its half-made folder was removed. Then, for each:

    python run.py OUT/default FOUND participant --threshold 0.1
    bids-cmb evaluate FOUND OUT/default/derivatives/truth RESULT
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bids_cmb.simulation.dataset import simulate_dataset


def main() -> None:
    """Build what the definition says."""
    asked = arguments()
    definition = json.loads(asked.definition.read_text(encoding="utf-8"))
    scans = asked.scans or definition["scans"]
    for priors in asked.lesion_priors or definition["lesion_priors"]:
        folder = asked.out / priors
        if (folder / "dataset_description.json").exists():  # written last
            print(f"{folder}: whole already.")
            continue
        with tempfile.TemporaryDirectory() as chosen:
            numbers = simulate_dataset(
                folder,
                scans=scans,
                seed=definition["seed"],
                anatomy=heads(definition["anatomy"], asked.anatomy, Path(chosen)),
                protocols=turns(definition["protocols"], scans),
                priors=priors,
                workers=asked.workers,
                progress=said,
            )
        print(f"\n{folder}: {len(numbers)} scans, {sum(numbers)} microbleeds.")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("definition", type=Path, help="benchmarks/simulated.json")
    parser.add_argument("anatomy", type=Path, help="folder of label maps")
    parser.add_argument("out", type=Path, help="where to")
    parser.add_argument(
        "--lesion-priors", action="append", metavar="NAME", help="only these (default: all)"
    )
    parser.add_argument("--scans", type=int, help="fewer, for a trial (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    return parser.parse_args()


def heads(names: list[str], anatomy: Path, chosen: Path) -> Path:
    """A folder with these heads only, as links."""
    absent = [name for name in names if not (anatomy / name).is_file()]
    if absent:
        sys.exit(
            f"{anatomy}: the benchmark needs {', '.join(names)}; {', '.join(absent)} not there."
        )
    for name in names:
        (chosen / name).symlink_to((anatomy / name).resolve())
    return chosen


def turns(protocols: list[str], scans: int) -> list[str]:
    """The protocol of each scan; every round starts one later, so that each meets every head."""
    count = len(protocols)
    return [protocols[(at + at // count) % count] for at in range(scans)]


def said(done: int, scans: int, seconds: float) -> None:
    """How far it is."""
    print(f"\r{done}/{scans} scans, {seconds:.0f} s", end="", flush=True)


if __name__ == "__main__":
    main()
