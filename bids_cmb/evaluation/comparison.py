"""Comparison of two detectors on the same scans, with intervals of their differences."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from bids_cmb.bids.tables import write_table
from bids_cmb.evaluation.annotations import POSITION_COLUMNS, read_annotations
from bids_cmb.evaluation.errors_by_class import ScanComparison, classify_lesions, make_scan_row
from bids_cmb.evaluation.options import (
    EvaluationOptions,
    check_folder,
    check_options,
    locate_reference,
)
from bids_cmb.evaluation.outputs import to_plain_rows, to_plain_value
from bids_cmb.evaluation.page import DEFINITIONS
from bids_cmb.evaluation.pairing import pair_scans
from bids_cmb.files import write_json
from bids_cmb.metrics.bootstrap import compare_figures
from bids_cmb.metrics.intervals import Figure
from bids_cmb.metrics.matching import MAX_DISTANCE_MM, RULES
from bids_cmb.provenance import software

FILES = ("comparison.json", "figures.tsv", "scans.tsv", "lesions.tsv")
SHARED_FIGURES = (
    "scans",
    "lesions",
    "lesions_large",
)  # figures that two detectors cannot differ in
COMPARED_COUNTS = ("found", "false_alarms", "misses")  # of a scan, for each detector
LESION_COLUMNS = ("scan", "index", *POSITION_COLUMNS, "diameter_mm", "size", "region", "territory")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Result of a comparison of two detectors.

    Attributes:
        options: Of the comparison; the threshold is the first detector's.
        thresholds: Of both.
        figures: By name: the first detector's, the second's, and the second minus the first with
            its 95 % interval over subjects, the same ones drawn for both.
        scans: A row each: counts at the thresholds, mean ranks, and whether the two ``differ`` in
            any of them.
        lesions: Every certain true lesion, its outcome and its rank with either detector.
        missing: Scans of the truth without a prediction of both; they are in no figure.
    """

    options: EvaluationOptions
    thresholds: tuple[float, float]
    figures: dict[str, tuple[float, float, Figure]]
    scans: pd.DataFrame
    lesions: pd.DataFrame
    missing: tuple[str, ...]


def compare_detectors(
    first: Path,
    second: Path,
    truth: Path,
    folder: Path,
    *,
    options: EvaluationOptions,
    thresholds: tuple[float, float] = (0.0, 0.0),
    overwrite: bool = False,
) -> Comparison:
    """Compare two detectors and write ``FILES`` to a folder.

    Args:
        first: Output folder of the app, folder of masks or tables, or one such file.
        second: The same of another detector, of the same scans.
        truth: The same of the true lesions; or a table of coordinates for many scans.
        folder: To write; must be empty unless ``overwrite``.
        options: How to compare; the threshold is not used.
        thresholds: Lowest probability that counts, of each detector. FROC and ranks take all, so
            the app should have been run with a lower ``--threshold`` than these.
        overwrite: Whether an earlier comparison there may be replaced.

    Raises:
        ValueError: If ``folder`` is not empty, an option is not possible, a file cannot
            be used, a scan has several predictions, or the three have no scan in common.
        OSError: If a file cannot be read or written.
    """
    check_folder(folder, overwrite=overwrite)
    for threshold in thresholds:
        check_options(replace(options, threshold=threshold))
    scans, missing = _pair_common_scans(first, second, truth, options)
    result = compare_scans(*scans, replace(options, threshold=thresholds[0]), thresholds)
    result = replace(result, missing=missing)
    names = tuple(path.resolve().name for path in (first, second, truth))
    write_comparison(result, folder, names=names)
    return result


def _pair_common_scans(
    first: Path, second: Path, truth: Path, options: EvaluationOptions
) -> tuple[tuple[list[ScanComparison], list[ScanComparison]], tuple[str, ...]]:
    """Pair the scans of all three by name, and list those of the truth that lack a prediction."""
    truth_annotations = read_annotations(locate_reference(truth))
    by_name = []
    for path in (first, second):
        scans, _, _ = pair_scans(
            read_annotations(path), truth_annotations, options, paths=(path, truth)
        )
        by_name.append({scan.name: scan for scan in scans})
    names = sorted(by_name[0].keys() & by_name[1].keys())
    if not names:
        raise ValueError(
            f"{first} and {second}: two detectors need a scan in common that {truth} knows; found "
            f"{len(by_name[0])} and {len(by_name[1])} scans, none of them the same."
        )
    missing = sorted({annotations.name for annotations in truth_annotations} - set(names))
    return tuple([scans[name] for name in names] for scans in by_name), tuple(missing)


def compare_scans(
    first: Sequence[ScanComparison],
    second: Sequence[ScanComparison],
    options: EvaluationOptions,
    thresholds: tuple[float, float],
) -> Comparison:
    """Compare what two detectors found in the same scans; see `compare_detectors`."""
    rule = RULES[options.match]
    figures = compare_figures(
        [scan.matches for scan in first],
        [scan.matches for scan in second],
        rule,
        thresholds=thresholds,
        seed=options.seed,
        draws=options.draws,
    )
    scans, lesions = [], []
    for pair in zip(first, second, strict=True):
        tables = [
            classify_lesions(scan, rule, threshold=threshold)
            for scan, threshold in zip(pair, thresholds, strict=True)
        ]
        rows = [make_scan_row(scan, table) for scan, table in zip(pair, tables, strict=True)]
        true = [table[table["outcome"].isin(["found", "missed"])] for table in tables]
        ranks = [float(table["rank"].astype(float).mean()) for table in true]
        shared = {key: rows[0][key] for key in ("scan", "participant_id", "protocol", "lesions")}
        counts = {
            f"{key}_{which}": row[key]
            for key in COMPARED_COUNTS
            for which, row in zip(("first", "second"), rows, strict=True)
        }
        same = all(rows[0][key] == rows[1][key] for key in COMPARED_COUNTS)
        same = same and bool(np.isclose(*ranks, equal_nan=True))
        scans.append(
            {**shared, **counts, "rank_mean_first": ranks[0], "rank_mean_second": ranks[1],
             "differ": "no" if same else "yes"}
        )  # fmt: skip
        lesions.append(_join_lesions(*true))
    return Comparison(
        options,
        thresholds,
        {name: values for name, values in figures.items() if name not in SHARED_FIGURES},
        pd.DataFrame(scans),
        pd.concat(lesions, ignore_index=True),
        (),
    )


def _join_lesions(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Join the outcomes of the same true lesions with both detectors, a row each."""
    table = first[list(LESION_COLUMNS)].reset_index(drop=True)
    for key in ("outcome", "rank", "false_above"):
        table[f"{key}_first"] = first[key].to_numpy()
        table[f"{key}_second"] = second[key].to_numpy()
    return table


def write_comparison(result: Comparison, folder: Path, *, names: tuple[str, ...]) -> None:
    """Write ``FILES``; the same comparison gives the same bytes.

    Args:
        result: To write.
        folder: Made if missing.
        names: Of the first and the second detector and the truth.
    """
    report, figures, scans, lesions = (folder / name for name in FILES)
    rows = [
        {"figure": name, "first": first, "second": second, "difference": difference.value,
         "low": difference.low, "high": difference.high}
        for name, (first, second, difference) in result.figures.items()
    ]  # fmt: skip
    rows = to_plain_rows(pd.DataFrame(rows))
    write_table(figures, rows[0], rows)
    write_table(scans, result.scans.columns, to_plain_rows(result.scans))
    write_table(lesions, result.lesions.columns, to_plain_rows(result.lesions))
    settings = {key: value for key, value in asdict(result.options).items() if key != "threshold"}
    differing = result.scans[result.scans["differ"] == "yes"]
    write_json(
        report,
        {
            **dict(zip(("first", "second", "truth"), names, strict=True)),
            **settings,
            "thresholds": list(result.thresholds),
            "reach_mm": None if result.options.match == "overlap" else MAX_DISTANCE_MM,
            "software": software(),
            "scans": len(result.scans),
            "lesions": len(result.lesions),
            "missing": list(result.missing),
            "figures": {
                row["figure"]: {key: to_plain_value(row[key]) for key in row if key != "figure"}
                for row in rows
            },
            "definitions": DEFINITIONS,
            "scans_that_differ": to_plain_rows(differing),
        },
    )
