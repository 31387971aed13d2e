"""Files of an evaluation: its tables, a summary as JSON, and a page."""

import math
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from bids_cmb.bids.tables import write_table
from bids_cmb.evaluation.page import DEFINITIONS, render_page
from bids_cmb.evaluation.results import (
    Evaluation,
    ReviewedEvaluation,
    make_froc_table,
    make_metrics_table,
)
from bids_cmb.files import write_json, write_text
from bids_cmb.metrics.matching import MAX_DISTANCE_MM
from bids_cmb.provenance import software

FILES = ("metrics.tsv", "lesions.tsv", "froc.tsv", "metrics.json", "evaluation.html")
REVIEWS_FILE = "reviews.tsv"


def write_evaluation(
    result: Evaluation,
    folder: Path,
    *,
    names: tuple[str, str],
    reviewed: ReviewedEvaluation | None = None,
) -> None:
    """Write ``FILES``; the same evaluation gives the same bytes.

    Args:
        result: To write.
        folder: Made if missing.
        names: Of predictions and truth, for the page.
        reviewed: The same after review.
    """
    metrics_path, lesions_path, froc_path, summary_path, page_path = (
        folder / name for name in FILES
    )
    table = make_metrics_table(result)
    write_table(metrics_path, table.columns, to_plain_rows(table))
    write_table(lesions_path, result.lesions.columns, to_plain_rows(result.lesions))
    froc = make_froc_table(result.curve)
    write_table(froc_path, froc.columns, to_plain_rows(froc))
    settings = {"predictions": names[0], "truth": names[1], **asdict(result.options)}
    content = {
        **settings,
        "reach_mm": None if result.options.match == "overlap" else MAX_DISTANCE_MM,
        "software": software(),
        "missing": list(result.missing),
        "without_truth": list(result.without_truth),
        "figures": {
            name: {key: to_plain_value(value) for key, value in vars(figure).items()}
            for name, figure in result.figures.items()
        },
        "definitions": DEFINITIONS,
        "breakdown": to_plain_rows(result.breakdown),
        "scans": to_plain_rows(result.scans),
    }
    if reviewed:
        after = reviewed.result.figures
        content["reviewed"] = {
            "figures": {name: to_plain_value(figure.value) for name, figure in after.items()},
            "agreement": reviewed.agreement,
        }
        write_table(folder / REVIEWS_FILE, reviewed.counts[0], reviewed.counts)
    write_json(summary_path, content)
    write_text(page_path, render_page(result, names, reviewed))


def to_plain_rows(table: pd.DataFrame) -> list[dict[str, object]]:
    """Convert a table to rows of plain values: numbers to four digits, None for undefined ones."""
    return [
        {key: to_plain_value(value) for key, value in row.items()}
        for row in table.to_dict("records")
    ]


def to_plain_value(value: object) -> object:
    """Convert a value to one that JSON knows, None for an undefined one."""
    if value is None or isinstance(value, str):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else round(float(value), 4)
