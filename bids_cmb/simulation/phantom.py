"""A head that nobody has: folded cortex, nuclei, ventricles, skull, face and neck, from chance."""

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.head_model import Head, cut
from bids_cmb.simulation.noise import noise_lattice, stretch
from bids_cmb.simulation.tissue_properties import CSF, FIRST_OUTSIDE

# mm from the middle of the brain, RAS+; the right side mirrors what has a side. Half axes, or
# radii along a line, were set by eye against sections of real heads.
_BALLS = (  # left code, right code, centre, half axes
    (26, 58, (10, 14, -6), (5, 6, 4.5)),
    (11, 50, (13, 24, 6), (5.5, 10, 9)),
    (12, 51, (25, 6, 1), (5.5, 17, 11)),
    (13, 52, (18.5, 1, -1), (4.5, 10, 7)),
    (10, 49, (10.5, -16, 7), (9, 15, 9)),
    (28, 60, (9, -13, -8), (9, 11, 7)),
    (18, 54, (23, 1, -20), (7, 7, 7)),
)
_TUBES = (  # left code, right code, points, radii
    (11, 50, ((16, 18, 15), (18, 0, 20), (20, -18, 21)), (4, 3, 2)),
    (17, 53, ((26, -8, -21), (28, -20, -17), (25, -33, -8), (20, -38, -1)), (5, 4.5, 4, 3)),
    (5, 44, ((25, -37, 8), (34, -27, -8), (33, -8, -20)), (4, 2, 1.6)),
    (4, 43, ((7, 34, 6), (9, 16, 17), (13, -12, 22), (22, -36, 15), (25, -38, 8)), (5, 6, 6, 6, 7)),
    (4, 43, ((25, -38, 10), (23, -58, 5)), (5, 1.5)),
    (136, 163, ((10, 5, 15), (13, -12, 19), (22, -34, 13)), (1, 1.6, 2.4)),
    (137, 164, ((24, -36, 7), (33, -26, -8)), (2, 1.2)),
)
_BRAINSTEM = ((0, -16, -6), (0, -23, -22), (0, -23, -34), (0, -31, -50), (0, -39, -64))
_BRAINSTEM_RADII = (9, 12.5, 14, 8.5, 6.5)
_CORD = ((0, -39, -64), (0, -44, -90), (0, -46, -160))
_SINUSES = (((0, -38, 12), (0, -72, 0)), *(((0, -76, 0), (s * 52, -58, -20)) for s in (-1, 1)))
_ARTERIES = (
    ((0, -10, -44), (0, -6, -14)),
    *(((s * 22, 0, -120), (s * 20, 6, -40), (s * 8, 8, -16), (s * 30, 8, -14)) for s in (-1, 1)),
)
_AIR = (  # centre, half axes
    ((0, 62, -52), (11, 26, 20)),
    ((0, 80, -16), (17, 5, 8)),
    ((0, 34, -28), (10, 11, 8)),
    *(((s * 33, 58, -50), (12, 14, 13)) for s in (-1, 1)),
    *(((s * 52, -28, -38), (6, 8, 10)) for s in (-1, 1)),
)


def procedural_head(rng: np.random.Generator) -> Head:
    """Make up a whole head: folded cortex, nuclei, ventricles, cerebellum, skull, face and neck.

    It has the codes and about the volumes of a real head, 1 mm, and the brain's centre at the
    origin. It is no anatomy to learn from: gyri have no names, the face is a lump.

    Args:
        rng: Source of chance: folding, size and proportions.
    """
    sizes = rng.uniform(0.97, 1.05) * rng.uniform(0.98, 1.02, 3)
    shape = (190, 236, 236)
    affine = np.eye(4)
    affine[:3, 3] = (-94.5, -112, -142)
    grid = Volume(np.zeros(shape, np.uint16), affine)
    ticks = [
        ((np.arange(n) + start) / size).astype(np.float32)
        for n, start, size in zip(shape, affine[:3, 3], sizes, strict=True)
    ]
    world = np.meshgrid(*ticks, indexing="ij", sparse=True)
    painted, left = grid.data, np.broadcast_to(world[0] < 0, shape)

    cerebrum, gap = _cerebrum(world)
    cerebellum = np.minimum(
        *(_ball(world, (s * 24, -57, -36), (29, 27, 20)) for s in (-1, 1)),
    )
    inner = np.minimum(cerebrum, cerebellum)
    box, stem = _tube(world, _BRAINSTEM, _BRAINSTEM_RADII)
    inner[box] = np.minimum(inner[box], stem)
    inner = ndimage.gaussian_filter(inner - 3.5, 3.0)

    _paint_outside(painted, world, inner)
    painted[inner < 0] = CSF
    _paint(painted, _tube(world, _CORD, (9, 9, 9)), CSF)
    _paint(painted, _tube(world, _CORD, (6.5, 5.5, 5.5)), 512)
    _paint_sinuses(painted, world, inner)
    _paint_cerebellum(painted, rng, cerebellum, left)
    _paint_cerebrum(painted, rng, world, cerebrum, gap, left)
    _paint_inner(painted, world)
    return Head(cut(grid), "procedural")


def _ball(world: list, centre: tuple, axes: tuple) -> np.ndarray:
    """About the distance in mm from an ellipsoid, negative inside, float32 (X, Y, Z)."""
    far = sum(((x - c) / a) ** 2 for x, c, a in zip(world, centre, axes, strict=True))
    return (np.sqrt(far) - 1) * np.float32(np.mean(axes))


def _within(world: list, box: tuple[slice, ...]) -> list:
    """The part of the world's axes that is in a box."""
    return [
        np.take(x, np.arange(*side.indices(x.size)), axis)
        for axis, (x, side) in enumerate(zip(world, box, strict=True))
    ]


def _box(world: list, low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    """The voxels between two corners in mm."""
    return tuple(
        slice(*np.searchsorted(x.ravel(), ends)) for x, *ends in zip(world, low, high, strict=True)
    )


def _blob(world: list, centre: tuple, axes: tuple) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box around a small ellipsoid, and `_ball` in it."""
    reach = np.add(axes, 4)
    box = _box(world, centre - reach, centre + reach)
    return box, _ball(_within(world, box), centre, axes)


def _tube(world: list, points: tuple, radii: tuple) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box around a tube, and the distance from the tube in mm, negative inside, in it."""
    reach = max(radii) + 4
    box = _box(world, np.min(points, axis=0) - reach, np.max(points, axis=0) + reach)
    near, away = _within(world, box), np.inf
    for start, stop, wide, narrow in zip(points, points[1:], radii, radii[1:], strict=False):
        way = np.subtract(stop, start).astype(np.float32)
        offset = [x - np.float32(a) for x, a in zip(near, start, strict=True)]
        along = np.clip(sum(o * w for o, w in zip(offset, way, strict=True)) / (way @ way), 0, 1)
        far = sum((o - along * w) ** 2 for o, w in zip(offset, way, strict=True))
        away = np.minimum(away, np.sqrt(far) - (wide + along * (narrow - wide)))
    return box, away


def _paint(painted: np.ndarray, shape: tuple[tuple[slice, ...], np.ndarray], code: int) -> None:
    """Give a blob or a tube its code."""
    box, away = shape
    painted[box][away < 0] = code


def _both(points: tuple, side: int) -> tuple:
    """Points on the left (-1) or on the right (1)."""
    return tuple((side * x, y, z) for x, y, z in points)


def _cerebrum(world: list) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the cerebrum's hull in mm, and where lobes meet in the Sylvian fissure."""
    dome = np.maximum(_ball(world, (0, -4, 10), (67, 84, 61)), -20 - world[2] - 0.06 * world[1])
    lobes = np.minimum(*(_ball(world, (s * 42, -6, -17), (23, 42, 21)) for s in (-1, 1)))
    gap = (np.abs(dome - lobes) < 1.3) & (np.minimum(dome, lobes) > -16)
    return np.minimum(dome, lobes), gap & (np.abs(world[0]) > 30) & (world[1] > -30)


def _paint_cerebrum(
    painted: np.ndarray,
    rng: np.random.Generator,
    world: list,
    hull: np.ndarray,
    gap: np.ndarray,
    left: np.ndarray,
) -> None:
    """Sulci, then what lies within a cortex's thickness of fluid, then white matter."""
    (box,) = ndimage.find_objects((hull < 1).view(np.uint8))
    hull, gap, left, painted = hull[box], gap[box], left[box], painted[box]
    near = _within(world, box)
    fold = _folds(rng, near, hull)
    depth = 20 + 4 * stretch(noise_lattice(rng, (9, 9, 9), 1.0), hull.shape)
    core = _ball(near, (0, -6, 8), (34, 47, 21)) < 0  # corpus callosum, nuclei, ventricles
    apart = (np.abs(near[0]) < 1.2) & (_ball(near, (0, -8, 8), (99, 44, 20)) > 0)
    inside = hull < 0
    fluid = ~inside | gap | apart | ((np.abs(fold) < 1.0) & (-hull < depth) & ~core)
    away = ndimage.distance_transform_edt(~fluid).astype(np.float32)
    thick = 2.9 + 0.35 * stretch(noise_lattice(rng, (15, 15, 15), 1.0), hull.shape)
    cortex = inside & ~fluid & (away <= thick)
    white = inside & ~fluid & ~cortex
    painted[inside & fluid] = CSF
    painted[cortex] = np.where(left[cortex], 3, 42)
    painted[white] = np.where(left[white], 2, 41)


def _folds(rng: np.random.Generator, world: list, hull: np.ndarray) -> np.ndarray:
    """About the distance in mm from the nearest sulcus, signed, float32 (X, Y, Z).

    Sulci are where smooth noise changes sign. The noise is looked up on the hull below which a
    place lies, so that they run inwards; a slow share of it bends them on their way.
    """
    step = 2.0
    coarse = [np.linspace(x.min(), x.max(), int(np.ptp(x) / step) + 2) for x in world]
    place = np.stack(np.meshgrid(*coarse, indexing="ij"))  # (3, x, y, z)
    low = hull[
        tuple(
            np.ix_(
                *[
                    np.rint(np.linspace(0, n - 1, len(c))).astype(int)
                    for n, c in zip(hull.shape, coarse, strict=True)
                ]
            )
        )
    ]
    radius = np.sqrt((place**2).sum(axis=0)) + 1
    outward = place * (1 - 0.75 * np.minimum(low, 0) / radius)
    noise = noise_lattice(rng, (80, 80, 80), 1.9) - 0.4 * noise_lattice(rng, (80, 80, 80), 4.0)
    value = ndimage.map_coordinates(noise, outward / 2.1 + 40, order=1, mode="wrap")
    value = ndimage.gaussian_filter(value.astype(np.float32), 1.0)
    slope = np.sqrt(sum(part**2 for part in np.gradient(value, step)))
    return stretch(value / np.maximum(slope, 0.06), hull.shape)


def _paint_cerebellum(
    painted: np.ndarray, rng: np.random.Generator, surface: np.ndarray, left: np.ndarray
) -> None:
    """Cortex with leaves of fluid between, around a branched core of white matter."""
    (box,) = ndimage.find_objects((surface < 0).view(np.uint8))
    inside, depth = surface[box] < 0, -surface[box]
    leaves = stretch(noise_lattice(rng, tuple(n // 4 for n in inside.shape), 0.8), inside.shape)
    cortex = inside & (depth < 10.5 + 4.5 * leaves)
    part, left = painted[box], left[box]
    part[inside] = np.where(left[inside], 7, 46)
    part[cortex] = np.where(left[cortex], 8, 47)
    part[cortex & (np.abs(leaves) < 0.1) & (depth < 4)] = CSF


def _paint_inner(painted: np.ndarray, world: list) -> None:
    """Ventricles, nuclei, brainstem, cord, arteries; each over what was there."""
    _paint(painted, _tube(world, _BRAINSTEM, _BRAINSTEM_RADII), 16)
    for left, right, points, radii in _TUBES[2:5]:
        for side, code in ((-1, left), (1, right)):
            _paint(painted, _tube(world, _both(points, side), radii), code)
    for left, right, centre, axes in _BALLS:
        for side, code in ((-1, left), (1, right)):
            _paint(painted, _blob(world, *_both((centre,), side), axes), code)
    for left, right, points, radii in (*_TUBES[:2], *_TUBES[5:]):
        for side, code in ((-1, left), (1, right)):
            _paint(painted, _tube(world, _both(points, side), radii), code)
    _paint(painted, _blob(world, (0, -10, 3), (2.2, 14, 9)), 14)
    _paint(painted, _blob(world, (0, -40, -34), (6, 5, 9)), 15)
    for points in _ARTERIES:
        box, away = _tube(world, points, (2.2, 2, 1.6, 1.2))
        part = painted[box]
        part[(away < 0) & ((part == CSF) | (part > FIRST_OUTSIDE))] = 502


def _paint_sinuses(painted: np.ndarray, world: list, inner: np.ndarray) -> None:
    """Sagittal, straight and transverse sinus."""
    wide = 1.5 - 0.6 * inner.clip(-7)
    sagittal = (inner < 0.5) & (inner > -7) & (np.abs(world[0]) < wide)
    painted[sagittal & (world[2] > 0) & (world[1] < 75)] = 514
    for points in _SINUSES:
        _paint(painted, _tube(world, points, (3.5, 4)), 514)


def _paint_outside(painted: np.ndarray, world: list, inner: np.ndarray) -> None:
    """Skin, soft tissue, spine, skull with its marrow, air cells, eyes."""
    face = _ball(world, (0, 42, -62), (58, 50, 66))
    neck = np.sqrt(world[0] ** 2 + (world[1] + 20) ** 2) - 56
    lower = np.minimum(face, np.maximum(neck, world[2] + 40))
    skin = np.minimum(inner - 15, ndimage.gaussian_filter(lower, 4.0))
    painted[skin < 0] = 511
    painted[skin < -2.5] = 507
    spine = np.maximum(np.sqrt(world[0] ** 2 + (world[1] + 40) ** 2) - 20, world[2] + 72)
    painted[spine < 0] = 515
    painted[spine < -2] = 516
    box, jaw = _blob(world, (0, 45, -92), (44, 40, 22))
    painted[box][(np.abs(jaw) < 4) & (_within(world, box)[1] > 20)] = 516
    bone = (inner >= 0) & (inner < 8)
    painted[bone] = 515
    painted[bone & (inner > 2.2) & (inner < 5.8) & (world[2] > -25)] = 516
    for centre, axes in _AIR:
        box, cell = _blob(world, centre, axes)
        free = (inner[box] > 2) & (skin[box] < -3)
        painted[box][(cell < 1.5) & free] = 509
        painted[box][(cell < 0) & free] = 0
    for side in (-1, 1):
        box, nerve = _tube(world, ((side * 31, 56, -34), (side * 6, 12, -14)), (2, 2))
        for code, reach in ((508, 3.5), (507, 2), (530, 0)):
            painted[box][(nerve < reach) & (inner[box] > 0)] = code
        _paint(painted, _blob(world, (side * 32, 66, -36), (12, 12, 12)), 506)
