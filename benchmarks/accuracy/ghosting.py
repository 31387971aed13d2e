"""Measure the ghosts of simulated scans as they are, and after motion by known amounts.

    python -m benchmarks.accuracy.ghosting RESULT.json DATA [DATA ...]

Each DATA is a simulated dataset with its truth. About one in seven of its heads was restless while
it was scanned (`bids_cmb.simulation.readout`); which one is not recorded. Of those below the limit
the first are moved to and fro along both in-plane axes while their k-space is read: a shift turns
the phase of each line.
"""

import argparse
import time

import numpy as np
from scipy import fft

from benchmarks.measurements import add_scan_arguments, show_progress
from bids_cmb.files import write_json
from bids_cmb.imaging.volume import Volume
from bids_cmb.quality.ghosting import GHOST_LIMIT_PERCENT, measure_ghosting
from bids_cmb.training.scan_files import find_training_scans
from bids_cmb.training.scan_loading import load_scan_and_brain

AMOUNTS_MM = (0.25, 0.5, 1.0, 2.0)
TURN_RAD = 0.7  # of the motion from line to line: nine lines to and fro


def main() -> None:
    """Measure and write."""
    options = make_parser().parse_args()
    files = [paths for data in options.data for paths in find_training_scans(data)[: options.scans]]
    still, moved, seconds = [], {amount: [] for amount in AMOUNTS_MM}, []
    for paths in show_progress(files):
        image, brain = load_scan_and_brain(paths)
        level = float(np.median(image.data[brain.data]))
        began = time.process_time()
        value = measure_ghosting(image, brain, level)
        seconds.append(time.process_time() - began)
        if value is None:
            continue
        if value <= GHOST_LIMIT_PERCENT and len(moved[AMOUNTS_MM[0]]) < options.moved:
            for amount, values in moved.items():
                values.append(measure_ghosting(move_head(image, amount), brain, level))
        still.append(value)
    write_json(options.result, summarize(len(files), still, moved, seconds))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_scan_arguments(parser)
    parser.add_argument("--moved", type=int, default=8, metavar="N", help="scans to move")
    return parser


def move_head(image: Volume, amount_mm: float) -> Volume:
    """Move a head to and fro by so many mm along both in-plane axes while k-space is read."""
    data = np.moveaxis(image.data, image.slice_axis, 2)
    spacing = np.delete(image.spacing, image.slice_axis)
    along, across = (fft.fftfreq(n, side) for n, side in zip(data.shape, spacing, strict=False))
    shift = amount_mm * np.sin(TURN_RAD * np.argsort(np.argsort(along)))  # in the order of lines
    turns = np.exp(-2j * np.pi * shift[:, None] * (along[:, None] + across)).astype(np.complex64)
    planes = [np.abs(fft.ifft2(fft.fft2(plane) * turns)) for plane in np.moveaxis(data, 2, 0)]
    seen = np.stack(planes, axis=image.slice_axis).astype(np.float32)
    return Volume(seen, image.affine)


def summarize(scans: int, still: list, moved: dict, seconds: list) -> dict:
    """Summarize per cents of ghosts, sorted, and processor seconds."""
    below = [value for value in still if value <= GHOST_LIMIT_PERCENT]
    above = [value for value in still if value > GHOST_LIMIT_PERCENT]
    return {
        "limit, %": GHOST_LIMIT_PERCENT,
        "scans": scans,
        "measured": len(still),
        "as simulated, %": sorted(round(value, 2) for value in still),
        "below the limit": len(below),
        "highest below the limit, %": round(max(below), 2),
        "above the limit": len(above),
        "least above the limit, %": round(min(above), 2) if above else None,
        "moved": {
            f"{amount:g} mm": {
                "median, %": round(float(np.median([v for v in values if v is not None])), 1),
                "least, %": round(min(v for v in values if v is not None), 1),
                "measured": sum(v is not None for v in values),
            }
            for amount, values in moved.items()
        },
        "seconds, most": round(max(seconds), 2),
    }


if __name__ == "__main__":
    main()
