"""Refinement of the anatomy on 1 mm voxels: grey matter, white matter or fluid.

The anatomy network's voxels are 2 mm wide: cortex is hardly more, the horns of ventricles are less.
A second, small network sees the brain on voxels of 1 mm in the scan's own slices, with the first
one's probabilities as prior, and classifies the kind of tissue. What is one kind to it
(the many structures that bleeds are rare in, and all that is no tissue) stays as the first one
segmented it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bids_cmb.anatomy.segmentation import (
    FLUID_OUTSIDE,
    OUTSIDE,
    Anatomy,
    assign_sides,
    resample_brain,
)
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.inference import PROBABILITY_STEPS, predict_in_slabs
from bids_cmb.networks.loading import ModelOptions, load_patch_model
from bids_cmb.networks.model_cards import ANATOMY, load_card, locate_weights

MEMBER_NAME = "tissue"  # of the anatomy's card
MAX_VOXELS_AT_ONCE = 600_000  # more need more memory than all else of a scan
OVERLAP_VOXELS = 16  # voxels that parts are shown beyond either end
MAX_BRIGHTNESS = 3.0  # brain medians
MIN_QUERY_PROBABILITY = (
    76  # 255ths of tissue or ventricle from which on the network is asked what a voxel is
)
# Of being believed: on 29 T2* and SWI scans it saw the kind it saw least of in 0.58 or more of the
# places that the first network was sure of, in most heads painted in strange contrasts in 0.41 or
# less (docs/notes/training.md).
MIN_CONFIDENT_PROBABILITY, MIN_CONFIDENT_VOLUME_MM3, MIN_AGREEMENT = (
    204,
    150.0,
    0.5,
)  # 255ths; of such places; share
NO_TISSUE, OTHER = "no tissue", "other tissue"
KINDS = (
    NO_TISSUE, "cerebral white matter", "cerebral cortex", "cerebellar white matter",
    "cerebellar cortex", "lateral ventricle", "thalamus", "caudate", "putamen", "pallidum", OTHER,
)  # fmt: skip
FLUID_CLASSES = (
    OUTSIDE,
    FLUID_OUTSIDE,
    "third ventricle",
    "fourth ventricle",
)  # classes: no tissue


def map_classes_to_kinds(classes: Sequence[dict]) -> np.ndarray:
    """Map each class of the anatomy network to one of `KINDS`, uint8."""
    return np.array([_find_kind(entry["name"]) for entry in classes], np.uint8)


def _find_kind(name: str) -> int:
    return KINDS.index(name if name in KINDS else NO_TISSUE if name in FLUID_CLASSES else OTHER)


def resample_prior(
    anatomy: Anatomy, kinds: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """Resample the anatomy network's probabilities to a finer grid, linearly.

    Args:
        anatomy: With its ``probabilities``.
        kinds: From `map_classes_to_kinds`.
        affine: Of the grid, (4, 4); its axes are those of the anatomy, in any order and direction.
        shape: Of the grid.

    Returns:
        Probabilities of each of `KINDS` but the first in 255ths, uint8 (X, Y, Z, kinds - 1); 0
        beyond the network's grid.
    """
    prior = np.empty((*shape, len(KINDS) - 1), np.uint8)
    for kind in range(1, len(KINDS)):  # one by one: all at once would be the largest of a scan
        probability = anatomy.probabilities[..., kinds == kind].sum(axis=-1, dtype=np.float32)
        finer = resample(Volume(probability, anatomy.structures.affine), affine, shape).data
        prior[..., kind - 1] = np.clip(np.rint(finer), 0, PROBABILITY_STEPS)
    return prior


def make_input(image: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Make the network's input of image and prior, float32 (..., kinds).

    Args:
        image: In brain medians, (...).
        prior: From `resample_prior`, (..., kinds - 1).
    """
    bright = np.clip(image.astype(np.float32), 0, MAX_BRIGHTNESS)[..., None]
    return np.concatenate([bright, prior.astype(np.float32) / PROBABILITY_STEPS], axis=-1)


def make_query_mask(prior: np.ndarray) -> np.ndarray:
    """Make the mask where the network is used: where the prior has some tissue, bool (...)."""
    return prior.sum(axis=-1, dtype=np.int32) > MIN_QUERY_PROBABILITY


def refine_structures(
    image: Volume, anatomy: Anatomy, models: ModelOptions | None = None
) -> tuple[Anatomy, str | None]:
    """Refine the structures of a head on finer voxels.

    The network was trained on T2*-weighted and susceptibility-weighted scans. It is rejected where
    it hardly ever agrees with what the first one is confident of, which knows any contrast.

    Args:
        image: The scan, as it came.
        anatomy: Of the scan, from the anatomy network.
        models: Where the network lies, and its precision.

    Returns:
        anatomy: With other ``structures``, and without ``probabilities``. Unchanged where the card
            has no such network, the anatomy is the user's own, the network is rejected, or the
            brain has no voxel on its grid or no brightness.
        why: The reason if it is unchanged though it should not be, without a full stop; None else.

    Raises:
        ValueError: If the network cannot be loaded.
    """
    models = models or ModelOptions()
    anatomy_card = load_card(ANATOMY, models.folder)
    member = next(
        (entry for entry in anatomy_card["members"] if entry["name"] == MEMBER_NAME), None
    )
    if member is None or anatomy.probabilities is None:
        return anatomy, None
    path = locate_weights(ANATOMY, member, models.folder)
    predict = load_patch_model(member, path, precision=models.precision)
    grid = Grid.from_card(member["grid"])
    try:
        fed = preprocess(image, resample_brain(anatomy, image), grid).image
    except ValueError as error:  # no reason to lose a scan
        return anatomy, str(error).rstrip(".")
    kinds = map_classes_to_kinds(anatomy_card["classes"])
    prior = resample_prior(anatomy, kinds, fed.affine, fed.shape)

    def run(brightness: np.ndarray, prior: np.ndarray) -> np.ndarray:
        return predict(make_input(brightness[..., 0], prior))[0].argmax(axis=-1).astype(np.uint8)

    kinds_map = predict_in_slabs(
        run, grid.multiple, (fed.data, prior), MAX_VOXELS_AT_ONCE, OVERLAP_VOXELS
    )
    kinds_map[~make_query_mask(prior)] = KINDS.index(NO_TISSUE)
    missed = _find_missed_kind(kinds_map, prior, fed.voxel_volume)
    if missed is not None:
        return anatomy, f"the contrast is strange to the finer network, which sees no {missed}"
    structures = _encode_structures(kinds_map, fed, anatomy, anatomy_card["classes"], kinds)
    return replace(anatomy, structures=structures, probabilities=None), None


def _find_missed_kind(kinds_map: np.ndarray, prior: np.ndarray, voxel_mm3: float) -> str | None:
    """Find the kind that the finer network misses most where the first one is confident of it.

    Args:
        kinds_map: Of `KINDS`, uint8 (X, Y, Z).
        prior: From `resample_prior`.
        voxel_mm3: Of that grid.
    """
    shares = {}
    for kind, name in enumerate(KINDS[1:-1], start=1):
        confident = prior[..., kind - 1] >= MIN_CONFIDENT_PROBABILITY
        if confident.sum() * voxel_mm3 >= MIN_CONFIDENT_VOLUME_MM3:
            shares[name] = float((kinds_map[confident] == kind).mean())
    least = min(shares, key=shares.get, default=None)
    return None if least is None or shares[least] >= MIN_AGREEMENT else least


def _encode_structures(
    kinds_map: np.ndarray, fed: Volume, anatomy: Anatomy, classes: Sequence[dict], kinds: np.ndarray
) -> Volume:
    """Encode kinds as FreeSurfer codes; of a kind's classes, the likeliest one there."""
    best = np.zeros(kinds_map.shape, np.uint8)
    for kind in range(len(KINDS)):
        members = np.flatnonzero(kinds == kind)
        of_kind = kinds_map == kind
        if len(members) == 1:
            best[of_kind] = members[0]
            continue
        likeliest = anatomy.probabilities[..., members].argmax(axis=-1).astype(np.uint8)
        moved = resample(
            Volume(likeliest, anatomy.structures.affine), fed.affine, fed.shape, order=0
        )
        best[of_kind] = members[moved.data[of_kind]]
    return Volume(assign_sides(best, fed.affine, anatomy.midline, classes), fed.affine)
