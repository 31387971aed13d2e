"""Grey, white or fluid: the anatomy on finer voxels than those of the network that sees all of it.

The anatomy network's voxels are 2 mm wide: cortex is hardly more, the horns of ventricles are less.
A second, small network looks at the brain on voxels of 1 mm in the scan's own slices, the first
one's opinion beside the image, and says of each what kind of tissue it is. What is one kind to it
(the many structures that bleeds are rare in, and all that is no tissue) stays as the first one saw
it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bids_cmb.anatomy.segmentation import FLUID_OUTSIDE, OUTSIDE, Anatomy, brain_of, sided
from bids_cmb.imaging.preprocessing import Grid, preprocess
from bids_cmb.imaging.volume import Volume, resample
from bids_cmb.networks.inference import (
    PROBABILITY_STEPS,
    ModelOptions,
    load_patch_model,
    predict_in_slabs,
)
from bids_cmb.networks.model_cards import ANATOMY, load_card, locate_weights

MEMBER = "tissue"  # of the anatomy's card
AT_ONCE = 3_000_000  # voxels
OVERLAP = 16  # voxels that parts are shown beyond either end
BRIGHTEST = 3.0  # brain medians
HEARD = 76  # 255ths of tissue or ventricle from which on the network is asked what a voxel is
# Of being believed: on 29 T2* and SWI scans it saw the kind it saw least of in 0.58 or more of the
# places that the first network was sure of, in heads painted in strange contrasts in 0.10 or less.
SURE, FEWEST_MM3, BELIEVED = 204, 150.0, 1 / 3  # 255ths; of such places; share
NO_TISSUE, OTHER = "no tissue", "other tissue"
KINDS = (
    NO_TISSUE, "cerebral white matter", "cerebral cortex", "cerebellar white matter",
    "cerebellar cortex", "lateral ventricle", "thalamus", "caudate", "putamen", "pallidum", OTHER,
)  # fmt: skip
FLUIDS = (OUTSIDE, FLUID_OUTSIDE, "third ventricle", "fourth ventricle")  # classes: no tissue


def kinds_of(classes: Sequence[dict]) -> np.ndarray:
    """Which of `KINDS` each class of the anatomy network is, uint8."""
    return np.array([_kind(one["name"]) for one in classes], np.uint8)


def _kind(name: str) -> int:
    return KINDS.index(name if name in KINDS else NO_TISSUE if name in FLUIDS else OTHER)


def opinion(
    anatomy: Anatomy, kinds: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """What the anatomy network thinks of the voxels of a finer grid, interpolated linearly.

    Args:
        anatomy: With its ``chances``.
        kinds: As `kinds_of` gives them.
        affine: Of the grid, (4, 4); its axes are those of the anatomy, in any order and direction.
        shape: Of the grid.

    Returns:
        Chances of each of `KINDS` but the first in 255ths, uint8 (X, Y, Z, kinds - 1); 0 where the
        network did not look.
    """
    sums = [
        anatomy.chances[..., kinds == kind].sum(axis=-1, dtype=np.float32)
        for kind in range(1, len(KINDS))
    ]
    to_coarse = np.linalg.inv(anatomy.structures.affine) @ affine
    order = np.abs(to_coarse[:3, :3]).argmax(axis=0)  # for each axis of the grid, the coarse one's
    told = np.stack(sums, axis=-1).transpose(*order, 3)
    for axis, coarse in enumerate(order):
        at = to_coarse[coarse, axis] * np.arange(shape[axis]) + to_coarse[coarse, 3]
        away = np.abs(at[:, None] - np.arange(told.shape[axis]))
        shares = np.maximum(1 - away, 0).astype(np.float32)  # (fine, coarse)
        told = np.moveaxis(np.tensordot(shares, told, axes=(1, axis)), 0, axis)
    return np.clip(np.rint(told), 0, PROBABILITY_STEPS).astype(np.uint8)


def shown(image: np.ndarray, told: np.ndarray) -> np.ndarray:
    """What the network is fed: image and opinion, float32 (..., kinds).

    Args:
        image: In brain medians, (...).
        told: As `opinion` gives it, (..., kinds - 1).
    """
    bright = np.clip(image.astype(np.float32), 0, BRIGHTEST)[..., None]
    return np.concatenate([bright, told.astype(np.float32) / PROBABILITY_STEPS], axis=-1)


def heard(told: np.ndarray) -> np.ndarray:
    """Where the network is asked: wherever the anatomy network sees some tissue, bool (...)."""
    return told.sum(axis=-1, dtype=np.int32) > HEARD


def finer(
    image: Volume, anatomy: Anatomy, models: ModelOptions | None = None
) -> tuple[Anatomy, str | None]:
    """The same head, its structures on finer voxels.

    The network learnt T2*-weighted and susceptibility-weighted scans. It is not believed where it
    hardly ever says what the first one is sure of, which knows any contrast.

    Args:
        image: The scan, as it came.
        anatomy: Of the scan, as the anatomy network sees it.
        models: Where the network lies, and how exact it shall be.

    Returns:
        anatomy: With other ``structures``, and without ``chances``. As it was where the card has
            no such network, the anatomy is the user's own, the network is not believed, or the
            brain has no voxel on its grid or no brightness.
        why: It is as it was though it should not be, in words without a full stop; None else.

    Raises:
        ValueError: If the network cannot be loaded.
    """
    models = models or ModelOptions()
    said = load_card(ANATOMY, models.folder)
    member = next((one for one in said["members"] if one["name"] == MEMBER), None)
    if member is None or anatomy.chances is None:
        return anatomy, None
    path = locate_weights(ANATOMY, member, models.folder)
    ask = load_patch_model(member, path, precision=models.precision)
    grid = Grid.from_card(member["grid"])
    try:
        fed = preprocess(image, brain_of(anatomy, image), grid).image
    except ValueError as error:  # no reason to lose a scan
        return anatomy, str(error).rstrip(".")
    kinds = kinds_of(said["classes"])
    told = opinion(anatomy, kinds, fed.affine, fed.shape)

    def run(part: np.ndarray) -> np.ndarray:
        return ask(part)[0].argmax(axis=-1).astype(np.uint8)

    found = predict_in_slabs(run, grid.multiple, shown(fed.data, told), AT_ONCE, OVERLAP)
    found[~heard(told)] = KINDS.index(NO_TISSUE)
    lost = _lost(found, told, fed.voxel_volume)
    if lost is not None:
        return anatomy, f"the contrast is strange to the finer network, which sees no {lost}"
    structures = _coded(found, fed, anatomy, said["classes"], kinds)
    return replace(anatomy, structures=structures, chances=None), None


def _lost(found: np.ndarray, told: np.ndarray, voxel_mm3: float) -> str | None:
    """The kind that the finer network sees least of where the first one is sure of it, if little.

    Args:
        found: Of `KINDS`, uint8 (X, Y, Z).
        told: As `opinion` gives it.
        voxel_mm3: Of that grid.
    """
    shares = {}
    for kind, name in enumerate(KINDS[1:-1], start=1):
        sure = told[..., kind - 1] >= SURE
        if sure.sum() * voxel_mm3 >= FEWEST_MM3:
            shares[name] = float((found[sure] == kind).mean())
    least = min(shares, key=shares.get, default=None)
    return None if least is None or shares[least] >= BELIEVED else least


def _coded(
    found: np.ndarray, fed: Volume, anatomy: Anatomy, classes: Sequence[dict], kinds: np.ndarray
) -> Volume:
    """FreeSurfer's codes for kinds of tissue; of a kind's classes, the likeliest one there."""
    best = np.zeros(found.shape, np.uint8)
    for kind in range(len(KINDS)):
        members = np.flatnonzero(kinds == kind)
        here = found == kind
        if len(members) == 1:
            best[here] = members[0]
            continue
        likeliest = anatomy.chances[..., members].argmax(axis=-1).astype(np.uint8)
        moved = resample(
            Volume(likeliest, anatomy.structures.affine), fed.affine, fed.shape, order=0
        )
        best[here] = members[moved.data[here]]
    return Volume(sided(best, fed.affine, anatomy.midline, classes), fed.affine)
