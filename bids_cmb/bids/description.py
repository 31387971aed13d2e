"""Write the files that describe a dataset: its description, README and ``.bidsignore``."""

import os
from pathlib import Path

from bids_cmb.bids.tables import read_columns, write_table
from bids_cmb.files import read_json, write_json, write_text
from bids_cmb.provenance import NAME, generated_by
from bids_cmb.resource_files import read_resource

BIDS_VERSION = "1.11.1"
SCANS_DESCRIPTION = (
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
    "*_desc-longitudinal*",
)
RAW_BIDSIGNORE = "*_swi.*\n"  # not yet in the standard
DESC_LABELS = {  # desc- labels of our files: the suffix of the scan they were made from
    "T2starw": "From a T2*-weighted scan (suffix T2starw).",
    "T2star": "From a scan with the deprecated suffix T2star.",
    "swi": "From a susceptibility-weighted scan (suffix swi).",
    "MEGRE": "From a multi-echo gradient-echo scan (suffix MEGRE).",
    "GRE": "From a gradient-echo scan (suffix GRE).",
    "veno": "From a venogram (suffix veno).",
    "SWImag": "From the magnitude of a susceptibility-weighted scan (suffix SWImag).",
}


def write_description(
    folder: Path, name: str, dataset_type: str = "derivative", **about: object
) -> None:
    """Write the ``dataset_description.json`` of a dataset.

    Args:
        folder: Of the dataset.
        name: In words.
        dataset_type: ``derivative`` or ``raw``.
        **about: Further keys, as BIDS names them.
    """
    first = {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": dataset_type}
    write_json(
        folder / "dataset_description.json", {**first, **about, "GeneratedBy": generated_by()}
    )


def write_derivative_dataset(folder: Path, raw: Path) -> None:
    """Write the files that make a folder a BIDS derivative dataset; the same bytes every time.

    Args:
        folder: The derivative dataset; made if missing.
        raw: The dataset that the results are made from.
    """
    raw_description = read_json(raw / "dataset_description.json") or {}
    link = _link_raw(folder, raw, raw_description)
    write_description(
        folder,
        "Cerebral microbleeds, found by bids_cmb",
        License=str(raw_description.get("License") or "see the source dataset"),
        Authors=_list_authors(raw_description),
        SourceDatasets=[{"URL": link}],
        DatasetLinks={"raw": link},
    )
    write_text(folder / "README.md", _make_readme())
    write_text(folder / ".bidsignore", "\n".join(BIDSIGNORE) + "\n")
    rows = [{"desc_id": f"desc-{desc}", "description": text} for desc, text in DESC_LABELS.items()]
    write_table(folder / "descriptions.tsv", ("desc_id", "description"), rows)
    description = {"Description": "What the desc- labels of the file names stand for."}
    write_json(folder / "descriptions.json", description)
    write_json(folder / "scans.json", {"Description": SCANS_DESCRIPTION, **read_columns("scan")})


def _list_authors(raw_description: dict) -> list[str]:
    """List the authors of the raw data, and of the app; the validator doubts a list of one."""
    authors = raw_description.get("Authors")
    authors = [str(author) for author in authors] if isinstance(authors, list) else []
    return [*(authors or ["The authors of the source dataset"]), "The bids_cmb developers"]


def _link_raw(folder: Path, raw: Path, raw_description: dict) -> str:
    """Link to the raw data: by DOI, else by a path relative to the folder."""
    doi = str(raw_description.get("DatasetDOI") or "")
    if doi:
        return doi if doi.startswith(("doi:", "http")) else f"doi:{doi}"
    return Path(os.path.relpath(raw, folder)).as_posix() + "/"


def _make_readme() -> str:
    return read_resource("templates/output_readme.md").replace("{name}", NAME)
