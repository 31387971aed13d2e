"""Evaluation: predicted against true lesions, from two folders to figures, tables and a page."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from bids_cmb.bids.paths import locate_candidate_table
from bids_cmb.evaluation.annotations import POSITION_COLUMNS, LesionAnnotations, read_annotations
from bids_cmb.evaluation.errors_by_class import break_down, classify_lesions, make_scan_row
from bids_cmb.evaluation.options import (
    EvaluationOptions,
    check_folder,
    check_options,
    locate_reference,
)
from bids_cmb.evaluation.outputs import write_evaluation
from bids_cmb.evaluation.pairing import make_empty_matches, pair_annotations, pair_scans
from bids_cmb.evaluation.results import Evaluation, ReviewedEvaluation
from bids_cmb.metrics.bootstrap import compute_figures
from bids_cmb.metrics.intervals import Figure
from bids_cmb.metrics.matching import RULES
from bids_cmb.metrics.scores import compute_froc
from bids_cmb.review.reviews import (
    Review,
    make_agreement_rows,
    make_reviewed_rows,
    merge_reviews,
    read_reviews,
)


def evaluate(
    predictions: Path,
    truth: Path,
    folder: Path,
    *,
    options: EvaluationOptions,
    overwrite: bool = False,
    reviews: Path | None = None,
) -> Evaluation:
    """Evaluate predictions, and write the files of `evaluation.outputs` to a folder.

    Args:
        predictions: Output folder of the app, folder of masks or tables, or one such file.
        truth: The same; or a table of coordinates for many scans.
        folder: To write; must be empty unless ``overwrite``.
        options: How to compare.
        overwrite: Whether an earlier evaluation there may be replaced.
        reviews: Folder of reviews of the predictions, for figures after review.

    Raises:
        ValueError: If ``folder`` is not empty, or as `compute_evaluation`.
        OSError: If a file cannot be read or written.
    """
    check_folder(folder, overwrite=overwrite)
    result = compute_evaluation(predictions, truth, options)
    reviewed = evaluate_reviews(predictions, truth, reviews, options) if reviews else None
    names = (predictions.resolve().name, truth.resolve().name)
    write_evaluation(result, folder, names=names, reviewed=reviewed)
    return result


def compute_evaluation(predictions: Path, truth: Path, options: EvaluationOptions) -> Evaluation:
    """Compare predicted with true lesions.

    Args:
        predictions: As `evaluate` takes them.
        truth: Likewise.
        options: How to compare.

    Raises:
        ValueError: If an option is not possible, a file cannot be used, a scan has
            several predictions, or predictions and truth have no scan in common.
        OSError: If a file cannot be read.
    """
    check_options(options)
    return compare_annotations(
        read_annotations(predictions),
        read_annotations(locate_reference(truth)),
        options,
        paths=(predictions, truth),
    )


def compare_annotations(
    predicted: Sequence[LesionAnnotations],
    truth: Sequence[LesionAnnotations],
    options: EvaluationOptions,
    *,
    paths: tuple[Path, Path],
) -> Evaluation:
    """Compare lesions that were read already; see `compute_evaluation`.

    Args:
        predicted: Predictions of every scan.
        truth: True lesions of every scan.
        options: How to compare.
        paths: Of predictions and truth.
    """
    scans, missing, unmatched = pair_scans(predicted, truth, options, paths=paths)
    rule, matches = RULES[options.match], [scan.matches for scan in scans]
    tables = [classify_lesions(scan, rule, threshold=options.threshold) for scan in scans]
    lesions = pd.concat(tables, ignore_index=True)
    counts = pd.DataFrame(
        [make_scan_row(scan, table) for scan, table in zip(scans, tables, strict=True)]
    )
    bootstrap = {"seed": options.seed, "draws": options.draws}
    figures = compute_figures(matches, rule, threshold=options.threshold, **bootstrap)
    empty = [make_empty_matches(annotations, options) for annotations in missing]
    all_figures = figures
    if empty:
        all_figures = compute_figures(
            [*matches, *empty], rule, threshold=options.threshold, **bootstrap
        )
    n_missed = float(sum((~scan.uncertain).sum() for scan in empty))
    return Evaluation(
        options,
        {
            **figures,
            "missing_scans": Figure(float(len(missing)), np.nan, np.nan),
            "missing_lesions": Figure(n_missed, np.nan, np.nan),
            "sensitivity_all_scans": all_figures["sensitivity"],
            "f1_all_scans": all_figures["f1"],
        },
        compute_froc(matches, rule),
        break_down(lesions, counts, scans, **bootstrap),
        lesions,
        counts,
        *_name_unpaired(missing, unmatched),
    )


def _name_unpaired(*sides: Sequence[LesionAnnotations]) -> Iterator[tuple[str, ...]]:
    """Name scans without a partner; with their contrasts those that differ by nothing else."""
    shared = set.intersection(*({scan.name for scan in side} for side in sides))
    for side in sides:
        yield tuple((scan.tell_contrast() if scan.name in shared else scan).name for scan in side)


def evaluate_reviews(
    predictions: Path, truth: Path, reviews: Path, options: EvaluationOptions
) -> ReviewedEvaluation:
    """Compare the lesions that count after review with true ones, on the reviewed scans.

    A lesion that a reader added has probability 1; it has no voxels, so that nothing overlaps it.
    So it is with a candidate that was accepted.

    Args:
        predictions: Output folder of the app.
        truth: As `evaluate` takes it.
        reviews: Folder of reviews.
        options: How to compare.

    Raises:
        ValueError: If a review cannot be used, or as `compute_evaluation`.
        OSError: If a file cannot be read.
    """
    by_scan = read_reviews(reviews, predictions)
    predicted, true = read_annotations(predictions), read_annotations(locate_reference(truth))
    by_mask = {_get_mask_name(annotations, predictions): annotations for annotations in predicted}
    reviewed = {
        mask: apply_reviews(by_mask[mask], given, _read_candidates(predictions / mask))
        for mask, given in by_scan.items()
    }
    paths = (predictions, truth)
    result = compare_annotations(list(reviewed.values()), true, options, paths=paths)
    before = compare_annotations([by_mask[mask] for mask in reviewed], true, options, paths=paths)
    rows = make_reviewed_rows(predictions, by_scan)
    pairs, _, _ = pair_annotations([by_mask[mask] for mask in reviewed], true)
    verdicts = {scan.name: rows[_get_mask_name(each, predictions)] for each, scan in pairs}
    after = {row["scan"]: row["found"] for row in result.scans.to_dict("records")}
    counts = [
        {"scan": row["scan"], "true": row["lesions"], "found": row["found"],
         "after": after[row["scan"]], **verdicts[row["scan"]]}
        for row in before.scans.to_dict("records")
    ]  # fmt: skip
    return ReviewedEvaluation(result, counts, make_agreement_rows(predictions, by_scan))


def _get_mask_name(annotations: LesionAnnotations, folder: Path) -> str:
    """Get the lesion mask of annotations, as reviews name it."""
    if annotations.file is None or not folder.is_dir():
        return ""
    name = annotations.file.name.replace("_seg-CMB_", "_label-CMB_").replace(
        "_dseg.tsv", "_mask.nii.gz"
    )
    return annotations.file.with_name(name).relative_to(folder).as_posix()


def _read_candidates(mask: Path) -> pd.DataFrame | None:
    """Read the candidates of a scan that are no lesions; None without any."""
    table = locate_candidate_table(mask)
    return read_annotations(table)[0].lesions if table.is_file() else None


def apply_reviews(
    predicted: LesionAnnotations,
    reviews: Sequence[Review],
    candidates: pd.DataFrame | None = None,
) -> LesionAnnotations:
    """Apply the reviews of a scan: keep its accepted lesions, and add what the readers found.

    Args:
        predicted: Its lesions.
        reviews: Of its readers.
        candidates: Below the threshold of lesions, with the columns of these; only accepted ones
            are added.
    """
    listed = _join_tables([predicted.lesions, *([] if candidates is None else [candidates])])
    consensus = merge_reviews(listed["index"].tolist(), reviews)
    verdicts = listed["index"].map(consensus.verdicts)
    is_lesion = np.arange(len(listed)) < len(predicted.lesions)
    kept = listed[(verdicts == "accept") | ((verdicts == "not_reviewed") & is_lesion)].copy()
    kept["included"] |= verdicts[kept.index] == "accept"
    kept.loc[kept.index >= len(predicted.lesions), "probability"] = 1.0
    highest = int(listed["index"].max()) if len(listed) else 0
    added = pd.DataFrame(consensus.added, columns=POSITION_COLUMNS).assign(
        index=np.arange(len(consensus.added)) + highest + 1,
        diameter_mm=np.nan, probability=1.0, uncertain=False, included=True,
    )  # fmt: skip
    return replace(predicted, lesions=_join_tables([kept, added]))


def _join_tables(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Join tables, the first of which has all columns; empty ones have no say in their types."""
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
