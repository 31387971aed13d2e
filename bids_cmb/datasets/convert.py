"""Convert the labels of other groups to a BIDS dataset with truth, for training and evaluation.

Everything is read and checked before anything is written. The source is only ever read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_cmb.datasets import almasni, dou, mars_sheets, momeni, plain_tables, valdo
from bids_cmb.datasets.annotations import (
    labels_from_mask,
)
from bids_cmb.datasets.base import LabelledDataset, LabelledScan, UnknownConventions
from bids_cmb.datasets.index_convention import (
    ConventionFit,
    Darkness,
    IndexConvention,
    candidate_conventions,
    describe_fit,
    infer_convention,
    measure_darkness,
)
from bids_cmb.datasets.outputs import describe_convention, name_scans, write_dataset, write_scan
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.region_growing import find_nearest_voxel

READERS = {
    "valdo": valdo.read,
    "momeni": momeni.read,
    "dou": dou.read,
    "almasni": almasni.read,
    "csv": plain_tables.read,
    "mars": mars_sheets.read,
}
SUFFIXES = ("T2starw", "swi")


@dataclass(frozen=True)
class ImportOptions:
    """The user's settings of an import; None where the source gives them, or to infer them.

    Attributes:
        base: Of the first voxel, 0 or 1.
        flips: Axes counted from the far end, of ``x``, ``y``, ``z``; empty for none.
        order: Axes of the image that the three numbers stand for.
        suffix: Of the scans in BIDS, ``T2starw`` or ``swi``.
        skip_invalid: Whether scans that cannot be used are skipped, not a reason to refuse all.
    """

    base: int | None = None
    flips: str | None = None
    order: str | None = None
    suffix: str | None = None
    skip_invalid: bool = False


@dataclass(frozen=True)
class ImportSummary:
    """A summary of an import.

    Attributes:
        scans: Number of scans.
        lesions: Number of lesions in all; None for a rating sheet.
        balls: Number of lesions that could not be grown and are balls.
        fit: Of the index convention, if it was inferred.
        skipped: A sentence for each scan that was skipped.
    """

    scans: int
    lesions: int | None
    balls: int
    fit: ConventionFit | None
    skipped: tuple[str, ...]


def import_labels(
    kind: str, source: Path, out: Path, *, options: ImportOptions, log: Callable[[str], None]
) -> ImportSummary:
    """Read a source, check all of it, and write it as BIDS with truth.

    Args:
        kind: A key of ``READERS``.
        source: Its folder; only read.
        out: Output folder; must be empty.
        options: The user's settings.
        log: Called with a sentence on the progress.

    Raises:
        ValueError: If source or ``out`` cannot be used, or a scan cannot and none is to be
            skipped; the sentence names the file.
        OSError: If something cannot be read or written.
    """
    _check_folders(source, out)
    _check_options(options)
    dataset = READERS[kind](source)
    if not dataset.scans:
        raise ValueError(f"{source}: at least one scan with labels is needed; found none.")
    conventions = _narrow_conventions(dataset, options)
    suffix = options.suffix or dataset.suffix
    dataset = replace(dataset, suffix=suffix, conventions=conventions)
    for note in dataset.notes:
        log(note)
    candidates = candidate_conventions(conventions.bases, conventions.flips, conventions.orders)
    good, darknesses, skipped = _check_scans(dataset, candidates, skip_invalid=options.skip_invalid)
    for sentence in skipped:
        log(f"skipped: {sentence}")
    dataset = replace(dataset, scans=tuple(good))
    is_given = None not in (options.base, options.flips, options.order)
    is_known = dataset.world or not darknesses or is_given
    fit = None if is_known else _infer(source, candidates, darknesses)
    convention = fit.convention if fit else candidates[0]
    if fit:
        log(f"voxel index convention: {convention}; {describe_fit(fit)}.")
    rows, balls = [], 0
    for number, named_scan in enumerate(name_scans(dataset), start=1):
        row, balls_of_scan = write_scan(out, source, named_scan, dataset, convention)
        rows.append(row)
        balls += balls_of_scan
        log(f"{number} of {len(dataset.scans)}: {named_scan.scan.name} is {named_scan.stem}.")
    write_dataset(out, kind, dataset, rows, describe_convention(dataset, fit, convention), skipped)
    rated = any(scan.counts is not None for scan in dataset.scans)
    lesions = None if rated else sum(row["n_cmb"] for row in rows)
    return ImportSummary(len(rows), lesions, balls, fit, tuple(skipped))


def _check_folders(source: Path, out: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder.")
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents:
        raise ValueError(f"{out}: must lie outside the source, which stays as it is.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: an imported dataset needs an empty folder; found files in it.")


def _check_options(options: ImportOptions) -> None:
    if options.base not in (None, 0, 1):
        raise ValueError(f"`index-base` must be 0 or 1; found {options.base}.")
    if options.flips is not None and not (
        set(options.flips) <= set("xyz") and len(set(options.flips)) == len(options.flips)
    ):
        raise ValueError(f"`flips` must be none or of x, y, z, each once; found {options.flips!r}.")
    if options.order is not None and sorted(options.order) != list("xyz"):
        raise ValueError(f"`order` must be x, y and z in some order; found {options.order!r}.")
    if options.suffix not in (None, *SUFFIXES):
        raise ValueError(f"`suffix` must be {' or '.join(SUFFIXES)}; found {options.suffix!r}.")


def _narrow_conventions(dataset: LabelledDataset, options: ImportOptions) -> UnknownConventions:
    """Narrow the possible conventions by the user's settings."""
    given = {
        "bases": None if options.base is None else (options.base,),
        "flips": None if options.flips is None else ("".join(sorted(options.flips)),),
        "orders": None if options.order is None else (options.order,),
    }
    return replace(dataset.conventions, **{name: value for name, value in given.items() if value})


# --- Checking -------------------------------------------------------------------------------------


def _check_scans(
    dataset: LabelledDataset, candidates: Sequence[IndexConvention], *, skip_invalid: bool
) -> tuple[list[LabelledScan], list[Darkness], list[str]]:
    """Return the scans that can be used, the darkness at their points, and the other faults."""
    good, darknesses, wrong = [], [], []
    for scan in dataset.scans:
        try:
            image, _ = load(scan.image)
            if scan.mask:
                labels_from_mask(scan.mask, image)
            points = np.array([point.coordinates for point in scan.points]).reshape(-1, 3)
            if dataset.world:
                _check_world_points(scan, image)
            elif len(points):
                darkness = measure_darkness(image, points, candidates)
                _check_voxel_points(scan, darkness, image)
                darknesses.append(darkness)
            good.append(scan)
        except ValueError as error:
            if not skip_invalid:
                raise
            wrong.append(str(error))
    if not good:
        raise ValueError(f"of {len(wrong)} scans none can be used; the first: {wrong[0]}")
    return good, darknesses, wrong


def _check_world_points(scan: LabelledScan, image: Volume) -> None:
    for point in scan.points:
        try:
            find_nearest_voxel(image, np.array(point.coordinates))
        except ValueError as error:
            raise ValueError(f"{point.origin}: {error}") from None


def _check_voxel_points(scan: LabelledScan, darkness: Darkness, image: Volume) -> None:
    outside = np.isnan(darkness.points)
    if outside.any(axis=1).all():
        worst = int(outside.sum(axis=0).argmax())
        point = scan.points[worst]
        size = " × ".join(map(str, image.shape))
        raise ValueError(
            f"{point.origin}: a point must lie in the image; found "
            f"({', '.join(f'{value:g}' for value in point.coordinates)}) for {size} voxels."
        )


def _infer(
    source: Path, candidates: Sequence[IndexConvention], darknesses: Sequence[Darkness]
) -> ConventionFit:
    try:
        return infer_convention(candidates, darknesses)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
