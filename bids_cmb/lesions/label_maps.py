"""Label maps: images that number their lesions, on any grid."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from bids_cmb.imaging.nifti import load_labels
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import CONNECTIVITY_26

MAX_COVERED = 0.1  # share of the voxels; a hundred microbleeds are a thousandth of a head
MASK_THRESHOLD = 0.5  # for masks that are probability maps


def load_label_map(path: Path) -> Volume:
    """Load a label map: the numbers of a ``dseg``, or a mask's connected components.

    Raises:
        ValueError: If the file is no image, or shows something else than lesions.
        OSError: If it cannot be read.
    """
    stored = load_labels(path)
    covered = float((stored.data >= MASK_THRESHOLD).mean())
    if covered > MAX_COVERED:
        raise ValueError(
            f"{path}: a mask of microbleeds covers at most {100 * MAX_COVERED:g} % of an image; "
            f"found {100 * covered:.0f} %."
        )
    if "dseg" in path.name:
        return Volume(np.rint(stored.data).astype(np.int32), stored.affine)
    return Volume(
        ndimage.label(stored.data >= MASK_THRESHOLD, structure=CONNECTIVITY_26)[0], stored.affine
    )


def measure_overlap(
    first: Volume, second: Volume, numbers_1: np.ndarray, numbers_2: np.ndarray
) -> np.ndarray:
    """Measure the volume that each lesion of a label map shares with each of another.

    Voxel centres of either are looked up in the other, and the larger volume is taken: so a lesion
    of one small voxel overlaps one on thick slices, whichever grid is coarser.

    Args:
        first: Label map.
        second: Label map on any grid.
        numbers_1: Of the lesions in ``first``, shape (F,).
        numbers_2: Of the lesions in ``second``, shape (T,).

    Returns:
        mm³, shape (F, T).
    """
    forward = _measure_shared(first, second, numbers_1, numbers_2)
    backward = _measure_shared(second, first, numbers_2, numbers_1).T
    return np.maximum(forward, backward)


def grids_overlap(first: Volume, second: Volume) -> bool:
    """Check whether the boxes around two grids, along the axes of the world, overlap."""
    boxes = [_bounding_box(volume) for volume in (first, second)]
    low, high = np.max([box[0] for box in boxes], axis=0), np.min([box[1] for box in boxes], axis=0)
    return bool((low <= high).all())


def _measure_shared(
    first: Volume, second: Volume, numbers_1: np.ndarray, numbers_2: np.ndarray
) -> np.ndarray:
    """Measure the volume of each first lesion whose voxel centres lie in each second one, mm³."""
    voxels = np.argwhere(first.data > 0)
    indices, inside = second.nearest_voxels(first.world(voxels))
    values_1, values_2 = first.data[tuple(voxels[inside].T)], second.data[tuple(indices[inside].T)]
    counts = pd.Series(1, index=pd.MultiIndex.from_arrays([values_1, values_2])).groupby(
        level=[0, 1]
    )
    table = (
        counts.sum().unstack(fill_value=0).reindex(index=numbers_1, columns=numbers_2, fill_value=0)
    )
    return table.to_numpy(float) * first.voxel_volume


def _bounding_box(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Find the lowest and highest world position of the grid's corners."""
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in volume.shape])).reshape(3, -1).T
    return volume.world(corners).min(axis=0), volume.world(corners).max(axis=0)
