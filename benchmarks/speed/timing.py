"""Measure time and memory of the app: on a dataset, again, and to discover a large one.

    python -m benchmarks.speed.timing BIDS_DIR --name real

Writes ``benchmarks/results/timing-NAME.json``. The large dataset is made of 5000 subjects with two
sessions of three small files each, in a temporary folder.
"""

import argparse
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measurements import RESULTS, Cost, make_app_command, measure_command
from bids_cmb.files import write_json

SUBJECTS = 5000
SHARDS = SUBJECTS // 100
IMAGE, SIDECAR = b"\x1f\x8b", b"{}"


def main() -> None:
    """Run, measure, print and write."""
    options = make_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output, large = Path(folder, "out"), Path(folder, "large")
        both = make_app_command(options.bids_dir, output, "participant", "group")
        make_large_dataset(large)
        discover = make_app_command(
            large, output, "participant", "--dry-run", "--shard", f"1/{SHARDS}"
        )
        commands = {
            "participant and group": both,
            "a second call": both,
            "--help": [*both[:2], "--help"],
            f"100 of {SUBJECTS} subjects discovered": discover,
        }
        costs = {name: measure_command(command) for name, command in commands.items()}
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "scans": len(list(options.bids_dir.glob("sub-*/**/*_T2starw.nii.gz"))),
        "figures": {name: describe_cost(cost) for name, cost in costs.items()},
    }
    write_json(RESULTS / f"timing-{options.name}.json", report)
    print(json.dumps(report, indent=2))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bids_dir", type=Path, help="the scans to process")
    parser.add_argument("--name", required=True, help="of the result file")
    return parser


def describe_cost(cost: Cost) -> dict[str, float]:
    """Describe wall time and the memory of the largest process."""
    return {"seconds": cost.seconds, "peak_mb_of_a_process": cost.peak_mb}


def make_large_dataset(root: Path) -> None:
    """Make a dataset of many subjects whose files hold two bytes each."""
    for number in range(SUBJECTS):
        for session in "ab":
            stem = f"sub-{number:05d}_ses-{session}"
            anat = root / f"sub-{number:05d}" / f"ses-{session}" / "anat"
            anat.mkdir(parents=True)
            for suffix in ("T1w", "T2starw", "swi"):
                (anat / f"{stem}_{suffix}.nii.gz").write_bytes(IMAGE)
                (anat / f"{stem}_{suffix}.json").write_bytes(SIDECAR)


if __name__ == "__main__":
    main()
