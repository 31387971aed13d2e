"""A procedural head model: folded cortex, nuclei, ventricles, skull, face and neck."""

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.head_model import HeadModel, crop
from bids_cmb.simulation.noise import sample_noise, upsample
from bids_cmb.simulation.tissue_properties import CSF, FIRST_EXTRACEREBRAL_CODE

# mm from the middle of the brain, RAS+; the right side mirrors what has a side. Half axes, or
# radii along a line, were set by eye against sections of real heads.
_ELLIPSOIDS = (  # left code, right code, centre, half axes
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


def make_procedural_head(rng: np.random.Generator) -> HeadModel:
    """Generate a whole head: folded cortex, nuclei, ventricles, cerebellum, skull, face and neck.

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
    codes, left = grid.data, np.broadcast_to(world[0] < 0, shape)

    cerebrum, gap = _cerebral_hull(world)
    cerebellum = np.minimum(
        *(_ellipsoid_distance(world, (s * 24, -57, -36), (29, 27, 20)) for s in (-1, 1)),
    )
    inner = np.minimum(cerebrum, cerebellum)
    box, stem = _local_tube(world, _BRAINSTEM, _BRAINSTEM_RADII)
    inner[box] = np.minimum(inner[box], stem)
    inner = ndimage.gaussian_filter(inner - 3.5, 3.0)

    _paint_outside(codes, world, inner)
    codes[inner < 0] = CSF
    _paint(codes, _local_tube(world, _CORD, (9, 9, 9)), CSF)
    _paint(codes, _local_tube(world, _CORD, (6.5, 5.5, 5.5)), 512)
    _paint_sinuses(codes, world, inner)
    _paint_cerebellum(codes, rng, cerebellum, left)
    _paint_cerebrum(codes, rng, world, cerebrum, gap, left)
    _paint_inner(codes, world)
    return HeadModel(crop(grid), "procedural")


def _ellipsoid_distance(world: list, centre: tuple, axes: tuple) -> np.ndarray:
    """Approximate the distance in mm from an ellipsoid, negative inside, float32 (X, Y, Z)."""
    far = sum(((x - c) / a) ** 2 for x, c, a in zip(world, centre, axes, strict=True))
    return (np.sqrt(far) - 1) * np.float32(np.mean(axes))


def _crop_axes(world: list, box: tuple[slice, ...]) -> list:
    """Crop the world's axes to a box."""
    return [
        np.take(x, np.arange(*side.indices(x.size)), axis)
        for axis, (x, side) in enumerate(zip(world, box, strict=True))
    ]


def _find_box(world: list, low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    """Find the voxels between two corners in mm."""
    return tuple(
        slice(*np.searchsorted(x.ravel(), ends)) for x, *ends in zip(world, low, high, strict=True)
    )


def _local_ellipsoid(
    world: list, centre: tuple, axes: tuple
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Return the box around a small ellipsoid, and the distance from it within the box."""
    reach = np.add(axes, 4)
    box = _find_box(world, centre - reach, centre + reach)
    return box, _ellipsoid_distance(_crop_axes(world, box), centre, axes)


def _local_tube(world: list, points: tuple, radii: tuple) -> tuple[tuple[slice, ...], np.ndarray]:
    """Return the box around a tube, and the distance from the tube in mm, negative inside."""
    reach = max(radii) + 4
    box = _find_box(world, np.min(points, axis=0) - reach, np.max(points, axis=0) + reach)
    near, away = _crop_axes(world, box), np.inf
    for start, stop, wide, narrow in zip(points, points[1:], radii, radii[1:], strict=False):
        way = np.subtract(stop, start).astype(np.float32)
        offset = [x - np.float32(a) for x, a in zip(near, start, strict=True)]
        along = np.clip(sum(o * w for o, w in zip(offset, way, strict=True)) / (way @ way), 0, 1)
        far = sum((o - along * w) ** 2 for o, w in zip(offset, way, strict=True))
        away = np.minimum(away, np.sqrt(far) - (wide + along * (narrow - wide)))
    return box, away


def _paint(codes: np.ndarray, shape: tuple[tuple[slice, ...], np.ndarray], code: int) -> None:
    """Give an ellipsoid or a tube its code."""
    box, away = shape
    codes[box][away < 0] = code


def _mirror(points: tuple, side: int) -> tuple:
    """Mirror points to the left (-1) or to the right (1)."""
    return tuple((side * x, y, z) for x, y, z in points)


def _cerebral_hull(world: list) -> tuple[np.ndarray, np.ndarray]:
    """Compute the distance from the cerebrum's hull in mm, and the gap of the Sylvian fissure."""
    dome = np.maximum(
        _ellipsoid_distance(world, (0, -4, 10), (67, 84, 61)), -20 - world[2] - 0.06 * world[1]
    )
    lobes = np.minimum(
        *(_ellipsoid_distance(world, (s * 42, -6, -17), (23, 42, 21)) for s in (-1, 1))
    )
    gap = (np.abs(dome - lobes) < 1.3) & (np.minimum(dome, lobes) > -16)
    return np.minimum(dome, lobes), gap & (np.abs(world[0]) > 30) & (world[1] > -30)


def _paint_cerebrum(
    codes: np.ndarray,
    rng: np.random.Generator,
    world: list,
    hull: np.ndarray,
    gap: np.ndarray,
    left: np.ndarray,
) -> None:
    """Paint sulci, then cortex within its thickness of fluid, then white matter."""
    (box,) = ndimage.find_objects((hull < 1).view(np.uint8))
    hull, gap, left, codes = hull[box], gap[box], left[box], codes[box]
    near = _crop_axes(world, box)
    fold = _sulcal_distance(rng, near, hull)
    depth = 20 + 4 * upsample(sample_noise(rng, (9, 9, 9), 1.0), hull.shape)
    core = (
        _ellipsoid_distance(near, (0, -6, 8), (34, 47, 21)) < 0
    )  # corpus callosum, nuclei, ventricles
    apart = (np.abs(near[0]) < 1.2) & (_ellipsoid_distance(near, (0, -8, 8), (99, 44, 20)) > 0)
    inside = hull < 0
    fluid = ~inside | gap | apart | ((np.abs(fold) < 1.0) & (-hull < depth) & ~core)
    away = ndimage.distance_transform_edt(~fluid).astype(np.float32)
    thick = 2.9 + 0.35 * upsample(sample_noise(rng, (15, 15, 15), 1.0), hull.shape)
    cortex = inside & ~fluid & (away <= thick)
    white = inside & ~fluid & ~cortex
    codes[inside & fluid] = CSF
    codes[cortex] = np.where(left[cortex], 3, 42)
    codes[white] = np.where(left[white], 2, 41)


def _sulcal_distance(rng: np.random.Generator, world: list, hull: np.ndarray) -> np.ndarray:
    """Approximate the signed distance in mm from the nearest sulcus, float32 (X, Y, Z).

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
    noise = sample_noise(rng, (80, 80, 80), 1.9) - 0.4 * sample_noise(rng, (80, 80, 80), 4.0)
    value = ndimage.map_coordinates(noise, outward / 2.1 + 40, order=1, mode="wrap")
    value = ndimage.gaussian_filter(value.astype(np.float32), 1.0)
    slope = np.sqrt(sum(part**2 for part in np.gradient(value, step)))
    return upsample(value / np.maximum(slope, 0.06), hull.shape)


def _paint_cerebellum(
    codes: np.ndarray, rng: np.random.Generator, surface: np.ndarray, left: np.ndarray
) -> None:
    """Paint cortex with leaves of fluid between, around a branched core of white matter."""
    (box,) = ndimage.find_objects((surface < 0).view(np.uint8))
    inside, depth = surface[box] < 0, -surface[box]
    leaves = upsample(sample_noise(rng, tuple(n // 4 for n in inside.shape), 0.8), inside.shape)
    cortex = inside & (depth < 10.5 + 4.5 * leaves)
    part, left = codes[box], left[box]
    part[inside] = np.where(left[inside], 7, 46)
    part[cortex] = np.where(left[cortex], 8, 47)
    part[cortex & (np.abs(leaves) < 0.1) & (depth < 4)] = CSF


def _paint_inner(codes: np.ndarray, world: list) -> None:
    """Paint ventricles, nuclei, brainstem, cord, arteries; each over what was there."""
    _paint(codes, _local_tube(world, _BRAINSTEM, _BRAINSTEM_RADII), 16)
    for left, right, points, radii in _TUBES[2:5]:
        for side, code in ((-1, left), (1, right)):
            _paint(codes, _local_tube(world, _mirror(points, side), radii), code)
    for left, right, centre, axes in _ELLIPSOIDS:
        for side, code in ((-1, left), (1, right)):
            _paint(codes, _local_ellipsoid(world, *_mirror((centre,), side), axes), code)
    for left, right, points, radii in (*_TUBES[:2], *_TUBES[5:]):
        for side, code in ((-1, left), (1, right)):
            _paint(codes, _local_tube(world, _mirror(points, side), radii), code)
    _paint(codes, _local_ellipsoid(world, (0, -10, 3), (2.2, 14, 9)), 14)
    _paint(codes, _local_ellipsoid(world, (0, -40, -34), (6, 5, 9)), 15)
    for points in _ARTERIES:
        box, away = _local_tube(world, points, (2.2, 2, 1.6, 1.2))
        part = codes[box]
        part[(away < 0) & ((part == CSF) | (part > FIRST_EXTRACEREBRAL_CODE))] = 502


def _paint_sinuses(codes: np.ndarray, world: list, inner: np.ndarray) -> None:
    """Paint the sagittal, straight and transverse sinus."""
    wide = 1.5 - 0.6 * inner.clip(-7)
    sagittal = (inner < 0.5) & (inner > -7) & (np.abs(world[0]) < wide)
    codes[sagittal & (world[2] > 0) & (world[1] < 75)] = 514
    for points in _SINUSES:
        _paint(codes, _local_tube(world, points, (3.5, 4)), 514)


def _paint_outside(codes: np.ndarray, world: list, inner: np.ndarray) -> None:
    """Paint skin, soft tissue, spine, skull with its marrow, air cells, eyes."""
    face = _ellipsoid_distance(world, (0, 42, -62), (58, 50, 66))
    neck = np.sqrt(world[0] ** 2 + (world[1] + 20) ** 2) - 56
    lower = np.minimum(face, np.maximum(neck, world[2] + 40))
    skin = np.minimum(inner - 15, ndimage.gaussian_filter(lower, 4.0))
    codes[skin < 0] = 511
    codes[skin < -2.5] = 507
    spine = np.maximum(np.sqrt(world[0] ** 2 + (world[1] + 40) ** 2) - 20, world[2] + 72)
    codes[spine < 0] = 515
    codes[spine < -2] = 516
    box, jaw = _local_ellipsoid(world, (0, 45, -92), (44, 40, 22))
    codes[box][(np.abs(jaw) < 4) & (_crop_axes(world, box)[1] > 20)] = 516
    bone = (inner >= 0) & (inner < 8)
    codes[bone] = 515
    codes[bone & (inner > 2.2) & (inner < 5.8) & (world[2] > -25)] = 516
    for centre, axes in _AIR:
        box, cell = _local_ellipsoid(world, centre, axes)
        free = (inner[box] > 2) & (skin[box] < -3)
        codes[box][(cell < 1.5) & free] = 509
        codes[box][(cell < 0) & free] = 0
    for side in (-1, 1):
        box, nerve = _local_tube(world, ((side * 31, 56, -34), (side * 6, 12, -14)), (2, 2))
        for code, reach in ((508, 3.5), (507, 2), (530, 0)):
            codes[box][(nerve < reach) & (inner[box] > 0)] = code
        _paint(codes, _local_ellipsoid(world, (side * 32, 66, -36), (12, 12, 12)), 506)
