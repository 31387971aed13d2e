"""What a scan's results are called and how they are written; and the tables read back."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import zip_longest
from pathlib import Path

from bids_cmb.bids.attempts import open_attempt
from bids_cmb.bids.markers import read_marker
from bids_cmb.bids.selection import Scan
from bids_cmb.bids.spreadsheets import tab_separated
from bids_cmb.files import read_json, write_json, write_text
from bids_cmb.provenance import NAME, generated_by

BIDS_VERSION = "1.11.1"
ENTITY_ORDER = (  # of BIDS 1.11, as far as scans and our results use it
    *("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "space", "chunk"),
    *("seg", "res", "label", "desc"),
)
LESION = 7  # BIDS' standard label for a lesion
MNI_SPACE = "MNI152NLin2009cAsym"
PLACE = ("x_mm", "y_mm", "z_mm")
EVIDENCE = ("boxes", "gate")  # tables of what detectors leave behind
SCANS = (
    "Microbleeds of each scan, with the protocol and the quality of the scan. Counts by region of "
    "MARS (Gregoire et al. 2009) are n/a without the anatomy network, and those of the lobes also "
    "where the lobe of a lobar lesion is not known; lesions on the midline count on mars_side of "
    "the lesion table."
)
BIDSIGNORE = (
    "*.html",
    "figures",
    "group_*",
    "*_xfm.*",
    "*_swi.*",
    "*_minIP.*",
    "*_boxes.*",
    "*_gate.*",
)
DESCRIBED = {  # desc- labels of our files: the suffix of the scan they were made from
    "T2starw": "From a T2*-weighted scan (suffix T2starw).",
    "T2star": "From a scan with the deprecated suffix T2star.",
    "swi": "From a susceptibility-weighted scan (suffix swi).",
    "MEGRE": "From a multi-echo gradient-echo scan (suffix MEGRE).",
    "GRE": "From a gradient-echo scan (suffix GRE).",
    "veno": "From a venogram (suffix veno).",
    "SWImag": "From the magnitude of a susceptibility-weighted scan (suffix SWImag).",
}


def columns(table: str) -> dict[str, dict]:
    """The columns of a table, in order, as BIDS describes them: ``lesion``, ``scan``, ``boxes``...

    They stand in ``resources/tables/<table>.json``, which becomes the sidecar of the table.
    """
    return dict(_described(table))


@cache
def _described(table: str) -> dict[str, dict]:
    text = resources.files("bids_cmb").joinpath(f"resources/tables/{table}.json").read_text("utf-8")
    return json.loads(text)


@dataclass(frozen=True)
class Output:
    """The derivatives of one scan.

    Attributes:
        folder: The derivative dataset.
        scan: What they are made from.
    """

    folder: Path
    scan: Scan

    @property
    def participant_dir(self) -> Path:
        """The participant's (and session's) folder."""
        entities = dict(self.scan.entities)
        home = self.folder / f"sub-{entities['sub']}"
        return home / f"ses-{entities['ses']}" if "ses" in entities else home

    def path(self, suffix: str, extension: str, **entities: str) -> Path:
        """The path of one result: the source's entities, then ours, in the order of BIDS.

        Args:
            suffix: ``mask``, ``dseg``, ``probseg`` or the suffix of the scan.
            extension: With its dot.
            **entities: Ours; ``desc`` names the source's suffix unless it is given.
        """
        entities = {**dict(self.scan.entities), "desc": self.desc, **entities}
        parts = [f"{key}-{entities[key]}" for key in ENTITY_ORDER if key in entities]
        # Always in anat/: the folder swi/ that some datasets have is not in the standard.
        return self.participant_dir / "anat" / ("_".join([*parts, suffix]) + extension)

    @property
    def desc(self) -> str:
        """The source's suffix, behind its own desc- label if it had one."""
        return self.scan.desc + self.scan.suffix

    def sources(self, phase: Path | None = None) -> list[str]:
        """The images of the scan, and its phase image if that was used, as BIDS URIs."""
        home = Path(self.scan.relative_path).parent
        images = [self.scan.path, *self.scan.more_echoes, *([phase] if phase else [])]
        names = [path.name for path in images]
        return [f"bids:raw:{(home / name).as_posix()}" for name in names]

    def mask(self, extension: str = ".nii.gz") -> Path:
        """Where the lesion mask goes; its sidecar is written last and says that all is done."""
        return self.path("mask", extension, space="orig", label="CMB")

    def labels(self, extension: str = ".nii.gz") -> Path:
        """Where the lesions' labels go, and with ``.tsv`` their table."""
        return self.path("dseg", extension, space="orig", seg="CMB")

    def probability(self, extension: str = ".nii.gz") -> Path:
        """Where the mean probability goes."""
        return self.path("probseg", extension, space="orig", label="CMB")

    def brain(self, extension: str = ".nii.gz") -> Path:
        """Where the brain mask goes."""
        return self.path("mask", extension, space="orig", label="brain")

    def structures(self, extension: str = ".nii.gz") -> Path:
        """Where the structures of the brain go."""
        return self.path("dseg", extension, space="orig", seg="structures")

    def regions(self, extension: str = ".nii.gz") -> Path:
        """Where the regions of MARS go, and with ``.tsv`` their names."""
        return self.path("dseg", extension, space="orig", seg="regions")

    def evidence(self, kind: str, extension: str = ".tsv") -> Path:
        """Where a table of `detection.outputs.tabulate_outputs` goes: ``boxes`` or ``gate``."""
        return self.path(kind, extension, space="orig")

    def to_mni(self) -> Path:
        """Where the transform to MNI space goes."""
        parts = [f"{key}-{value}" for key, value in self.scan.entities]
        parts += [f"from-{self.scan.suffix}", f"to-{MNI_SPACE}", "mode-image"]
        parts += [f"desc-{self.scan.desc}"] if self.scan.desc else []
        return self.participant_dir / "anat" / "_".join([*parts, "xfm.txt"])

    def from_t1w(self) -> Path:
        """Where the transform from the T1w image goes that a segmentation came with."""
        parts = [f"{key}-{value}" for key, value in self.scan.entities]
        parts += ["from-T1w", "to-orig", "mode-image", f"desc-{self.desc}", "xfm.txt"]
        return self.participant_dir / "anat" / "_".join(parts)

    @property
    def figures(self) -> Path:
        """The folder of the participant's pictures."""
        return figures_of(self.folder, self.scan.subject)

    def preprocessed(self, extension: str = ".nii.gz") -> Path:
        """Where the scan as the networks see it goes."""
        return self.path(self.scan.suffix, extension, space="orig", desc=f"{self.scan.desc}preproc")


def lesion_table_of(mask: Path) -> Path:
    """The table of the lesions that a lesion mask counts."""
    name = mask.name.replace("_label-CMB_", "_seg-CMB_")
    return mask.with_name(name.replace("_mask.nii.gz", "_dseg.tsv"))


def stem_of(mask: Path) -> str:
    """What the names of a scan's pictures begin with, by its lesion mask."""
    return mask.name.removesuffix("_mask.nii.gz").replace("_label-CMB", "")


def figures_of(folder: Path, subject: str) -> Path:
    """The folder of a participant's pictures in a derivative dataset."""
    return folder / f"sub-{subject}" / "figures"


def write_table(path: Path, names: Iterable[str], rows: Iterable[dict]) -> None:
    """Write a BIDS table: tab-separated, ``n/a`` for None, the columns ``names`` in their order.

    A row is a line: line ends within a cell become blanks.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    write_text(path, text.getvalue())


def _cell(value: object) -> object:
    if isinstance(value, str):
        return re.sub(r"[\r\n]+", " ", value)
    return "n/a" if value is None else value


def read_table(path: Path) -> list[dict[str, str | None]]:
    """Read the rows of a BIDS table, ours or another's; ``n/a`` and cells that lack are None.

    Raises:
        ValueError: If it is not text in UTF-8; the sentence names the file.
        OSError: If it cannot be read.
    """
    names, rows = read_cells(path)
    return [dict(zip_longest(names, row[: len(names)])) for row in rows]


def read_cells(path: Path) -> tuple[list[str], list[list[str | None]]]:
    """Read the names of the columns of a BIDS table, and the cells of each row as they stand.

    Returns:
        names: Of the columns, none of an empty file.
        rows: Cells of each line that is not empty, as many as it has; ``n/a`` is None.

    Raises:
        ValueError: If it is not text in UTF-8; the sentence names the file.
        OSError: If it cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"{path}: a table must be text in UTF-8; found the byte 0x{byte:02x} at position "
            f"{error.start}."
        ) from error
    names, *rows = tab_separated(text) or [[]]
    return names, [[None if cell == "n/a" else cell for cell in row] for row in rows]


def write_dataset(folder: Path, raw: Path) -> None:
    """Write what makes a folder a BIDS derivative dataset; the same bytes every time.

    Args:
        folder: The derivative dataset; made if missing.
        raw: The dataset that the results are made from.
    """
    raw_description = read_json(raw / "dataset_description.json") or {}
    write_json(
        folder / "dataset_description.json",
        {
            "Name": "Cerebral microbleeds, found by bids_cmb",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "License": str(raw_description.get("License") or "see the source dataset"),
            "Authors": _authors(raw_description),
            "GeneratedBy": generated_by(),
            "SourceDatasets": [{"URL": _link(folder, raw, raw_description)}],
            "DatasetLinks": {"raw": _link(folder, raw, raw_description)},
        },
    )
    write_text(folder / "README.md", _readme())
    write_text(folder / ".bidsignore", "\n".join(BIDSIGNORE) + "\n")
    rows = [{"desc_id": f"desc-{desc}", "description": text} for desc, text in DESCRIBED.items()]
    write_table(folder / "descriptions.tsv", ("desc_id", "description"), rows)
    description = {"Description": "What the desc- labels of the file names stand for."}
    write_json(folder / "descriptions.json", description)
    write_json(folder / "scans.json", {"Description": SCANS, **columns("scan")})


def refresh_scans_table(home: Path) -> None:
    """Write the ``_scans.tsv`` of a participant's (and session's) folder from its sidecars.

    Results that are not current (`bids.attempts`) are not in it; without any there is no table.
    Several processes may finish scans of one session at the same time. Each looks again after it
    has written, and writes again if a result has come meanwhile: so the last table is complete.
    """
    table, written = scans_table(home), None
    while written != (rows := _current_rows(home)):
        if rows:
            write_table(table, columns("scan"), rows)
        else:
            table.unlink(missing_ok=True)
        written = rows


def scans_table(home: Path) -> Path:
    """The ``_scans.tsv`` of a participant's (and session's) folder."""
    label = f"{home.parent.name}_{home.name}" if home.name.startswith("ses-") else home.name
    return home / f"{label}_scans.tsv"


def _current_rows(home: Path) -> list[dict]:
    folder = home.parent.parent if home.name.startswith("ses-") else home.parent
    return [
        row
        for sidecar, row in completed_results(home)
        if not open_attempt(folder, source_of(sidecar))
    ]


def has_row(output: Output) -> bool:
    """Whether the table of a scan's session has its row, as its marker has it."""
    mask = output.mask()
    wanted = next(
        (row for _, row in _results(output.participant_dir, mask.name.removesuffix(".nii.gz"))),
        None,
    )
    try:
        rows = read_table(scans_table(output.participant_dir))
    except (OSError, ValueError, csv.Error):
        return False
    return wanted is not None and any(
        all(
            row.get(key) == (None if value is None else str(value)) for key, value in wanted.items()
        )
        for row in rows
        if row.get("filename") == wanted["filename"]
    )


def completed_results(home: Path) -> Iterator[tuple[dict, dict]]:
    """The results in a participant's (and session's) folder, by name: (sidecar, scan row)."""
    yield from _results(home, "*_label-CMB_*_mask")


def _results(home: Path, mask: str) -> Iterator[tuple[dict, dict]]:
    for sidecar in sorted((home / "anat").glob(f"{mask}.json")):
        content = read_marker(sidecar)
        if content:
            name = f"anat/{sidecar.name.removesuffix('.json')}.nii.gz"
            known = {key: content["Microbleeds"].get(key) for key in columns("scan")}
            yield content, {**known, "filename": name}


def source_of(sidecar: dict) -> str:
    """The scan that a result was made from, relative to the raw dataset."""
    sources = sidecar.get("Sources") or [""]
    return str(sources[0]).removeprefix("bids:raw:")


def participant_dirs(folder: Path) -> Iterator[Path]:
    """Every participant's (and session's) folder of a derivative dataset, by name."""
    for subject in sorted(folder.glob("sub-*")):
        yield from dirs_of_participant(subject)


def dirs_of_participant(subject: Path) -> Iterator[Path]:
    """A participant's folder, and those of the sessions in it, by name; none if there is none."""
    if subject.is_dir():
        yield subject
        yield from sorted(path for path in subject.glob("ses-*") if path.is_dir())


def rounded(value: float, digits: int) -> float | None:
    """Rounded, without the minus of -0.0; None for what is no number."""
    return round(value, digits) + 0.0 if math.isfinite(value) else None


def _authors(raw_description: dict) -> list[str]:
    """Those of the raw data, and us; the validator doubts a list of one."""
    authors = raw_description.get("Authors")
    authors = [str(author) for author in authors] if isinstance(authors, list) else []
    return [*(authors or ["The authors of the source dataset"]), "The bids_cmb developers"]


def _link(folder: Path, raw: Path, raw_description: dict) -> str:
    """Where the raw data are: by DOI, else from here if we lie within them, else absolutely."""
    doi = str(raw_description.get("DatasetDOI") or "")
    if doi:
        return doi if doi.startswith(("doi:", "http")) else f"doi:{doi}"
    if folder.is_relative_to(raw):
        return Path(os.path.relpath(raw, folder)).as_posix() + "/"
    return raw.as_uri()


def _readme() -> str:
    template = (
        resources.files("bids_cmb")
        .joinpath("resources/templates/output_readme.md")
        .read_text("utf-8")
    )
    return template.replace("{name}", NAME)
