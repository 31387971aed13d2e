"""Cropping and padding of images."""

from collections.abc import Sequence

import numpy as np
from nibabel.affines import from_matvec

from bids_cmb.imaging.volume import Volume


def crop(volume: Volume, first: np.ndarray, end: np.ndarray) -> Volume:
    """Crop to the voxels from ``first`` to before ``end``, each (3,); not copied."""
    return Volume(volume.data[tuple(map(slice, first, end))], shift_affine(volume.affine, first))


def shift_affine(affine: np.ndarray, first: Sequence[int]) -> np.ndarray:
    """Shift an affine to a grid that begins at voxel ``first``."""
    return affine @ from_matvec(np.eye(3), first)


def find_bounds(mask: np.ndarray, margin: np.ndarray | int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Find the first voxel of a mask along each axis, and the one after the last, each (3,).

    Args:
        mask: bool, (X, Y, Z), with a voxel at least.
        margin: Voxels that are added at either end, as far as there are any.
    """
    filled = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    low, end = np.transpose([(indices[0], indices[-1] + 1) for indices in filled])
    return np.maximum(low - margin, 0), np.minimum(end + margin, mask.shape)


def find_box(mask: np.ndarray, margin: np.ndarray | int = 0) -> tuple[slice, slice, slice]:
    """Find the box around a mask; as `find_bounds`."""
    return tuple(map(slice, *find_bounds(mask, margin)))


def crop_or_pad(
    data: np.ndarray, start: np.ndarray, shape: Sequence[int], *, beyond: float = 0
) -> np.ndarray:
    """Crop a box of the first three axes of ``data``, padded by ``beyond`` where it leaves it."""
    kept, padding = intersect_box(start, shape, data.shape[:3])
    return np.pad(data[kept], padding + [(0, 0)] * (data.ndim - 3), constant_values=beyond)


def intersect_box(
    start: np.ndarray, shape: np.ndarray, room: tuple[int, ...]
) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """Intersect a box with the room: the voxels it holds, and the padding at each end."""
    low, high = np.clip(start, 0, room), np.clip(start + shape, 0, room)
    kept = tuple(slice(first, end) for first, end in zip(low, high, strict=True))
    before = np.clip(low - start, 0, shape)  # a box may lie beside the room
    return kept, list(zip(before, shape - (high - low) - before, strict=True))
