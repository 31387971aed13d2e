"""Pairing of predictions with the truth, scan by scan."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from bids_cmb.bids.tables import read_table
from bids_cmb.evaluation.annotations import LesionAnnotations, read_mimics
from bids_cmb.evaluation.errors_by_class import UNKNOWN_CLASS, ScanComparison
from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.evaluation.overlap import measure_shared_volume
from bids_cmb.metrics.scores import ScanMatches

MAX_HEAD_MM = 300.0  # no two points of a head are this far apart


def pair_scans(
    predicted: Sequence[LesionAnnotations],
    truth: Sequence[LesionAnnotations],
    options: EvaluationOptions,
    *,
    paths: tuple[Path, Path],
) -> tuple[list[ScanComparison], list[LesionAnnotations], list[LesionAnnotations]]:
    """Pair predictions with the truth, and compare the lesions of every scan of both.

    Args:
        predicted: Predictions of every scan.
        truth: True lesions of every scan.
        options: How to compare.
        paths: Of predictions and truth.

    Returns:
        scans: By name.
        missing: Truth without a prediction.
        unmatched: Predictions without truth.

    Raises:
        ValueError: As `pair_annotations`, or if predictions and truth have no scan in common.
    """
    pairs, missing, unmatched = pair_annotations(predicted, truth)
    if not pairs:
        raise ValueError(
            f"{paths[0]}: predictions and truth need a scan in common; found "
            f"{_list_some(predicted)} here and {_list_some(truth)} in {paths[1]}."
        )
    protocols = read_protocols(paths[1])
    return [_compare_scan(*pair, options, protocols) for pair in pairs], missing, unmatched


def pair_annotations(
    predicted: Sequence[LesionAnnotations], truth: Sequence[LesionAnnotations]
) -> tuple[
    list[tuple[LesionAnnotations, LesionAnnotations]],
    list[LesionAnnotations],
    list[LesionAnnotations],
]:
    """Find the prediction of every scan of the truth.

    Two match if no entity or contrast that both name differs; one with the same entities wins, of
    these one of the same contrast.

    Returns:
        pairs: Prediction and truth, by name.
        missing: Truth without a prediction.
        unmatched: Predictions without truth.

    Raises:
        ValueError: If a scan has several predictions, or a prediction fits several scans.
    """
    by_participant = defaultdict(list)
    for number, annotations in enumerate(predicted):
        by_participant[annotations.entities.get("sub")].append(number)
    anonymous = by_participant[None]
    pairs, missing, taken_by = [], [], defaultdict(list)
    for true in sorted(truth, key=lambda annotations: annotations.name):
        participant = true.entities.get("sub")
        numbers = range(len(predicted)) if participant is None else by_participant[participant]
        if participant is not None and anonymous:
            numbers = sorted([*numbers, *anonymous])
        matching = [number for number in numbers if predicted[number].may_match(true)]
        same = [number for number in matching if predicted[number].entities == true.entities]
        matching = same or matching
        alike = [number for number in matching if predicted[number].contrast == true.contrast]
        matching = alike or matching
        _require_single(
            [predicted[number] for number in matching],
            f"{true.name}: a scan of the truth needs one prediction",
        )
        if matching:
            pairs.append((predicted[matching[0]], true))
            taken_by[matching[0]].append(true)
        else:
            missing.append(true)
    for number, takers in taken_by.items():
        _require_single(
            takers, f"{predicted[number].name}: a prediction needs one scan of the truth"
        )
    unmatched = [item for number, item in enumerate(predicted) if number not in taken_by]
    return pairs, missing, unmatched


def read_protocols(truth: Path) -> dict[str, str]:
    """Read the protocol of each participant, from ``participants.tsv`` in or around the truth."""
    for folder in (truth, truth.parent.parent):
        table = folder / "participants.tsv"
        if table.is_file():
            return {
                row["participant_id"]: row["protocol"]
                for row in read_table(table)
                if row.get("participant_id") and row.get("protocol")
            }
    return {}


def _require_single(annotations: list[LesionAnnotations], rule: str) -> None:
    if len(annotations) > 1:
        names = " and ".join(item.file.name if item.file else item.name for item in annotations[:3])
        raise ValueError(f"{rule}; found {len(annotations)}: {names}.")


def _list_some(annotations: list[LesionAnnotations]) -> str:
    names = sorted(item.tell_contrast().name for item in annotations)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _compare_scan(
    predicted: LesionAnnotations,
    truth: LesionAnnotations,
    options: EvaluationOptions,
    protocols: dict[str, str],
) -> ScanComparison:
    counted = predicted.lesions["included"].to_numpy(bool)
    predicted = replace(predicted, lesions=predicted.lesions[counted].reset_index(drop=True))
    between = cdist(predicted.positions, truth.positions)
    if between.size and between.min() > MAX_HEAD_MM:
        raise ValueError(
            f"{truth.name}: found and true lesions must be given in one space, world mm; those "
            f"nearest to each other are {between.min():.0f} mm apart."
        )
    if options.match == "overlap":
        between = measure_shared_volume(predicted, truth)
    subject = truth.entities.get("sub") or predicted.entities.get("sub") or ""
    probability = predicted.lesions["probability"].to_numpy(float)
    matches = _make_matches(truth, options, subject, probability, between)
    protocol = (
        protocols.get(f"sub-{subject}") or _describe_protocol(predicted.sidecar) or UNKNOWN_CLASS
    )
    return ScanComparison(truth.name, protocol, predicted, truth, matches, read_mimics(truth))


def make_empty_matches(truth: LesionAnnotations, options: EvaluationOptions) -> ScanMatches:
    """Make the matches of a scan without a prediction, as if nothing had been found in it."""
    subject, between = truth.entities.get("sub") or "", np.zeros((0, len(truth.lesions)))
    return _make_matches(truth, options, subject, np.zeros(0), between)


def _make_matches(
    truth: LesionAnnotations,
    options: EvaluationOptions,
    subject: str,
    probability: np.ndarray,
    between: np.ndarray,
) -> ScanMatches:
    ignored = truth.lesions["uncertain"] | ~truth.lesions["included"]
    return ScanMatches(
        f"sub-{subject}" if subject else truth.name,
        probability,
        between,
        ignored.to_numpy(bool) & (options.uncertain == "ignore"),
        truth.lesions["diameter_mm"].to_numpy(float),
        truth.name,
    )


def _describe_protocol(sidecar: dict) -> str:
    """Describe the protocol by the app's sidecar: ``3 T, 20 ms, 4 mm``."""
    row = sidecar.get("Microbleeds") or {}
    units = {"field_strength_t": "T", "echo_time_ms": "ms", "slice_spacing_mm": "mm"}
    return ", ".join(
        f"{row[key]:g} {unit}" for key, unit in units.items() if row.get(key) is not None
    )
