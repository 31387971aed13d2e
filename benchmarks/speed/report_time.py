"""Measure how long the pictures and the page of each scan take, on one core.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.report_time BIDS_DIR OUTPUT_DIR --name real

OUTPUT_DIR holds results of BIDS_DIR. Loading the scan is not counted; drawing and the page are.
Each page is made ``REPEATS`` times, and the fastest counts: others may be at work on the machine.
Writes ``benchmarks/results/report-time-NAME.json``.
"""

import argparse
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measurements import RESULTS
from bids_cmb.anatomy.scan_anatomy import load_brain_mask
from bids_cmb.bids.filters import Query
from bids_cmb.bids.paths import Output
from bids_cmb.bids.scan import Scan
from bids_cmb.bids.selection import find_scans
from bids_cmb.files import write_json
from bids_cmb.imaging.loading import load_echoes
from bids_cmb.networks.model_cards import load_card
from bids_cmb.provenance import machine
from bids_cmb.report.figures import draw_figures, load_shown
from bids_cmb.report.html import write_page
from bids_cmb.workflow.outputs import choose_network_view

REPEATS = 5


def main() -> None:
    """Measure, print and write."""
    options = make_parser().parse_args()
    scans = find_scans(options.bids_dir, Query()).scans
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load": os.getloadavg()[0],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "scans": [measure_scan(options.output_dir, scan) for scan in scans],
    }
    write_json(RESULTS / f"report-time-{options.name}.json", report)
    print(json.dumps(report, indent=2))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("output_dir", type=Path, help="results of BIDS_DIR")
    parser.add_argument("--name", required=True, help="of the result file")
    return parser


def measure_scan(folder: Path, scan: Scan) -> dict[str, object]:
    """Measure the processor seconds of a scan's pictures and page, of either kind."""
    output = Output(folder, scan)
    image, _ = load_echoes((scan.path, *scan.more_echoes))
    brain = load_brain_mask(output.brain(), image)
    lesions = load_shown(output.labels())
    candidates = load_shown(output.candidates()) if output.candidates().is_file() else None
    view = choose_network_view({"ensemble": load_card("ensemble")}, ())

    def measure_page(*, interactive: bool) -> dict[str, float]:
        seconds = []
        for _ in range(REPEATS):
            start = time.process_time()
            draw_figures(
                output,
                image,
                brain,
                lesions,
                candidates,
                network_view=view,
                interactive=interactive,
            )
            write_page(folder, scan.subject)
            seconds.append(time.process_time() - start)
        return {"fastest": round(min(seconds), 2), "slowest": round(max(seconds), 2)}

    return {
        "scan": scan.name,
        "voxels": list(image.shape),
        "lesions": len(lesions.rows),
        "candidates": len(candidates.rows) if candidates else 0,
        "static": measure_page(interactive=False),
        "interactive": measure_page(interactive=True),
    }


if __name__ == "__main__":
    main()
