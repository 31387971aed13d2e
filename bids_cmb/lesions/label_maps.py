"""Label maps: every lesion of an image with its own number, on whatever grid it came."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from bids_cmb.imaging.volume import Volume, load_labels
from bids_cmb.lesions.measure import TOUCHING

MOST_OF_ALL = 0.1  # part of the voxels; a hundred microbleeds are a thousandth of a head
CUT = 0.5  # a mask that is a probability map is lesion from here on


def label_map(path: Path) -> Volume:
    """Every lesion with its own number: as stored in a ``dseg``, else by what touches.

    Raises:
        ValueError: If the file is no image, or one of something else than lesions.
        OSError: If it cannot be read.
    """
    stored = load_labels(path)
    covered = float((stored.data >= CUT).mean())
    if covered > MOST_OF_ALL:
        raise ValueError(
            f"{path}: a mask of microbleeds covers at most {100 * MOST_OF_ALL:g} % of an image; "
            f"found {100 * covered:.0f} %."
        )
    if "dseg" in path.name:
        return Volume(np.rint(stored.data).astype(np.int32), stored.affine)
    return Volume(ndimage.label(stored.data >= CUT, structure=TOUCHING)[0], stored.affine)


def common_volume(one: Volume, other: Volume, own: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """What every lesion of one label map shares with every lesion of another, mm³, shape (F, T).

    Voxel centres of either are looked up in the other, and the larger volume is taken: so a lesion
    of one small voxel is seen within a thick slice, whichever side has the coarser grid.

    Args:
        one: Label map.
        other: Label map on any grid.
        own: Numbers of the lesions in ``one``, shape (F,).
        theirs: Numbers of the lesions in ``other``, shape (T,).
    """
    there = _looked_up(one, other, own, theirs)
    back = _looked_up(other, one, theirs, own).T
    return np.maximum(there, back)


def meet(one: Volume, other: Volume) -> bool:
    """Whether the boxes around two grids, along the axes of the world, have a place in common."""
    boxes = [_box(volume) for volume in (one, other)]
    low, high = np.max([box[0] for box in boxes], axis=0), np.min([box[1] for box in boxes], axis=0)
    return bool((low <= high).all())


def _looked_up(one: Volume, other: Volume, own: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Volume of each lesion of ``one`` that lies in each of ``other`` by its voxels' centres."""
    voxels = np.argwhere(one.data > 0)
    at = np.rint(other.index(one.world(voxels))).astype(int)
    inside = ((at >= 0) & (at < other.shape)).all(axis=1)
    here, there = one.data[tuple(voxels[inside].T)], other.data[tuple(at[inside].T)]
    counts = pd.Series(1, index=pd.MultiIndex.from_arrays([here, there])).groupby(level=[0, 1])
    table = counts.sum().unstack(fill_value=0).reindex(index=own, columns=theirs, fill_value=0)
    return table.to_numpy(float) * one.voxel_volume


def _box(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest world position of the grid's corners."""
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in volume.shape])).reshape(3, -1).T
    return volume.world(corners).min(axis=0), volume.world(corners).max(axis=0)
