"""Lesions and mimics of a reference on the grid of a network, and dark spots beside them."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.cropping import shift_affine
from bids_cmb.imaging.nifti import load_labels
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.label_maps import load_label_map

LESION, UNCERTAIN = 1, 2  # values of `TrainingScan.labels`; 0 is neither
MIN_LESION_FRACTION = 0.4  # of a voxel of the network's grid that a lesion must fill
# Of the brain's median, below the mean of the surround: could be taken for a lesion
MIN_DARKNESS = 0.25


def resample_lesions(path: Path, like: Volume) -> tuple[np.ndarray, list[np.ndarray]]:
    """Resample the lesions of a label map to the grid of ``like``.

    Returns:
        labels: As `TrainingScan.labels`.
        voxels: Of each lesion, int16 (N, 3).
    """
    stored = load_label_map(path)
    indices, uncertain = stored.data, _find_uncertain(path)
    labels, voxels_of = np.zeros(like.shape, np.uint8), []
    for index, box in enumerate(ndimage.find_objects(indices), start=1):
        if box is None:
            continue
        part = Volume(
            indices[box] == index, shift_affine(stored.affine, [side.start for side in box])
        )
        voxels = _resample_lesion(part, like)
        if len(voxels):
            labels[tuple(voxels.T)] = UNCERTAIN if index in uncertain else LESION
            voxels_of.append(voxels.astype(np.int16))
    return labels, voxels_of


def _resample_lesion(lesion: Volume, like: Volume) -> np.ndarray:
    """Find the voxels (N, 3) of the grid of ``like`` that a lesion fills in part, at least one.

    The lesion is sampled at the middles of those voxels, so one that lies between them is given the
    nearest; beyond the grid it has none.
    """
    padded = Volume(
        np.pad(lesion.data, 1).astype(np.float32), shift_affine(lesion.affine, (-1, -1, -1))
    )
    index = like.index(padded.corners())
    first = np.maximum(np.floor(index.min(0)).astype(int), 0)
    last = np.minimum(np.ceil(index.max(0)).astype(int) + 1, like.shape)
    if (last <= first).any():
        return np.zeros((0, 3), int)
    share = resample(padded, shift_affine(like.affine, first), tuple(last - first)).data
    full = share.max()
    if full <= 0:
        middle = lesion.world(np.argwhere(lesion.data).mean(axis=0)[None])
        nearest, inside = like.nearest_voxels(middle)
        return nearest[inside]
    return first + np.argwhere(share >= min(MIN_LESION_FRACTION, 0.6 * full))


def _find_uncertain(lesions: Path) -> set[int]:
    """List the indices of lesions that their table does not call definite."""
    table = lesions.with_name(lesions.name.partition(".")[0] + ".tsv")
    if not table.is_file():
        return set()
    lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    if not lines or "certainty" not in lines[0]:
        return set()
    column = lines[0].index("certainty")
    return {int(line[0]) for line in lines[1:] if line[column] != "definite"}


def find_mimic_voxels(path: Path | None, like: Volume, loss_mask: np.ndarray) -> list[np.ndarray]:
    """List for each mimic its voxels on the network's grid within the loss mask."""
    if path is None:
        return []
    mimics = load_labels(path)
    voxels = np.argwhere(mimics.data > 0)
    label = np.rint(mimics.data[tuple(voxels.T)]).astype(int)
    voxel, inside = like.nearest_voxels(mimics.world(voxels))
    voxel, label = voxel[inside], label[inside]
    kept = loss_mask[tuple(voxel.T)]
    voxel, label = voxel[kept].astype(np.int16), label[kept]
    order = np.argsort(label, kind="stable")
    cuts = np.flatnonzero(np.diff(label[order])) + 1
    return [part for part in np.split(voxel[order], cuts) if len(part)]


def find_dark_spots(image: Volume, mask: np.ndarray) -> np.ndarray:
    """Find local minima that are clearly darker than their surround of 9 mm, (N, 3)."""
    data = image.data
    surround = ndimage.uniform_filter(data, np.maximum(3, np.round(9 / image.spacing)).astype(int))
    lowest = data == ndimage.minimum_filter(data, 3)
    return subsample(np.argwhere(lowest & mask & (data < surround - MIN_DARKNESS)))


def subsample(voxels: np.ndarray, max_count: int = 20_000) -> np.ndarray:
    """Take every n-th voxel, so that no more than about ``max_count`` remain; int16."""
    return voxels[:: max(1, len(voxels) // max_count)].astype(np.int16)
