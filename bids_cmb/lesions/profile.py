"""Size of a lesion at half the depth of its own dark profile, whatever a detector outlined of it.

A detector's outline is as wide as its threshold lets it be. The width halfway between a lesion's
darkest voxel and what surrounds it depends on the image alone.
"""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.volume import Volume

PIXEL_MM = 0.25  # slices are cut on pixels of this size or smaller, interpolated linearly
RING_MM = (3.0, 7.0)  # of the surround, from the darkest voxel, in its slice
MAX_WIDTH_MM = 10.0  # in plane and across slices; what is wider has no end within what is looked at
REACH_MM = MAX_WIDTH_MM + 1.0  # from a lesion to the edge of what is looked at
CONNECTED = np.ones((3, 3), bool)  # by edge or corner


def measure_size(
    labels: np.ndarray, index: int, box: tuple[slice, ...], image: Volume, brain: Volume
) -> dict[str, float | None]:
    """Measure the size of a lesion at half depth, as attributes of `lesions.measure.Lesion`.

    Args:
        labels: Number of its lesion in each voxel, 0 elsewhere, (X, Y, Z).
        index: Of the lesion.
        box: That bounds it.
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
    """
    box, axis = widen_box(box, image, REACH_MM), image.slice_axis
    data, lesion, surround = (
        np.moveaxis(part, axis, 2)
        for part in (
            image.data[box], labels[box] == index, brain.data[box] & (labels[box] == 0),
        )
    )  # fmt: skip
    spacing = np.array([*np.delete(image.spacing, axis), image.spacing[axis]])
    in_plane, diameter = measure_half_depth(data, lesion, surround, spacing)
    return {"half_depth_in_plane": in_plane, "half_depth_diameter": diameter}


def widen_box(box: tuple[slice, ...], grid: Volume, by_mm: float) -> tuple[slice, ...]:
    """Widen a box by some mm on every side, within the grid."""
    margin = np.ceil(by_mm / grid.spacing).astype(int) + 1
    return tuple(
        slice(max(side.start - width, 0), min(side.stop + width, size))
        for side, width, size in zip(box, margin, grid.shape, strict=True)
    )


def measure_half_depth(
    data: np.ndarray, lesion: np.ndarray, surround: np.ndarray, spacing: np.ndarray
) -> tuple[float, float] | tuple[None, None]:
    """Measure the size of a lesion at half depth.

    In each slice the piece at most as bright as halfway from the darkest voxel to the median of the
    surround, which overlaps that of the slice before; a slice counts with its whole thickness.

    Args:
        data: The scan around the lesion, slices last, (X, Y, Z).
        lesion: Its voxels, bool, (X, Y, Z).
        surround: Brain that belongs to no lesion, bool, (X, Y, Z).
        spacing: Voxel size, mm, (3,).

    Returns:
        Diameter, mm, of the disc with the area of the largest piece; and of the ball with the
        volume of all pieces. None if the lesion is no darker than its surround
        or its profile is open: the dark goes on beyond `MAX_WIDTH_MM`.
    """
    darkest = np.argwhere(lesion)[np.argmin(data[lesion])]
    away = np.hypot(*((np.indices(data.shape[:2]).T - darkest[:2]) * spacing[:2]).T)
    ring = surround[:, :, darkest[2]] & (away > RING_MM[0]) & (away <= RING_MM[1])
    if not ring.any():
        return None, None
    low = float(data[tuple(darkest)])
    level = (low + float(np.median(data[:, :, darkest[2]][ring]))) / 2
    areas = list(_cut_slices(data, darkest, level, spacing)) if level > low else []
    widest = np.pi / 4 * MAX_WIDTH_MM**2
    if not areas or max(areas) > widest or len(areas) * spacing[2] > MAX_WIDTH_MM + spacing[2]:
        return None, None
    volume = sum(areas) * spacing[2]
    return float(np.sqrt(4 * max(areas) / np.pi)), float(np.cbrt(6 * volume / np.pi))


def _cut_slices(
    data: np.ndarray, darkest: np.ndarray, level: float, spacing: np.ndarray
) -> Iterator[float]:
    """Cut slice after slice at a level; the area of each piece, mm²."""
    parts = np.ceil(spacing[:2] / PIXEL_MM).astype(int)
    pixel = float(np.prod(spacing[:2] / parts))
    seed = np.zeros([(n - 1) * part + 1 for n, part in zip(data.shape, parts, strict=False)], bool)
    seed[tuple(darkest[:2] * parts)] = True
    first = _cut_slice(data[:, :, darkest[2]], seed, level)
    yield first.sum() * pixel
    for slices in (range(darkest[2] + 1, data.shape[2]), range(darkest[2] - 1, -1, -1)):
        piece = first
        for index in slices:
            piece = _cut_slice(data[:, :, index], piece, level)
            if not piece.any():
                break
            yield piece.sum() * pixel


def _cut_slice(plane: np.ndarray, seed: np.ndarray, level: float) -> np.ndarray:
    """Cut a slice (X, Y) at a level, and keep the pieces that overlap a seed on finer pixels."""
    factors = [fine / coarse for fine, coarse in zip(seed.shape, plane.shape, strict=True)]
    pieces, _ = ndimage.label(ndimage.zoom(plane, factors, order=1) <= level, CONNECTED)
    return np.isin(pieces, np.setdiff1d(pieces[seed], 0))
