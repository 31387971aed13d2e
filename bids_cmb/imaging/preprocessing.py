"""Preprocessing: from a scan to the input grid of a network."""

from dataclasses import dataclass

import numpy as np
from nibabel.affines import from_matvec, voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy import ndimage, spatial

from bids_cmb.imaging.cropping import crop_or_pad, find_bounds, intersect_box, shift_affine
from bids_cmb.imaging.dilation import dilate
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.intensity import INTENSITIES
from bids_cmb.imaging.resampling import apply_weights, resample_like
from bids_cmb.imaging.volume import Volume

MAX_SPACING_DIFFERENCE = 0.01  # share by which voxel sizes may differ and still be left as they are
ROUNDING_VOXELS = 1e-5  # voxels: less is rounding, of affines stored as float32
BRAIN_SHELL_MM = 3.0  # beyond the brain within which a network is told what is there
MAX_SEARCHES = 2000  # voxels whose distance is searched one by one: faster than a tree
SCAN_REACH_VOXELS = 0.5  # voxels: how far a scan reaches beyond its outermost voxel centres


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """A scan as a network takes it. The affine of both volumes leads back to the scan.

    Attributes:
        image: float32, on the network's grid, scaled by its rule.
        brain: bool, on the same grid.
    """

    image: Volume
    brain: Volume


def preprocess(image: Volume, brain: Volume, grid: Grid) -> Preprocessed:
    """Resample a scan to the grid of a network and scale its intensities.

    Args:
        image: The scan, every voxel finite.
        brain: Not 0 in the brain; on the scan's grid, else it is resampled to it.
        grid: Of the network.

    Returns:
        Image and brain on the network's grid; 0 where it leaves the scan, before scaling.

    Raises:
        ValueError: If the brain is empty on the network's grid, or so dark or so even that the
            rule of intensity has nothing to divide by.
    """
    scan = reorient(image, grid.axes)
    mask = reorient(resample_like(brain, image, order=0), grid.axes)
    affine, lattice = _define_lattice(scan, grid)
    inside = _sample_nearest(mask.data != 0, lattice)
    if not inside.any():
        raise ValueError(
            "`brain` must have voxels on the network's grid. "
            f"Received: {np.count_nonzero(brain.data)} voxels, none of them on it."
        )
    start, shape = _choose_box(inside, voxel_sizes(affine), grid)
    affine = shift_affine(affine, start)
    inside = crop_or_pad(inside, start, shape)
    data = _sample(scan.data, lattice, start, shape, order=grid.order)
    data = INTENSITIES[grid.intensity](data, inside)
    if grid.masked:
        data = np.where(inside, data, 0)
    return Preprocessed(Volume(data.astype(np.float32, copy=False), affine), Volume(inside, affine))


def dilate_brain(brain: Volume) -> np.ndarray:
    """Dilate a brain mask by `BRAIN_SHELL_MM`, bool (X, Y, Z): pial microbleeds keep their edge."""
    return dilate(brain.data, BRAIN_SHELL_MM, brain.spacing)


def measure_distances(mask: Volume, voxels: np.ndarray, reach_mm: float) -> np.ndarray:
    """Measure the distance of voxels, (N, 3), to the nearest True voxel of a mask, mm, (N,).

    A few are searched one by one and many in a tree of the mask's surface: a distance transform of
    a large image would cost more time and much memory. Infinite where none is within ``reach_mm``.
    """
    spacing, voxels = mask.spacing, np.asarray(voxels, int).reshape(-1, 3)
    distances = np.where(mask.data[tuple(voxels.T)], 0, np.inf)
    outside = np.flatnonzero(distances)
    if len(outside) > MAX_SEARCHES:
        surface = np.argwhere(mask.data & ~ndimage.binary_erosion(mask.data))
        tree = spatial.KDTree(surface * spacing)
        bound = 1.001 * reach_mm  # what is just at the reach is within
        distances[outside], _ = tree.query(voxels[outside] * spacing, distance_upper_bound=bound)
    else:
        reach = np.ceil(reach_mm / spacing).astype(int)
        for number in outside:
            start = np.maximum(voxels[number] - reach, 0)
            box = tuple(map(slice, start, voxels[number] + reach + 1))
            near = np.argwhere(mask.data[box]) + start - voxels[number]
            distances[number] = np.linalg.norm(near * spacing, axis=1).min(initial=np.inf)
    return np.where(distances <= reach_mm, distances, np.inf)


@dataclass(frozen=True, eq=False)
class _Axis:
    """One axis of a network's grid, not yet cropped. All lengths in voxels of the scan.

    Attributes:
        positions: Where the voxels of the grid lie, (N,).
        step: From one of them to the next.
        size: Voxels of the scan.
        reach: How far the scan is extrapolated beyond its outermost voxel centres.
    """

    positions: np.ndarray
    step: float
    size: int
    reach: float


def reorient(volume: Volume, axes: str) -> Volume:
    """Reorder and flip axes as in `Grid`, to right, anterior and superior; voxels not copied."""
    turns = io_orientation(volume.affine)  # for each axis: which world axis, which way
    last = volume.slice_axis if axes == "slices" else None
    order = sorted(range(3), key=lambda axis: (axis == last, turns[axis, 0]))
    turns[order, 0] = range(3)
    return Volume(
        apply_orientation(volume.data, turns), volume.affine @ inv_ornt_aff(turns, volume.shape)
    )


def _define_lattice(scan: Volume, grid: Grid) -> tuple[np.ndarray, list[_Axis]]:
    """Define affine (4, 4) and axes of all voxels that the grid could have in this scan."""
    same, reach = (
        (ROUNDING_VOXELS, ROUNDING_VOXELS)
        if grid.conform
        else (MAX_SPACING_DIFFERENCE, SCAN_REACH_VOXELS)
    )
    wanted = [
        max(old, grid.finest or 0) if new is None else new
        for old, new in zip(scan.spacing, grid.spacing, strict=True)
    ]
    steps = wanted / scan.spacing
    steps[abs(steps - 1) < same] = 1  # a scan that fits is not touched
    size = np.array(scan.shape)
    if grid.conform:  # the middle is a voxel, the lower one of two, on both sides: nibabel's rule
        shape = np.array(grid.conform)
        first = (size - 1) // 2 - steps * ((shape - 1) // 2)
    else:
        shape = np.ceil(size / steps - ROUNDING_VOXELS).astype(int)
        first = (size - 1) / 2 - steps * (shape - 1) / 2
    axes = [
        _Axis(first[axis] + steps[axis] * np.arange(shape[axis]), steps[axis], size[axis], reach)
        for axis in range(3)
    ]
    return scan.affine @ from_matvec(np.diag(steps), first), axes


def _choose_box(
    brain: np.ndarray, spacing: np.ndarray, grid: Grid
) -> tuple[np.ndarray, np.ndarray]:
    """Choose first voxel and number of voxels of the network's input in the lattice, each (3,)."""
    if grid.shape:
        shape = np.array(grid.shape)
        start = np.ceil(ndimage.center_of_mass(brain)).astype(int) - shape // 2
        top = int(np.flatnonzero(brain.any(axis=(0, 1)))[-1])
        if grid.headroom is not None and start[2] + shape[2] <= top:
            start[2] = top + grid.headroom - shape[2]
        return start, shape

    size = np.array(brain.shape)
    first, end = np.zeros(3, int), size
    if grid.margin is not None:
        first, end = find_bounds(brain, np.ceil(grid.margin / spacing).astype(int))
    shape = -(-(end - first) // grid.multiple) * grid.multiple
    room = size - shape  # the box grows into the scan as far as there is any, then beyond it
    start = np.clip(first - (shape - end + first) // 2, np.minimum(room, 0), np.maximum(room, 0))
    return start, shape


def _sample_nearest(data: np.ndarray, lattice: list[_Axis]) -> np.ndarray:
    """Sample the nearest voxel of the scan for each of the lattice, False outside."""
    if all(_is_on_grid(axis) for axis in lattice):
        return data
    clamped = [_clamp_positions(axis) for axis in lattice]
    inside = [np.isfinite(positions) for positions in clamped]
    nearest = [
        np.floor(positions[on] + 0.5).astype(int)
        for positions, on in zip(clamped, inside, strict=True)
    ]
    sampled = np.zeros([len(positions) for positions in clamped], bool)
    sampled[np.ix_(*inside)] = data[np.ix_(*nearest)]
    return sampled


def _is_on_grid(axis: _Axis) -> bool:
    """Check whether the voxels of the grid are those of the scan."""
    return np.array_equal(axis.positions, np.arange(axis.size))


def _clamp_positions(axis: _Axis) -> np.ndarray:
    """Clamp positions within reach to the outermost voxel; NaN beyond."""
    within = np.clip(axis.positions, 0, axis.size - 1)
    return np.where(abs(within - axis.positions) <= axis.reach, within, np.nan)


def _sample(
    data: np.ndarray, lattice: list[_Axis], start: np.ndarray, shape: np.ndarray, *, order: int
) -> np.ndarray:
    """Resample the scan in a box of the lattice, 0 where the box leaves the lattice; float32.

    The grid keeps the axes of the scan, so its spline is one matrix for each of them, and only
    the box is computed.
    """
    kept, padding = intersect_box(start, shape, [len(axis.positions) for axis in lattice])
    # Where the grid is the scan's own there is nothing to compute.
    fits = [order < 3 and _is_on_grid(axis) for axis in lattice]
    inside = data[tuple(part if fit else slice(None) for part, fit in zip(kept, fits, strict=True))]
    if all(fits):
        return np.pad(inside.astype(np.float32), padding)
    weights = [
        None if fit else _compute_weights(axis, order)[part]
        for axis, part, fit in zip(lattice, kept, fits, strict=True)
    ]
    sampled = apply_weights(inside, weights)
    sampled = np.clip(sampled, data.min(), data.max())  # a cubic spline overshoots
    return np.pad(sampled.astype(np.float32), padding)


def _compute_weights(axis: _Axis, order: int) -> np.ndarray:
    """Compute the weight of each voxel of the scan at each position, (positions, voxels)."""
    if order == 1 and axis.step > 1:
        return _compute_averaging_weights(axis)
    clamped = np.nan_to_num(_clamp_positions(axis), nan=-1.0)  # -1 lies outside
    # A linear map is known by what it makes of each unit vector.
    units = np.eye(axis.size)
    return np.stack([ndimage.map_coordinates(u, [clamped], order=order) for u in units], axis=1)


def _compute_averaging_weights(axis: _Axis) -> np.ndarray:
    """Compute the weights of the mean over a ``step`` of the scan about each position."""
    voxels = np.arange(axis.size)
    low = np.maximum(axis.positions[:, None] - axis.step / 2, voxels - 0.5)
    high = np.minimum(axis.positions[:, None] + axis.step / 2, voxels + 0.5)
    overlap = np.maximum(high - low, 0)
    return overlap / np.maximum(overlap.sum(axis=1, keepdims=True), ROUNDING_VOXELS)
