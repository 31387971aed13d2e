"""Evaluation: found against true lesions, from two folders to tables and one page of figures."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from bids_cmb.bids.tables import read_table, write_table
from bids_cmb.evaluation.annotations import (
    POSITION,
    LesionAnnotations,
    read_annotations,
    read_mimics,
    shared_volume,
)
from bids_cmb.evaluation.errors_by_class import (
    UNKNOWN_CLASS,
    ScanComparison,
    breakdown,
    classify_lesions,
    scan_row,
)
from bids_cmb.evaluation.page import DEFINITIONS, page
from bids_cmb.files import write_json, write_text
from bids_cmb.metrics.bootstrap import compute_figures
from bids_cmb.metrics.intervals import Figure
from bids_cmb.metrics.matching import MAX_DISTANCE_MM, RULES
from bids_cmb.metrics.scores import FROCCurve, ScanMatches, compute_froc
from bids_cmb.provenance import software
from bids_cmb.review.reviews import (
    Review,
    make_agreement_rows,
    make_reviewed_rows,
    merge_reviews,
    read_reviews,
)

DRAWS = 2000
FILES = ("metrics.tsv", "lesions.tsv", "froc.tsv", "metrics.json", "evaluation.html")
REVIEWS = "reviews.tsv"
UNCERTAIN = ("ignore", "include")
HEAD_MM = 300.0  # no two places of one head lie this far apart


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Attributes:
        match: The rule, a key of ``RULES``.
        threshold: Found lesions of a lower probability are left out; the FROC takes all.
        uncertain: ``ignore`` if true lesions that are marked possible, not visible or not included
            are neither missed nor found, ``include`` if they are lesions like all others.
        seed: Of the bootstrap.
        draws: Of the bootstrap.
    """

    match: str = "valdo"
    threshold: float = 0.0
    uncertain: str = "ignore"
    seed: int = 0
    draws: int = DRAWS


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that an evaluation found out.

    Attributes:
        options: How it was made.
        figures: By name, over all scans that have a prediction; ``…_all_scans`` over the missing
            ones too, as if nothing had been found there.
        curve: The FROC.
        breakdown: A row for each figure of each class: ``by``, ``class``, ``figure``, ``value``,
            ``low``, ``high``.
        lesions: Every true and found lesion and its outcome.
        scans: Their counts, a row each.
        missing: Scans of the truth without a prediction; they are in no other figure.
        without_truth: Scans with a prediction that the truth does not know; likewise.
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
class Reviewed:
    """What became of the found lesions in the readers' hands.

    Attributes:
        result: The evaluation of what they left and added, of the same scans.
        counts: A row for each scan: ``scan``, ``true``, ``found``, and what the readers said.
        agreement: How far every two readers agree.
    """

    result: Evaluation
    counts: list[dict]
    agreement: list[dict]


def evaluate(
    predictions: Path,
    truth: Path,
    folder: Path,
    *,
    options: EvaluationOptions,
    overwrite: bool = False,
    reviews: Path | None = None,
) -> Evaluation:
    """Compare and write ``FILES`` to a folder; with reviews ``REVIEWS`` too.

    Args:
        predictions: Output folder of the app, folder of masks or tables, or one such file.
        truth: The same; or a table of coordinates for many scans.
        folder: Where to; must not hold anything unless ``overwrite``.
        options: How to compare.
        overwrite: Whether an earlier evaluation there may be replaced.
        reviews: Folder of reviews of the predictions, for the figures after them.

    Raises:
        ValueError: If ``folder`` is not empty, or as `measure`.
        OSError: If a file cannot be read or written.
    """
    check_folder(folder, overwrite=overwrite)
    result = measure(predictions, truth, options)
    reviewed = measure_reviewed(predictions, truth, reviews, options) if reviews else None
    names = (predictions.resolve().name, truth.resolve().name)
    write(result, folder, names=names, reviewed=reviewed)
    return result


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write over what is there unless that is wanted.

    Raises:
        ValueError: If the folder holds anything.
    """
    if folder.exists() and not overwrite and any(folder.iterdir()):
        raise ValueError(
            f"{folder}: an evaluation needs an empty folder or --overwrite; found files in it."
        )


def measure(predictions: Path, truth: Path, options: EvaluationOptions) -> Evaluation:
    """Compare found with true lesions.

    Raises:
        ValueError: If an option is not possible, a file cannot be used, a scan has
            several predictions, or predictions and truth have no scan in common.
        OSError: If a file cannot be read.
    """
    check_settings(options)
    return compare(
        read_annotations(predictions), read_annotations(truth), options, places=(predictions, truth)
    )


def measure_reviewed(
    predictions: Path, truth: Path, reviews: Path, options: EvaluationOptions
) -> Reviewed:
    """Compare what readers left of the found lesions, and what they added, with true ones.

    Only the scans that were reviewed are compared, as found and as reviewed. A lesion that they
    added has probability 1; it has no voxels, so that nothing can overlap with it.

    Raises:
        ValueError: If a review cannot be used, or as `measure`.
        OSError: If a file cannot be read.
    """
    known = read_reviews(reviews, predictions)
    found, true = read_annotations(predictions), read_annotations(truth)
    by_mask = {_mask_of(marks, predictions): marks for marks in found}
    changed = {mask: reviewed_annotations(by_mask[mask], own) for mask, own in known.items()}
    places = (predictions, truth)
    result = compare(list(changed.values()), true, options, places=places)
    before = compare([by_mask[mask] for mask in changed], true, options, places=places)
    numbers = make_reviewed_rows(predictions, known)
    of_scan = {marks.name: numbers[mask] for mask, marks in changed.items()}
    left = {row["scan"]: row["found"] for row in result.scans.to_dict("records")}
    counts = [
        {"scan": row["scan"], "true": row["lesions"], "found": row["found"],
         "after": left[row["scan"]], **_numbers_of(row["scan"], of_scan)}
        for row in before.scans.to_dict("records")
    ]  # fmt: skip
    return Reviewed(result, counts, make_agreement_rows(predictions, known))


def _numbers_of(scan: str, of_scan: dict[str, dict]) -> dict:
    """What readers said of a scan; the truth may name it with fewer entities."""
    fitting = [row for name, row in of_scan.items() if name == scan or name.startswith(f"{scan}_")]
    return fitting[0] if fitting else dict.fromkeys(next(iter(of_scan.values())))


def _mask_of(marks: LesionAnnotations, folder: Path) -> str:
    """The lesion mask that goes with the marks of a scan, as reviews name it."""
    if marks.file is None or not folder.is_dir():
        return ""
    name = marks.file.name.replace("_seg-CMB_", "_label-CMB_").replace("_dseg.tsv", "_mask.nii.gz")
    return marks.file.with_name(name).relative_to(folder).as_posix()


def reviewed_annotations(found: LesionAnnotations, reviews: Sequence[Review]) -> LesionAnnotations:
    """The lesions that the readers of a scan left, and those that they added."""
    consensus = merge_reviews(found.lesions["index"].tolist(), reviews)
    said = found.lesions["index"].map(consensus.verdicts)
    kept = found.lesions[said.isin(["accept", "not_reviewed"])].copy()
    kept["included"] |= said[kept.index] == "accept"
    highest = int(found.lesions["index"].max()) if len(found.lesions) else 0
    added = pd.DataFrame(consensus.added, columns=POSITION).assign(
        index=np.arange(len(consensus.added)) + highest + 1,
        diameter_mm=np.nan, probability=1.0, uncertain=False, included=True,
    )  # fmt: skip
    parts = [part for part in (kept, added) if len(part)] or [kept]
    return replace(found, lesions=pd.concat(parts, ignore_index=True))


def compare(
    found: Sequence[LesionAnnotations],
    true: Sequence[LesionAnnotations],
    options: EvaluationOptions,
    *,
    places: tuple[Path, Path],
) -> Evaluation:
    """Compare lesions that were read; see `measure`.

    Args:
        found: Of every scan.
        true: Likewise.
        options: How to compare.
        places: Where predictions and truth lie.
    """
    scans, missing, rest = pair_scans(found, true, options, places=places)
    rule, cases = RULES[options.match], [scan.case for scan in scans]
    tables = [classify_lesions(scan, rule, threshold=options.threshold) for scan in scans]
    lesions = pd.concat(tables, ignore_index=True)
    counts = pd.DataFrame([scan_row(scan, of) for scan, of in zip(scans, tables, strict=True)])
    chance = {"seed": options.seed, "draws": options.draws}
    known = compute_figures(cases, rule, threshold=options.threshold, **chance)
    absent = [_absent_case(marks, options) for marks in missing]
    every = known
    if absent:
        every = compute_figures([*cases, *absent], rule, threshold=options.threshold, **chance)
    lost = float(sum((~case.uncertain).sum() for case in absent))
    return Evaluation(
        options,
        {
            **known,
            "missing_scans": Figure(float(len(missing)), np.nan, np.nan),
            "missing_lesions": Figure(lost, np.nan, np.nan),
            "sensitivity_all_scans": every["sensitivity"],
            "f1_all_scans": every["f1"],
        },
        compute_froc(cases, rule),
        breakdown(lesions, counts, scans, **chance),
        lesions,
        counts,
        tuple(marks.name for marks in missing),
        tuple(marks.name for marks in rest),
    )


def pair_scans(
    found: Sequence[LesionAnnotations],
    true: Sequence[LesionAnnotations],
    options: EvaluationOptions,
    *,
    places: tuple[Path, Path],
) -> tuple[list[ScanComparison], list[LesionAnnotations], list[LesionAnnotations]]:
    """Hold what was found against what is there, in every scan of both.

    Args:
        found: Of every scan.
        true: Likewise.
        options: How to compare.
        places: Where predictions and truth lie.

    Returns:
        scans: By name.
        missing: Truth without a prediction.
        rest: Predictions without truth.

    Raises:
        ValueError: As `pair`, or if predictions and truth have no scan in common.
    """
    predictions, truth = places
    pairs, missing, rest = pair(found, true)
    if not pairs:
        raise ValueError(
            f"{predictions}: predictions and truth need a scan in common; found "
            f"{_few(found)} here and {_few(true)} in {truth}."
        )
    protocols = read_protocols(truth)
    return [_scan(*both, options, protocols) for both in pairs], missing, rest


def pair(
    found: Sequence[LesionAnnotations], truth: Sequence[LesionAnnotations]
) -> tuple[
    list[tuple[LesionAnnotations, LesionAnnotations]],
    list[LesionAnnotations],
    list[LesionAnnotations],
]:
    """Find the prediction of every scan of the truth.

    Two are of one scan if no entity that both name differs; one that names the same wins.

    Returns:
        pairs: Prediction and truth, by name.
        missing: Truth without a prediction.
        rest: Predictions without truth.

    Raises:
        ValueError: If a scan has several predictions, or a prediction fits several scans.
    """
    by_participant = defaultdict(list)
    for number, marks in enumerate(found):
        by_participant[marks.entities.get("sub")].append(number)
    nameless = by_participant[None]
    pairs, missing, taking = [], [], defaultdict(list)
    for true in sorted(truth, key=lambda marks: marks.name):
        participant = true.entities.get("sub")
        numbers = range(len(found)) if participant is None else by_participant[participant]
        if participant is not None and nameless:
            numbers = sorted([*numbers, *nameless])
        fitting = [number for number in numbers if found[number].agrees(true)]
        same = [number for number in fitting if found[number].entities == true.entities]
        fitting = same or fitting
        _only(
            [found[number] for number in fitting],
            f"{true.name}: a scan of the truth needs one prediction",
        )
        if fitting:
            pairs.append((found[fitting[0]], true))
            taking[fitting[0]].append(true)
        else:
            missing.append(true)
    for number, taken in taking.items():
        _only(taken, f"{found[number].name}: a prediction needs one scan of the truth")
    return pairs, missing, [marks for number, marks in enumerate(found) if number not in taking]


def read_protocols(truth: Path) -> dict[str, str]:
    """Protocol of each participant, from the ``participants.tsv`` of the truth or around it."""
    for folder in (truth, truth.parent.parent):
        table = folder / "participants.tsv"
        if table.is_file():
            return {
                row["participant_id"]: row["protocol"]
                for row in read_table(table)
                if row.get("participant_id") and row.get("protocol")
            }
    return {}


def check_settings(options: EvaluationOptions) -> None:
    """Refuse what is not possible.

    Raises:
        ValueError: Likewise.
    """
    for name, value, allowed in (
        ("match", options.match, tuple(RULES)),
        ("uncertain", options.uncertain, UNCERTAIN),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; found {value!r}.")
    if not 0 <= options.threshold <= 1:
        raise ValueError(f"`threshold` must lie between 0 and 1; found {options.threshold:g}.")
    if options.draws < 0 or options.seed < 0:
        raise ValueError(
            f"`bootstrap` and `seed` must be 0 or more; found {options.draws} and {options.seed}."
        )


def _only(marks: list[LesionAnnotations], rule: str) -> None:
    if len(marks) > 1:
        names = " and ".join(one.file.name if one.file else one.name for one in marks[:3])
        raise ValueError(f"{rule}; found {len(marks)}: {names}.")


def _few(marks: list[LesionAnnotations]) -> str:
    names = sorted(one.name for one in marks)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _scan(
    found: LesionAnnotations,
    truth: LesionAnnotations,
    options: EvaluationOptions,
    protocols: dict[str, str],
) -> ScanComparison:
    counted = found.lesions["included"].to_numpy(bool)
    found = replace(found, lesions=found.lesions[counted].reset_index(drop=True))
    between = cdist(found.positions, truth.positions)
    if between.size and between.min() > HEAD_MM:
        raise ValueError(
            f"{truth.name}: found and true lesions must be given in one space, world mm; those "
            f"nearest to each other are {between.min():.0f} mm apart."
        )
    if options.match == "overlap":
        between = shared_volume(found, truth)
    subject = truth.entities.get("sub") or found.entities.get("sub") or ""
    case = ScanMatches(
        f"sub-{subject}" if subject else truth.name,
        found.lesions["probability"].to_numpy(float),
        between,
        _uncertain(truth, options),
        truth.lesions["diameter_mm"].to_numpy(float),
        truth.name,
    )
    protocol = protocols.get(f"sub-{subject}") or _protocol(found.about) or UNKNOWN_CLASS
    return ScanComparison(truth.name, protocol, found, truth, case, read_mimics(truth))


def _uncertain(truth: LesionAnnotations, options: EvaluationOptions) -> np.ndarray:
    """Which true lesions are ignored, shape (T,)."""
    uncertain = truth.lesions["uncertain"] | ~truth.lesions["included"]
    return uncertain.to_numpy(bool) & (options.uncertain == "ignore")


def _absent_case(truth: LesionAnnotations, options: EvaluationOptions) -> ScanMatches:
    """A scan without a prediction, as if nothing had been found in it."""
    subject = truth.entities.get("sub")
    return ScanMatches(
        f"sub-{subject}" if subject else truth.name,
        np.zeros(0),
        np.zeros((0, len(truth.lesions))),
        _uncertain(truth, options),
        truth.lesions["diameter_mm"].to_numpy(float),
        truth.name,
    )


def _protocol(about: dict) -> str:
    """What the app's sidecar says of the scan, as a name: ``3 T, 20 ms, 4 mm``."""
    known = about.get("Microbleeds") or {}
    facts = (("field_strength_t", "T"), ("echo_time_ms", "ms"), ("slice_spacing_mm", "mm"))
    return ", ".join(f"{known[key]:g} {unit}" for key, unit in facts if known.get(key) is not None)


def write(
    result: Evaluation, folder: Path, *, names: tuple[str, str], reviewed: Reviewed | None = None
) -> None:
    """Write ``FILES``; the same evaluation gives the same bytes.

    Args:
        result: What to write.
        folder: Where to; made if missing.
        names: What predictions and truth are called on the page.
        reviewed: The same after the readers.
    """
    metrics, lesions, curve, summary, report = (folder / name for name in FILES)
    table = metrics_table(result)
    write_table(metrics, table.columns, plain_rows(table))
    write_table(lesions, result.lesions.columns, plain_rows(result.lesions))
    falling = froc_table(result.curve)
    write_table(curve, falling.columns, plain_rows(falling))
    settings = {"predictions": names[0], "truth": names[1], **asdict(result.options)}
    content = {
        **settings,
        "reach_mm": None if result.options.match == "overlap" else MAX_DISTANCE_MM,
        "software": software(),
        "missing": list(result.missing),
        "without_truth": list(result.without_truth),
        "figures": {
            name: {key: plain_value(value) for key, value in vars(figure).items()}
            for name, figure in result.figures.items()
        },
        "definitions": DEFINITIONS,
        "breakdown": plain_rows(result.breakdown),
        "scans": plain_rows(result.scans),
    }
    if reviewed:
        after = reviewed.result.figures
        content["reviewed"] = {
            "figures": {name: plain_value(figure.value) for name, figure in after.items()},
            "agreement": reviewed.agreement,
        }
        write_table(folder / REVIEWS, reviewed.counts[0], reviewed.counts)
    write_json(summary, content)
    write_text(
        report,
        page(
            settings=settings,
            figures=result.figures,
            froc=falling,
            breakdown=result.breakdown,
            scans=result.scans,
            missing=result.missing,
            without_truth=result.without_truth,
            reviewed=(reviewed.result.figures, reviewed.agreement) if reviewed else None,
        ),
    )


def metrics_table(result: Evaluation) -> pd.DataFrame:
    """Every figure, over all scans and by class, a row each."""
    pooled = [
        {"by": "all", "class": "all", "figure": name, **vars(figure)}
        for name, figure in result.figures.items()
    ]
    return pd.concat([pd.DataFrame(pooled), result.breakdown], ignore_index=True)


def froc_table(curve: FROCCurve) -> pd.DataFrame:
    """The FROC, a row for each threshold at which something changes."""
    names = ("sensitivity", "fp_per_scan", "precision", "f1")
    columns = {name: getattr(curve.metrics, name) for name in names}
    # The first threshold is infinite: it leaves nothing.
    return pd.DataFrame({"threshold": curve.threshold, **columns}).iloc[1:]


def plain_rows(table: pd.DataFrame) -> list[dict[str, object]]:
    """Give rows of plain values: numbers to four digits, None for what is not defined."""
    return [
        {key: plain_value(value) for key, value in row.items()} for row in table.to_dict("records")
    ]


def plain_value(value: object) -> object:
    """Give a value that JSON knows, None for what is not defined."""
    if value is None or isinstance(value, str):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else round(float(value), 4)
