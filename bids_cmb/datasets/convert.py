"""Other groups' labels → a BIDS dataset with truth, as training and evaluation read it.

Everything is read and checked before anything is written. The source is only ever read.
"""

import gzip
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_cmb.bids.tables import BIDS_VERSION, read_columns, write_table
from bids_cmb.datasets import almasni, dou, mars_sheets, momeni, plain_tables, valdo
from bids_cmb.datasets.annotations import (
    labels_from_mask,
    labels_from_points,
    lesion_table,
    truth_columns,
)
from bids_cmb.datasets.base import Labelled, LabelledDataset, UnknownConventions
from bids_cmb.datasets.index_convention import (
    ConventionFit,
    Darkness,
    IndexConvention,
    candidate_conventions,
    darkness,
    infer_convention,
)
from bids_cmb.evaluation.counts import COUNTS_FILE, convert_rating, sum_or_none
from bids_cmb.files import read_json, replacing, write_json, write_text
from bids_cmb.imaging.volume import LoadReport, Volume, load, save
from bids_cmb.lesions.measure import MAX_DIAMETER_MM
from bids_cmb.lesions.region_growing import DEFAULT_DIAMETER_MM, find_nearest_voxel
from bids_cmb.provenance import generated_by

READERS = {
    "valdo": valdo.read,
    "momeni": momeni.read,
    "dou": dou.read,
    "almasni": almasni.read,
    "csv": plain_tables.read,
    "mars": mars_sheets.read,
}
SUFFIXES = ("T2starw", "swi")
IGNORED = "*_swi.*\n"  # not yet in the standard


@dataclass(frozen=True)
class ImportOptions:
    """What the user says of the source; None is for the source to say, or to be found out.

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
class Imported:
    """What was written.

    Attributes:
        scans: How many.
        lesions: In all of them; None for a rating sheet.
        balls: How many of them could not be grown and are balls.
        fit: Of the index convention, where it was inferred.
        skipped: A sentence for each scan that was skipped.
    """

    scans: int
    lesions: int | None
    balls: int
    fit: ConventionFit | None
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """Where a scan goes: its participant, and its stem in BIDS without the suffix."""

    label: str
    stem: str
    scan: Labelled


def import_labels(
    kind: str, source: Path, out: Path, *, options: ImportOptions, say: Callable[[str], None]
) -> Imported:
    """Read a source, check all of it, and write it as BIDS with truth.

    Args:
        kind: A key of ``READERS``.
        source: Its folder; only read.
        out: Where to; must not hold anything.
        options: What the user says of it.
        say: Takes a sentence for whoever waits.

    Raises:
        ValueError: If source or ``out`` cannot be used, or a scan cannot and none shall be left
            out; the sentence names the file.
        OSError: If something cannot be read or written.
    """
    _refuse_folders(source, out)
    _possible(options)
    read = READERS[kind](source)
    if not read.scans:
        raise ValueError(f"{source}: at least one scan with labels is needed; found none.")
    read = replace(read, suffix=options.suffix or read.suffix, open=_narrowed(read, options))
    for note in read.notes:
        say(note)
    candidates = candidate_conventions(read.open.bases, read.open.flips, read.open.orders)
    good, seen, skipped = _checked(read, candidates, skip_invalid=options.skip_invalid)
    for sentence in skipped:
        say(f"skipped: {sentence}")
    read = replace(read, scans=tuple(good))
    told = None not in (options.base, options.flips, options.order)
    fit = None if read.world or not seen or told else _inferred(source, candidates, seen)
    way = fit.convention if fit else candidates[0]
    if fit:
        say(f"voxel index convention: {way}; {_why(fit)}.")
    rows, balls = [], 0
    for at, place in enumerate(places(read), start=1):
        row, own = _write_scan(out, source, place, read, way)
        rows.append(row)
        balls += own
        say(f"{at} of {len(read.scans)}: {place.scan.name} is {place.stem}.")
    _write_dataset(out, kind, read, rows, _told(read, fit, way), skipped)
    rated = any(scan.counts is not None for scan in read.scans)
    lesions = None if rated else sum(row["n_cmb"] for row in rows)
    return Imported(len(rows), lesions, balls, fit, tuple(skipped))


def _refuse_folders(source: Path, out: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder.")
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents:
        raise ValueError(f"{out}: must lie outside the source, which stays as it is.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: an imported dataset needs an empty folder; found files in it.")


def _possible(options: ImportOptions) -> None:
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


def _narrowed(read: LabelledDataset, options: ImportOptions) -> UnknownConventions:
    """What is still open after the user's word."""
    given = {
        "bases": None if options.base is None else (options.base,),
        "flips": None if options.flips is None else ("".join(sorted(options.flips)),),
        "orders": None if options.order is None else (options.order,),
    }
    return replace(read.open, **{name: value for name, value in given.items() if value})


# --- Checking -------------------------------------------------------------------------------------


def _checked(
    read: LabelledDataset, candidates: Sequence[IndexConvention], *, skip_invalid: bool
) -> tuple[list[Labelled], list[Darkness], list[str]]:
    """The scans that can be used, how dark their points lie, and a sentence for each other one."""
    good, seen, wrong = [], [], []
    for scan in read.scans:
        try:
            image, _ = load(scan.image)
            if scan.mask:
                labels_from_mask(scan.mask, image)
            points = np.array([point.at for point in scan.points]).reshape(-1, 3)
            if read.world:
                _inside(scan, image)
            elif len(points):
                lost = darkness(image, points, candidates)
                _some_way_inside(scan, lost, image)
                seen.append(lost)
            good.append(scan)
        except ValueError as error:
            if not skip_invalid:
                raise
            wrong.append(str(error))
    if not good:
        raise ValueError(f"of {len(wrong)} scans none can be used; the first: {wrong[0]}")
    return good, seen, wrong


def _inside(scan: Labelled, image: Volume) -> None:
    for point in scan.points:
        try:
            find_nearest_voxel(image, np.array(point.at))
        except ValueError as error:
            raise ValueError(f"{point.where}: {error}") from None


def _some_way_inside(scan: Labelled, lost: Darkness, image: Volume) -> None:
    outside = np.isnan(lost.points)
    if outside.any(axis=1).all():
        at = int(outside.sum(axis=0).argmax())
        point = scan.points[at]
        size = " × ".join(map(str, image.shape))
        raise ValueError(
            f"{point.where}: a point must lie in the image; found "
            f"({', '.join(f'{value:g}' for value in point.at)}) for {size} voxels."
        )


def _inferred(
    source: Path, candidates: Sequence[IndexConvention], seen: Sequence[Darkness]
) -> ConventionFit:
    try:
        return infer_convention(candidates, seen)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _why(found: ConventionFit) -> str:
    said = (
        f"the {found.points} points lack {100 * found.darkness:.0f} % of the signal around them, "
        f"places beside them {100 * found.chance:.0f} %"
    )
    if found.next_best is None:
        return said
    return f"{said}, the next way to count {100 * found.next_best:.0f} %"


# --- Names ----------------------------------------------------------------------------------------


def places(read: LabelledDataset) -> list[_Place]:
    """What every scan is called in BIDS: the source's names as far as BIDS allows them."""
    scans_of = Counter(scan.subject for scan in read.scans)
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for subject in sorted(scans_of):
        plain_name = re.sub(r"[^0-9A-Za-z]", "", re.sub(r"^sub-", "", subject)) or "x"
        label, number = plain_name, 1
        while label.casefold() in taken:
            number += 1
            label = f"{plain_name}x{number}"
        taken.add(label.casefold())
        labels[subject] = f"sub-{label}"
    runs: Counter[str] = Counter()
    placed = []
    for scan in read.scans:
        label = labels[scan.subject]
        runs[label] += 1
        run = f"_run-{runs[label]:02d}" if scans_of[scan.subject] > 1 else ""
        placed.append(_Place(label, f"{label}{run}", scan))
    return sorted(placed, key=lambda place: place.stem)


# --- One scan -------------------------------------------------------------------------------------


def _write_scan(
    out: Path, source: Path, place: _Place, read: LabelledDataset, way: IndexConvention
) -> tuple[dict, int]:
    """A scan, its sidecar and its truth; its row of participants, and how many are balls."""
    scan = place.scan
    image, intake = load(scan.image)
    home = Path(place.label) / "anat"
    path = out / home / f"{place.stem}_{read.suffix}.nii.gz"
    root = source if source.is_dir() else source.parent
    original = scan.image.relative_to(root).as_posix()
    _put_image(scan.image, image, intake, path)
    beside = read_json(scan.image.with_name(scan.image.name.partition(".")[0] + ".json")) or {}
    notes = {"ImportNotes": list(intake.notes)} if intake.notes else {}
    write_json(
        path.with_name(f"{place.stem}_{read.suffix}.json"),
        {**read.known, **beside, "SourceFile": original, **notes},
    )
    row = {"participant_id": place.label, "scan": (home / path.name).as_posix()}
    row |= {"source_id": scan.name, "source_file": original, "source_part": scan.kind or None}
    if scan.counts is not None:
        return {**row, **convert_rating(scan.counts)}, 0
    if scan.mask:
        labels, facts = labels_from_mask(scan.mask, image)
    else:
        world = _world(scan, image, read, way)
        labels, facts = labels_from_points(scan.points, world, image, merged=read.merged)
    table = lesion_table(labels, image, facts)
    stem = out / "derivatives" / "truth" / home / f"{place.stem}_space-orig_seg-CMB_desc-truth_dseg"
    save(labels, stem.with_name(f"{stem.name}.nii.gz"), dtype=np.uint16)
    write_table(stem.with_name(f"{stem.name}.tsv"), truth_columns(), table)
    said = {
        "Description": "Microbleeds as the source has them.",
        "Manual": True,
        "SpatialReference": "orig",
        "Sources": [f"bids::{(home / path.name).as_posix()}"],
    }
    write_json(stem.with_name(f"{stem.name}.json"), {**said, **truth_columns()})
    possible = sum(one["certainty"] == "possible" for one in table)
    balls = sum(one["made_by"] == "ball" for one in table)
    return {**row, "n_cmb": len(table), "n_possible": possible}, balls


def _world(
    scan: Labelled, image: Volume, read: LabelledDataset, way: IndexConvention
) -> np.ndarray:
    """Where the points of a scan lie, world mm, (N, 3)."""
    given = np.array([point.at for point in scan.points]).reshape(-1, 3)
    return given if read.world else image.world(way.index(given, image.shape))


def _put_image(original: Path, image: Volume, intake: LoadReport, path: Path) -> None:
    """The scan under its new name: the same file, packed if it was not, mended if it had NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if intake.nonfinite_voxels:
        save(image, path)
    elif original.name.endswith(".gz"):
        with replacing(path) as beside:
            shutil.copyfile(original, beside)
    else:
        with (
            replacing(path) as beside,
            original.open("rb") as stored,
            beside.open("wb") as raw,
            gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0) as packed,
        ):
            shutil.copyfileobj(stored, packed)


# --- The dataset ----------------------------------------------------------------------------------

ABOUT = {
    "participant_id": {"Description": "Participant in this dataset."},
    "scan": {"Description": "The scan, relative to the dataset."},
    "source_id": {"Description": "Name of the scan in its source."},
    "source_file": {"Description": "Its file, relative to the folder that was imported."},
    "source_part": {"Description": "Part of the source it comes from."},
    "n_cmb": {"Description": "Microbleeds in the truth, the possible ones included."},
    "n_possible": {"Description": "Of these, the possible ones."},
    "n_scans": {"Description": "Scans of the participant.", "Format": "integer"},
}


def _told(read: LabelledDataset, fit: ConventionFit | None, way: IndexConvention) -> dict:
    """How voxels were counted, for the dataset's description."""
    if read.world or not any(scan.points for scan in read.scans):
        return {}
    said = {"IndexBase": way.base, "Flips": way.flips or "none", "Order": way.order}
    if fit is None:
        return {"VoxelCounting": {**said, "Decided": "by the user"}}
    return {"VoxelCounting": {**said, "Decided": f"by local darkness: {_why(fit)}."}}


def _write_dataset(
    out: Path,
    kind: str,
    read: LabelledDataset,
    rows: list[dict],
    counting: dict,
    skipped: list[str],
) -> None:
    """What makes the folder a dataset; the descriptions last, so that no half of one has them."""
    rated = any(scan.counts is not None for scan in read.scans)
    truth = out / "derivatives" / "truth"
    people = _people(rows)
    write_table(out / "participants.tsv", people[0], people)
    write_json(out / "participants.json", {key: ABOUT[key] for key in list(people[0])[1:]})
    write_text(out / ".bidsignore", IGNORED)
    write_text(out / "README.md", _readme(kind, read, rows, counting, skipped))
    described = {**ABOUT, **read_columns("scan")}
    if rated:
        write_table(truth / COUNTS_FILE, rows[0], rows)
        write_json(
            truth / COUNTS_FILE.replace(".tsv", ".json"), {key: described[key] for key in rows[0]}
        )
        write_text(
            truth / ".bidsignore", f"{COUNTS_FILE}\n{COUNTS_FILE.replace('.tsv', '.json')}\n"
        )
    about = {
        "BIDSVersion": BIDS_VERSION,
        "License": read.licence,
        "Authors": ["The authors of the source dataset", "The bids_cmb developers (conversion)"],
        "ReferencesAndLinks": list(read.links) or ["See README.md"],
        "GeneratedBy": generated_by(),
    }
    write_text(
        truth / "README.md",
        f"What readers marked in the scans of {read.title}, as bids_cmb reads it. "
        "How it was made: README.md of the dataset around it.\n",
    )
    name = f"Truth of {read.title}"
    write_json(
        truth / "dataset_description.json",
        {"Name": name, "DatasetType": "derivative", **about, **counting},
    )
    write_json(
        out / "dataset_description.json", {"Name": read.title, "DatasetType": "raw", **about}
    )


def _people(rows: list[dict]) -> list[dict]:
    """A row for each participant: the names of the scans, and the lesions of all."""
    people: dict[str, dict] = {}
    for row in rows:
        one = people.setdefault(
            row["participant_id"],
            {"participant_id": row["participant_id"], "source_id": [], "source_part": [],
             "n_scans": 0, "n_cmb": 0},
        )  # fmt: skip
        one["source_id"].append(row["source_id"])
        one["source_part"].append(row["source_part"])
        one["n_scans"] += 1
        one["n_cmb"] = sum_or_none([one["n_cmb"], row["n_cmb"]])
    for one in people.values():
        one["source_id"] = " ".join(one["source_id"])
        one["source_part"] = " ".join(sorted(set(filter(None, one["source_part"])))) or None
    return list(people.values())


def _readme(
    kind: str, read: LabelledDataset, rows: list[dict], counting: dict, skipped: list[str]
) -> str:
    """What the data are, whose, under which terms, and what was done to them."""
    said = [
        f"# {read.title}",
        f"Brought into BIDS by `bids-cmb import-labels {kind}`: {len(rows)} scans.",
        f"Terms: {read.licence}",
    ]
    if read.links:
        said.append(f"Source: {', '.join(read.links)}")
    said.append(
        "Scans are the source's files under BIDS names (packed if they were not; NaN and infinite "
        "voxels were replaced). `participants.tsv` and the sidecars have the names in the source; "
        "`derivatives/truth` has what readers marked."
    )
    if any(scan.points for scan in read.scans):
        said.append(
            "Points became masks: all that touches the darkest voxel within 2 mm by faces and is "
            "darker than half way to the median of its surround, less where that would be wider "
            f"than {MAX_DIAMETER_MM:g} mm; else a ball of {DEFAULT_DIAMETER_MM:g} mm. "
            "The tables say which."
        )
    if any(scan.mask for scan in read.scans):
        said.append(
            "Voxels of a mask that touch (26 neighbours) are one lesion; what not all raters saw "
            "is `possible`."
        )
    if counting:
        way = counting["VoxelCounting"]
        said.append(
            f"Voxels are counted from {way['IndexBase']}, flips: {way['Flips']}, order: "
            f"{way['Order']}; decided {way['Decided'].rstrip('.')}."
        )
    if any(scan.counts is not None for scan in read.scans):
        said.append(
            f"The source gives no positions, only counts: `derivatives/truth/{COUNTS_FILE}`, which "
            "`evaluate` compares with the counts of the app. There is nothing to train on."
        )
    if skipped:
        said.append("Skipped:\n\n" + "\n".join(f"- {sentence}" for sentence in skipped))
    return "\n\n".join(said) + "\n"
