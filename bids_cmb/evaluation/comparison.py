"""Comparison: two detectors on the same scans, what one has more, and how sure that is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from bids_cmb.bids.tables import write_table
from bids_cmb.evaluation.annotations import POSITION, read_annotations
from bids_cmb.evaluation.errors_by_class import ScanComparison, classify_lesions, scan_row
from bids_cmb.evaluation.evaluate import (
    EvaluationOptions,
    check_folder,
    check_settings,
    pair_scans,
    plain_rows,
    plain_value,
)
from bids_cmb.evaluation.page import DEFINITIONS
from bids_cmb.files import write_json
from bids_cmb.metrics.bootstrap import compare_figures
from bids_cmb.metrics.intervals import Figure
from bids_cmb.metrics.matching import MAX_DISTANCE_MM, RULES
from bids_cmb.provenance import software

FILES = ("comparison.json", "figures.tsv", "scans.tsv", "lesions.tsv")
SAME = ("scans", "lesions", "lesions_large")  # figures that two detectors cannot differ in
COUNTS = ("found", "false_alarms", "misses")  # of a scan, for each detector
LESION = ("scan", "index", *POSITION, "diameter_mm", "size", "region", "territory")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What two detectors found in the same scans.

    Attributes:
        options: How they were compared; its threshold is the first detector's.
        thresholds: Of both.
        figures: By name: the first detector's, the second's, and the second minus the first with
            its 95 % interval over subjects, the same ones drawn for both.
        scans: A row each: their counts at the thresholds, the ranks' mean, and whether the two
            ``differ`` in any of them.
        lesions: Every sure true lesion, what became of it and its rank with either detector.
        missing: Scans of the truth that either left without a prediction; they are in no figure.
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
        folder: Where to; must not hold anything unless ``overwrite``.
        options: How to compare; its threshold is not looked at.
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
        check_settings(replace(options, threshold=threshold))
    both, missing = _common_scans(first, second, truth, options)
    result = compare_scans(*both, replace(options, threshold=thresholds[0]), thresholds)
    result = replace(result, missing=missing)
    names = tuple(path.resolve().name for path in (first, second, truth))
    write_comparison(result, folder, names=names)
    return result


def _common_scans(
    first: Path, second: Path, truth: Path, options: EvaluationOptions
) -> tuple[tuple[list[ScanComparison], list[ScanComparison]], tuple[str, ...]]:
    """The scans of all three by name, and those of the truth that lack a prediction."""
    true = read_annotations(truth)
    of = []
    for path in (first, second):
        scans, _, _ = pair_scans(read_annotations(path), true, options, places=(path, truth))
        of.append({scan.name: scan for scan in scans})
    names = sorted(of[0].keys() & of[1].keys())
    if not names:
        raise ValueError(
            f"{first} and {second}: two detectors need a scan in common that {truth} knows; found "
            f"{len(of[0])} and {len(of[1])} scans, none of them the same."
        )
    missing = sorted({marks.name for marks in true} - set(names))
    return ([of[0][name] for name in names], [of[1][name] for name in names]), tuple(missing)


def compare_scans(
    first: Sequence[ScanComparison],
    second: Sequence[ScanComparison],
    options: EvaluationOptions,
    thresholds: tuple[float, float],
) -> Comparison:
    """Compare what two detectors found in the same scans; see `compare_detectors`."""
    rule = RULES[options.match]
    figures = compare_figures(
        [scan.case for scan in first],
        [scan.case for scan in second],
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
        rows = [scan_row(scan, table) for scan, table in zip(pair, tables, strict=True)]
        sure = [table[table["outcome"].isin(["found", "missed"])] for table in tables]
        ranks = [float(table["rank"].astype(float).mean()) for table in sure]
        known = {key: rows[0][key] for key in ("scan", "participant_id", "protocol", "lesions")}
        of_both = {
            f"{key}_{which}": row[key]
            for key in COUNTS
            for which, row in zip(("first", "second"), rows, strict=True)
        }
        same = all(rows[0][key] == rows[1][key] for key in COUNTS)
        same = same and bool(np.isclose(*ranks, equal_nan=True))
        scans.append(
            {**known, **of_both, "rank_mean_first": ranks[0], "rank_mean_second": ranks[1],
             "differ": "no" if same else "yes"}
        )  # fmt: skip
        lesions.append(_lesions(*sure))
    return Comparison(
        options,
        thresholds,
        {name: of for name, of in figures.items() if name not in SAME},
        pd.DataFrame(scans),
        pd.concat(lesions, ignore_index=True),
        (),
    )


def _lesions(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The same true lesions with both detectors, a row each."""
    table = first[list(LESION)].reset_index(drop=True)
    for key in ("outcome", "rank", "false_above"):
        table[f"{key}_first"] = first[key].to_numpy()
        table[f"{key}_second"] = second[key].to_numpy()
    return table


def write_comparison(result: Comparison, folder: Path, *, names: tuple[str, ...]) -> None:
    """Write ``FILES``; the same comparison gives the same bytes.

    Args:
        result: What to write.
        folder: Where to; made if missing.
        names: What the first and the second detector and the truth are called.
    """
    report, figures, scans, lesions = (folder / name for name in FILES)
    rows = [
        {"figure": name, "first": one, "second": other, "difference": more.value,
         "low": more.low, "high": more.high}
        for name, (one, other, more) in result.figures.items()
    ]  # fmt: skip
    rows = plain_rows(pd.DataFrame(rows))
    write_table(figures, rows[0], rows)
    write_table(scans, result.scans.columns, plain_rows(result.scans))
    write_table(lesions, result.lesions.columns, plain_rows(result.lesions))
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
                row["figure"]: {key: plain_value(row[key]) for key in row if key != "figure"}
                for row in rows
            },
            "definitions": DEFINITIONS,
            "scans_that_differ": plain_rows(differing),
        },
    )
