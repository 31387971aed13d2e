"""Points grown to masks: from the dark voxel that somebody marked to the lesion around it.

The rule. The darkest voxel within ``SEED_MM`` of the point is the seed. What it must be told from
is the median of a shell around it. All that touches the seed by faces and is darker than half way
from seed to shell is the lesion. Where that runs wider than a microbleed can be (a vessel, the
skull's edge), half way becomes less, a step at a time; where nothing fits, or nothing is dark, the
lesion is a ball around the point.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import pdist

from bids_cmb.imaging.volume import Volume

WIDEST_MM = 10.0  # a microbleed is no wider; Wardlaw et al. 2013 and STRIVE-2, Duering et al. 2023
SEED_MM = 2.0  # how far from the darkest voxel a reader clicks
SHELL_MM = 4.0  # thickness of the shell that a lesion is compared with
BALL_MM = 3.0  # about the median diameter of microbleeds in three public sets
LEVELS = (0.5, 0.4, 0.3, 0.2)  # of the way from seed to shell, tried in turn
FAINTEST = 0.1  # of the shell's median; what differs less from it is no dark spot
NOISE = 2.0  # standard deviations of the shell, likewise
FACES = ndimage.generate_binary_structure(3, 1)  # thick slices leak through corners


@dataclass(frozen=True, eq=False)
class GrownRegion:
    """A lesion grown from a point.

    Attributes:
        box: Where it lies in the image.
        inside: bool, its voxels within the box.
        level: Of ``LEVELS``, where the growth stopped; None for a ball.
    """

    box: tuple[slice, slice, slice]
    inside: np.ndarray
    level: float | None


def grow_region(image: Volume, point_mm: np.ndarray, *, widest_mm: float = WIDEST_MM) -> np.ndarray:
    """The voxels of the dark spot at a point, bool (X, Y, Z); see `grow_from_point`."""
    found = grow_from_point(image, point_mm, widest_mm=widest_mm)
    mask = np.zeros(image.shape, bool)
    mask[found.box] = found.inside
    return mask


def grow_from_point(
    image: Volume,
    point_mm: np.ndarray,
    *,
    widest_mm: float = WIDEST_MM,
    ball_mm: float = BALL_MM,
) -> GrownRegion:
    """The dark spot at a point, by the rule that heads this module.

    Args:
        image: The scan; on any grid, oblique and anisotropic ones too.
        point_mm: Where somebody marked a lesion, world mm, shape (3,).
        widest_mm: No two voxel centres of the lesion lie further apart; at most ``WIDEST_MM``.
        ball_mm: Diameter of the ball where nothing can be grown.

    Raises:
        ValueError: If the point lies outside the image, or a diameter is not above 0 and at most
            ``WIDEST_MM``.
    """
    for name, value in (("widest_mm", widest_mm), ("ball_mm", ball_mm)):
        if not 0 < value <= WIDEST_MM:
            raise ValueError(
                f"`{name}` must be above 0 and at most {WIDEST_MM:g} mm; found {value:g}."
            )
    point = np.asarray(point_mm, float)
    voxel = nearest_voxel(image, point)
    box = _around(image, voxel, WIDEST_MM / 2 + SEED_MM + SHELL_MM)
    data, world = image.data[box].astype(float), _world(image, box)
    voxel = tuple(at - side.start for at, side in zip(voxel, box, strict=True))
    away = np.linalg.norm(world - point, axis=-1)
    cut = _cut_away(data)
    near = (away <= SEED_MM) & ~cut
    near[voxel] = True  # within a thick slice no voxel's centre may lie so near
    seed = _darkest(data, near, away)
    if not cut[seed]:
        reached = np.linalg.norm(world - world[seed], axis=-1) - widest_mm / 2
        shell = data[(reached > 0) & (reached <= SHELL_MM) & ~cut]
        for level, most in _limits(float(data[seed]), shell):
            inside = _connected((data <= most) & ~cut, seed)
            if _fits(inside, world, widest_mm):
                return GrownRegion(box, inside, level)
    ball = away <= ball_mm / 2
    ball[voxel] = True
    return GrownRegion(box, ball, None)


def nearest_voxel(image: Volume, point_mm: np.ndarray) -> tuple[int, int, int]:
    """The voxel that a world position lies in.

    Raises:
        ValueError: If it lies outside the image.
    """
    at = image.index(np.asarray(point_mm, float))
    voxel = np.floor(at + 0.5)
    if not (np.isfinite(voxel).all() and (voxel >= 0).all() and (voxel < image.shape).all()):
        place = ", ".join(f"{value:.1f}" for value in point_mm)
        size = " × ".join(map(str, image.shape))
        raise ValueError(
            f"a point must lie in the image; ({place}) mm is voxel "
            f"({', '.join(f'{value:.1f}' for value in at)}) of {size}."
        )
    return tuple(voxel.astype(int).tolist())


def _around(image: Volume, middle: tuple[int, int, int], reach: float) -> tuple[slice, ...]:
    """All voxels within ``reach`` mm of one, and some more."""
    more = np.ceil(reach / image.spacing).astype(int) + 1
    return tuple(
        slice(max(at - far, 0), min(at + far + 1, size))
        for at, far, size in zip(middle, more, image.shape, strict=True)
    )


def _world(image: Volume, box: tuple[slice, ...]) -> np.ndarray:
    """World position of every voxel of a box, (X, Y, Z, 3)."""
    index = np.stack(np.mgrid[box], axis=-1)
    return image.world(index.reshape(-1, 3)).reshape(index.shape)


def _cut_away(data: np.ndarray) -> np.ndarray:
    """What a mask set to nothing: voxels of 0 or less that are connected to the box's surface.

    A black lesion in the middle of the brain is not.
    """
    pieces, _ = ndimage.label(data <= 0, structure=FACES)
    rim = np.ones(data.shape, bool)
    rim[1:-1, 1:-1, 1:-1] = False
    return np.isin(pieces, np.unique(pieces[rim & (pieces > 0)]))


def _darkest(data: np.ndarray, near: np.ndarray, away: np.ndarray) -> tuple[int, ...]:
    """The darkest voxel of those near; of equals the nearest, then the first."""
    places = np.argwhere(near)
    order = np.lexsort((away[near].round(6), data[near]))
    return tuple(places[order[0]].tolist())


def _limits(darkest: float, shell: np.ndarray) -> list[tuple[float, float]]:
    """Each of ``LEVELS`` and the intensity it stands for; nothing if there is no dark spot."""
    if not shell.size:
        return []
    around = float(np.median(shell))
    noise = 1.4826 * float(np.median(np.abs(shell - around)))
    depth = around - darkest
    if depth <= 0 or depth < max(FAINTEST * around, NOISE * noise):
        return []
    return [(level, darkest + level * depth) for level in LEVELS]


def _connected(dark: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    """The dark voxels that touch the seed by faces, and the holes among them."""
    pieces, _ = ndimage.label(dark, structure=FACES)
    return ndimage.binary_fill_holes(pieces == pieces[seed])


def _fits(inside: np.ndarray, world: np.ndarray, widest_mm: float) -> bool:
    """Whether no two of the voxels have centres further apart than this."""
    box = np.ptp(world[inside], axis=0)
    if box.max() > widest_mm:  # most that run over do so by far
        return False
    surface = world[inside & ~ndimage.binary_erosion(inside)]
    return bool(pdist(surface).max(initial=0) <= widest_mm)
