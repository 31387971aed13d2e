"""Write an imported dataset: names, scans, truth and descriptions."""

import gzip
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_cmb.bids.description import RAW_BIDSIGNORE, write_description
from bids_cmb.bids.tables import read_columns, write_table
from bids_cmb.datasets.annotations import (
    labels_from_mask,
    labels_from_points,
    list_truth_columns,
    make_lesion_table,
)
from bids_cmb.datasets.base import LabelledDataset, LabelledScan
from bids_cmb.datasets.index_convention import (
    ConventionFit,
    IndexConvention,
    describe_fit,
)
from bids_cmb.evaluation.counts import COUNTS_FILE, convert_rating, sum_or_none
from bids_cmb.files import read_json, replacing, write_json, write_text
from bids_cmb.imaging.nifti import LoadReport, load, save
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import MAX_DIAMETER_MM
from bids_cmb.lesions.region_growing import DEFAULT_DIAMETER_MM


@dataclass(frozen=True)
class NamedScan:
    """A scan, its participant, and its name in BIDS without the suffix."""

    label: str
    stem: str
    scan: LabelledScan


# --- Names ----------------------------------------------------------------------------------------


def name_scans(dataset: LabelledDataset) -> list[NamedScan]:
    """Name every scan in BIDS: after the source, as far as BIDS allows it."""
    scans_of = Counter(scan.subject for scan in dataset.scans)
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
    named = []
    for scan in dataset.scans:
        label = labels[scan.subject]
        runs[label] += 1
        run = f"_run-{runs[label]:02d}" if scans_of[scan.subject] > 1 else ""
        named.append(NamedScan(label, f"{label}{run}", scan))
    return sorted(named, key=lambda place: place.stem)


# --- One scan -------------------------------------------------------------------------------------


def write_scan(
    out: Path,
    source: Path,
    named_scan: NamedScan,
    dataset: LabelledDataset,
    convention: IndexConvention,
) -> tuple[dict, int]:
    """Write a scan, its sidecar and its truth; return its row, and how many lesions are balls."""
    scan = named_scan.scan
    image, report = load(scan.image)
    home = Path(named_scan.label) / "anat"
    path = out / home / f"{named_scan.stem}_{dataset.suffix}.nii.gz"
    root = source if source.is_dir() else source.parent
    original = scan.image.relative_to(root).as_posix()
    _copy_image(scan.image, image, report, path)
    source_metadata = (
        read_json(scan.image.with_name(scan.image.name.partition(".")[0] + ".json")) or {}
    )
    notes = {"ImportNotes": list(report.notes)} if report.notes else {}
    write_json(
        path.with_name(f"{named_scan.stem}_{dataset.suffix}.json"),
        {**dataset.metadata, **source_metadata, "SourceFile": original, **notes},
    )
    row = {"participant_id": named_scan.label, "scan": (home / path.name).as_posix()}
    row |= {"source_id": scan.name, "source_file": original, "source_part": scan.kind or None}
    if scan.counts is not None:
        return {**row, **convert_rating(scan.counts)}, 0
    if scan.mask:
        labels, facts = labels_from_mask(scan.mask, image)
    else:
        world = _get_world_points(scan, image, dataset, convention)
        labels, facts = labels_from_points(scan.points, world, image, merged=dataset.merged)
    table = make_lesion_table(labels, image, facts)
    stem = (
        out
        / "derivatives"
        / "truth"
        / home
        / f"{named_scan.stem}_space-orig_seg-CMB_desc-truth_dseg"
    )
    save(labels, stem.with_name(f"{stem.name}.nii.gz"), dtype=np.uint16)
    write_table(stem.with_name(f"{stem.name}.tsv"), list_truth_columns(), table)
    description = {
        "Description": "Microbleeds as the source has them.",
        "Manual": True,
        "SpatialReference": "orig",
        "Sources": [f"bids::{(home / path.name).as_posix()}"],
    }
    write_json(stem.with_name(f"{stem.name}.json"), {**description, **list_truth_columns()})
    possible = sum(lesion["certainty"] == "possible" for lesion in table)
    balls = sum(lesion["made_by"] == "ball" for lesion in table)
    return {**row, "n_cmb": len(table), "n_possible": possible}, balls


def _get_world_points(
    scan: LabelledScan, image: Volume, dataset: LabelledDataset, convention: IndexConvention
) -> np.ndarray:
    """Get the positions of the points of a scan, world mm, (N, 3)."""
    given = np.array([point.coordinates for point in scan.points]).reshape(-1, 3)
    return given if dataset.world else image.world(convention.index(given, image.shape))


def _copy_image(original: Path, image: Volume, report: LoadReport, path: Path) -> None:
    """Copy a scan under its new name; compress it if it is not, repair it if it has NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if report.nonfinite_voxels:
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

PARTICIPANT_COLUMNS = {
    "participant_id": {"Description": "Participant in this dataset."},
    "scan": {"Description": "The scan, relative to the dataset."},
    "source_id": {"Description": "Name of the scan in its source."},
    "source_file": {"Description": "Its file, relative to the folder that was imported."},
    "source_part": {"Description": "Part of the source it comes from."},
    "n_cmb": {"Description": "Microbleeds in the truth, the possible ones included."},
    "n_possible": {"Description": "Of these, the possible ones."},
    "n_scans": {"Description": "Scans of the participant.", "Format": "integer"},
}


def describe_convention(
    dataset: LabelledDataset, fit: ConventionFit | None, convention: IndexConvention
) -> dict:
    """Describe the index convention, for the dataset's description."""
    if dataset.world or not any(scan.points for scan in dataset.scans):
        return {}
    counting = {
        "IndexBase": convention.base,
        "Flips": convention.flips or "none",
        "Order": convention.order,
    }
    if fit is None:
        return {"VoxelCounting": {**counting, "Decided": "by the user"}}
    return {"VoxelCounting": {**counting, "Decided": f"by local darkness: {describe_fit(fit)}."}}


def write_dataset(
    out: Path,
    kind: str,
    dataset: LabelledDataset,
    rows: list[dict],
    counting: dict,
    skipped: list[str],
) -> None:
    """Write the files that make the folder a dataset; the descriptions last, once it is whole."""
    rated = any(scan.counts is not None for scan in dataset.scans)
    truth = out / "derivatives" / "truth"
    participants = _make_participant_rows(rows)
    write_table(out / "participants.tsv", participants[0], participants)
    write_json(
        out / "participants.json",
        {key: PARTICIPANT_COLUMNS[key] for key in list(participants[0])[1:]},
    )
    write_text(out / ".bidsignore", RAW_BIDSIGNORE)
    write_text(out / "README.md", _make_readme(kind, dataset, rows, counting, skipped))
    described = {**PARTICIPANT_COLUMNS, **read_columns("scan")}
    if rated:
        write_table(truth / COUNTS_FILE, rows[0], rows)
        write_json(
            truth / COUNTS_FILE.replace(".tsv", ".json"), {key: described[key] for key in rows[0]}
        )
        write_text(
            truth / ".bidsignore", f"{COUNTS_FILE}\n{COUNTS_FILE.replace('.tsv', '.json')}\n"
        )
    about = {
        "License": dataset.licence,
        "Authors": ["The authors of the source dataset", "The bids_cmb developers (conversion)"],
        "ReferencesAndLinks": list(dataset.links) or ["See README.md"],
    }
    write_text(
        truth / "README.md",
        f"What readers marked in the scans of {dataset.title}, as bids_cmb reads it. "
        "How it was made: README.md of the dataset around it.\n",
    )
    write_description(truth, f"Truth of {dataset.title}", **about, **counting)
    write_description(out, dataset.title, "raw", **about)


def _make_participant_rows(rows: list[dict]) -> list[dict]:
    """Make a row for each participant: the names of the scans, and the lesions of all."""
    participants: dict[str, dict] = {}
    for row in rows:
        participant = participants.setdefault(
            row["participant_id"],
            {"participant_id": row["participant_id"], "source_id": [], "source_part": [],
             "n_scans": 0, "n_cmb": 0},
        )  # fmt: skip
        participant["source_id"].append(row["source_id"])
        participant["source_part"].append(row["source_part"])
        participant["n_scans"] += 1
        participant["n_cmb"] = sum_or_none([participant["n_cmb"], row["n_cmb"]])
    for participant in participants.values():
        participant["source_id"] = " ".join(participant["source_id"])
        participant["source_part"] = (
            " ".join(sorted(set(filter(None, participant["source_part"])))) or None
        )
    return list(participants.values())


def _make_readme(
    kind: str, dataset: LabelledDataset, rows: list[dict], counting: dict, skipped: list[str]
) -> str:
    """Describe the data, their terms, and how they were converted."""
    paragraphs = [
        f"# {dataset.title}",
        f"Brought into BIDS by `bids-cmb import-labels {kind}`: {len(rows)} scans.",
        f"Terms: {dataset.licence}",
    ]
    if dataset.links:
        paragraphs.append(f"Source: {', '.join(dataset.links)}")
    paragraphs.append(
        "Scans are the source's files under BIDS names (packed if they were not; NaN and infinite "
        "voxels were replaced). `participants.tsv` and the sidecars have the names in the source; "
        "`derivatives/truth` has what readers marked."
    )
    if any(scan.points for scan in dataset.scans):
        paragraphs.append(
            "Points became masks: all that touches the darkest voxel within 2 mm by faces and is "
            "darker than half way to the median of its surround, less where that would be wider "
            f"than {MAX_DIAMETER_MM:g} mm; else a ball of {DEFAULT_DIAMETER_MM:g} mm. "
            "The tables say which."
        )
    if any(scan.mask for scan in dataset.scans):
        paragraphs.append(
            "Voxels of a mask that touch (26 neighbours) are one lesion; what not all raters saw "
            "is `possible`."
        )
    if counting:
        convention = counting["VoxelCounting"]
        paragraphs.append(
            f"Voxels are counted from {convention['IndexBase']}, flips: {convention['Flips']}, "
            f"order: {convention['Order']}; decided {convention['Decided'].rstrip('.')}."
        )
    if any(scan.counts is not None for scan in dataset.scans):
        paragraphs.append(
            f"The source gives no positions, only counts: `derivatives/truth/{COUNTS_FILE}`, which "
            "`evaluate` compares with the counts of the app. There is nothing to train on."
        )
    if skipped:
        paragraphs.append("Skipped:\n\n" + "\n".join(f"- {sentence}" for sentence in skipped))
    return "\n\n".join(paragraphs) + "\n"
