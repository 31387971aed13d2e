"""Region growing: from a point that a reader marked to the mask of the lesion around it.

The darkest voxel within ``MAX_SEED_DISTANCE_MM`` of the point is the seed; the background is the
median of a shell around it. The lesion is what is connected with the seed by faces and darker than
half way from seed to background. If that is wider than a microbleed can be (a vessel, the edge of
the skull), the level is lowered by a step; where no level fits, or nothing is dark, the lesion is a
ball around the point.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import pdist

from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import MAX_DIAMETER_MM

MAX_SEED_DISTANCE_MM = 2.0  # how far from the darkest voxel a reader clicks
SHELL_MM = 4.0  # thickness of the shell that is the background
DEFAULT_DIAMETER_MM = 3.0  # about the median diameter of microbleeds in three public sets
LEVELS = (0.5, 0.4, 0.3, 0.2)  # of the way from seed to background, tried in turn
MIN_CONTRAST = 0.1  # of the background; what differs less from it is no dark spot
MIN_CONTRAST_TO_NOISE = 2.0  # in standard deviations of the shell
FACES = ndimage.generate_binary_structure(3, 1)  # thick slices leak through corners


@dataclass(frozen=True, eq=False)
class GrownRegion:
    """A lesion grown from a point.

    Attributes:
        box: Part of the image that holds it.
        inside: bool, its voxels within the box.
        level: Of ``LEVELS``, the one that fitted; None for a ball.
    """

    box: tuple[slice, slice, slice]
    inside: np.ndarray
    level: float | None


def grow_region(
    image: Volume, point_mm: np.ndarray, *, max_diameter_mm: float = MAX_DIAMETER_MM
) -> np.ndarray:
    """Grow the dark spot at a point to a mask, bool (X, Y, Z); see `grow_from_point`."""
    grown = grow_from_point(image, point_mm, max_diameter_mm=max_diameter_mm)
    mask = np.zeros(image.shape, bool)
    mask[grown.box] = grown.inside
    return mask


def grow_from_point(
    image: Volume,
    point_mm: np.ndarray,
    *,
    max_diameter_mm: float = MAX_DIAMETER_MM,
    ball_mm: float = DEFAULT_DIAMETER_MM,
) -> GrownRegion:
    """Grow the dark spot at a point, by the rule at the head of this module.

    Args:
        image: The scan, on any grid.
        point_mm: Where a reader marked a lesion, world mm, shape (3,).
        max_diameter_mm: Largest distance of two voxel centres of the lesion; at most
            ``MAX_DIAMETER_MM``.
        ball_mm: Diameter of the ball where nothing can be grown.

    Raises:
        ValueError: If the point lies outside the image, or a diameter is not above 0 and at most
            ``MAX_DIAMETER_MM``.
    """
    for name, value in (("max_diameter_mm", max_diameter_mm), ("ball_mm", ball_mm)):
        if not 0 < value <= MAX_DIAMETER_MM:
            raise ValueError(
                f"`{name}` must be above 0 and at most {MAX_DIAMETER_MM:g} mm; found {value:g}."
            )
    point = np.asarray(point_mm, float)
    voxel = find_nearest_voxel(image, point)
    box = _box_around(image, voxel, MAX_DIAMETER_MM / 2 + MAX_SEED_DISTANCE_MM + SHELL_MM)
    data, world = image.data[box].astype(float), _world_coordinates(image, box)
    voxel = tuple(index - side.start for index, side in zip(voxel, box, strict=True))
    distance = np.linalg.norm(world - point, axis=-1)
    outside = _find_masked_out(data)
    near = (distance <= MAX_SEED_DISTANCE_MM) & ~outside
    near[voxel] = True  # in thick slices every voxel centre may be too far
    seed = _find_darkest(data, near, distance)
    if not outside[seed]:
        beyond = np.linalg.norm(world - world[seed], axis=-1) - max_diameter_mm / 2
        shell = data[(beyond > 0) & (beyond <= SHELL_MM) & ~outside]
        for level, limit in _set_limits(float(data[seed]), shell):
            inside = _keep_connected((data <= limit) & ~outside, seed)
            if _fits(inside, world, max_diameter_mm):
                return GrownRegion(box, inside, level)
    ball = distance <= ball_mm / 2
    ball[voxel] = True
    return GrownRegion(box, ball, None)


def find_nearest_voxel(image: Volume, point_mm: np.ndarray) -> tuple[int, int, int]:
    """Find the voxel that a world position lies in.

    Raises:
        ValueError: If it lies outside the image.
    """
    index = image.index(np.asarray(point_mm, float))
    voxel = np.floor(index + 0.5)
    if not (np.isfinite(voxel).all() and (voxel >= 0).all() and (voxel < image.shape).all()):
        position = ", ".join(f"{value:.1f}" for value in point_mm)
        size = " × ".join(map(str, image.shape))
        raise ValueError(
            f"a point must lie in the image; ({position}) mm is voxel "
            f"({', '.join(f'{value:.1f}' for value in index)}) of {size}."
        )
    return tuple(voxel.astype(int).tolist())


def _box_around(image: Volume, voxel: tuple[int, int, int], reach_mm: float) -> tuple[slice, ...]:
    """Bound the voxels within ``reach_mm`` of a voxel, with some margin."""
    margin = np.ceil(reach_mm / image.spacing).astype(int) + 1
    return tuple(
        slice(max(index - width, 0), min(index + width + 1, size))
        for index, width, size in zip(voxel, margin, image.shape, strict=True)
    )


def _world_coordinates(image: Volume, box: tuple[slice, ...]) -> np.ndarray:
    """Compute the world position of every voxel of a box, mm, (X, Y, Z, 3)."""
    index = np.stack(np.mgrid[box], axis=-1)
    return image.world(index.reshape(-1, 3)).reshape(index.shape)


def _find_masked_out(data: np.ndarray) -> np.ndarray:
    """Find what was masked out: voxels of 0 or less that are connected to the box's surface.

    A black lesion within the brain is not.
    """
    pieces, _ = ndimage.label(data <= 0, structure=FACES)
    rim = np.ones(data.shape, bool)
    rim[1:-1, 1:-1, 1:-1] = False
    return np.isin(pieces, np.unique(pieces[rim & (pieces > 0)]))


def _find_darkest(data: np.ndarray, near: np.ndarray, distance: np.ndarray) -> tuple[int, ...]:
    """Find the darkest of the near voxels; of equals the nearest, then the first."""
    voxels = np.argwhere(near)
    order = np.lexsort((distance[near].round(6), data[near]))
    return tuple(voxels[order[0]].tolist())


def _set_limits(darkest: float, shell: np.ndarray) -> list[tuple[float, float]]:
    """Set the intensity of each of ``LEVELS``; none if there is no dark spot."""
    if not shell.size:
        return []
    background = float(np.median(shell))
    noise = 1.4826 * float(np.median(np.abs(shell - background)))
    depth = background - darkest
    if depth <= 0 or depth < max(MIN_CONTRAST * background, MIN_CONTRAST_TO_NOISE * noise):
        return []
    return [(level, darkest + level * depth) for level in LEVELS]


def _keep_connected(dark: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    """Keep the dark voxels that are connected with the seed by faces, and fill their holes."""
    pieces, _ = ndimage.label(dark, structure=FACES)
    return ndimage.binary_fill_holes(pieces == pieces[seed])


def _fits(inside: np.ndarray, world: np.ndarray, max_diameter_mm: float) -> bool:
    """Check that no two voxel centres are further apart than ``max_diameter_mm``."""
    box = np.ptp(world[inside], axis=0)
    if box.max() > max_diameter_mm:  # quick, and true of most that do not fit
        return False
    surface = world[inside & ~ndimage.binary_erosion(inside)]
    return bool(pdist(surface).max(initial=0) <= max_diameter_mm)
