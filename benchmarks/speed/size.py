"""Measure what one more participant costs in an output folder of many, and a group run.

    python -m benchmarks.speed.size --participants 10 1000 10000 --name linux

The dataset is made: one small head of noise, in two sessions of a participant, processed once by
``radial`` without anatomy; all other participants are copies of its files and outputs under their
own labels, images and figures hard-linked. For each size: process one more participant, resume a
shard of ten complete ones, and summarize the group. Wall and processor seconds, and system calls
where ``strace`` is installed (counted in a run of their own). Writes
``benchmarks/results/size-NAME.json``.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.measurements import RESULTS, make_app_command, measure_command
from bids_cmb.files import write_json
from bids_cmb.provenance import machine, software

SEED = 1
TEXTS = {".json", ".tsv", ".html", ".md"}
APP = ("--detector", "radial", "--anatomy", "none", "--n-cpus", "1")
SHARD_SIZE = 10
SESSIONS = ("1", "2")
CALLS = re.compile(r"^100\.00\s+\S+\s+\S+\s+(\d+)", re.MULTILINE)


def main() -> None:
    """Make the folders, measure, print and write."""
    options = make_parser().parse_args()
    results = []
    for count in options.participants:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            bids_dir, output = Path(folder, "data"), Path(folder, "out")
            make_dataset(bids_dir, count + 1)
            fill_output(bids_dir, output, count)
            results.append({"participants": count, **measure_folder(bids_dir, output, count)})
        print(results[-1], flush=True)
    report = {"sizes": results, "software": software(), "machine": machine()}
    write_json(RESULTS / f"size-{options.name}.json", report)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--participants", type=int, nargs="+", required=True, help="sizes")
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--work", type=Path, help="folder for the made datasets (default: /tmp)")
    return parser


def label_participant(number: int) -> str:
    """Label a participant: seven digits, so that labels have one length."""
    return f"{number:07d}"


def make_dataset(bids_dir: Path, count: int) -> None:
    """Make a dataset of that many participants, the same image in all sessions (hard links)."""
    bids_dir.mkdir()
    write_json(bids_dir / "dataset_description.json", {"Name": "made", "BIDSVersion": "1.10.0"})
    rng = np.random.default_rng(SEED)
    index = np.indices((50, 50, 26)).reshape(3, -1).T - np.array([24.5, 24.5, 12.5])
    inside = np.linalg.norm(index * [3, 3, 6], axis=1).reshape(50, 50, 26) < 66
    image = np.where(inside, rng.normal(300, 9, inside.shape), 0).astype(np.float32)
    for place in rng.integers((18, 18, 10), (32, 32, 16), (4, 3)):
        image[tuple(place)] = 40
    source = bids_dir.parent / "image.nii.gz"
    nib.save(nib.Nifti1Image(image, np.diag([-3.0, 3, 6, 1])), source)
    for number in range(1, count + 1):
        subject = f"sub-{label_participant(number)}"
        for session in SESSIONS:
            anat = bids_dir / subject / f"ses-{session}" / "anat"
            anat.mkdir(parents=True)
            os.link(source, anat / f"{subject}_ses-{session}_T2starw.nii.gz")


def fill_output(bids_dir: Path, output: Path, count: int) -> None:
    """Process the first participant, and copy its outputs to the others."""
    first = label_participant(1)
    run_app(bids_dir, output, "participant", "--participant-label", first)
    files = [path for path in sorted(output.rglob(f"*{first}*")) if path.is_file()]
    for number in range(2, count + 1):
        label = label_participant(number)
        for path in files:
            copy = output / str(path.relative_to(output)).replace(first, label)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in TEXTS:
                text = path.read_text("utf-8").replace(first, label)
                copy.write_text(text, "utf-8")
                shutil.copystat(path, copy)
            else:
                os.link(path, copy)


def run_app(bids_dir: Path, output: Path, *words: object) -> None:
    """Run the app once, silently."""
    measure_command(make_app_command(bids_dir, output, *words, *APP))


def measure_folder(bids_dir: Path, output: Path, count: int) -> dict:
    """Measure one more participant, a shard that is complete, and the group level."""
    more = ("participant", "--participant-label", label_participant(count + 1), "--overwrite")
    shard = [label_participant(number) for number in range(1, min(SHARD_SIZE, count) + 1)]
    run_app(bids_dir, output, "participant", "--participant-label", *shard)  # pages of the copies
    commands = {
        "one more participant": more,
        "ten complete": ("participant", "--participant-label", *shard),
        "group": ("group",),
    }
    return {name: measure_twice(bids_dir, output, words) for name, words in commands.items()}


def measure_twice(bids_dir: Path, output: Path, words: Sequence[object]) -> dict:
    """Measure seconds of a command, then count the system calls of another run of it."""
    command = make_app_command(bids_dir, output, *words, *APP)
    cost = asdict(measure_command(command))
    return {**cost, "system_calls": count_calls(command)}


def count_calls(command: Sequence[object]) -> int | None:
    """Count the system calls of a command and its children; None without ``strace``."""
    if not (strace := shutil.which("strace")):
        return None
    with tempfile.NamedTemporaryFile() as table:
        words = [strace, "-f", "-c", "-o", table.name, *map(str, command)]
        subprocess.run(words, check=True, capture_output=True)
        match = CALLS.search(Path(table.name).read_text("utf-8"))
    return int(match[1]) if match else None


if __name__ == "__main__":
    main()
