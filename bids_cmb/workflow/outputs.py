"""Outputs of a scan: images, tables, figures, and its completion marker last of all."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.mars import list_label_rows
from bids_cmb.anatomy.mni_fit import format_itk_affine
from bids_cmb.bids.attempts import forget_attempt
from bids_cmb.bids.markers import list_file_names
from bids_cmb.bids.paths import Output
from bids_cmb.bids.tables import read_columns, refresh_scans_table, write_table
from bids_cmb.detection.outputs import tabulate_outputs
from bids_cmb.files import read_json, remove_leftovers, write_json, write_text
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.nifti import save
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.resampling import resample_like
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.table import make_lesion_row
from bids_cmb.networks.model_cards import select_members
from bids_cmb.report.figures import ShownLesions, draw_figures, remove_figures
from bids_cmb.report.html import get_page_path, refresh_page
from bids_cmb.workflow.inputs import InputRecord, ScanInputs
from bids_cmb.workflow.result import ScanResult, make_scan_row, make_sidecar

LABELS_DESCRIPTION = (
    "Lesions, each voxel with the index that its lesion has in the table of the same name."
)
CANDIDATES_DESCRIPTION = (
    "Candidates, each voxel with the index that its candidate has in the table of the same name: "
    "less likely than the threshold of lesions and not counted, from a probability of {} on; "
    "{} listed, {} less likely ones left out."
)
BRAIN_DESCRIPTION = "Brain, within which lesions were searched."
STRUCTURES_DESCRIPTION = "Structures of the brain, FreeSurfer's codes, by {}."
REGIONS_DESCRIPTION = (
    "Regions of MARS, left, and 20 more on the right; 14 and 34 are lobar, of a lobe not known."
)
EVIDENCE_DESCRIPTIONS = {
    "boxes": "Boxes of a detector's candidates, kept or not.",
    "gate": "How far a detector's gate opens in each slice.",
}
PREPROCESSED_DESCRIPTION = "The scan, divided by its median in the brain."


def write_outputs(
    output: Output,
    result: ScanResult,
    inputs: ScanInputs,
    record: InputRecord,
    *,
    report: str = "none",
) -> dict[str, object]:
    """Write the results of a scan: images, tables and figures, the completion marker last.

    Args:
        output: Of the scan; an earlier result is removed.
        result: To write.
        inputs: Of the scan.
        record: Of the inputs.
        report: ``none``, ``static`` or ``interactive``.

    Returns:
        The scan's row in ``_scans.tsv`` without the file name.

    Raises:
        OSError: If a file cannot be written.
    """
    remove_half_written(output)
    remove_previous_outputs(output)
    files = write_images(output, result, inputs)
    write_table(output.labels(".tsv"), read_columns("lesion"), map(make_lesion_row, result.lesions))
    if report != "none":
        _draw(output, result, inputs, interactive=report == "interactive")
    row, scan = make_scan_row(result, inputs), inputs.scan
    sidecar = make_sidecar(output, result, inputs, record, files)
    sidecar["Provenance"]["Seconds"] = round(time.monotonic() - record.began, 1)
    notes = [*scan.notes, *result.notes(scan.path.name)]
    write_json(output.mask(".json"), {**sidecar, "Microbleeds": row, "Notes": notes})
    return row


def _draw(
    output: Output, result: ScanResult, inputs: ScanInputs, *, interactive: bool
) -> None:  # fmt: skip
    lesions = ShownLesions(result.labels, list(map(make_lesion_row, result.lesions)))
    candidates = result.candidates
    draw_figures(
        output,
        result.image,
        result.brain.mask,
        lesions,
        candidates
        and ShownLesions(candidates.labels, list(map(make_lesion_row, candidates.lesions))),
        network_view=choose_network_view(inputs.detectors, inputs.models.members),
        interactive=interactive,
    )


def choose_network_view(
    detectors: Mapping[str, Mapping], member_names: tuple[str, ...]
) -> tuple[str, Grid]:
    """Choose the first network of the detectors and its grid; the scan's own without networks.

    Args:
        detectors: Name → model card; an empty one for a card that is gone.
        member_names: Ensemble members that were used; empty for all.
    """
    for name, card in detectors.items():
        for member in select_members(card, member_names):
            return f"{name}, network {member['name']}", Grid.from_card(member["grid"])
    return ", ".join(detectors), Grid()


# --- Earlier results ------------------------------------------------------------------------------


def remove_half_written(output: Output) -> None:
    """Remove half-written files of killed processes from the folders of a scan."""
    for folder in (output.participant_dir, output.mask().parent, output.figures):
        remove_leftovers(folder)


def remove_previous_outputs(output: Output) -> None:
    """Remove the result of an earlier run: the marker first, then its files and its figures.

    The table of the session and the page no longer show it.
    """
    marker_path = output.mask(".json")
    earlier = read_json(marker_path)
    marker_path.unlink(missing_ok=True)
    for name in list_file_names(earlier):  # never a path out of the folder
        for part in (name, f"{name.partition('.')[0]}.json"):
            (marker_path.parent / part).unlink(missing_ok=True)
    remove_figures(output)
    if earlier is not None:
        refresh_results(output)


def refresh_results(output: Output) -> None:
    """Refresh the table of a scan's session and its participant's page, if any."""
    refresh_session(output.folder, output.scan.subject, output.participant_dir)


def refresh_session(folder: Path, subject: str, home: Path) -> None:
    """Refresh the table of a session, by its folder, and its participant's page, if any."""
    refresh_scans_table(home)
    if get_page_path(folder, subject).is_file():
        refresh_page(folder, subject)


def forget_attempts(output: Output) -> None:
    """Record that a scan has its result, under the name of each of its images."""
    for source in list_sources(output):
        forget_attempt(output.folder, source)


def list_sources(output: Output) -> set[str]:
    """List the images of a scan, relative to the raw dataset."""
    images = (source.removeprefix("bids:raw:") for source in output.sources())
    return {output.scan.relative_path, *images}


# --- Images ---------------------------------------------------------------------------------------


def write_images(output: Output, result: ScanResult, inputs: ScanInputs) -> list[Path]:
    """Write the images of the output level, each but the lesion mask with a sidecar.

    Returns:
        All these files, and the lesion table of the labels.
    """
    level = inputs.settings["output_level"]
    common = {"Sources": output.sources(result.phase.path), "SpatialReference": "orig"}
    files = [*_write_lesions(output, result, common), *_write_transforms(output, result)]
    files += _write_candidates(output, result, common)
    if level != "minimal":
        files += _write_probability(output, result, common)
        files += _write_evidence(output, result, common)
    if level == "full":
        is_stripped = bool(inputs.settings["skip_brain_extraction"])
        files += _write_anatomy(output, result, common)
        files += _write_preprocessed(output, result, {"SkullStripped": is_stripped, **common})
    return files


def _write(
    get_path: Callable[..., Path], volume: Volume, dtype: type, sidecar: Mapping
) -> list[Path]:
    """Write an image and its sidecar."""
    save(volume, get_path(), dtype=dtype)
    write_json(get_path(".json"), dict(sidecar))
    return [get_path(), get_path(".json")]


def _write_lesions(output: Output, result: ScanResult, common: Mapping) -> list[Path]:
    labels, grid = result.labels, result.image.affine
    counted = np.isin(labels.data, [lesion.index for lesion in result.lesions if lesion.included])
    save(Volume(counted, grid), output.mask(), dtype=np.uint8)
    sidecar = {
        "Description": LABELS_DESCRIPTION,
        "Manual": False,
        **read_columns("lesion"),
        **common,
    }
    files = _write(output.labels, labels, np.uint16, sidecar)
    return [output.mask(), *files, output.labels(".tsv")]


def _write_candidates(output: Output, result: ScanResult, common: Mapping) -> list[Path]:
    """Write labels and table of the candidates, where the detector has a lower threshold."""
    candidates = result.candidates
    if candidates is None:
        return []
    listed = candidates.lesions
    sidecar = {
        "Description": CANDIDATES_DESCRIPTION.format(
            candidates.threshold, len(listed), candidates.n_omitted
        ),
        "Manual": False,
        **read_columns("lesion"),
        **common,
    }
    rows = map(make_lesion_row, listed)
    write_table(output.candidates(".tsv"), read_columns("lesion"), rows)
    files = _write(output.candidates, candidates.labels, np.uint16, sidecar)
    return [*files, output.candidates(".tsv")]


def _write_probability(output: Output, result: ScanResult, common: Mapping) -> list[Path]:
    sidecar = {"Description": result.probability.description, "Manual": False, **common}
    files = _write(output.probability, result.probability.mean, np.float32, sidecar)
    sidecar = {"Description": BRAIN_DESCRIPTION, "Type": "Brain", "Manual": False, **common}
    return [*files, *_write(output.brain, result.brain.mask, np.uint8, sidecar)]


def _write_evidence(output: Output, result: ScanResult, common: Mapping) -> list[Path]:
    """Write the tables of the detectors' evidence."""
    files = []
    for kind, rows in tabulate_outputs(result.probability.outputs).items():
        table, sidecar = output.evidence(kind), output.evidence(kind, ".json")
        write_table(table, read_columns(kind), rows)
        write_json(
            sidecar, {"Description": EVIDENCE_DESCRIPTIONS[kind], **read_columns(kind), **common}
        )
        files += [table, sidecar]
    return files


def _write_anatomy(output: Output, result: ScanResult, common: Mapping) -> list[Path]:
    """Write the structures, and the regions of MARS with their names."""
    files = []
    if result.anatomy.head is not None:
        codes = resample_like(result.anatomy.head.structures, result.image, order=0)
        text = STRUCTURES_DESCRIPTION.format(result.anatomy.source)
        sidecar = {"Description": text, "Manual": False, **common}
        files += _write(output.structures, codes, np.uint16, sidecar)
    if result.regions is not None:
        labels = resample_like(result.regions, result.image, order=0)
        sidecar = {"Description": REGIONS_DESCRIPTION, "Manual": False, **common}
        files += _write(output.regions, labels, np.uint16, sidecar)
        write_table(output.regions(".tsv"), ("index", "name"), list_label_rows())
        files.append(output.regions(".tsv"))
    return files


def _write_transforms(output: Output, result: ScanResult) -> list[Path]:
    head, registration = result.anatomy.head, result.anatomy.registered
    files = []
    if head is not None and head.to_mni is not None:
        write_text(output.to_mni(), format_itk_affine(head.to_mni))
        files.append(output.to_mni())
    if registration is not None:
        write_text(output.from_t1w(), format_itk_affine(registration.to_scan))
        files.append(output.from_t1w())
    return files


def _write_preprocessed(output: Output, result: ScanResult, common: Mapping) -> list[Path]:
    grid = Grid(intensity="brain-median")
    image = preprocess(result.image, result.brain.mask, grid).image
    sidecar = {"Description": PREPROCESSED_DESCRIPTION, **common}
    return _write(output.preprocessed, resample_like(image, result.image), np.float32, sidecar)
