"""Inputs of a scan: all that decides its result, resolved once; their record and fingerprint."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from bids_cmb import __version__
from bids_cmb.anatomy.atlases import Atlases, find_atlases
from bids_cmb.anatomy.scan_anatomy import BrainSource
from bids_cmb.bids.companions import Segmentation, find_mask, find_segmentation
from bids_cmb.bids.markers import compute_digest, describe_input
from bids_cmb.bids.scan import Scan
from bids_cmb.config import Config, result_settings
from bids_cmb.detection.calibration import (
    apply_operating_point,
    combine_thresholds,
    get_sensitive_threshold,
)
from bids_cmb.detection.designs import detectors_use_phase
from bids_cmb.imaging.phase_files import PhaseMatch, find_phase_image, read_units
from bids_cmb.lesions.measure import Thresholds
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import ANATOMY, load_card
from bids_cmb.provenance import engines, fingerprint, package_digest, sha256


@dataclass(frozen=True, eq=False)
class ScanInputs:
    """Everything that decides the result of a scan.

    Attributes:
        scan: Its image or echoes, entities and metadata.
        brain: Source of its brain mask.
        segmentation: The user's segmentation of the head; None without.
        phase: Its phase image; None if no network takes phase.
        phase_file: The same file if it can be opened.
        atlases: Of lobes and parcels; None if no anatomy is segmented.
        anatomy_card: Model card of the anatomy network; None likewise.
        detectors: Name of each detector → its model card.
        models: Options of the networks.
        settings: On which the result depends, as plain data.
    """

    scan: Scan
    brain: BrainSource
    segmentation: Segmentation | None
    phase: PhaseMatch | None
    phase_file: Path | None
    atlases: Atlases | None
    anatomy_card: Mapping | None
    detectors: Mapping[str, Mapping]
    models: ModelOptions
    settings: Mapping[str, object]

    @property
    def images(self) -> tuple[Path, ...]:
        """The image of the scan, or its echoes."""
        return (self.scan.path, *self.scan.more_echoes)

    @property
    def roles(self) -> list[tuple[str, Path]]:
        """The files whose content decides the result, each with its role."""
        return [
            ("scan", self.scan.path),
            *(("echo", path) for path in self.scan.more_echoes),
            *([("phase", self.phase_file)] if self.phase_file else []),
            *([("brain mask", self.brain.mask)] if self.brain.mask else []),
            *(self.segmentation.roles if self.segmentation else []),
        ]

    @property
    def uses_networks(self) -> bool:
        """Whether any network is needed."""
        return _need_networks(self.settings["anatomy"], self.detectors.values())


@dataclass(frozen=True)
class InputRecord:
    """Record of a scan's files before any was loaded.

    Attributes:
        stamps: Of each: role, name, size, times and SHA-256.
        fingerprint: Of them, the settings and the software.
        began: Time of the record, seconds of the monotonic clock.
    """

    stamps: tuple[dict[str, object], ...]
    fingerprint: str
    began: float


def resolve_inputs(scan: Scan, config: Config) -> ScanInputs:
    """Resolve everything that decides the result of a scan, without opening its images.

    Raises:
        ValueError: If a detector is unknown.
        OSError: If a folder cannot be read.
    """
    models = get_model_options(config)
    mask = find_mask(config.derivatives, scan, config.mask_desc)
    segmentation = find_segmentation(config.derivatives, scan, config.bids_dir)
    has_anatomy = config.anatomy == "network" or segmentation is not None
    phase = match_phase(scan, config.detector, models)
    return ScanInputs(
        scan,
        BrainSource(scan.path, mask, config.skip_brain_extraction, bool(config.derivatives)),
        segmentation,
        phase,
        _get_readable(phase.path) if phase else None,
        find_atlases() if has_anatomy else None,
        load_card(ANATOMY, config.model_dir) if has_anatomy else None,
        {name: load_card(name, config.model_dir) for name in config.detector},
        models,
        result_settings(config),
    )


def get_model_options(config: Config) -> ModelOptions:
    """Get the options of a run's networks."""
    return ModelOptions(config.model_dir, config.members, config.precision)


def match_phase(scan: Scan, detectors: Iterable[str], models: ModelOptions) -> PhaseMatch | None:
    """Find the phase image of a scan; None, without reading a folder, if no network takes phase."""
    if not detectors_use_phase(detectors, models):
        return None
    if scan.more_echoes:
        return PhaseMatch(note=f"{scan.path.name}: combined echoes have no phase in common.")
    return find_phase_image(scan.path)


def _get_readable(path: Path | None) -> Path | None:
    return path if path and path.is_file() and os.access(path, os.R_OK) else None


def uses_networks(config: Config) -> bool:
    """Check whether a run needs any network."""
    return _need_networks(
        config.anatomy, [load_card(name, config.model_dir) for name in config.detector]
    )


def _need_networks(anatomy: object, cards: Iterable[Mapping]) -> bool:
    return anatomy == "network" or any("members" in card for card in cards)


def resolve_thresholds(config: Config) -> Thresholds:
    """Resolve the thresholds of a run; see `choose_thresholds`."""
    cards = [
        apply_operating_point(load_card(name, config.model_dir), config.operating_point)
        for name in config.detector
    ]
    return choose_thresholds(cards, config.threshold, config.min_volume)


def choose_thresholds(
    cards: Sequence[Mapping], threshold: float | None, min_volume: float | None
) -> Thresholds:
    """Choose the user's thresholds, else those of the detectors' cards.

    Several detectors share a scale, on which `detection.calibration.combine_thresholds` gives them,
    and to which the user's threshold refers; their smallest volumes are averaged.

    Args:
        cards: Of the detectors, at their operating points.
        threshold: The user's, 0 to 1; None without.
        min_volume: The user's, mm³; None without.
    """
    from_cards, definite = combine_thresholds(cards)
    volume_mm3 = float(np.mean([card["min_volume_mm3"] for card in cards]))
    threshold = from_cards if threshold is None else threshold
    volume_mm3 = volume_mm3 if min_volume is None else min_volume
    return Thresholds(threshold, max(definite, threshold), volume_mm3)


def resolve_candidate_threshold(config: Config, thresholds: Thresholds) -> float | None:
    """Resolve the probability from which on something below a lesion is worth a look.

    It is that of the sensitive operating point of the only detector's card.

    Returns:
        0 to 1, below the threshold of lesions; None if there are several detectors or some
        networks of one, if the card has no such point, or if lesions reach down to it.
    """
    if len(config.detector) != 1 or config.members:
        return None
    lowest = get_sensitive_threshold(load_card(config.detector[0], config.model_dir))
    return lowest if lowest is not None and lowest < thresholds.threshold else None


# --- The record and the fingerprint ---------------------------------------------------------------


def record_inputs(inputs: ScanInputs) -> InputRecord:
    """Record the files of a scan, before any is loaded.

    Raises:
        OSError: If one cannot be read.
    """
    began = time.monotonic()
    stamps = tuple(describe_input(path, Role=role) for role, path in inputs.roles)
    digests = [[stamp["Role"], stamp["SHA256"]] for stamp in stamps]
    return InputRecord(stamps, compute_fingerprint(inputs, digests), began)


def compute_fingerprint(inputs: ScanInputs, digests: list) -> str:
    """Compute a hash of files, metadata, settings, detectors and software.

    Args:
        inputs: Of the scan.
        digests: Role and SHA-256 of each file.
    """
    atlases, phase = inputs.atlases, inputs.phase_file
    return fingerprint(
        input=digests,
        metadata={key: str(value) for key, value in inputs.scan.metadata.items()},
        settings=inputs.settings,
        detectors=list(inputs.detectors.values()),
        anatomy=inputs.anatomy_card,
        atlases=None if atlases is None else [_atlas_digest(path) for path in atlases.paths],
        version=__version__,
        code=package_digest(),
        engines=engines(),
        **({"phase": str(read_units(phase))} if phase else {}),
    )


def is_current(marker: Mapping, inputs: ScanInputs) -> bool:
    """Check whether a marker names these inputs, settings and software."""
    provenance = marker["Provenance"]
    previous = {(stamp.get("Role"), stamp.get("Path")): stamp for stamp in _list_stamps(marker)}
    digests = [
        [role, compute_digest(path, previous.get((role, path.name), {}))]
        for role, path in inputs.roles
    ]
    return provenance.get("Fingerprint") == compute_fingerprint(inputs, digests)


def check_images_of_result(scan: Scan, marker: Mapping) -> None:
    """Check that a result was made from the images of a scan as they are now.

    Raises:
        ValueError: If one is another file than then.
        OSError: If one cannot be read.
    """
    before = {stamp.get("Path"): stamp for stamp in _list_stamps(marker)}
    for path in (scan.path, *scan.more_echoes):
        stamp = before.get(path.name, {})
        if compute_digest(path, stamp) != stamp.get("SHA256"):
            raise ValueError(
                f"{path}: a result can only be shown on the image that it was made from; this is "
                "another one by its content. Without --reports-only it is processed anew."
            )


def _list_stamps(marker: Mapping) -> list[Mapping]:
    stamps = marker.get("Provenance", {}).get("Input")
    return (
        [stamp for stamp in stamps if isinstance(stamp, dict)] if isinstance(stamps, list) else []
    )


def check_unchanged(inputs: ScanInputs, record: InputRecord, config: Config) -> None:
    """Check that no file of a scan was replaced while it was processed.

    Raises:
        ValueError: If one was; the sentence names it.
    """
    for (_, path), before in zip(inputs.roles, record.stamps, strict=True):
        if not _is_same(path, before):
            raise ValueError(
                f"{path}: must not change while it is processed; it was replaced or removed "
                "meanwhile. The next run processes it again."
            )
    if resolve_inputs(inputs.scan, config).roles != inputs.roles:
        raise ValueError(
            f"{inputs.scan.path}: the files given for it must not change while it is processed; "
            "some came or went meanwhile. The next run processes it again."
        )


def _is_same(path: Path, before: Mapping) -> bool:
    try:
        return compute_digest(path, before) == before["SHA256"]
    except FileNotFoundError:
        return False


@lru_cache(maxsize=4)
def _atlas_digest(atlas: Path) -> str:
    return sha256(atlas)
