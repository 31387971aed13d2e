"""Results of an evaluation, and their tables."""

from dataclasses import dataclass

import pandas as pd

from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.metrics.intervals import Figure
from bids_cmb.metrics.scores import FROCCurve


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        options: Of the evaluation.
        figures: By name, over all scans that have a prediction; ``…_all_scans`` over the missing
            ones too, as if nothing had been found there.
        curve: The FROC.
        breakdown: A row for each figure of each class: ``by``, ``class``, ``figure``, ``value``,
            ``low``, ``high``.
        lesions: Every true and found lesion and its outcome.
        scans: Counts, a row for each scan.
        missing: Scans of the truth without a prediction; they are in no other figure.
        without_truth: Scans with a prediction, but not in the truth; likewise.
    """

    options: EvaluationOptions
    figures: dict[str, Figure]
    curve: FROCCurve
    breakdown: pd.DataFrame
    lesions: pd.DataFrame
    scans: pd.DataFrame
    missing: tuple[str, ...]
    without_truth: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ReviewedEvaluation:
    """Result of an evaluation after review.

    Attributes:
        result: The evaluation of the lesions that count after review, of the reviewed scans.
        counts: A row for each scan: ``scan``, ``true``, ``found``, ``after`` and the verdicts.
        agreement: A row for every two readers.
    """

    result: Evaluation
    counts: list[dict]
    agreement: list[dict]


def make_metrics_table(result: Evaluation) -> pd.DataFrame:
    """Make a table of every figure, over all scans and by class, a row each."""
    pooled = [
        {"by": "all", "class": "all", "figure": name, **vars(figure)}
        for name, figure in result.figures.items()
    ]
    return pd.concat([pd.DataFrame(pooled), result.breakdown], ignore_index=True)


def make_froc_table(curve: FROCCurve) -> pd.DataFrame:
    """Make a table of the FROC, a row for each threshold at which something changes."""
    names = ("sensitivity", "fp_per_scan", "precision", "f1")
    columns = {name: getattr(curve.metrics, name) for name in names}
    # The first threshold is infinite: it leaves nothing.
    return pd.DataFrame({"threshold": curve.threshold, **columns}).iloc[1:]
