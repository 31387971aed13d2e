"""How long the pages take per scan, on one core.

    python benchmarks/report_time.py BIDS_DIR OUTPUT_DIR

OUTPUT_DIR holds results of BIDS_DIR. Reading the scan is not counted; drawing and the page are.
"""

import argparse
import json
import time
from pathlib import Path

from bids_cmb.derivatives import Output, read_table
from bids_cmb.discovery import find_scans
from bids_cmb.filters import Query
from bids_cmb.participant import given_brain, read
from bids_cmb.pictures import draw
from bids_cmb.provenance import machine
from bids_cmb.report import write_page
from bids_cmb.volume import load_labels


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("data", type=Path)
    asked.add_argument("out", type=Path)
    given = asked.parse_args()
    print(json.dumps(machine()))
    for scan in find_scans(given.data, Query()).scans:
        output = Output(given.out, scan)
        image, _ = read(scan)
        brain = given_brain(output.brain(), image)
        labels, rows = load_labels(output.labels()), read_table(output.labels(".tsv"))
        for interactive in (False, True):
            began, used = time.perf_counter(), time.process_time()
            draw(output, image, brain, labels, rows, interactive=interactive)
            write_page(given.out, scan.subject)
            wall, core = time.perf_counter() - began, time.process_time() - used
            kind = "interactive" if interactive else "static"
            size = " x ".join(map(str, image.shape))
            print(
                f"{scan.name} {size}, {len(rows)} lesions, {kind}: {wall:.2f} s, core {core:.2f} s"
            )


if __name__ == "__main__":
    main()
