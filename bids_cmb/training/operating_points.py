"""Set the operating points of a two-stage detector: candidates, calibration and thresholds."""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit

from bids_cmb.anatomy.scan_anatomy import BrainSource, get_brain_mask, segment_with_network
from bids_cmb.bids.filters import Query
from bids_cmb.bids.selection import find_scans
from bids_cmb.bids.tables import DIAMETER_COLUMNS
from bids_cmb.config import BALANCED
from bids_cmb.detection.calibration import calibrate
from bids_cmb.detection.ensemble import predict_second_opinion
from bids_cmb.detection.performance import REAL, SIMULATED
from bids_cmb.detection.two_stage import (
    OPINION_LEAST,
    add_opinion,
    ask_for_opinion,
    combine,
    compute_logits,
    decide,
    drop_doubles,
    find_doubles,
    propose,
)
from bids_cmb.detection.views import select_for_protocol
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.protocol_kinds import classify_protocol
from bids_cmb.metrics.matching import MAX_DISTANCE_MM, match_valdo
from bids_cmb.metrics.scores import (
    ScanMatches,
    compute_froc,
    compute_metrics,
    make_scan_matches,
    rank_lesions,
)
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.training.scan_files import find_training_scans

MIN_SLOPE = 0.05  # of a calibration: a likelier candidate stays the likelier one
MAX_FALSE_ON_REAL = 0.6  # per scan, of a threshold that is set on real ones
MIN_DEFINITE_PROBABILITY = 0.5  # calibrated, from which a candidate is called definite
Log = Callable[[str], None]
Lesion = tuple[tuple[float, float, float], float, bool]  # position, diameter, whether it is sure


@dataclass(frozen=True, eq=False)
class ScanCandidates:
    """The candidates of a two-stage detector in a scan with truth.

    Attributes:
        name: Of the scan.
        positions: Of the candidates, world mm, (N, 3).
        proposed: First-stage probability of each, (N,).
        chance: Of each, before any calibration, (N,).
        lesions: Position (world mm), diameter (mm) and whether it is sure, of each true one.
        opinion: Probability of each by the detector that gives a second opinion, (N,); None if
            none does.
        kind: Of protocol, as `imaging.protocol_kinds.classify_protocol` has it.
        contrast: BIDS suffix of the scan.
        doubles: Pairs of candidates that are one lesion, as `two_stage.find_doubles` finds them.
    """

    name: str
    positions: np.ndarray
    proposed: np.ndarray
    chance: np.ndarray
    lesions: tuple[Lesion, ...]
    opinion: np.ndarray | None = None
    kind: str | None = None
    contrast: str | None = None
    doubles: tuple[tuple[int, int], ...] = ()

    def match(self, scores: np.ndarray) -> ScanMatches:
        """Match the candidates, with these scores (N,), to the lesions; of doubles only one."""
        kept = drop_doubles(np.asarray(scores), self.doubles)
        return make_scan_matches(
            list(zip(self.positions[kept].tolist(), scores[kept].tolist(), strict=True)),
            self.lesions,
            name=self.name,
        )


def detect_in_dataset(
    card: Mapping, models: ModelOptions, data: Path, log: Log = lambda _: None
) -> list[ScanCandidates]:
    """Run a detector of two stages on a dataset with truth, as the app would.

    Args:
        card: Of the detector.
        models: Where its weights lie.
        data: A BIDS dataset, its truth in ``derivatives/truth``.
        log: Called with a sentence on the progress.
    """
    candidate_sets = []
    for paths in find_training_scans(data):
        lesions = tuple(_read_lesions(paths.lesions))
        candidate_sets.append(detect_in_scan(card, models, paths.image, lesions, name=paths.name))
        log(f"{paths.name}: {len(candidate_sets[-1].chance)} candidates")
    return candidate_sets


def detect_with_points(
    card: Mapping, models: ModelOptions, data: Path, table: Path, log: Log = lambda _: None
) -> Iterator[ScanCandidates]:
    """Run a detector of two stages on scans whose truth is a table of points.

    Args:
        card: Of the detector.
        models: Where its weights lie.
        data: A BIDS dataset.
        table: Tab-separated, with the columns ``subject`` (``sub-01``), ``x_mm``, ``y_mm``,
            ``z_mm``, and ``diameter_mm`` or ``equiv_diameter_mm`` if known.
        log: Called with a sentence on the progress.

    Raises:
        ValueError: If the table lacks a column, or the dataset has no scan to process.
    """
    rows = pd.read_csv(table, sep="\t")
    if lacking := sorted({"subject", "x_mm", "y_mm", "z_mm"} - set(rows)):
        raise ValueError(f"{table}: must have the columns subject, x_mm, y_mm and z_mm; lacks "
                         f"{', '.join(lacking)}.")  # fmt: skip
    scans = find_scans(data.absolute(), Query()).scans
    if not scans:
        raise ValueError(f"{data}: must have scans to process; found none.")
    for path in (scan.path for scan in scans):
        of_scan = rows[rows.subject == path.name.partition("_")[0]]
        lesions = [((row["x_mm"], row["y_mm"], row["z_mm"]), _get_diameter(row), True)
                   for row in of_scan.to_dict("records")]  # fmt: skip
        yield detect_in_scan(card, models, path, lesions, name=path.name.split(".")[0])
        log(f"{path.name}: {len(lesions)} lesions")


def _get_diameter(row: Mapping) -> float:
    """Get the diameter of a row, mm; NaN without."""
    cells = (row[name] for name in DIAMETER_COLUMNS if row.get(name) not in (None, "n/a"))
    return float(next(cells, math.nan))


def detect_in_scan(
    card: Mapping, models: ModelOptions, path: Path, lesions: Sequence[Lesion], *, name: str
) -> ScanCandidates:  # fmt: skip
    """Run a detector of two stages on one scan, as the app would.

    Args:
        card: Of the detector. Without operating points, the second opinion is asked about every
            candidate, so that weights can be fitted.
        models: Where its weights lie.
        path: Of the image.
        lesions: The true ones, as `ScanCandidates` has them.
        name: Of the scan.
    """
    image, _ = load(path)
    card = select_for_protocol(card, image.spacing)
    segmented = segment_with_network(image, ModelOptions())
    anatomy, brain = segmented.head, get_brain_mask(image, BrainSource(path), segmented).mask
    fed, probability, proposals = propose(image, brain, card, models)
    alone = {**card, "first_stage_weight": 0.0}
    chance = decide(fed, probability, proposals, alone, models, anatomy)
    voxels = np.array([proposal.voxel for proposal in proposals]).reshape(-1, 3)
    proposed = np.array([proposal.probability for proposal in proposals])
    positions = probability.world(voxels)
    opinion = None
    if "second_opinion" in card:
        both = combine(compute_logits(chance), proposed, card.get("first_stage_weight", 0.0))
        ask = partial(predict_second_opinion, card, image, brain, models)
        opinion = ask_for_opinion(both, positions, card, ask)
    return ScanCandidates(
        name, positions, proposed, chance, tuple(lesions), opinion,
        kind=classify_protocol(image.spacing),
        contrast=path.name.partition(".")[0].rpartition("_")[2],
        doubles=tuple(find_doubles(voxels, probability.spacing)),
    )  # fmt: skip


def _read_lesions(labels: Path):
    table = labels.with_name(labels.name.replace(".nii.gz", ".tsv"))
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            place = tuple(float(row[name]) for name in ("x_mm", "y_mm", "z_mm"))
            yield place, _get_diameter(row), row["certainty"] == "definite"


def set_operating_points(
    candidate_sets: Sequence[ScanCandidates],
    aims: Mapping[str, float],
    real: Sequence[ScanCandidates] = (),
) -> dict:
    """Calibrate the probabilities, and choose the threshold of each aim.

    Args:
        candidate_sets: Scans that no network learnt from.
        aims: Of each operating point, the false candidates per scan that it may cost.
        real: Real scans with truth. With them, the threshold of ``balanced`` is the one of the
            best F1 there at no more than `MAX_FALSE_ON_REAL` false candidates per scan; nothing
            else is set by them.

    Returns:
        What goes onto the card: ``calibration``, the weights, ``operating_points`` with
        their figures, ``threshold`` (that of ``balanced``), ``definite_threshold`` and
        ``performance``, as `detection.performance.select_performance` reads it.
    """
    fitted = fit_calibration(candidate_sets)
    weights = {key: fitted.pop(key) for key in list(fitted) if key.endswith("_weight")}

    def score(scans: Sequence[ScanCandidates]) -> list[ScanMatches]:
        return [
            scan.match(calibrate(combine_probabilities(scan, weights), fitted)) for scan in scans
        ]

    simulated, measured = score(candidate_sets), score(real)
    curve = compute_froc(simulated, match_valdo)
    thresholds = {
        name: _round_down(min(float(curve.threshold[curve.reading(aim)]), 1.0))
        for name, aim in aims.items()
    }
    if measured:
        thresholds[BALANCED] = find_best_f1_threshold(measured, MAX_FALSE_ON_REAL)
    points = []
    for name, threshold in thresholds.items():
        point = {"name": name, "threshold": threshold, **_measure_figures(threshold, simulated)}
        if measured and name == BALANCED:
            point["set_on"] = f"{len(real)} real scans"
        else:
            point["false_per_scan_aimed_at"] = aims[name]
        if measured:
            figures = _measure_figures(threshold, measured)
            point |= {f"{key}_on_real": value for key, value in figures.items()}
        points.append(point)
    return {
        "calibration": fitted,
        **weights,
        "operating_points": points,
        "threshold": thresholds[BALANCED],
        "definite_threshold": max(MIN_DEFINITE_PROBABILITY, thresholds[BALANCED]),
        "performance": [
            *_measure_performance(REAL, "contrast", real, measured, thresholds),
            *_measure_performance(SIMULATED, "kind", candidate_sets, simulated, thresholds),
        ],
    }


def _measure_performance(
    data: str, group: str, scans: Sequence[ScanCandidates], matches: Sequence[ScanMatches],
    thresholds: Mapping[str, float],
) -> list[dict]:  # fmt: skip
    """Measure what is found in each group of scans, by `kind` or `contrast`, at each threshold."""
    names = [getattr(scan, group) for scan in scans]
    return [
        {
            "data": data,
            group: name,
            **_measure_group(
                [match for match, other in zip(matches, names, strict=True) if other == name],
                sorted(thresholds.values()),
            ),
        }
        for name in sorted(set(filter(None, names)))
    ]


def _measure_group(matches: Sequence[ScanMatches], thresholds: Sequence[float]) -> dict:
    """Count the sure lesions of scans, and those found at each threshold."""
    metrics = [compute_metrics(matches, match_valdo, threshold=value) for value in thresholds]
    return {
        "scans": len(matches),
        "microbleeds": int(metrics[0].lesions),
        "points": [
            {
                "threshold": threshold,
                "found": int(metric.lesions - metric.misses),
                "false_per_scan": round(float(metric.fp_per_scan), 2),
            }
            for threshold, metric in zip(thresholds, metrics, strict=True)
        ],
    }


def find_best_f1_threshold(matches: Sequence[ScanMatches], most_false: float) -> float:
    """Find the threshold of the best F1 at no more false candidates per scan than that.

    It lies halfway, in log-odds, between the least likely candidate that counts and the next, so
    that a last digit which another processor gives differently moves no candidate over it. Of
    equal F1, the higher threshold.
    """
    curve = compute_froc(matches, match_valdo)
    here = float(curve.threshold[curve.best(most_false)])
    below = curve.threshold[curve.threshold < here]
    between = compute_logits([here, below[0] if len(below) else 0]).mean()
    return _round_down(float(expit(between)))


def _measure_figures(threshold: float, matches: Sequence[ScanMatches]) -> dict[str, float]:
    """Measure sensitivity, false candidates and F1 at a threshold."""
    metrics = compute_metrics(matches, match_valdo, threshold=threshold)
    return {
        "false_per_scan": round(float(metrics.fp_per_scan), 3),
        "sensitivity": round(float(metrics.sensitivity), 3),
        "sensitivity_large": round(float(metrics.sensitivity_large), 3),
        "f1": round(float(metrics.f1), 3),
    }


def _round_down(chance: float) -> float:
    return math.floor(chance * 1e4) / 1e4


def fit_calibration(candidate_sets: Sequence[ScanCandidates]) -> dict[str, float]:
    """Fit the logistic curve that calibrates the probabilities of candidates.

    Args:
        candidate_sets: Scans with the chances of the second stage alone.

    Returns:
        ``slope`` and ``offset`` of the log-odds, as `detection.calibration.calibrate` takes them;
        ``first_stage_weight`` and, if there is one, ``second_opinion_weight``, by which those of
        the first stage and of the second opinion are added before (0 or more).
    """
    second, first, other, hits = [], [], [], []
    for scan in candidate_sets:
        matches = replace(scan, doubles=()).match(scan.chance)
        sure = matches.between[:, ~matches.uncertain]
        near = matches.between.min(axis=1, initial=np.inf) < MAX_DISTANCE_MM
        hit = sure.min(axis=1, initial=np.inf) < MAX_DISTANCE_MM
        kept = hit | ~near  # those of an uncertain lesion are left out
        second.append(compute_logits(scan.chance)[kept])
        first.append(compute_logits(scan.proposed[kept]))
        if scan.opinion is not None:
            other.append(compute_logits(scan.opinion[kept], OPINION_LEAST))
        hits.append(hit[kept])
    second, first = np.concatenate(second), np.concatenate(first)
    hits = np.concatenate(hits).astype(float)
    alone = np.array_equal(second, first)  # there is no second stage
    columns = [second, 0 * first if alone else first, *([np.concatenate(other)] if other else [])]
    features = np.stack([*columns, np.ones_like(second)], axis=1)

    def compute_loss(factors: np.ndarray) -> tuple[float, np.ndarray]:
        odds = features @ factors
        loss = np.sum(np.logaddexp(0, odds) - hits * odds)
        return float(loss), features.T @ (expit(odds) - hits)

    bounds = [(MIN_SLOPE, None), *[(0, None)] * (len(columns) - 1), (None, None)]
    start = (1.0, *[0.0] * len(columns))
    slope, *weights, offset = minimize(compute_loss, start, jac=True, bounds=bounds).x
    names = ("first_stage_weight", "second_opinion_weight")
    return {
        "slope": round(float(slope), 4),
        "offset": round(float(offset), 4),
        **{
            name: round(float(weight / slope), 4)
            for name, weight in zip(names, weights, strict=False)
        },
    }


def combine_probabilities(scan: ScanCandidates, weights: Mapping[str, float]) -> np.ndarray:
    """Combine classifier, first stage and second opinion by the weights of a card, (N,)."""
    chance = combine(
        compute_logits(scan.chance), scan.proposed, weights.get("first_stage_weight", 0.0)
    )
    if scan.opinion is None:
        return chance
    return add_opinion(chance, scan.opinion, weights.get("second_opinion_weight", 0.0))


def convert_to_json(scan: ScanCandidates) -> dict:
    """Convert the candidates and lesions of a scan to JSON."""
    ranks = rank_lesions(scan.match(scan.chance), match_valdo)
    return {
        "name": scan.name,
        "candidates": [
            {"position_mm": [round(coordinate, 2) for coordinate in position],
             "proposed": round(float(first), 6), "chance": round(float(second), 6),
             **({} if scan.opinion is None else {"opinion": round(float(scan.opinion[row]), 4)})}
            for row, (position, first, second) in enumerate(zip(
                scan.positions.tolist(), scan.proposed, scan.chance, strict=True
            ))
        ],
        "doubles": [list(pair) for pair in scan.doubles],
        "lesions": [
            {"position_mm": position, "diameter_mm": diameter, "sure": sure}
            for position, diameter, sure in scan.lesions
        ],
        "ranks_of_sure_lesions": ranks.rank.tolist(),
        "kind": scan.kind,
        "contrast": scan.contrast,
    }  # fmt: skip
