"""Smooth random fields: Gaussian noise on a coarse lattice, upsampled linearly to a grid."""

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.resampling import compute_linear_weights


def sample_noise(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> np.ndarray:
    """Sample smooth Gaussian noise of unit variance.

    Args:
        rng: Source of chance.
        shape: Of the lattice.
        width: Sigma of the blur in voxels of the lattice.

    Returns:
        float32, ``shape``.
    """
    noise = ndimage.gaussian_filter(
        rng.standard_normal(shape, np.float32), width, mode="wrap", truncate=3
    )
    return noise / max(float(noise.std()), 1e-9)


def count_nodes(count: int, spacing: float, step_mm: float) -> int:
    """Count the nodes of a lattice over ``count`` voxels, at most ``step_mm`` apart."""
    return max(2, int(np.ceil((count - 1) * spacing / step_mm)) + 1)


def interpolation_weights(count: int, nodes: int) -> np.ndarray:
    """Compute the linear weights from nodes to voxels, ends on ends, float32 (count, nodes)."""
    return compute_linear_weights(np.linspace(0, nodes - 1, count), nodes)


def upsample_planes(lattice: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Upsample a lattice linearly along its last two axes, float32 (nodes x, *shape)."""
    wide = lattice @ interpolation_weights(shape[1], lattice.shape[2]).T
    return interpolation_weights(shape[0], lattice.shape[1]) @ wide


def upsample(lattice: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Upsample a lattice linearly to a grid, corner to corner, float32 (*shape)."""
    wide = upsample_planes(lattice, shape[1:])
    along = interpolation_weights(shape[0], lattice.shape[0])
    return (along @ wide.reshape(len(wide), -1)).reshape(shape)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], width: float | tuple[float, ...]
) -> np.ndarray:
    """Sample noise of about unit variance, details ``width`` voxels wide, float32, ``shape``."""
    widths = np.broadcast_to(width, len(shape))
    nodes = [int(np.ceil((n - 1) / w)) + 2 for n, w in zip(shape, widths, strict=True)]
    noise = rng.standard_normal(nodes).astype(np.float32)
    for axis, (size, wide) in enumerate(zip(shape, widths, strict=True)):
        weights = compute_linear_weights(np.arange(size) / wide, nodes[axis])
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
