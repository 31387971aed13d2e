"""The anatomy of one scan, from the user's segmentation or the network, and its brain mask."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.atlases import Atlases, map_capsule, map_lobes
from bids_cmb.anatomy.brain_extraction import (
    PLAUSIBLE_ML,
    POSSIBLE_ML,
    cut_leaks,
    mask_stripped_brain,
    measure_volume_ml,
    segment_brain,
)
from bids_cmb.anatomy.lobes import draw_lobes
from bids_cmb.anatomy.mni_fit import MAX_MNI_RMS_MM
from bids_cmb.anatomy.mni_template import load_template
from bids_cmb.anatomy.refinement import refine_structures
from bids_cmb.anatomy.segmentation import Anatomy, predict_anatomy, resample_brain
from bids_cmb.anatomy.user_segmentation import (
    RegisteredSegmentation,
    describe_unknown_codes,
    interpret_segmentation,
    register_segmentation,
)
from bids_cmb.bids.companions import Segmentation
from bids_cmb.imaging.nifti import load_labels
from bids_cmb.imaging.resampling import resample_like
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import ANATOMY, load_card

NETWORK = "the anatomy network"


@dataclass(frozen=True, eq=False)
class AnatomyResult:
    """Anatomical segmentation of the scan, its source, and lobe labels if available.

    Attributes:
        head: Structures, midline and affine to MNI; None if not requested or not recognised.
        lobes: Labels on the grid of the structures; None without parcels or atlas.
        source: In words.
        notes: Sentences for the log, without the name of the scan.
        capsule: The internal capsule by an atlas, bool on that grid; None without.
        registered: How the user's segmentation was registered from a T1w image; None if it was not.
        segmentation: The user's file where that was used; None where the network was.
        refined: Whether the finer network segmented the structures.
    """

    head: Anatomy | None = None
    lobes: np.ndarray | None = None
    source: str | None = None
    notes: tuple[str, ...] = ()
    capsule: np.ndarray | None = None
    registered: RegisteredSegmentation | None = None
    segmentation: Path | None = None
    refined: bool = False


@dataclass(frozen=True)
class BrainSource:
    """Where the brain mask of a scan comes from.

    Attributes:
        scan: The scan's file, named in errors.
        mask: The user's mask; None where the brain is to be extracted.
        stripped: Whether the scan is skull-stripped, its non-zero voxels being the brain.
        searched: Whether a mask was looked for among the user's derivatives.
    """

    scan: Path
    mask: Path | None = None
    stripped: bool = False
    searched: bool = False


@dataclass(frozen=True, eq=False)
class BrainMask:
    """The brain mask of a scan, bool on its grid, its source in words, and notes for the log."""

    mask: Volume
    source: str
    notes: tuple[str, ...] = ()


def segment_anatomy(
    image: Volume,
    models: ModelOptions,
    brain: BrainSource,
    *,
    segmentation: Segmentation | None = None,
    network: bool = True,
) -> AnatomyResult:
    """Segment the head: by the user's own segmentation, or by the network.

    A segmentation on a T1w image is brought to the scan; if it cannot be, a note says why, and the
    network takes its place.

    Args:
        image: The scan.
        models: Which networks, and how.
        brain: Where its brain mask comes from, against which a segmentation is checked.
        segmentation: The user's; None without.
        network: Whether the network may be used.

    Raises:
        ValueError: If the user's segmentation cannot be read; the file is named.
    """
    if segmentation is None:
        return segment_with_network(image, models) if network else AnatomyResult()
    about = load_card(ANATOMY, models.folder)
    path, stored = segmentation.path, load_labels(segmentation.path)
    head, lobes = interpret_segmentation(stored, path, about["classes"], load_template())
    unknown = describe_unknown_codes(stored, path, about["classes"])
    notes = () if unknown is None else (unknown,)
    result = AnatomyResult(head, lobes, str(path), notes, segmentation=path)
    if not segmentation.in_t1w_space:
        return result
    fallback = segment_with_network(image, models) if network else AnatomyResult()
    mask = get_brain_mask(image, brain, fallback).mask
    return _register_to_scan(result, segmentation, (image, mask), fallback)


def segment_with_network(image: Volume, models: ModelOptions) -> AnatomyResult:
    """Segment the head with the network; a note says so if it recognises nothing."""
    try:
        return segment_head(image, models)
    except ValueError as error:
        return AnatomyResult(notes=(f"no regions: {error}",))


def segment_head(image: Volume, models: ModelOptions) -> AnatomyResult:
    """Segment the head with the network, its brain cut where that leaks.

    Raises:
        ValueError: If the network cannot be loaded, or it finds no brain.
    """
    head = predict_anatomy(image, models)
    return AnatomyResult(replace(head, brain=cut_leaks(head.brain, image)), None, NETWORK)


def _register_to_scan(
    result: AnatomyResult,
    segmentation: Segmentation,
    scan: tuple[Volume, Volume],
    fallback: AnatomyResult,
) -> AnatomyResult:
    """Register a segmentation on a T1w image to the scan (image, brain), or fall back."""
    t1w, transform = segmentation.t1w, segmentation.transform
    try:
        registered = register_segmentation(
            result.head, result.lobes, *scan, t1w=t1w, transform=transform
        )
    except ValueError as error:
        note = f"the segmentation {segmentation.path} was not used: {error}."
        return replace(fallback, notes=(*fallback.notes, note))
    return replace(result, head=registered.anatomy, registered=registered)


def refine_anatomy(image: Volume, result: AnatomyResult, models: ModelOptions) -> AnatomyResult:
    """Refine the structures on finer voxels; a note says why if they stay as they are."""
    head, reason = refine_structures(image, result.head, models)
    notes = () if reason is None else (f"structures on 2 mm voxels: {reason}.",)
    refined = head is not result.head
    return replace(result, head=head, notes=(*result.notes, *notes), refined=refined)


def add_atlases(result: AnatomyResult, atlases: Atlases) -> AnatomyResult:
    """Add lobes by an atlas or by rules, the capsule by an atlas, and a note on a poor fit."""
    head = result.head
    if result.lobes is None:
        lobes = map_lobes(head, atlases.lobes) if atlases.lobes else draw_lobes(head)
        result = replace(result, lobes=lobes)
    if atlases.nuclei:
        result = replace(result, capsule=map_capsule(head, atlases.nuclei))
    if head.fit_mm is None or head.fit_mm <= MAX_MNI_RMS_MM:
        return result
    note = (
        f"MNI coordinates are unreliable: the RMS centroid error is {head.fit_mm:.1f} mm "
        "after affine registration."
    )
    return replace(result, notes=(*result.notes, note))


def get_brain_mask(
    image: Volume, source: BrainSource, anatomy: AnatomyResult | None = None
) -> BrainMask:
    """Get the brain mask: the user's, the non-zero voxels of a stripped scan, or extracted.

    Args:
        image: The scan.
        source: Where its mask comes from.
        anatomy: Of the scan; its brain is taken where it could be a whole one.

    Raises:
        ValueError: If no brain is found, the user's mask holds none, or what it holds is not
            brighter than 0, as a magnitude is; the scan is named.
    """
    try:
        brain = _brain_mask(image, source, anatomy)
        check_brightness(image, brain.mask)
    except ValueError as error:
        raise ValueError(f"{source.scan}: {error}") from error
    return brain


def _brain_mask(image: Volume, source: BrainSource, anatomy: AnatomyResult | None) -> BrainMask:
    if source.stripped:
        return BrainMask(mask_stripped_brain(image), "the scan's own non-zero voxels")
    if source.mask:
        mask = load_brain_mask(source.mask, image)
        return BrainMask(mask, str(source.mask), _describe_odd_volume(source.mask, mask))
    brain = extract_brain_mask(image, anatomy)
    note = "--derivatives holds no brain mask for it; one was found."
    return replace(brain, notes=(note,) if source.searched else ())


def _describe_odd_volume(path: Path, mask: Volume) -> tuple[str, ...]:
    """Say if a mask holds less or more than any brain: lesions are looked for within it only."""
    volume, (least, most) = measure_volume_ml(mask), POSSIBLE_ML
    if least <= volume <= most:
        return ()
    return (
        f"{path}: a brain mask should hold {least} to {most} ml of the scan; "
        f"found {volume:.1f} ml, and nothing is looked for beyond it.",
    )


def load_brain_mask(path: Path, image: Volume) -> Volume:
    """Load a brain mask onto the grid of a scan, bool.

    Raises:
        ValueError: If no voxel of the scan lies within it.
    """
    mask = resample_like(load_labels(path), image, order=0)
    inside = mask.data > 0.5
    if not inside.any():
        raise ValueError(f"the brain mask {path} must overlap the scan; found no voxel in common.")
    return Volume(inside, image.affine)


def extract_brain_mask(image: Volume, anatomy: AnatomyResult | None = None) -> BrainMask:
    """Extract the brain by the anatomy if that is plausible, else by intensity and shape.

    Raises:
        ValueError: If no brain is found either way.
    """
    if anatomy is not None and anatomy.head is not None:
        mask = resample_brain(anatomy.head, image)
        if PLAUSIBLE_ML[0] <= measure_volume_ml(mask) <= PLAUSIBLE_ML[1]:
            return BrainMask(mask, f"found by {anatomy.source}")
    return BrainMask(segment_brain(image), "found by intensity and shape")


def check_brightness(image: Volume, brain: Volume) -> None:
    """Check that the median in the brain, by which images are divided, is above 0.

    Raises:
        ValueError: If it is not.
    """
    median = float(np.median(image.data[np.asarray(brain.data, bool)]))
    if not median > 0:
        raise ValueError(
            "a magnitude image must be brighter than 0 in the brain; found a median of "
            f"{median:g} there."
        )
