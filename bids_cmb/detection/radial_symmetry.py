"""Candidates: small, dark, round spots in the slices of a scan, each measured in millimetres.

Found by fast radial symmetry, slice by slice: every pixel on the flank of a dark spot votes for the
place where its gradient says the spot's centre lies; where the votes of a whole ring meet, there is
a round spot. Bright cerebrospinal fluid is flattened first, else gyri between bright sulci win.

All lengths are mm and all brightness is in units of the brain's median. A scan is first looked at
with its axes in right, anterior, superior order, so the order in which a file stores its voxels
changes nothing.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from scipy.spatial import cKDTree

from bids_cmb.imaging.volume import Volume

RADII = (1.0, 1.5, 2.0, 3.0)  # mm, of the spots looked for
STRICTNESS = 2.0  # power of the votes' agreement: above 1 a line gains less than a ring
SMOOTHING = 0.25  # width of the Gaussian over the votes, as a part of the radius
GRADIENT_FLOOR = 0.03  # brain medians per mm: flatter pixels have no direction worth a vote
VOTING_MARGIN = 2.0  # mm around the brain in which pixels vote
FLATTENING_WIDTH = 13.0  # mm, of the window for the local median
FLATTENING_STEPS = 7  # knots across that window
PEAK_REACH = 1.5  # mm around a peak in which no higher one may lie
SEED_REACH = 1.2  # mm around a peak in which its darkest voxel is looked for
RING = (2.2, 4.5)  # mm, inner and outer radius of the surround
FEWEST_RING_PIXELS = 8
FAINTEST = 0.1  # part of the surround lost: less is noise and mottle, not worth measuring
WIDEST = 10.0  # mm: by definition a microbleed is not wider (doi:10.1016/S1474-4422(13)70124-8)
PATCH = 6.0  # mm to each side in plane
ACROSS = 8.0  # mm to each side across slices, and two slices at least
TAIL = 0.35  # part of its depth that a spot keeps in the next slice,
TEXTURE = 0.2  # and part of the surround, below which grey and white matter differ too
FINE = 0.5  # mm: shapes are measured on pixels of this size or smaller


@dataclass(frozen=True, eq=False)
class Candidate:
    """A dark spot and what can be measured about it.

    Attributes:
        index: Its darkest voxel, in the scan as it came.
        voxels: The spot, grown to half its depth, at most 10 mm wide, shape (N, 3), as ``index``.
        symmetry: Agreement of the gradients around it; comparable within one scan only.
        contrast: Its depth below the surround, as a part of the surround, 0 to 1.
        diameter: mm, of the disc with the area at half depth, in its slice.
        elongation: Long over short axis at half depth, in its slice; 1 is round.
        overrun: mm by which it goes on through slices further than a ball of its diameter would.
        depth: mm below the brain's surface.
        ring_low: 15th percentile of the surround, in brain medians.
        ring_high: 85th percentile of the surround, in brain medians; high beside bright fluid.
    """

    index: tuple[int, int, int]
    voxels: np.ndarray
    symmetry: float
    contrast: float
    diameter: float
    elongation: float
    overrun: float
    depth: float
    ring_low: float
    ring_high: float


@dataclass(frozen=True, eq=False)
class _Stack:
    """A scan's brain, cut out, its axes in a fixed order, slices last.

    Attributes:
        data: Brightness in brain medians, float32, shape (X, Y, slices).
        inside: The brain, bool, shape (X, Y, slices).
        spacing: mm along each axis.
        to_scan: Index here to index in the scan as it came, shape (4, 4).
    """

    data: np.ndarray
    inside: np.ndarray
    spacing: np.ndarray
    to_scan: np.ndarray

    def in_scan(self, index: np.ndarray) -> np.ndarray:
        """Where in the scan as it came the voxels ``index`` (N, 3) lie."""
        return index @ self.to_scan[:3, :3].astype(int).T + self.to_scan[:3, 3].astype(int)


def find_candidates(image: Volume, brain: Volume, *, most: int = 1000) -> list[Candidate]:
    """Find the small dark round spots of a scan and measure them.

    Args:
        image: T2*-weighted magnitude or SWI, any positive scale.
        brain: True inside the brain, on the grid of ``image``.
        most: How many peaks of symmetry, the strongest, are looked at.

    Returns:
        The strongest symmetry first; the same for the same scan however its axes are stored.

    Raises:
        ValueError: If ``brain`` is empty or not on the grid of ``image``, or if the median of the
            image inside it is not above 0.

    Source:
        Loy & Zelinsky 2003, doi:10.1109/TPAMI.2003.1217601; in slices and followed by measures of
        the grown spot, for microbleeds, Bian et al. 2013, doi:10.1016/j.nicl.2013.01.012.
    """
    stack = _stack(image, brain)
    strength = _symmetry(stack)
    seeds = _seeds(stack, strength, most)
    depths = _depths(stack, np.array(list(seeds), int).reshape(-1, 3))
    measured = (
        _measure(stack, seed, peak, strength[peak], depth)
        for (seed, peak), depth in zip(seeds.items(), depths, strict=True)
    )
    return [candidate for candidate in measured if candidate is not None]


def radial_symmetry(image: Volume, brain: Volume) -> Volume:
    """How strongly the gradients around every voxel point away from it, as around a dark spot.

    Args:
        image: T2*-weighted magnitude or SWI, any positive scale.
        brain: True inside the brain, on the grid of ``image``.

    Returns:
        On the grid of ``image``, float32, 0 or more, 0 outside the brain.

    Raises:
        ValueError: As `find_candidates`.
    """
    stack = _stack(image, brain)
    index = np.argwhere(stack.inside)
    strength = np.zeros(image.shape, np.float32)
    strength[tuple(stack.in_scan(index).T)] = _symmetry(stack)[tuple(index.T)]
    return Volume(strength, image.affine)


def _stack(image: Volume, brain: Volume) -> _Stack:
    inside = np.asarray(brain.data, bool)
    if not brain.shares_grid(image):
        raise ValueError(
            "`brain` must lie on the grid of `image`; "
            f"found {inside.shape} voxels for {image.shape}, or another affine."
        )
    if not inside.any():
        raise ValueError("`brain` must hold at least one voxel; found none.")
    median = float(np.median(image.data[inside]))
    if not median > 0:
        raise ValueError(
            f"`image` must be brighter than 0 inside the brain; found a median of {median:g}."
        )

    axes, to_scan = _upright(image)
    flips = tuple(slice(None, None, int(to_scan[axis, k])) for k, axis in enumerate(axes))
    inside = inside.transpose(axes)[flips]
    spacing = image.spacing[list(axes)]
    box = _box(inside, np.ceil((PATCH + VOTING_MARGIN) / spacing).astype(int))
    corner = np.eye(4)
    corner[:3, 3] = [cut.start for cut in box]
    data = image.data.transpose(axes)[flips][box].astype(np.float32) / np.float32(median)
    return _Stack(data, np.ascontiguousarray(inside[box]), spacing, to_scan @ corner)


def _upright(volume: Volume) -> tuple[tuple[int, int, int], np.ndarray]:
    """The order of axes nearest to right, anterior, superior, slices last, and the way back.

    Returns:
        axes: For each new axis, the old one.
        to_old: New index to old index, shape (4, 4).
    """
    cosines = volume.affine[:3, :3] / volume.spacing  # (world axis, voxel axis)
    axes = max(permutations(range(3)), key=lambda p: np.abs(cosines[range(3), p]).sum())
    signs = {axis: 1 if cosines[world, axis] > 0 else -1 for world, axis in enumerate(axes)}
    # `Volume.slice_axis` takes the last of equals; here the last in world order.
    large = volume.spacing[list(axes)] >= volume.spacing.max() * 0.999
    slices = axes[np.flatnonzero(large)[-1]]
    axes = (*(axis for axis in axes if axis != slices), slices)

    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new, old in enumerate(axes):
        to_old[old, new] = signs[old]
        to_old[old, 3] = 0 if signs[old] > 0 else volume.shape[old] - 1
    return axes, to_old


def _box(inside: np.ndarray, margin: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds every True and ``margin`` voxels around it."""
    sides = []
    for axis, size in enumerate(inside.shape):
        other = tuple(k for k in range(3) if k != axis)
        filled = np.flatnonzero(inside.any(axis=other))
        start, stop = filled[0] - margin[axis], filled[-1] + 1 + margin[axis]
        sides.append(slice(max(int(start), 0), min(int(stop), size)))
    return tuple(sides)


def _symmetry(stack: _Stack) -> np.ndarray:
    """Radial symmetry of every slice, 0 outside the brain, float32, shape (X, Y, slices)."""
    strength = np.zeros(stack.data.shape, np.float32)
    reach = 2 * np.rint(VOTING_MARGIN / stack.spacing[:2]).astype(int) + 1
    for k in np.flatnonzero(stack.inside.any(axis=(0, 1))):
        inside = stack.inside[:, :, k]
        flat = _flattened(stack.data[:, :, k], inside, stack.spacing[:2])
        voters = ndimage.maximum_filter(inside, size=tuple(reach))
        strength[:, :, k] = _symmetry_2d(flat, voters, stack.spacing[:2]) * inside
    return strength


def _flattened(data: np.ndarray, inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """A slice (X, Y) whose bright side is clipped at the local median of the brain."""
    step = FLATTENING_WIDTH / FLATTENING_STEPS
    # The median of means on a coarse grid stands in for the median of pixels, at 1/50 of its cost.
    across, along = (_hats(n, size, step) for n, size in zip(data.shape, spacing, strict=True))
    weight = across.T @ inside.astype(np.float32) @ along
    total = across.T @ np.where(inside, data, 0) @ along
    known = weight > 1e-6
    mean = np.where(known, total / np.where(known, weight, 1), np.nan)
    padded = np.pad(mean, FLATTENING_STEPS // 2, constant_values=np.nan)
    windows = sliding_window_view(padded, (FLATTENING_STEPS, FLATTENING_STEPS))[known]
    median = np.ones_like(mean)  # the brain's own median where there is no brain
    median[known] = _nanmedian(windows.reshape(len(windows), -1))
    return np.minimum(data, across @ median @ along.T)


def _hats(pixels: int, spacing: float, step: float) -> np.ndarray:
    """Linear interpolation from knots about ``step`` mm apart to pixels, shape (pixels, knots)."""
    knots = max(round((pixels - 1) * spacing / step), 1) + 1
    at = np.linspace(0, knots - 1, pixels)[:, None]
    return np.clip(1 - np.abs(at - np.arange(knots)), 0, None).astype(np.float32)


def _nanmedian(rows: np.ndarray) -> np.ndarray:
    """Median of each row (N, M) over what is no NaN; numpy's own is many times slower."""
    ordered = np.sort(rows, axis=1)  # NaN last
    count = np.isfinite(rows).sum(axis=1)
    row = np.arange(len(rows))
    return (ordered[row, (count - 1) // 2] + ordered[row, count // 2]) / 2


def _symmetry_2d(data: np.ndarray, voters: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Fast radial symmetry of one slice (X, Y) for dark spots, the mean over `RADII`."""
    gradient = np.stack(np.gradient(data, *spacing))  # (2, X, Y), brain medians per mm
    size = np.hypot(*gradient)
    place = np.flatnonzero((size > GRADIENT_FLOOR) & voters)
    size = size.ravel()[place]
    towards_dark = -gradient.reshape(2, -1)[:, place] / size
    total = np.zeros(data.shape, np.float32)
    for radius in RADII:
        target, counted = _targets(data.shape, place, towards_dark * radius, spacing)
        total += _agreement(data.shape, target, size[counted], radius, spacing)
    return total / len(RADII)


def _targets(
    shape: tuple[int, int], place: np.ndarray, way: np.ndarray, spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The pixel each voter votes for, as a flat index, and which voters' votes stay inside."""
    row = place // shape[1] + np.rint(way[0] / spacing[0]).astype(np.int64)
    column = place % shape[1] + np.rint(way[1] / spacing[1]).astype(np.int64)
    counted = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    return (row * shape[1] + column)[counted], counted


def _agreement(
    shape: tuple[int, int], target: np.ndarray, size: np.ndarray, radius: float, spacing: np.ndarray
) -> np.ndarray:
    """Votes and their strength at one radius, joined and smoothed, shape (X, Y)."""
    pixels = radius / np.sqrt(np.prod(spacing))
    enough = 8.0 if pixels < 1.5 else 9.9  # Loy & Zelinsky's ceiling for radius 1 and above
    votes = np.bincount(target, minlength=shape[0] * shape[1])
    strength = np.bincount(target, size, minlength=shape[0] * shape[1])
    joined = (np.minimum(votes, enough) / enough) ** STRICTNESS * strength / enough
    return ndimage.gaussian_filter(
        joined.reshape(shape).astype(np.float32), SMOOTHING * radius / spacing, truncate=3
    )


def _seeds(stack: _Stack, strength: np.ndarray, most: int) -> dict[tuple, tuple]:
    """The darkest voxel near every peak and that peak, the strongest first."""
    reach = np.maximum(np.rint(PEAK_REACH / stack.spacing), 1).astype(int)
    highest = ndimage.maximum_filter(strength, size=tuple(2 * reach + 1))
    peaks = np.argwhere((strength > 0) & (strength == highest))
    strongest = np.argsort(-strength[tuple(peaks.T)], kind="stable")[:most]
    seeds = {}
    for peak in peaks[strongest]:
        # Peaks of equal height on one spot share its darkest voxel and become one candidate.
        seeds.setdefault(_darkest(stack, peak), tuple(peak.tolist()))
    return seeds


def _darkest(stack: _Stack, peak: np.ndarray) -> tuple[int, int, int]:
    start = np.maximum(peak[:2] - np.ceil(SEED_REACH / stack.spacing[:2]).astype(int), 0)
    stop = peak[:2] + np.ceil(SEED_REACH / stack.spacing[:2]).astype(int) + 1
    near = np.s_[start[0] : stop[0], start[1] : stop[1], peak[2]]
    away = _distance(stack.data[near].shape, peak[:2] - start, stack.spacing[:2])
    values = np.where((away <= SEED_REACH) & stack.inside[near], stack.data[near], np.inf)
    offset = np.unravel_index(values.argmin(), values.shape)
    return (*(start + offset).tolist(), int(peak[2]))


def _distance(shape: tuple[int, int], centre: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance in mm from ``centre`` to every pixel of a patch, shape (X, Y)."""
    x, y = ((np.arange(n) - c) * mm for n, c, mm in zip(shape, centre, spacing, strict=True))
    return np.hypot(x[:, None], y[None, :])


def _depths(stack: _Stack, seeds: np.ndarray) -> np.ndarray:
    """Distance in mm of every seed (N, 3) to the nearest voxel outside the brain, inf if none.

    Where the scan ends inside the brain there is no surface.
    """
    shell = np.argwhere(ndimage.binary_dilation(stack.inside) & ~stack.inside)
    if not len(shell):
        return np.full(len(seeds), np.inf)
    return cKDTree(shell * stack.spacing).query(seeds * stack.spacing)[0]


def _measure(
    stack: _Stack, seed: tuple, peak: tuple, symmetry: float, depth: float
) -> Candidate | None:
    """Everything about the spot at ``seed`` whose surround is a ring about ``peak``.

    None if it has no surround in the brain or is hardly darker.
    """
    start, near, centre = _patch(stack, seed)
    data = stack.data[near]
    plane = data[:, :, centre[2]]
    # In a void the darkest voxel is anywhere; the votes meet in its middle.
    away = _distance(plane.shape, (peak - start)[:2], stack.spacing[:2])
    ring = plane[stack.inside[near][:, :, centre[2]] & (away >= RING[0]) & (away <= RING[1])]
    darkest = data[tuple(centre)]
    if len(ring) < FEWEST_RING_PIXELS:
        return None
    low, surround, high = np.percentile(ring, [15, 50, 85])
    drop = surround - darkest
    if not drop > FAINTEST * surround:
        return None
    spot = _touching(data <= surround - drop / 2, centre)
    diameter, elongation = _shape_in_plane(plane, centre, surround - drop / 2, stack.spacing)
    tail = _touching(data <= surround - max(TAIL * drop, TEXTURE * surround), centre)
    return Candidate(
        index=tuple(stack.in_scan(np.array([seed]))[0].tolist()),
        voxels=stack.in_scan(start + _within(spot, centre, stack.spacing)),
        symmetry=float(symmetry),
        contrast=float(min(drop / surround, 1)),
        diameter=diameter,
        elongation=elongation,
        overrun=_overrun(tail & (away <= RING[1])[:, :, None], diameter, stack.spacing[2]),
        depth=float(depth),
        ring_low=float(low),
        ring_high=float(high),
    )


def _patch(
    stack: _Stack, seed: tuple[int, int, int]
) -> tuple[np.ndarray, tuple[slice, ...], np.ndarray]:
    """Where the patch around a seed starts, its slices, and the seed's index in it."""
    reach = np.ceil(np.array([PATCH, PATCH, ACROSS]) / stack.spacing).astype(int)
    reach[2] = max(reach[2], 2)
    start = np.maximum(seed - reach, 0)
    return start, tuple(map(slice, start, seed + reach + 1)), seed - start


def _touching(dark: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The part of ``dark`` that hangs together with the voxel ``centre``, corners included."""
    pieces, _ = ndimage.label(dark, structure=np.ones((3,) * dark.ndim))
    return pieces == pieces[tuple(centre)]


def _within(spot: np.ndarray, centre: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The voxels of a spot that lie within half of `WIDEST` of its centre, shape (N, 3)."""
    voxels = np.argwhere(spot)
    return voxels[np.linalg.norm((voxels - centre) * spacing, axis=1) <= WIDEST / 2]


def _shape_in_plane(
    plane: np.ndarray, centre: np.ndarray, level: float, spacing: np.ndarray
) -> tuple[float, float]:
    """Diameter in mm and elongation of the dark piece around ``centre`` in its slice (X, Y).

    Measured between the pixels by linear interpolation: of two pixels of 1 mm no shape can be told.
    """
    parts = np.ceil(spacing[:2] / FINE).astype(int)
    across, along = (
        _hats((n - 1) * part + 1, 1, part) for n, part in zip(plane.shape, parts, strict=True)
    )
    piece = _touching(across @ plane @ along.T <= level, centre[:2] * parts)
    pixel = spacing[:2] / parts
    area = piece.sum() * np.prod(pixel)
    spread = np.cov(np.argwhere(piece).T * pixel[:, None], bias=True) + np.diag(pixel**2 / 12)
    short, long = np.linalg.eigvalsh(spread)
    return float(np.sqrt(4 * area / np.pi)), float(np.sqrt(long / short))


def _overrun(tail: np.ndarray, diameter: float, thickness: float) -> float:
    """Length in mm through slices beyond what a ball of ``diameter`` needs.

    A ball shows in a slice if it fills the part `TAIL` of it, so its outer two slices need not be
    full, and any ball may lie between two slices. A 3 mm ball in 4 mm slices shows in one or two of
    them: 0 mm. A 3 mm tube in three of them: 3.8 mm.
    """
    slices = int(tail.any(axis=(0, 1)).sum())
    needed = max(diameter + (1 - 2 * TAIL) * thickness, thickness)
    return float(max((slices - 1) * thickness - needed, 0))
