"""Outputs of a scan: images, tables, figures, and its completion marker last of all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.mars import list_label_rows
from bids_cmb.anatomy.refinement import MEMBER_NAME as TISSUE
from bids_cmb.anatomy.scan_anatomy import AnatomyResult, BrainMask
from bids_cmb.anatomy.segmentation import format_itk_affine
from bids_cmb.bids.attempts import forget_attempt
from bids_cmb.bids.markers import describe_outputs, list_file_names
from bids_cmb.bids.paths import Output
from bids_cmb.bids.tables import read_columns, refresh_scans_table, write_table
from bids_cmb.detection.ensemble import Probability
from bids_cmb.detection.outputs import tabulate_outputs
from bids_cmb.files import read_json, remove_leftovers, write_json, write_text
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.loading import LoadedPhase
from bids_cmb.imaging.nifti import LoadReport, save
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.resampling import resample_like
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.locations import list_position_notes
from bids_cmb.lesions.measure import Lesion
from bids_cmb.lesions.table import count_lesions, make_lesion_row
from bids_cmb.networks.backend import describe_device
from bids_cmb.networks.model_cards import ANATOMY, load_card, select_members
from bids_cmb.provenance import fingerprint, machine, package_digest, software
from bids_cmb.quality.measures import Quality
from bids_cmb.report.figures import draw_figures, remove_figures
from bids_cmb.report.html import get_page_path, refresh_page
from bids_cmb.workflow.inputs import InputRecord, ScanInputs, Thresholds

PROTOCOL_FIELDS = ("EchoTime", "MagneticFieldStrength", "Manufacturer", "ManufacturersModelName")
LABELS_DESCRIPTION = (
    "Lesions, each voxel with the index that its lesion has in the table of the same name."
)
BRAIN_DESCRIPTION = "Brain, within which lesions were searched."
STRUCTURES_DESCRIPTION = "Structures of the brain, FreeSurfer's codes, by {}."
REGIONS_DESCRIPTION = (
    "Regions of MARS, left, and 20 more on the right; 14 and 34 are lobar, of a lobe not known."
)
EVIDENCE_DESCRIPTIONS = {
    "boxes": "Boxes of a detector's candidates, kept or not; the page draws those of the lesions.",
    "gate": "How far a detector's gate opens in each slice; the page draws it.",
}
PREPROCESSED_DESCRIPTION = "The scan, divided by its median in the brain."


@dataclass(frozen=True, eq=False)
class ScanResult:
    """Results of a scan.

    Attributes:
        image: The scan.
        header: Report on its loading.
        brain: Its brain mask.
        anatomy: Structures and lobes, and their source.
        phase: As the networks take it.
        probability: Of microbleeds, on the scan's grid.
        thresholds: That split it into lesions.
        regions: Of MARS, on the grid of the structures; None without anatomy.
        labels: Each lesion's index in its voxels.
        lesions: By falling probability.
        quality: Of the image.
    """

    image: Volume
    header: LoadReport
    brain: BrainMask
    anatomy: AnatomyResult
    phase: LoadedPhase
    probability: Probability
    thresholds: Thresholds
    regions: Volume | None
    labels: Volume
    lesions: list[Lesion]
    quality: Quality

    def notes(self, name: str) -> tuple[str, ...]:
        """Collect the sentences for the log; ``name`` is that of the scan's file."""
        sentences = *self.brain.notes, *self.anatomy.notes, *list_position_notes(self.lesions)
        named = (f"{name}: {note}" for note in sentences)
        return (*self.header.notes, *named, *self.phase.notes)


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
    rows = [make_lesion_row(lesion) for lesion in result.lesions]
    write_table(output.labels(".tsv"), read_columns("lesion"), rows)
    if report != "none":
        _draw(output, result, rows, inputs, interactive=report == "interactive")
    row, scan = make_scan_row(result, inputs), inputs.scan
    sidecar = make_sidecar(output, result, inputs, record, files)
    sidecar["Provenance"]["Seconds"] = round(time.monotonic() - record.began, 1)
    notes = [*scan.notes, *result.notes(scan.path.name)]
    write_json(output.mask(".json"), {**sidecar, "Microbleeds": row, "Notes": notes})
    return row


def _draw(
    output: Output, result: ScanResult, rows: list[dict], inputs: ScanInputs, *, interactive: bool
) -> None:
    draw_figures(
        output,
        result.image,
        result.brain.mask,
        result.labels,
        rows,
        evidence=tabulate_outputs(result.probability.outputs),
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
    refresh_scans_table(output.participant_dir)
    if get_page_path(output.folder, output.scan.subject).is_file():
        refresh_page(output.folder, output.scan.subject)


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


# --- The scan's row and the completion marker -----------------------------------------------------


def make_scan_row(result: ScanResult, inputs: ScanInputs) -> dict[str, object]:
    """Make the scan's row in ``_scans.tsv`` without the file name."""
    thresholds, image, scan = result.thresholds, result.image, inputs.scan
    in_plane = np.delete(image.spacing, image.slice_axis)
    return {
        **count_lesions(result.lesions),
        "detector": ",".join(inputs.detectors),
        "threshold": thresholds.threshold,
        "threshold_definite": thresholds.definite,
        "field_strength_t": scan.field_strength_t,
        "echo_time_ms": _round_known(scan.echo_time_s, 3, factor=1000),
        "voxel_size_1_mm": _round_known(in_plane[0], 3),
        "voxel_size_2_mm": _round_known(in_plane[1], 3),
        "slice_spacing_mm": _round_known(image.spacing[image.slice_axis], 3),
        "brain_ml": round(result.quality.brain_ml, 1),
        "fov_truncation_percent": round(result.quality.fov_truncation_percent, 1),
        "brain_snr": round(result.quality.brain_snr, 1),
        "mni_registration_rms_mm": _round_known(
            result.anatomy.head and result.anatomy.head.fit_mm, 1
        ),
        "nonfinite_voxels": result.header.nonfinite_voxels,
        "quality_flags": ",".join(result.quality.flags) or None,
    }


def _round_known(value: float | None, digits: int, *, factor: int = 1) -> float | None:
    return None if value is None else round(float(factor * value), digits)


def make_sidecar(
    output: Output,
    result: ScanResult,
    inputs: ScanInputs,
    record: InputRecord,
    files: list[Path],
) -> dict:
    """Make the sidecar of the lesion mask, without the counts."""
    metadata = inputs.scan.metadata
    return {
        "Description": "Counted cerebral microbleeds, 1; each lesion is described in "
        f"{output.labels('.tsv').name}.",
        "Type": "Lesion",
        "Manual": False,
        "Sources": output.sources(result.phase.path),
        "SpatialReference": "orig",
        **{key: metadata[key] for key in PROTOCOL_FIELDS if key in metadata},
        "Provenance": {**_provenance(result, inputs, record), "Files": describe_outputs(files)},
    }


def _provenance(result: ScanResult, inputs: ScanInputs, record: InputRecord) -> dict[str, object]:
    phase, registration = result.phase.path, result.anatomy.registered
    members = inputs.models.members
    return {
        "Fingerprint": record.fingerprint,
        "Input": list(record.stamps),
        "BrainMask": result.brain.source,
        **({"Phase": phase.name} if phase else {}),
        "Settings": inputs.settings,
        "Detectors": [
            _describe_model(name, card, members) for name, card in inputs.detectors.items()
        ],
        "Anatomy": _describe_anatomy(result.anatomy, inputs.anatomy_card),
        "Software": software(),
        "CodeSHA256": package_digest(),
        "Machine": {**machine(), "Device": describe_device() if inputs.uses_networks else "CPU"},
        "Finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **({} if registration is None else {"Registration": registration.figures}),
    }


def _describe_model(
    name: str, card: Mapping, member_names: tuple[str, ...] = ()
) -> dict[str, object]:
    """Describe a model by the hashes of its card and of each member's weights.

    Those of the bundled detector that gives it a second opinion are included.
    """
    members = [*select_members(dict(card), member_names)]
    if "second_opinion" in card:
        members += load_card(card["second_opinion"])["members"]
    weights = {member["name"]: member["sha256"] for member in members}
    return {
        "Name": name,
        "CardSHA256": fingerprint(card=card),
        **({"WeightsSHA256": weights} if weights else {}),
    }


def _describe_anatomy(anatomy: AnatomyResult, card: Mapping | None) -> dict[str, object] | None:
    """Describe the source of the anatomy: the networks that were used, or the user's file."""
    if anatomy.head is None:
        return None
    if anatomy.segmentation is not None:
        return {"Source": str(anatomy.segmentation)}
    model = _describe_model(ANATOMY, card)
    weights = model["WeightsSHA256"]
    if not anatomy.refined:
        weights = {name: digest for name, digest in weights.items() if name != TISSUE}
    return {"Source": anatomy.source, **model, "WeightsSHA256": weights}
