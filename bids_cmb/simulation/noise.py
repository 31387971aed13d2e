"""Smooth noise on a coarse lattice, and a lattice stretched over a grid."""

import numpy as np
from scipy import ndimage


def noise_lattice(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> np.ndarray:
    """Smooth Gaussian noise of unit variance, float32; ``width`` is the blur's sigma in voxels."""
    noise = ndimage.gaussian_filter(
        rng.standard_normal(shape, np.float32), width, mode="wrap", truncate=3
    )
    return noise / max(float(noise.std()), 1e-9)


def node_count(count: int, spacing: float, step_mm: float) -> int:
    """Nodes of a lattice over ``count`` voxels, at most ``step_mm`` apart."""
    return max(2, int(np.ceil((count - 1) * spacing / step_mm)) + 1)


def node_weights(count: int, nodes: int) -> np.ndarray:
    """Linear interpolation from nodes to voxels, the ends on the ends, float32 (count, nodes)."""
    place = np.linspace(0, nodes - 1, count)[:, None]
    return np.maximum(0, 1 - np.abs(place - np.arange(nodes))).astype(np.float32)


def stretch_planes(lattice: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A lattice stretched along its last two axes, (nodes x, *shape) float32."""
    wide = lattice @ node_weights(shape[1], lattice.shape[2]).T
    return node_weights(shape[0], lattice.shape[1]) @ wide


def stretch(lattice: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A lattice stretched linearly over a grid, corner to corner, float32 (*shape)."""
    wide = stretch_planes(lattice, shape[1:])
    along = node_weights(shape[0], lattice.shape[0])
    return (along @ wide.reshape(len(wide), -1)).reshape(shape)
