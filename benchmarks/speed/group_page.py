"""Measure how fast the cohort's page opens, sorts and searches in Chromium.

    python -m benchmarks.speed.group_page --scans 200 5000 --name made

Cohorts are drawn (`tests/factories/cohorts.py`) and written by the code of the group level. The
page is opened from its file: from the start of the navigation until two frames after it has
loaded. Then every column is sorted, from the click until two frames later; likewise a search, and
a click that shows 1000 more rows. Each page is opened ``REPEATS`` times, and the fastest counts.
Seconds of the clock, and processor seconds of the page's main thread, which others at work on the
machine change little. Writes ``benchmarks/results/group-page-NAME.json``.
"""

import argparse
import json
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measurements import RESULTS
from bids_cmb.files import write_json
from bids_cmb.provenance import machine
from bids_cmb.report.frequency_map import MAP_STEM, write_map
from bids_cmb.report.html import write_group_page
from tests.factories.browser import Page, browsing
from tests.factories.cohorts import draw_cohort

REPEATS = 3
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
OPENED = f"{FRAME}.then(() => performance.now())"  # ms since the start of the navigation
CLICKED = """(async () => {{ const element = document.querySelectorAll('{query}')[{number}];
const began = performance.now(); {act}; await {frame}; return performance.now() - began; }})()"""


def main() -> None:
    """Draw cohorts, measure their pages, print and write."""
    options = make_parser().parse_args()
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load": os.getloadavg()[0],
        "pages": [measure_page(scans) for scans in options.scans],
    }
    write_json(RESULTS / f"group-page-{options.name}.json", report)
    print(json.dumps(report, indent=2))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scans", type=int, nargs="+", required=True, help="sizes of cohorts")
    parser.add_argument("--name", required=True, help="of the result file")
    return parser


def measure_page(scans: int) -> dict[str, object]:
    """Write the page of a drawn cohort and measure it: the fastest of ``REPEATS``."""
    with tempfile.TemporaryDirectory() as folder:
        written = write_cohort(Path(folder), scans)
        page = Path(folder, "group_microbleeds.html")
        with tempfile.TemporaryDirectory() as profile, browsing(profile) as browser:
            runs = [visit(browser, page) for _ in range(REPEATS)]
        size = page.stat().st_size
    acts = {
        name: {
            "seconds": round(min(run[name][0] for run in runs), 2),
            "processor_seconds": round(min(run[name][1] for run in runs), 2),
        }
        for name in runs[0]
    }
    return {"scans": scans, "page_mb": round(size / 1e6, 2), "written_s": written, **acts}


def write_cohort(folder: Path, scans: int) -> float:
    """Write the page of a drawn cohort and its map; processor seconds for the page."""
    cohort, positions = draw_cohort(scans)
    write_map(folder, positions, len(positions))
    start = time.process_time()
    write_group_page(folder, cohort, f"{MAP_STEM}.png")
    return round(time.process_time() - start, 2)


def visit(browser: Page, page: Path) -> dict[str, list[float]]:
    """Open a page, sort it by each column, search it and show more; the seconds of each."""
    with tempfile.TemporaryDirectory() as downloads, browser.tab(downloads) as tab:
        tab.go(page.as_uri())
        opened = [tab.run(OPENED) / 1000, tab.worked()]
        columns = tab.run("document.querySelectorAll('#scans th').length")
        sorts = [time_act(tab, "#scans th button", number) for number in range(columns)]
        more = time_act(tab, ".more")
        typed = "element.value = 'sub-00'; element.dispatchEvent(new Event('input'))"
        searched = time_act(tab, "#search", act=typed)
    slowest = [max(column) for column in zip(*sorts, strict=True)]
    return {"opened": opened, "slowest sort": slowest, "more rows": more, "searched": searched}


def time_act(tab: Page, query: str, number: int = 0, act: str = "element.click()") -> list[float]:
    """Time an act on an element, until two frames later."""
    before = tab.worked()
    took = tab.run(CLICKED.format(query=query, number=number, act=act, frame=FRAME))
    return [took / 1000, tab.worked() - before]


if __name__ == "__main__":
    main()
