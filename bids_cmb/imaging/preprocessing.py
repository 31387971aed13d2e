"""Preprocessing: from a scan to the input grid of a network, and back to the scan."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from nibabel.affines import from_matvec, voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy import ndimage

from bids_cmb.imaging.volume import Volume, resample, resample_like

MAX_SPACING_DIFFERENCE = 0.01  # share by which voxel sizes may differ and still be left as they are
ROUNDING_VOXELS = 1e-5  # voxels: less is rounding, of affines stored as float32
BRAIN_SHELL_MM = 3.0  # beyond the brain within which a network is told what is there
SCAN_REACH_VOXELS = 0.5  # voxels: how far a scan reaches beyond its outermost voxel centres


@dataclass(frozen=True)
class Grid:
    """The input grid of a network, as its model card defines it.

    The axes of the scan are kept (nothing is rotated, so no slice bleeds into its neighbour); they
    are only put in order, pointed to right, anterior and superior, and resampled.

    Attributes:
        spacing: Voxel size in mm along each axis; None leaves that axis of the scan as it is, and
            so does a scan that differs by less than 1 %.
        axes: ``ras``: nearest to left–right, posterior–anterior, inferior–superior.
            ``slices``: in-plane axes first, the axis along which slices are stacked last.
        finest: Where ``spacing`` leaves an axis as it is: mm that smaller voxels are widened to.
        conform: Voxels of a fixed field of view laid about the middle voxel of the scan before
            anything else, as FreeSurfer and SHIVA do; what lies outside is lost. None: the scan's.
        shape: Voxels of the input, cropped about the brain's centre of mass.
        multiple: Where ``shape`` is None: the input's voxels are a multiple of these.
        margin: Where ``shape`` is None: mm kept around the brain; None keeps the field of view.
        headroom: Where ``shape`` is given: if the brain pokes out of the box's top, the box moves
            up until its end lies this many voxels above the topmost slice of the brain.
        order: Of the spline: 0 nearest voxel, 1 linear, 3 cubic. Where voxels get larger, 1
            averages over the new voxel; 3 does not, and neither does 0.
        intensity: The name of a rule in ``INTENSITIES``.
        masked: Whether voxels outside the brain are 0.
    """

    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    axes: str = "ras"
    finest: float | None = None
    conform: tuple[int, int, int] | None = None
    shape: tuple[int, int, int] | None = None
    multiple: tuple[int, int, int] = (1, 1, 1)
    margin: float | None = None
    headroom: int | None = None
    order: int = 1
    intensity: str = "none"
    masked: bool = False

    def __post_init__(self):
        """Check that the grid is possible.

        Raises:
            ValueError: If an attribute is not of its kind, or two of them contradict each other.
        """
        for name, (holds, rule) in _RULES.items():
            value = getattr(self, name)
            if not holds(value):
                raise ValueError(f"`{name}` of a grid must be {rule}. Received: {value!r}.")
        if self.conform and None in self.spacing:
            raise ValueError(
                "`conform` of a grid needs a `spacing` in mm along each axis. "
                f"Received: spacing={self.spacing}."
            )
        if self.shape and (self.margin is not None or self.multiple != (1, 1, 1)):
            raise ValueError(
                "`shape` of a grid leaves nothing for `margin` and `multiple` to say. "
                f"Received: margin={self.margin}, multiple={self.multiple}."
            )
        if self.headroom is not None and not self.shape:
            raise ValueError(
                "`headroom` of a grid needs a `shape`: without one the box holds the whole brain. "
                f"Received: headroom={self.headroom}."
            )

    @classmethod
    def from_card(cls, card: Mapping) -> "Grid":
        """Read a grid from a model card.

        Args:
            card: As JSON gives it: lists for tuples; one number for three equal ones in
                ``spacing`` and ``multiple``; null for None.

        Returns:
            The grid; what the card leaves out has its default.

        Raises:
            ValueError: If the card has a key or a value that a grid does not know.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(card) - set(known))
        if unknown:
            raise ValueError(
                f"The card of a grid may hold {', '.join(known)}. Received: {', '.join(unknown)}."
            )
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in card.items()}
        for name in ("spacing", "multiple"):
            if name in values and not isinstance(values[name], tuple):
                values[name] = (values[name],) * 3
        return cls(**values)


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
    affine = affine @ from_matvec(np.eye(3), start)
    inside = crop_or_pad(inside, start, shape)
    data = _sample(scan.data, lattice, start, shape, order=grid.order)
    data = INTENSITIES[grid.intensity](data, inside)
    if grid.masked:
        data = np.where(inside, data, 0)
    return Preprocessed(Volume(data.astype(np.float32, copy=False), affine), Volume(inside, affine))


def resample_to_scan(probability: Volume, like: Volume) -> Volume:
    """Resample a probability from a network's grid to the grid of the scan ``like``.

    Args:
        probability: 0 to 1, on any grid.
        like: The scan.

    Returns:
        Linearly interpolated, float32, 0 to 1, fading to 0 within one voxel where the network
        had no input.
    """
    moved = resample(probability, like.affine, like.shape, order=1)
    return Volume(np.clip(moved.data, 0, 1), like.affine)


def dilate_brain(brain: Volume) -> np.ndarray:
    """Dilate a brain mask by `BRAIN_SHELL_MM`, bool (X, Y, Z): pial microbleeds keep their edge."""
    return ndimage.distance_transform_edt(~brain.data, brain.spacing) <= BRAIN_SHELL_MM


# The grid: where its voxels lie in the scan


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
        kept = np.ceil(grid.margin / spacing).astype(int)
        low, high = find_bounds(brain)
        first, end = np.maximum(low - kept, 0), np.minimum(high + kept, size)
    shape = -(-(end - first) // grid.multiple) * grid.multiple
    room = size - shape  # the box grows into the scan as far as there is any, then beyond it
    start = np.clip(first - (shape - end + first) // 2, np.minimum(room, 0), np.maximum(room, 0))
    return start, shape


def find_bounds(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the first voxel of a mask along each axis, and the one after the last, each (3,)."""
    filled = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(mask.ndim)]
    return np.array([indices[0] for indices in filled]), np.array(
        [indices[-1] + 1 for indices in filled]
    )


# Looking the scan up


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
    kept, padding = _intersect(start, shape, [len(axis.positions) for axis in lattice])
    # Where the grid is the scan's own there is nothing to compute.
    fits = [order < 3 and _is_on_grid(axis) for axis in lattice]
    sampled = data[tuple(kept[i] if fits[i] else slice(None) for i in range(3))]
    if all(fits):
        return np.pad(sampled.astype(np.float32), padding)
    sampled = sampled.astype(float)
    for i in np.argsort(shape / data.shape):  # what shrinks most goes first
        if not fits[i]:
            weights = _compute_weights(lattice[i], order)[kept[i]]
            sampled = np.moveaxis(np.tensordot(weights, sampled, axes=(1, i)), 0, i)
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


def crop_or_pad(
    data: np.ndarray, start: np.ndarray, shape: Sequence[int], *, beyond: float = 0
) -> np.ndarray:
    """Crop a box of the first three axes of ``data``, padded by ``beyond`` where it leaves it."""
    kept, padding = _intersect(start, shape, data.shape[:3])
    return np.pad(data[kept], padding + [(0, 0)] * (data.ndim - 3), constant_values=beyond)


def _intersect(
    start: np.ndarray, shape: np.ndarray, room: tuple[int, ...]
) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """Intersect a box with the room: the voxels it holds, and the padding at each end."""
    low, high = np.clip(start, 0, room), np.clip(start + shape, 0, room)
    kept = tuple(slice(first, end) for first, end in zip(low, high, strict=True))
    before = np.clip(low - start, 0, shape)  # a box may lie beside the room
    return kept, list(zip(before, shape - (high - low) - before, strict=True))


# Rules of intensity


def _scale_to_percentile(data: np.ndarray, brain: np.ndarray, *, cap: float) -> np.ndarray:
    """Scale the 99th percentile of the brain to 1 / cap, clipped at 1."""
    data = np.maximum(data, 0)
    bright = _check_divisor(np.percentile(data[brain].astype(float), 99), "99th percentile")
    return np.minimum(data / bright, cap) / cap


def _scale_to_median(data: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Scale the median of the brain to 1."""
    return data / _check_divisor(np.median(data[brain]), "median")


def _standardize(data: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Standardize to mean 0 and standard deviation 1 in the brain."""
    values = data[brain].astype(float)
    return (data - float(values.mean())) / _check_divisor(values.std(), "standard deviation")


def _scale_to_foreground(data: np.ndarray, brain: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Scale the mean of all that is brighter than the mean to 1; needs no brain mask."""
    return data / _check_divisor(data[data > data.mean()].mean(dtype=float), "foreground's mean")


def _check_divisor(value: float, measure: str) -> float:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(
            f"The {measure} of the image within the brain must be above 0. Received: {value:g}."
        )
    return float(value)


INTENSITIES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    # SHiVAi divides by the cap after it was applied: 99th percentile at 0.769. The README of
    # SHIVA-CMB reads as if it ended at 1; networks trained by that sentence need the second rule.
    "shiva": partial(_scale_to_percentile, cap=1.3),
    "shiva-readme": partial(_scale_to_percentile, cap=1.0),
    "brain-median": _scale_to_median,
    "zscore": _standardize,
    "foreground": _scale_to_foreground,
    "none": lambda data, brain: data,  # noqa: ARG005
}


# What a card may say


def _is_triple(value: object, holds: Callable[[object], bool]) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(map(holds, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "spacing": (
        lambda v: _is_triple(v, lambda mm: mm is None or (_is_number(mm) and mm > 0)),
        "three sizes in mm above 0, each of them a number or null",
    ),
    "finest": (lambda v: v is None or (_is_number(v) and v > 0), "a size in mm above 0, or null"),
    "axes": (lambda v: v in ("ras", "slices"), "`ras` or `slices`"),
    "conform": (
        lambda v: v is None or _is_triple(v, _is_count),
        "three numbers of voxels, or null",
    ),
    "shape": (lambda v: v is None or _is_triple(v, _is_count), "three numbers of voxels, or null"),
    "multiple": (lambda v: _is_triple(v, _is_count), "three numbers of voxels"),
    "margin": (lambda v: v is None or (_is_number(v) and v >= 0), "0 mm or more, or null"),
    "headroom": (lambda v: v is None or _is_count(v), "a number of voxels above 0, or null"),
    "order": (lambda v: type(v) is int and v in (0, 1, 3), "0, 1 or 3"),
    "intensity": (
        lambda v: isinstance(v, str) and v in INTENSITIES,
        f"one of {', '.join(INTENSITIES)}",
    ),
    "masked": (lambda v: isinstance(v, bool), "true or false"),
}

SHIVA = Grid(
    spacing=(1.0, 1.0, 1.0),
    conform=(256, 256, 256),
    shape=(160, 214, 176),
    headroom=5,
    order=3,
    intensity="shiva",
)
