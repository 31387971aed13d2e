"""Dephasing by small sources: microbleeds, veins and other spheres and tubes of susceptibility.

What is small is a complex factor for each voxel, the mean of exp(i phase) over points a fraction of
a millimetre apart. Factors of sources that share a voxel are multiplied, as if their losses were
spread evenly over it.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from bids_cmb.simulation.slice_sampling import Sampling, slice_profile

B0_DIRECTION = np.array([0.0, 0.0, 1.0])  # where B0 points
MIN_PHASE_RAD = 0.12  # phase below which a source is left alone
MAX_REACH_MM = 30.0  # no source is followed further
MIN_POINT_SPACING_MM, MAX_POINT_SPACING_MM = (
    0.08,
    0.8,
)  # between the points that a source is averaged over
HEIGHTS_PER_LAYER = 4  # heights that share the nearest point of a vessel's middle line
MAX_TUBE_REACH_MM = 12.0  # beyond, a wide vein's field is smooth, as the background's is
MAX_POINTS_PER_CHUNK = 400_000  # points at a time


def perturb_signal(
    points: np.ndarray, radius: np.ndarray, sampling: Sampling, *, rad_per_ppm: float,
    chi: float, water: float, decay: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Compute the factor by which a sphere or a tube changes the signal of each voxel it reaches.

    Args:
        points: World mm, (N, 3): the centre of a sphere, or the centre line of a tube.
        radius: mm, (N,).
        sampling: The grid of the scan.
        rad_per_ppm: From `phase_per_ppm`.
        chi: ppm relative to the surrounding tissue.
        water: Share of the tissue's signal that the inside still gives.
        decay: Echo time times the inside's additional R2*.

    Returns:
        voxels: Flat indices into the grid of ``sampling``, (V,).
        factor: For their complex signal, complex64, (V,); the mean over the voxel, under the slice
            profile.
    """
    line = _resample_line(points, radius, sampling, rad_per_ppm * abs(chi))
    step = _choose_step(line, rad_per_ppm * abs(chi))
    layers = _divide_into_layers(sampling, step)
    blocks = _find_blocks(line, layers)
    middle = blocks * layers.size + [0, 0, (layers.size[2] - sampling.spacing[2]) / 2]
    spread = _subvoxel_points(layers.size, step, layers.heights)
    within = line.reach + np.linalg.norm(spread, axis=1).max()
    distance, nearest = cKDTree(line.places).query(middle, distance_upper_bound=within)
    kept = np.flatnonzero(np.isfinite(distance))
    known = (sampling.axes.T @ B0_DIRECTION, rad_per_ppm * chi, water * np.exp(-decay))
    change = np.empty((len(kept), len(layers.heights)), np.complex64)
    each = len(spread) // len(layers.heights)
    for part in np.array_split(
        np.arange(len(kept)), 1 + kept.size * len(spread) // MAX_POINTS_PER_CHUNK
    ):
        signal = _dephase(line, middle[kept[part]], nearest[kept[part]], spread, *known)
        change[part] = signal.reshape(len(part), len(layers.heights), each).mean(axis=-1) - 1
    return _sum_into_voxels(blocks[kept], change, layers, sampling)


@dataclass(frozen=True, eq=False)
class _Layers:
    """The distance between two slices divided into layers of a few heights each.

    Attributes:
        size: mm, of a block: a pixel within a layer, (3,).
        heights: mm above the middle of a layer, (H,).
        count: Layers between two slices.
        shape: Pixels, pixels, layers.
        weights: Of a height in the slices beside, (layers, slices beside, H), the slice itself in
            the middle of the second axis.
    """

    size: np.ndarray
    heights: np.ndarray
    count: int
    shape: tuple[int, int, int]
    weights: np.ndarray


def _divide_into_layers(sampling: Sampling, step: float) -> _Layers:
    gap = sampling.spacing[2]
    count = max(1, round(gap / (HEIGHTS_PER_LAYER * step)))
    size = np.array([*sampling.spacing[:2], gap / count])
    each = max(1, int(np.ceil(size[2] / step)))
    heights = ((np.arange(each) + 0.5) / each - 0.5) * size[2]
    beside = int(np.ceil(sampling.reach / gap + 0.5))
    away = (np.arange(count) + 0.5) * size[2] - gap / 2  # of a layer from its slice
    away = away[:, None, None] - np.arange(-beside, beside + 1)[:, None] * gap + heights
    weights = slice_profile(away, thickness=sampling.thickness, kind=sampling.kind)
    weights[np.abs(away) > sampling.reach] = 0
    shape = (*sampling.shape[:2], sampling.shape[2] * count)
    return _Layers(size, heights, count, shape, (weights / weights.sum()).astype(np.float32))


def _sum_into_voxels(
    blocks: np.ndarray, change: np.ndarray, layers: _Layers, sampling: Sampling
) -> tuple[np.ndarray, np.ndarray]:
    """Sum changes of blocks (N, heights) into the voxels of all slices that see them."""
    slices, layer = np.divmod(blocks[:, 2], layers.count)
    beside = layers.weights.shape[1] // 2
    flat, values = [], []
    for offset in range(-beside, beside + 1):
        weights = layers.weights[layer, offset + beside]
        kept = weights.any(axis=1) & (slices + offset >= 0) & (slices + offset < sampling.shape[2])
        where = (blocks[kept, 0], blocks[kept, 1], slices[kept] + offset)
        flat.append(np.ravel_multi_index(where, sampling.shape))
        values.append((change[kept] * weights[kept]).sum(axis=1))
    voxels, offset = np.unique(np.concatenate(flat), return_inverse=True)
    values = np.concatenate(values)
    factor = np.empty(len(voxels), np.complex64)
    factor.real = 1 + np.bincount(offset, values.real, len(voxels))
    factor.imag = np.bincount(offset, values.imag, len(voxels))
    return voxels, factor


@dataclass(frozen=True, eq=False)
class _Line:
    """The centre line of a source in mm along the axes of a grid; a sphere has one place."""

    places: np.ndarray  # (S, 3)
    tangents: np.ndarray  # (S, 3)
    radii: np.ndarray  # (S,)
    ends: np.ndarray  # (S,), -1 at the first place, 1 at the last, else 0
    reach: float  # mm from the line

    @property
    def ball(self) -> bool:
        return len(self.places) == 1


def _resample_line(
    points: np.ndarray, radius: np.ndarray, sampling: Sampling, phase: float
) -> _Line:
    """Resample a centre line to a place every radius or less; find how far its phase reaches."""
    places, radii = sampling.local(np.atleast_2d(points)), np.atleast_1d(radius).astype(float)
    if len(places) > 1:
        gaps = np.linalg.norm(np.diff(places, axis=0), axis=1)
        along = np.concatenate([[0], np.cumsum(gaps)])
        count = max(3, int(np.ceil(along[-1] / np.clip(radii.min(), 0.4, 1.5))) + 1)
        new = np.linspace(0, along[-1], count)
        places = np.stack([np.interp(new, along, axis) for axis in places.T], axis=1)
        radii = np.interp(new, along, radii)
        tangents = np.gradient(places, axis=0)
        tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-9)
        far = radii.max() * max(1, np.sqrt(phase / 2 / MIN_PHASE_RAD))
        far = min(far, max(MAX_TUBE_REACH_MM, radii.max()))
    else:
        tangents = np.zeros_like(places)
        far = radii.max() * max(1, np.cbrt(phase * 2 / 3 / MIN_PHASE_RAD))
    ends = np.zeros(len(places))
    if len(places) > 1:
        ends[[0, -1]] = -1, 1
    return _Line(places, tangents, radii, ends, float(min(far, MAX_REACH_MM)))


def _choose_step(line: _Line, phase: float) -> float:
    """Choose the mm between points: an eighth of the radius within which all phase is lost."""
    lost = np.sqrt(phase / 2) if not line.ball else np.cbrt(phase / 3)
    finest = MIN_POINT_SPACING_MM if line.ball else 2 * MIN_POINT_SPACING_MM
    return float(np.clip(np.median(line.radii) * max(1, lost) / 8, finest, MAX_POINT_SPACING_MM))


def _find_blocks(line: _Line, layers: _Layers) -> np.ndarray:
    """Find the indices of the blocks that the source may reach, (B, 3)."""
    every = max(1, int(line.reach / 2 / max(_point_spacing(line), 1e-6)))
    chosen = np.concatenate([line.places[:-1:every], line.places[-1:]])
    reach = line.reach + _point_spacing(line) * every / 2 + layers.size / 2
    # Layers are counted from half a slice distance below the first slice.
    chosen = chosen / layers.size + [0, 0, layers.count / 2 - 0.5]
    low = np.clip(np.floor(chosen - reach / layers.size).astype(int), 0, layers.shape)
    high = np.clip(np.ceil(chosen + reach / layers.size).astype(int) + 1, 0, layers.shape)
    start, stop = low.min(axis=0), high.max(axis=0)
    near = np.zeros(np.maximum(stop - start, 0), bool)
    for first, last in zip(low - start, high - start, strict=True):
        near[tuple(map(slice, first, last))] = True
    return np.argwhere(near) + start


def _point_spacing(line: _Line) -> float:
    return 0.0 if line.ball else float(np.linalg.norm(line.places[1] - line.places[0]))


def _subvoxel_points(spacing: np.ndarray, step: float, heights: np.ndarray) -> np.ndarray:
    """Spread points over one pixel at some heights, mm from its middle, height by height."""
    count = np.ceil(spacing[:2] / step).astype(int)
    across = [(np.arange(n) + 0.5) / n * side - side / 2 for n, side in zip(count, spacing)]  # noqa: B905
    mesh = np.meshgrid(heights, *across, indexing="ij")
    return np.stack([mesh[1].ravel(), mesh[2].ravel(), mesh[0].ravel()], axis=1)


def _dephase(
    line: _Line, middle: np.ndarray, nearest: np.ndarray, spread: np.ndarray, up: np.ndarray,
    phase: float, inside: float,
) -> np.ndarray:  # fmt: skip
    """Compute the complex signal, 1 without the source, at points (P, 3) around places (N, 3).

    The sphere: phase/3 · (R/r)³ · (3 cos² θ - 1) outside, 0 inside.

    Returns:
        complex64 (N, P).
    """
    base = (middle - line.places[nearest]).astype(np.float32)
    spread, up = spread.astype(np.float32), up.astype(np.float32)
    radius = line.radii[nearest].astype(np.float32)[:, None]
    square = (base**2).sum(axis=1)[:, None] + 2 * base @ spread.T + (spread**2).sum(axis=1)
    square = np.maximum(square, np.float32(1e-6))
    if line.ball:
        raised = (base @ up)[:, None] + spread @ up
        turned = phase / 3 * radius**3 * square**-1.5 * (3 * raised**2 / square - 1)
        within = square < radius**2
        turned[within] = 0
    else:
        turned, within = _dephase_tube(line, base, nearest, spread, (up, square, phase, radius))
    signal = np.empty(turned.shape, np.complex64)
    signal.real, signal.imag = np.cos(turned), np.sin(turned)
    signal[within] *= np.float32(inside)
    return signal


def _dephase_tube(
    line: _Line, base: np.ndarray, nearest: np.ndarray, spread: np.ndarray, shared: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """Compute phase and inside of a tube that is straight near each place.

    Outside: phase/2 · sin² θ · (R/r)² · cos 2φ; inside: phase/2 · (cos² θ - 1/3).
    """
    up, square, phase, radius = shared
    tangent = line.tangents[nearest].astype(np.float32)
    lean = (tangent @ up)[:, None]
    across = up - lean * tangent  # part of B0 across the tube
    along = (base * tangent).sum(axis=1)[:, None] + tangent @ spread.T
    away = np.maximum(square - along**2, np.float32(1e-6))
    side = (base * across).sum(axis=1)[:, None] + across @ spread.T
    outside = radius**2 / away * (2 * side**2 / away - (across**2).sum(axis=1)[:, None])
    within = away < radius**2
    turned = phase / 2 * np.where(within, lean**2 - np.float32(1 / 3), outside)
    # A tube that ends fades over its radius: no place beyond the end is inside.
    beyond = np.maximum(along * line.ends[nearest].astype(np.float32)[:, None], 0) / radius
    return turned * np.exp(-(beyond**2)), within & (beyond < 0.5)
