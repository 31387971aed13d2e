"""Count the dark, round, isolated spots of each scan, and compare with those of real scans.

    python -m benchmarks.accuracy.dark_spots DATA [DATA ...] --name NAME [--suffix T2starw]

What a detector must tell apart is all that is dark and round, so the simulator must make as much of
it as a patient has, and not more. Counted are the 1000 strongest peaks of radial symmetry in the
brain of `segment_brain` that are round and end within their slices (``ROUND``), by contrast; those
``DEEP`` lie well below the brain's surface and beside no bright fluid. Only numbers are written, to
``benchmarks/results/NAME.json``; ``dark-spots-real.json`` has those of five real T2* scans (VALDO
challenge: one of 0.45 x 0.45 x 4 mm, four of 1 x 1 x 3 or 4 mm), no names. The exit status is 1 if
the median of a dataset lies outside the range of the real scans. Compare T2* at such protocols.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.measurements import RESULTS
from bids_cmb.anatomy.brain_extraction import segment_brain
from bids_cmb.detection.radial import Candidate, find_candidates
from bids_cmb.evaluation.pairing import read_protocols
from bids_cmb.files import read_json, write_json
from bids_cmb.imaging.nifti import load
from bids_cmb.provenance import software

REAL = RESULTS / "dark-spots-real.json"
MAX_SPOTS = 1000  # peaks of symmetry that are measured
ROUND = {"elongation": 1.6, "overrun": 2.0}  # less than: long by short axis, mm beyond a ball
DEEP = {"depth": 5.0, "ring_high": 1.5}  # mm, more than; brain medians, less than
KINDS = {  # least contrast, and whether deep
    "contrast above 0.3": (0.3, False),
    "contrast above 0.5": (0.5, False),
    "deep, contrast above 0.3": (0.3, True),
}


def main() -> int:
    """Count, print and write; return the exit status."""
    options = make_parser().parse_args()
    scans = []
    for folder in options.data:
        protocols = read_protocols(folder)
        for path in sorted(folder.glob(f"sub-*/**/*_{options.suffix}.nii.gz")):
            image, _ = load(path)
            spots = find_candidates(image, segment_brain(image), most=MAX_SPOTS)
            protocol = protocols.get(path.name.partition("_")[0])
            scans.append({"protocol": protocol, **count_spots(spots)})
            print(path.name, scans[-1], flush=True)
    if not scans:
        sys.exit(f"No *_{options.suffix}.nii.gz in {', '.join(map(str, options.data))}.")
    report = {
        "name": options.name,
        "suffix": options.suffix,
        "most": MAX_SPOTS,
        "round": ROUND,
        "deep": DEEP,
        "software": software(),
        "scans": len(scans),
        "spots per scan": summarize_counts(scans),
        "counts": scans,
    }
    write_json(RESULTS / f"{options.name}.json", report)
    real = read_json(REAL)
    return compare_with_real(report, real) if real else 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", help="BIDS datasets")
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--suffix", default="T2starw", help="of the scans (default: T2starw)")
    return parser


def count_spots(spots: list[Candidate]) -> dict[str, int]:
    """Count the dark round spots of a scan, of every kind."""
    isolated = [
        spot for spot in spots if all(getattr(spot, key) < most for key, most in ROUND.items())
    ]
    deep = [
        spot
        for spot in isolated
        if spot.depth > DEEP["depth"] and spot.ring_high < DEEP["ring_high"]
    ]
    return {
        kind: sum(spot.contrast > least for spot in (deep if below else isolated))
        for kind, (least, below) in KINDS.items()
    }


def summarize_counts(scans: list[dict]) -> dict[str, dict[str, float]]:
    """Compute median, lowest and highest count over scans, of every kind."""
    return {
        kind: {
            "median": float(np.median([scan[kind] for scan in scans])),
            "lowest": min(scan[kind] for scan in scans),
            "highest": max(scan[kind] for scan in scans),
        }
        for kind in KINDS
    }


def compare_with_real(report: dict, real: dict) -> int:
    """Compare the counts with those of real scans; return 1 if a median is outside their range."""
    outside = 0
    for kind, counts in report["spots per scan"].items():
        reference = real["spots per scan"][kind]
        within = reference["lowest"] <= counts["median"] <= reference["highest"]
        outside |= not within
        print(
            f"{kind}: median {counts['median']:g} ({counts['lowest']} to {counts['highest']}), "
            f"real scans {reference['median']:g} ({reference['lowest']} to {reference['highest']})"
            f"{'' if within else '; outside the range of real scans'}"
        )
    return int(outside)


if __name__ == "__main__":
    sys.exit(main())
