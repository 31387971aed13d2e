"""MR physics from susceptibility to image: field, complex signal, sampling, magnitude, phase, SWI.

No anatomy and no files here. Lengths are mm, susceptibilities ppm, fields ppm of B0, which points
along +z of the world. The smooth background is resampled to the planes of a slice and summed as
complex numbers; what is small (a microbleed, a vein) is a complex factor for each voxel, the mean
of exp(i phase) over points a fraction of a millimetre apart. Factors of sources that share a voxel
are multiplied, as if their losses were spread evenly over it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import fft, ndimage
from scipy.spatial import cKDTree

from bids_cmb.imaging.volume import Volume

GYROMAGNETIC_MHZ_PER_T = 42.577  # MHz/T, of the proton, over 2 pi
B0_DIRECTION = np.array([0.0, 0.0, 1.0])  # where B0 points
MAX_PLANE_SPACING_MM = 1.1  # at most, between the planes that a thick slice is summed from
MIN_PHASE_RAD = 0.12  # phase below which a source is left alone
MAX_REACH_MM = 30.0  # no source is followed further
MIN_POINT_SPACING_MM, MAX_POINT_SPACING_MM = (
    0.08,
    0.8,
)  # between the points that a source is averaged over
HEIGHTS_PER_LAYER = 4  # heights that share the nearest point of a vessel's middle line
MAX_TUBE_REACH_MM = 12.0  # beyond, a wide vein's field is smooth, as the background's is
SINC_BROADENING = 1.22  # of a filtered sinc against the unfiltered one, at half its height
MAX_POINTS_PER_CHUNK = 400_000  # points at a time


def phase_per_ppm(*, field_t: float, echo_time_s: float) -> float:
    """Compute the phase in rad of 1 ppm at the echo, 2π·γ·B0·TE; 16.05 at 3 T and 20 ms."""
    return 2 * np.pi * GYROMAGNETIC_MHZ_PER_T * field_t * echo_time_s


def spoiled_signal(
    density: float, t1_s: float, r2star: float, *, echo_time_s: float, repetition_time_s: float,
    flip_deg: float,
) -> float:  # fmt: skip
    """Compute the steady-state magnitude of a spoiled gradient echo (Ernst equation).

    M = PD · sin α · (1 - E1) / (1 - E1 · cos α) · exp(-TE · R2*), with E1 = exp(-TR / T1).

    Args:
        density: Of protons, 1 for water; arrays work too, here and in the next two.
        t1_s: s.
        r2star: 1/s.
        echo_time_s: s.
        repetition_time_s: s.
        flip_deg: Degrees.
    """
    flip = np.radians(flip_deg)
    recovered = np.exp(-repetition_time_s / t1_s)
    steady = np.sin(flip) * (1 - recovered) / (1 - np.cos(flip) * recovered)
    return density * steady * np.exp(-echo_time_s * r2star)


def dipole_field(chi: Volume) -> np.ndarray:
    """Compute the field of a susceptibility map along B0, whatever the orientation of its grid.

    Args:
        chi: ppm relative to what lies around the map, (X, Y, Z).

    Returns:
        ppm of B0, float32, (X, Y, Z), with the Lorentz sphere removed: 0 in a sphere.

    Source:
        Marques & Bowtell 2005, doi:10.1002/cmr.b.20034.
    """
    padded = tuple(fft.next_fast_len(2 * size, real=True) for size in chi.shape)
    spectrum = fft.rfftn(chi.data.astype(np.float32, copy=False), padded)
    spectrum *= _dipole(chi.affine, padded)
    field = fft.irfftn(spectrum, padded)
    return field[tuple(map(slice, chi.shape))]


def _dipole(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Compute 1/3 - kz²/k² with kz along B0, half spectrum, float32; 0 where k is 0."""
    steps = [*map(fft.fftfreq, shape[:2]), fft.rfftfreq(shape[2])]
    steps = np.meshgrid(*(step.astype(np.float32) for step in steps), indexing="ij", sparse=True)
    # An index frequency f belongs to the world frequency inv(A)' f, of sheared grids too.
    turn = np.linalg.inv(affine[:3, :3]).T.astype(np.float32)
    kx, ky, kz = (sum(turn[row, axis] * steps[axis] for axis in range(3)) for row in range(3))
    square = kx**2 + ky**2 + kz**2
    square[0, 0, 0] = 1
    kernel = np.float32(1 / 3) - kz**2 / square
    kernel[0, 0, 0] = 0
    return kernel


@dataclass(frozen=True, eq=False)
class Sampling:
    """Where signal is summed: fine pixels in the plane, slices along the last axis.

    Attributes:
        affine: Index of pixel and slice to world mm, (4, 4), axes at right angles.
        shape: Pixels, pixels, slices.
        thickness: mm, of a slice; it may differ from the distance between slices.
        kind: ``2D`` for a slice-selective pulse, ``3D`` for a slice cut by phase encoding.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    thickness: float
    kind: str

    @cached_property
    def spacing(self) -> np.ndarray:
        """Mm between pixels and slices, shape (3,)."""
        return voxel_sizes(self.affine)

    @cached_property
    def axes(self) -> np.ndarray:
        """Unit vectors of the three axes in the world, as columns."""
        return self.affine[:3, :3] / self.spacing

    @property
    def reach(self) -> float:
        """Mm from the middle of a slice to where its profile ends."""
        return self.thickness * (0.75 if self.kind == "2D" else SINC_BROADENING)

    def local(self, world: np.ndarray) -> np.ndarray:
        """Convert world positions to mm along the axes from the first voxel, both (N, 3)."""
        return (world - self.affine[:3, 3]) @ self.axes

    def heights(self, step: float) -> tuple[np.ndarray, np.ndarray]:
        """Spread heights in mm about a slice's middle, ``step`` apart or less, with weights."""
        count = max(1, int(np.ceil(2 * self.reach / step)))
        heights = ((np.arange(count) + 0.5) / count * 2 - 1) * self.reach
        weights = slice_profile(heights, thickness=self.thickness, kind=self.kind)
        return heights, weights / weights.sum()


def slice_profile(height: np.ndarray, *, thickness: float, kind: str) -> np.ndarray:
    """Evaluate the slice profile ``height`` mm above the middle, where it is 1.

    A pulse (2D) excites a slice with soft edges, half its height at half the thickness; phase
    encoding (3D) sees a sinc, here with its side lobes filtered away, nearly as wide.
    """
    if kind == "2D":
        return 1 / (1 + np.exp((np.abs(height) - thickness / 2) / (0.06 * thickness)))
    share = np.clip(height / (SINC_BROADENING * thickness), -1, 1)
    return np.sinc(share) * (0.54 + 0.46 * np.cos(np.pi * share))


def sum_background_slices(
    signal: Volume, field: Volume, sampling: Sampling, *, rad_per_ppm: float
) -> Iterator[np.ndarray]:
    """Sum smooth maps over the thickness of each slice as complex numbers.

    Args:
        signal: Magnitude at the echo before any dephasing, (X, Y, Z).
        field: ppm of B0, on any grid.
        sampling: The grid of the scan.
        rad_per_ppm: From `phase_per_ppm`.

    Yields:
        complex64, (pixels, pixels), one slice after the other; the caller may change it.
    """
    gap = sampling.spacing[2]
    each = int(
        np.ceil(gap / MAX_PLANE_SPACING_MM)
    )  # planes between two slices; those that overlap share them
    beside = int(np.ceil(sampling.reach / gap * each))
    steps = np.arange(-beside, each + beside)
    heights = (steps + 0.5) / each * gap - gap / 2
    weights = slice_profile(heights, thickness=sampling.thickness, kind=sampling.kind)
    weights[np.abs(heights) > max(sampling.reach, gap / each / 2)] = 0
    steps, weights = steps[weights > 0], weights[weights > 0] / weights.sum()
    planes: dict[int, np.ndarray] = {}
    for index in range(sampling.shape[2]):
        wanted = (index * each + steps).tolist()
        planes = {plane: planes[plane] for plane in wanted if plane in planes}
        new = [plane for plane in wanted if plane not in planes]
        planes |= _sum_planes(new, gap / each, (signal, field), sampling, rad_per_ppm)
        total = np.zeros(sampling.shape[:2], np.complex64)
        for plane, weight in zip(wanted, weights, strict=True):
            total += np.float32(weight) * planes[plane]
        yield total


def _sum_planes(
    wanted: list[int], step: float, maps: tuple[Volume, Volume], sampling: Sampling,
    rad_per_ppm: float,
) -> dict[int, np.ndarray]:  # fmt: skip
    """Sample the complex signal on planes ``step`` mm apart, from the lower face of slice 0."""
    if not wanted:
        return {}
    signal, field = maps
    affine = sampling.affine.copy()
    lowest = (wanted[0] + 0.5) * step - sampling.spacing[2] / 2
    affine[:3, 2] = sampling.axes[:, 2] * step
    affine[:3, 3] += sampling.axes[:, 2] * lowest
    shape = (*sampling.shape[:2], len(wanted))
    phase = _resample_smooth(field, affine, shape) * np.float32(rad_per_ppm)
    turned = np.empty(shape, np.complex64)
    turned.real, turned.imag = np.cos(phase), np.sin(phase)
    turned *= _resample(signal, affine, shape)
    return {plane: np.ascontiguousarray(turned[..., index]) for index, plane in enumerate(wanted)}


def _resample_smooth(volume: Volume, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resample a volume with larger voxels than the planes: at fewer positions first."""
    every = np.maximum(1, np.floor(volume.spacing.min() / voxel_sizes(affine)[:2])).astype(int)
    count = [n // step + 2 for n, step in zip(shape[:2], every, strict=True)]
    coarse = _resample(volume, affine @ np.diag([*every, 1, 1]), (*count, shape[2]))
    along, across = (
        np.maximum(0, 1 - np.abs(np.arange(n)[:, None] / step - np.arange(m))).astype(np.float32)
        for n, m, step in zip(shape[:2], count, every, strict=True)
    )
    return np.einsum("xi,ijz,yj->xyz", along, coarse, across, optimize=True)


def _resample(volume: Volume, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    to_source = np.linalg.inv(volume.affine) @ affine
    return ndimage.affine_transform(
        volume.data, to_source[:3, :3], to_source[:3, 3], output_shape=shape, order=1
    )


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


def to_kspace(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Transform a complex image (X, Y) and keep the ``shape`` in the middle of k-space."""
    spectrum = fft.fftshift(fft.fft2(image))
    return spectrum[_central_slices(spectrum.shape, shape)] * (np.prod(shape) / image.size)


def from_kspace(spectrum: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Reconstruct an image from k-space, zero-filled to ``shape``; the mean does not change."""
    filled = np.zeros(shape, spectrum.dtype)
    filled[_central_slices(shape, spectrum.shape)] = spectrum
    return fft.ifft2(fft.ifftshift(filled)) * (np.prod(shape) / spectrum.size)


def _central_slices(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[slice, ...]:
    """Select the part of ``outer`` whose zero frequency stays where `fftshift` puts it."""
    starts = [large // 2 - small // 2 for large, small in zip(outer, inner, strict=True)]
    return tuple(slice(start, start + n) for start, n in zip(starts, inner, strict=True))


def tukey_window(shape: tuple[int, int], rolloff: float) -> np.ndarray:
    """Make a Tukey window over k-space against Gibbs ringing, 0 none, 1 a Hann window; float32."""

    def side(count: int) -> np.ndarray:
        out = np.abs(np.arange(count) - count // 2) / (count / 2)  # 0 in the middle, 1 at the edge
        down = np.clip((out - 1 + rolloff) / max(rolloff, 1e-9), 0, 1)
        return (0.5 + 0.5 * np.cos(np.pi * down)).astype(np.float32)

    return side(shape[0])[:, None] * side(shape[1])


def thermal_noise(
    rng: np.random.Generator, window: np.ndarray, deviation: float
) -> np.ndarray:  # fmt: skip
    """Sample complex noise in k-space, coloured by ``window`` as the signal is.

    Args:
        rng: Source of chance.
        window: Filter, shape of the acquired k-space.
        deviation: Standard deviation in the image, of the real and of the imaginary part each.
    """
    real, imaginary = rng.standard_normal((2, *window.shape), np.float32)
    power = np.sqrt(np.mean(window**2))
    # The transform back divides by the number of lines: white noise shrinks by its root.
    return (real + 1j * imaginary) * window * (deviation * np.sqrt(window.size) / power)


def ghost_phase(rng: np.random.Generator, lines: int, strength: float) -> np.ndarray:
    """Sample phase errors of the lines of k-space from head motion and pulsating blood.

    Args:
        rng: Source of chance.
        lines: Along the phase-encoding axis.
        strength: rad, about 0.05 for a calm head and 0.5 for a restless one.

    Returns:
        Complex factors of modulus 1, (lines,).
    """
    pulse = np.sin(2 * np.pi * (np.arange(lines) * rng.uniform(0.05, 0.45) + rng.uniform()))
    jumps = np.zeros(lines)
    for first in rng.integers(0, lines, rng.integers(1, 4)):
        jumps[first : first + rng.integers(2, max(3, lines // 12))] += rng.normal()
    return np.exp(1j * strength * (0.3 * pulse + jumps)).astype(np.complex64)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], width: float | tuple[float, ...]
) -> np.ndarray:
    """Sample noise of about unit variance, details ``width`` voxels wide, float32, ``shape``."""
    widths = np.broadcast_to(width, len(shape))
    nodes = [int(np.ceil((n - 1) / w)) + 2 for n, w in zip(shape, widths, strict=True)]
    noise = rng.standard_normal(nodes).astype(np.float32)
    for axis, (size, wide) in enumerate(zip(shape, widths, strict=True)):
        place = np.arange(size)[:, None] / wide - np.arange(nodes[axis])
        weights = np.maximum(0, 1 - np.abs(place)).astype(np.float32)  # (size, nodes)
        noise = np.moveaxis(np.tensordot(weights, noise, (1, axis)), 0, axis)
    return noise / max(float(noise.std()), 1e-6)


def coil_bias(
    rng: np.random.Generator, shape: tuple[int, int, int], *, share: float = 0.2
) -> np.ndarray:
    """Sample a smooth sensitivity around 1, at most ``share`` away from it, float32, ``shape``."""
    coarse = rng.standard_normal((3, 3, 3)).astype(np.float32)
    axes = [np.linspace(0, 2, count, dtype=np.float32) for count in shape]
    where = np.meshgrid(*axes, indexing="ij")
    smooth = ndimage.map_coordinates(coarse, where, order=2, mode="nearest")
    return 1 + share * smooth / max(np.abs(smooth).max(), 1e-6)


def high_pass_phase(image: np.ndarray, spectrum: np.ndarray, lines: int) -> np.ndarray:
    """Remove the slow part of an image's phase, -pi to pi (homodyne filter).

    The image is divided by itself as the middle of k-space under a Hann window shows it.

    Args:
        image: Complex, (X, Y).
        spectrum: Its k-space, as measured.
        lines: Of k-space that count as slow, along either axis.
    """
    inner = tuple(min(lines, size) for size in spectrum.shape)
    middle = spectrum[_central_slices(spectrum.shape, inner)] * tukey_window(inner, 1.0)
    slow = from_kspace(middle.astype(image.dtype), image.shape)
    return np.angle(image * np.conj(slow)).astype(np.float32)


def phase_mask(phase: np.ndarray, *, phase_sign: int) -> np.ndarray:
    """Make the phase mask of SWI: 1 where the phase is not venous, 0 at a half turn of it.

    Args:
        phase: High-passed, rad.
        phase_sign: 1 if a higher field turns the phase forwards, -1 if backwards. Veins along B0
            have the higher field.

    Source:
        Haacke et al. 2004, doi:10.1002/mrm.20198.
    """
    return np.clip(1 - np.maximum(phase_sign * phase, 0) / np.pi, 0, 1)


def swi(magnitude: np.ndarray, phase: np.ndarray, *, phase_sign: int, power: int = 4) -> np.ndarray:
    """Make a susceptibility-weighted image: magnitude times the phase mask, ``power`` times."""
    return magnitude * phase_mask(phase, phase_sign=phase_sign) ** power
