"""How long the pages take per scan, on one core.

    python benchmarks/report_time.py BIDS_DIR OUTPUT_DIR --name real

OUTPUT_DIR holds results of BIDS_DIR. Reading the scan is not counted; drawing and the page are.
Each page is made ``TIMES`` times, and the fastest counts: others may be at work on the machine.
Results go to ``benchmarks/results/report-time-NAME.json``.
"""

import argparse
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from bids_cmb.anatomy.scan_anatomy import load_brain_mask
from bids_cmb.bids.filters import Query
from bids_cmb.bids.paths import Output
from bids_cmb.bids.scan import Scan
from bids_cmb.bids.selection import find_scans
from bids_cmb.bids.tables import read_table
from bids_cmb.imaging.loading import load_echoes
from bids_cmb.imaging.volume import load_labels
from bids_cmb.networks.model_cards import load_card
from bids_cmb.provenance import machine
from bids_cmb.report.figures import draw_figures
from bids_cmb.report.html import write_page
from bids_cmb.workflow.outputs import choose_network_view

RESULTS = Path(__file__).parent / "results"
TIMES = 5


def main() -> None:
    """Measure, print and write."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("data", type=Path)
    asked.add_argument("out", type=Path)
    asked.add_argument("--name", required=True, help="of the file of results")
    given = asked.parse_args()
    figures = [measured(given.out, scan) for scan in find_scans(given.data, Query()).scans]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load": os.getloadavg()[0],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "scans": figures,
    }
    text = json.dumps(report, indent=2)
    (RESULTS / f"report-time-{given.name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def measured(out: Path, scan: Scan) -> dict[str, object]:
    """Seconds of processor time of a scan's pictures and page, the fastest of ``TIMES``."""
    output = Output(out, scan)
    image, _ = load_echoes((scan.path, *scan.more_echoes))
    brain = load_brain_mask(output.brain(), image)
    labels, rows = load_labels(output.labels()), read_table(output.labels(".tsv"))
    look = choose_network_view({"ensemble": load_card("ensemble")}, ())
    made = {"scan": scan.name, "voxels": list(image.shape), "lesions": len(rows)}
    for kind in ("static", "interactive"):
        seconds = []
        for _ in range(TIMES):
            used = time.process_time()
            draw_figures(
                output,
                image,
                brain,
                labels,
                rows,
                network_view=look,
                interactive=kind == "interactive",
            )
            write_page(out, scan.subject)
            seconds.append(time.process_time() - used)
        made[kind] = {"fastest": round(min(seconds), 2), "slowest": round(max(seconds), 2)}
    return made


if __name__ == "__main__":
    main()
