"""Three-dimensional images in world coordinates."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import aff2axcodes

NEARLY_AS_LARGE = 0.9  # of the largest side of a voxel
OPPOSITE_SIDES = {"L": "R", "R": "L", "P": "A", "A": "P", "I": "S", "S": "I"}


@dataclass(frozen=True, eq=False)
class Volume:
    """An image on a regular grid.

    Attributes:
        data: Voxel values, shape (X, Y, Z).
        affine: Voxel index to world position in mm, RAS+, shape (4, 4).
    """

    data: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        return self.data.shape

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm along each axis, shape (3,)."""
        return voxel_sizes(self.affine)

    @property
    def voxel_volume(self) -> float:
        """mm³ of one voxel, right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def slice_axis(self) -> int:
        """The axis with the largest voxels, along which slices are stacked.

        Of those that are nearly as large, as in a scan of cubes, the one that points most upwards:
        slices are axial then.
        """
        large = np.flatnonzero(self.spacing >= self.spacing.max() * NEARLY_AS_LARGE)
        upwards = np.abs(self.affine[2, :3]) / self.spacing
        return int(max(large, key=lambda axis: (round(upwards[axis], 3), axis)))

    @property
    def directions(self) -> tuple[tuple[str, str], ...]:
        """The sides of the body nearest to the start and the end of each axis: ("L", "R") …."""
        ends = aff2axcodes(self.affine)
        return tuple((OPPOSITE_SIDES[end], end) for end in ends)

    def world(self, index: np.ndarray) -> np.ndarray:
        """Convert voxel ``index`` to world mm, both (N, 3) or (3,)."""
        return apply_affine(self.affine, index)

    def index(self, world: np.ndarray) -> np.ndarray:
        """Convert world mm to a voxel index, not rounded, both (N, 3) or (3,)."""
        return apply_affine(np.linalg.inv(self.affine), world)

    def nearest_voxels(self, world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the voxels nearest to positions.

        Args:
            world: mm, (N, 3).

        Returns:
            Voxel indices, int (N, 3), also beyond the grid, and whether they are in it, bool (N,).
        """
        index = np.rint(self.index(world)).astype(int)
        return index, ((index >= 0) & (index < self.shape)).all(axis=1)

    def flip(self, axis: int) -> "Volume":
        """Reverse an axis; every voxel keeps its position in the world, and none is copied."""
        turn = np.eye(4)
        turn[axis, axis], turn[axis, 3] = -1, self.shape[axis] - 1
        return Volume(np.flip(self.data, axis), self.affine @ turn)

    def corners(self) -> np.ndarray:
        """List the centres of the eight outermost voxels, world mm, (8, 3)."""
        return self.world(np.array(list(product(*((0, n - 1) for n in self.shape)))))

    def max_corner_distance(self, other: "Volume") -> float:
        """Measure how far the corners of two grids lie apart at most, mm."""
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())

    def find_ball(
        self, centre: np.ndarray, radius_mm: float
    ) -> tuple[tuple[slice, ...], np.ndarray]:
        """Find the voxels whose centres lie within a distance of a position.

        Args:
            centre: World mm, (3,), also beyond the grid.
            radius_mm: Largest distance.

        Returns:
            A box of the grid that holds them, maybe empty, and which of its voxels they are, bool.
        """
        reach = np.ceil(radius_mm / self.spacing).astype(int)
        middle = np.rint(self.index(centre)).astype(int)
        start = np.maximum(middle - reach, 0)
        box = tuple(map(slice, start, np.maximum(middle + reach + 1, 0)))
        shape = self.data[box].shape
        index = np.stack(np.indices(shape), axis=-1) + start
        distance = np.linalg.norm(self.world(index.reshape(-1, 3)) - centre, axis=1)
        return box, (distance <= radius_mm).reshape(shape)

    def shares_grid(self, other: "Volume", *, tolerance: float = 1e-3) -> bool:
        """Check whether shape and affine are those of ``other``, up to ``tolerance`` in mm."""
        return self.shape == other.shape and np.allclose(self.affine, other.affine, atol=tolerance)


def map_points(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points by an affine transform, (4, 4), world mm to world mm, both (N, 3) or (3,)."""
    return apply_affine(transform, points)
