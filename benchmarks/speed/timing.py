"""How long the app takes, and how much memory: on a dataset, again, and to discover a large one.

    python benchmarks/timing.py BIDS_DIR --name real

Results go to ``benchmarks/results/timing-NAME.json``. The large dataset is made of 5000 subjects
with two sessions of three small files each, in a temporary folder.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SUBJECTS = 5000


def main() -> None:
    """Run, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bids_dir", type=Path, help="the scans to read")
    parser.add_argument("--name", required=True, help="of the file of results")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        figures = {
            "participant and group": app(asked.bids_dir, out, "participant", "group"),
            "a second call": app(asked.bids_dir, out, "participant", "group"),
            "--help": timed([sys.executable, ROOT / "run.py", "--help"]),
        }
        large = Path(scratch) / "large"
        make_large(large)
        words = ("participant", "--dry-run", "--shard", f"1/{SUBJECTS // 100}")
        figures[f"100 of {SUBJECTS} subjects discovered"] = app(large, out, *words)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "scans": len(list(asked.bids_dir.glob("sub-*/**/*_T2starw.nii.gz"))),
        "figures": figures,
    }
    text = json.dumps(report, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"timing-{asked.name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def app(bids_dir: Path, out: Path, *words: str) -> dict[str, float]:
    """Time one call of the app."""
    return timed([sys.executable, ROOT / "run.py", bids_dir, out, *words])


def timed(command: list) -> dict[str, float]:
    """Wall time of a command, and the largest memory that any process so far has had, in MB."""
    began = time.perf_counter()
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"seconds": round(seconds, 2), "peak_mb_of_a_process_until_then": round(peak)}


def make_large(root: Path) -> None:
    """A tree of many subjects; the files hold two bytes each."""
    for number in range(SUBJECTS):
        for session in "ab":
            stem = f"sub-{number:05d}_ses-{session}"
            anat = root / f"sub-{number:05d}" / f"ses-{session}" / "anat"
            anat.mkdir(parents=True)
            for suffix in ("T1w", "T2starw", "swi"):
                (anat / f"{stem}_{suffix}.nii.gz").write_bytes(b"\x1f\x8b")
                (anat / f"{stem}_{suffix}.json").write_bytes(b"{}")


if __name__ == "__main__":
    main()
