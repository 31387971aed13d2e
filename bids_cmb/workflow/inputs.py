"""The inputs of one scan: all that decides its result, found once; their record and fingerprint."""

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
from bids_cmb.detection.ensemble import at_operating_point, takes_phase, thresholds_of
from bids_cmb.imaging.phase import PhaseMatch, find_phase_image, read_units
from bids_cmb.networks.inference import ModelOptions
from bids_cmb.networks.model_cards import ANATOMY, load_card
from bids_cmb.provenance import engines, fingerprint, package_digest, sha256


@dataclass(frozen=True)
class Thresholds:
    """How a probability map is cut into lesions.

    Attributes:
        threshold: Probability from which a voxel is lesion.
        definite: Highest probability from which a lesion is definite.
        min_volume: mm³ of the smallest lesion.
    """

    threshold: float
    definite: float
    min_volume: float


@dataclass(frozen=True, eq=False)
class ScanInputs:
    """Everything that decides the result of one scan.

    Attributes:
        scan: Its image or echoes, entities and metadata.
        brain: Where its brain mask comes from.
        segmentation: The user's segmentation of the head; None without.
        phase: Its phase image; None where no network takes phase.
        phase_file: The same file if it can be opened.
        atlases: That tell lobes apart and name parcels; None where no anatomy is segmented.
        anatomy_card: Model card of the anatomy network; None likewise.
        detectors: Name of each detector → its model card.
        models: Which networks are used, and how.
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
        """The files whose content decides the result, each with what it is used as."""
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
        return _any_network(self.settings["anatomy"], self.detectors.values())


@dataclass(frozen=True)
class InputRecord:
    """The files of a scan as they were before any was loaded.

    Attributes:
        stamps: Of each: role, name, size, times and SHA-256.
        fingerprint: Of them, the settings and the software.
        began: When, in seconds of the monotonic clock.
    """

    stamps: tuple[dict[str, object], ...]
    fingerprint: str
    began: float


def resolve_inputs(scan: Scan, config: Config) -> ScanInputs:
    """Find everything that decides the result of a scan; open none of its images.

    Raises:
        ValueError: If a detector is unknown.
        OSError: If a folder cannot be read.
    """
    models = models_of(config)
    mask = find_mask(config.derivatives, scan, config.mask_desc)
    segmentation = find_segmentation(config.derivatives, scan, config.bids_dir)
    has_anatomy = config.anatomy == "network" or segmentation is not None
    phase = match_phase(scan, config.detector, models)
    return ScanInputs(
        scan,
        BrainSource(scan.path, mask, config.skip_brain_extraction, bool(config.derivatives)),
        segmentation,
        phase,
        _readable(phase.path) if phase else None,
        find_atlases() if has_anatomy else None,
        load_card(ANATOMY, config.model_dir) if has_anatomy else None,
        {name: load_card(name, config.model_dir) for name in config.detector},
        models,
        result_settings(config),
    )


def models_of(config: Config) -> ModelOptions:
    """Give which networks a run uses, and how."""
    return ModelOptions(config.model_dir, config.members, config.precision)


def match_phase(scan: Scan, detectors: Iterable[str], models: ModelOptions) -> PhaseMatch | None:
    """Find the phase image of a scan; None, and no folder is read, where no network takes phase."""
    if not takes_phase(detectors, models):
        return None
    if scan.more_echoes:
        return PhaseMatch(note=f"{scan.path.name}: combined echoes have no phase in common.")
    return find_phase_image(scan.path)


def _readable(path: Path | None) -> Path | None:
    return path if path and path.is_file() and os.access(path, os.R_OK) else None


def uses_networks(config: Config) -> bool:
    """Check whether any network is needed for a run."""
    return _any_network(
        config.anatomy, [load_card(name, config.model_dir) for name in config.detector]
    )


def _any_network(anatomy: object, cards: Iterable[Mapping]) -> bool:
    return anatomy == "network" or any("members" in card for card in cards)


def resolve_thresholds(config: Config) -> Thresholds:
    """Give the thresholds of a run, as `choose_thresholds`."""
    cards = [
        at_operating_point(load_card(name, config.model_dir), config.operating_point)
        for name in config.detector
    ]
    return choose_thresholds(cards, config.threshold, config.min_volume)


def choose_thresholds(
    cards: Sequence[Mapping], threshold: float | None, min_volume: float | None
) -> Thresholds:
    """Choose the user's thresholds, else those on the detectors' cards.

    Several detectors share a scale, on which `detection.ensemble.thresholds_of` finds them, and on
    which the user's threshold is meant; their smallest volumes are averaged.

    Args:
        cards: Of the detectors, at their operating points.
        threshold: The user's, 0 to 1; None without.
        min_volume: The user's, mm³; None without.
    """
    of_cards, definite = thresholds_of(cards)
    volume = float(np.mean([card["min_volume_mm3"] for card in cards]))
    threshold = of_cards if threshold is None else threshold
    volume = volume if min_volume is None else min_volume
    return Thresholds(threshold, max(definite, threshold), volume)


# --- The record and the fingerprint ---------------------------------------------------------------


def record_inputs(inputs: ScanInputs) -> InputRecord:
    """Note what the files of a scan are, before any is loaded.

    Raises:
        OSError: If one cannot be read.
    """
    began = time.monotonic()
    stamps = tuple(describe_input(path, Role=role) for role, path in inputs.roles)
    digests = [[stamp["Role"], stamp["SHA256"]] for stamp in stamps]
    return InputRecord(stamps, fingerprint_of(inputs, digests), began)


def fingerprint_of(inputs: ScanInputs, digests: list) -> str:
    """Take one hash over the input, its metadata, the settings, the detectors and the software.

    Args:
        inputs: Of the scan whose result it is.
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
    stamps = provenance.get("Input")
    stamps = stamps if isinstance(stamps, list) else []
    known = {
        (stamp.get("Role"), stamp.get("Path")): stamp for stamp in stamps if isinstance(stamp, dict)
    }
    digests = [
        [role, compute_digest(path, known.get((role, path.name), {}))]
        for role, path in inputs.roles
    ]
    return provenance.get("Fingerprint") == fingerprint_of(inputs, digests)


def check_unchanged(inputs: ScanInputs, record: InputRecord, config: Config) -> None:
    """Refuse a scan of which a file was replaced while it was processed.

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
