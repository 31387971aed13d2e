"""Result of a scan: its row in the scan table, and its sidecar with the provenance."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.refinement import MEMBER_NAME as TISSUE
from bids_cmb.anatomy.scan_anatomy import AnatomyResult, BrainMask
from bids_cmb.bids.markers import describe_outputs
from bids_cmb.bids.paths import Output
from bids_cmb.detection.ensemble import Probability
from bids_cmb.detection.performance import select_performance
from bids_cmb.imaging.loading import LoadedPhase
from bids_cmb.imaging.nifti import LoadReport
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.candidates import Candidates
from bids_cmb.lesions.locations import list_position_notes
from bids_cmb.lesions.measure import Lesion, Thresholds
from bids_cmb.lesions.table import count_lesions
from bids_cmb.networks.loading import describe_computation
from bids_cmb.networks.model_cards import ANATOMY, load_card, select_members
from bids_cmb.provenance import fingerprint, machine, package_digest, software
from bids_cmb.quality.measures import Quality
from bids_cmb.workflow.inputs import InputRecord, ScanInputs

PROTOCOL_FIELDS = ("EchoTime", "MagneticFieldStrength", "Manufacturer", "ManufacturersModelName")


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
        candidates: Below the threshold of lesions; None where no lower one is known.
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
    candidates: Candidates | None = None

    def notes(self, name: str) -> tuple[str, ...]:
        """Collect the sentences for the log; ``name`` is that of the scan's file."""
        sentences = *self.brain.notes, *self.anatomy.notes, *list_position_notes(self.lesions)
        named = (f"{name}: {note}" for note in sentences)
        return (*self.header.notes, *named, *self.phase.notes)


def make_scan_row(result: ScanResult, inputs: ScanInputs) -> dict[str, object]:
    """Make the scan's row in ``_scans.tsv`` without the file name."""
    thresholds, image, scan = result.thresholds, result.image, inputs.scan
    in_plane = np.delete(image.spacing, image.slice_axis)
    return {
        **count_lesions(result.lesions, located=result.anatomy.head is not None),
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
        "fov_truncation_side": result.quality.fov_truncation_side,
        "brain_snr": round(result.quality.brain_snr, 1),
        "ghost_percent": _round_known(result.quality.ghost_percent, 1),
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
        "Performance": _describe_performance(result, inputs),
        **_describe_candidates(result, inputs),
        "Provenance": {**_provenance(result, inputs, record), "Files": describe_outputs(files)},
    }


def _describe_performance(result: ScanResult, inputs: ScanInputs) -> dict[str, object]:
    """Describe what the detector finds and misses on scans like this one, as its card states it.

    Nothing was measured of several detectors that are averaged, or of some networks of one.
    """
    if len(inputs.detectors) != 1 or inputs.models.members:
        return {"Contrast": inputs.scan.suffix, "Measured": [], "Limits": []}
    [card] = inputs.detectors.values()
    threshold, spacing = result.thresholds.threshold, result.image.spacing
    return {
        "Contrast": inputs.scan.suffix,
        "Measured": select_performance(card, threshold, spacing),
        "Limits": list(card.get("limits", ())),
    }


def _describe_candidates(result: ScanResult, inputs: ScanInputs) -> dict[str, object]:
    """Describe down to which threshold candidates are listed, and what is found down to there."""
    if result.candidates is None:
        return {}
    [card] = inputs.detectors.values()
    threshold = result.candidates.threshold
    return {
        "Candidates": {
            "Threshold": threshold,
            "Listed": len(result.candidates.lesions),
            "Omitted": result.candidates.n_omitted,
            "Measured": select_performance(card, threshold, result.image.spacing),
        }
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
        "Machine": {
            **machine(),
            **(
                dict(zip(("Device", "Engine"), describe_computation(), strict=True))
                if inputs.uses_networks
                else {"Device": "CPU"}
            ),
        },
        "Finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **({} if registration is None else {"Registration": registration.figures}),
    }


def _describe_model(
    name: str, card: Mapping, member_names: tuple[str, ...] = ()
) -> dict[str, object]:
    """Describe a model by the hashes of its card and of each member's weights.

    Those of the bundled detector's members that give it a second opinion are included.
    """
    members = [*select_members(dict(card), member_names)]
    if "second_opinion" in card:
        others = tuple(card.get("second_opinion_members", ()))
        members += select_members(load_card(card["second_opinion"]), others)
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
