"""Slices of a scan: where signal is summed, the slice profile, and the sum of a smooth background.

The background is resampled to the planes of a slice and summed as complex numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bids_cmb.imaging.resampling import compute_linear_weights
from bids_cmb.imaging.volume import Volume

MAX_PLANE_SPACING_MM = 1.1  # at most, between the planes that a thick slice is summed from
SINC_BROADENING = 1.22  # of a filtered sinc against the unfiltered one, at half its height


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
        compute_linear_weights(np.arange(n) / step, m)
        for n, m, step in zip(shape[:2], count, every, strict=True)
    )
    return np.einsum("xi,ijz,yj->xyz", along, coarse, across, optimize=True)


def _resample(volume: Volume, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    to_source = np.linalg.inv(volume.affine) @ affine
    return ndimage.affine_transform(
        volume.data, to_source[:3, :3], to_source[:3, 3], output_shape=shape, order=1
    )
