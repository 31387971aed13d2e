"""Where the brain is, from intensities and geometry alone: no learned weights, no template.

Everything is decided on a 2 mm grid. The brain is the roundest bright thing around the deepest
point of the head: a threshold at half its own level, the bridges to scalp, eyes and neck cut by an
opening, whose radius is the smallest that leaves a round shape.
"""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.volume import Volume

PLAUSIBLE_ML = (900, 1900)  # a whole adult brain with its ventricles; outside, look at the mask
POSSIBLE_ML = (150, 2600)  # from a slab of a small brain to a very large one with all its CSF
FULLEST = 0.95  # share of the field of view beyond which there is no surround to tell a brain by

GRID = 2.0  # mm
LEVELS = (0.5, 0.65)  # of the brain's own; the second where thin bone in thick slices is no gap
RADII = (4.5, 6.5, 9.0, 12.0)  # mm, of the opening that cuts bridges
AS_ROUND = 0.96  # of the roundest: the opening is no wider than it must be
WORTH = 0.3  # of the largest candidate; a crumb is rounder than any brain
CLOSING = 10.0  # mm, wide enough for the dropouts above sinuses and ear canals
FORAMEN_CM2 = 14.0  # the foramen magnum has 8; the lowest slices through a cerebellum 20 and more
BELOW_FORAMEN = 8.0  # mm of cord that stay, for a head that nods


def find_brain(image: Volume) -> Volume:
    """Find the brain in a T2*-weighted or susceptibility-weighted magnitude image.

    The head may be whole, face-masked, cut by the field of view or already stripped. Reaches from
    the pial surface inwards, ventricles and dark lesions included, often with a few mm of CSF.

    Args:
        image: Magnitude, in any unit, with any voxel size and orientation.

    Returns:
        bool, True in the brain, on the grid of ``image``.

    Raises:
        ValueError: If what is found cannot be a brain: it fills the field of view, or it has fewer
            than 150 or more than 2600 ml. The sentence names rule and finding, not the file.
    """
    head, depth = _head(_coarse(image))
    flat = Volume(_flatten(head.data, depth), head.affine)
    brain = Volume(_rounded(_roundest(flat, _centre(depth))), head.affine)
    found = _believable(_on_grid(brain, image))
    given = Volume(_not_background(image.data), image.affine)
    if 0.85 * volume_ml(given) < volume_ml(found) and volume_ml(given) < PLAUSIBLE_ML[1]:
        return stripped_brain(image)  # nothing but brain was there: its edge is known exactly
    return found


def stripped_brain(image: Volume) -> Volume:
    """The brain of an image in which everything else has already been set to one value.

    Args:
        image: Skull-stripped; the background is the value most of its corners have.

    Returns:
        bool, True where ``image`` is not background, holes filled, specks under 1 ml left out.

    Raises:
        ValueError: If no background is left, or the brain has fewer than 150 or more than 2600 ml.
    """
    inside = _not_background(image.data)
    box = _box(inside)
    pieces, _ = ndimage.label(inside[box])
    large = np.bincount(pieces.ravel()) * image.voxel_volume >= 1000
    large[0] = False
    filled = np.zeros(image.shape, bool)
    filled[box] = _fill(large[pieces])
    return _believable(Volume(filled, image.affine))


def volume_ml(mask: Volume) -> float:
    """Volume in ml of the voxels that are True."""
    return float(np.count_nonzero(mask.data) * mask.voxel_volume / 1000)


def _believable(mask: Volume) -> Volume:
    found, (least, most) = volume_ml(mask), POSSIBLE_ML
    if mask.data.mean() > FULLEST:
        raise ValueError(
            "No brain was found: a brain must leave some background around it; what was found "
            f"({found:.0f} ml) fills {100 * mask.data.mean():.0f} % of the field of view."
        )
    if not least <= found <= most:
        raise ValueError(
            f"No brain was found: a brain must have {least} to {most} ml; "
            f"what was found has {found:.0f} ml."
        )
    return mask


def _coarse(image: Volume) -> Volume:
    """Block means, then linear interpolation, onto a 2 mm grid along the same axes."""
    block = np.maximum(1, np.round(GRID / image.spacing)).astype(int)
    count = np.array(image.shape) // block
    data = image.data[tuple(slice(n) for n in count * block)]
    data = data.reshape(np.column_stack([count, block]).ravel()).mean((1, 3, 5), dtype=np.float32)
    step = GRID / (image.spacing * block)  # in blocks
    shape = np.floor((count - 1) / step).astype(int) + 1
    affine = image.affine @ np.diag([*step * block, 1])
    affine[:3, 3] = image.world((block - 1) / 2)
    return Volume(ndimage.affine_transform(data, step, output_shape=tuple(shape), order=1), affine)


def _on_grid(mask: Volume, image: Volume) -> Volume:
    """A 2 mm mask on the grid of ``image``, its steps smoothed away."""
    soft = np.pad(mask.data.astype(np.float32), 2, mode="edge")
    soft = ndimage.gaussian_filter(soft, 0.7)
    step = image.spacing / GRID
    start = np.linalg.solve(mask.affine, image.affine[:, 3])[:3] + 2
    # Only around the mask: looking up a whole 512 x 512 x 160 grid takes a second.
    reach = np.array([(side.start - 1, side.stop) for side in _box(soft > 0.5)]).T
    first, last = np.clip(np.round((reach - start) / step).astype(int), 0, image.shape)
    found = np.zeros(image.shape, bool)
    found[tuple(map(slice, first, last))] = (
        ndimage.affine_transform(
            soft, step, start + step * first, output_shape=tuple(last - first), order=1
        )
        > 0.5
    )
    return Volume(found, image.affine)


def _head(image: Volume) -> tuple[Volume, np.ndarray]:
    """The head, cropped and above its background, and how many mm deep in it each voxel lies."""
    data = image.data
    high = np.percentile(data[data > data.min()], 98) if np.ptp(data) > 0 else data.max()
    soft = ndimage.gaussian_filter(np.minimum(data, high), 6 / GRID)
    low = np.percentile(soft, 5)
    inside = soft > low + 0.1 * (high - low)
    box = _box(inside)
    affine = image.affine.copy()
    affine[:3, 3] = image.world([side.start for side in box])
    depth = ndimage.distance_transform_edt(_fill(inside[box]), GRID)
    return Volume(np.maximum(data[box] - low, 0), affine), depth


def _flatten(data: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The image in units of the brain's own level, which is followed through the bias field."""
    level = np.median(data[_centre(depth)])
    field = np.full_like(data, level)
    for _ in range(3):
        alike = ((data > 0.6 * field) & (data < 1.5 * field) & (depth > 8)).astype(np.float32)
        field = (_wide(data * alike) + 0.02 * level) / (_wide(alike) + 0.02)
    flat = data / np.maximum(field, np.finfo(np.float32).tiny)
    rim = flat[(depth > 2) & (depth < 9) & (flat > 0.5)]
    if rim.size and np.percentile(rim, 90) > 1.7:
        flat[flat > 1.6] = 0  # a rim so much brighter than brain is fat
    return flat


def _wide(data: np.ndarray) -> np.ndarray:
    """Blurred so far that anatomy is gone and the bias field stays."""
    return ndimage.gaussian_filter(data, 24 / GRID, truncate=2)


def _centre(depth: np.ndarray) -> np.ndarray:
    """A ball of 25 mm around the deepest place of the head, bool."""
    deepest = np.argwhere(depth >= 0.9 * depth.max()).mean(0)
    apart = sum((i - m) ** 2 for i, m in zip(np.indices(depth.shape), deepest, strict=True))
    return apart <= (25 / GRID) ** 2


def _roundest(flat: Volume, centre: np.ndarray) -> np.ndarray:
    """The tissue around the centre, cut off as little as gives a round shape."""
    opened = [mask for level in LEVELS for mask in _opened(flat.data > level, centre)]
    tried = [_cut_neck(mask, flat.affine) for mask in opened]
    sizes = np.array([np.count_nonzero(mask) for mask in tried])
    roundness = np.array([_roundness(mask) for mask in tried])
    roundness[sizes < WORTH * sizes.max()] = 0
    return tried[int(np.argmax(roundness >= AS_ROUND * roundness.max()))]


def _opened(tissue: np.ndarray, centre: np.ndarray) -> Iterator[np.ndarray]:
    """What of ``tissue`` hangs on its centre by ever wider bridges, one mask for each radius."""
    room = ndimage.distance_transform_edt(tissue, GRID)
    for radius in RADII:
        pieces, _ = ndimage.label(room > radius)
        sizes = np.bincount(pieces[centre], minlength=2)
        sizes[0] = 0
        if sizes.any():
            yield tissue & _near(pieces == sizes.argmax(), radius + 1)
        else:
            yield np.zeros_like(tissue)


def _roundness(mask: np.ndarray) -> float:
    """Surface of the ball of equal volume over surface, about 0.9 for a brain, 0.5 with scalp."""
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 2) > 0.5
    faces = sum(np.count_nonzero(np.diff(soft, axis=axis)) for axis in range(3))
    surface = faces / 1.5  # a stair has on average 1.5 times the surface of its ramp
    return float((36 * np.pi * mask.sum() ** 2) ** (1 / 3) / max(surface, 1))


def _cut_neck(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """``mask`` without what lies below the foramen magnum, where its slices become small."""
    rise = affine[2, :3]
    axis = int(np.abs(rise).argmax())
    upward = np.moveaxis(mask, axis, 2)[:, :, :: 1 if rise[axis] > 0 else -1].copy()
    area = upward.sum((0, 1)) * GRID**2 / 100  # cm²
    widest = int(area.argmax())
    narrow = np.flatnonzero(area[:widest] < FORAMEN_CM2)
    if narrow.size:
        upward[:, :, : max(0, narrow[-1] - int(BELOW_FORAMEN / GRID))] = False
    return np.moveaxis(upward[:, :, :: 1 if rise[axis] > 0 else -1], 2, axis)


def _rounded(mask: np.ndarray) -> np.ndarray:
    """``mask`` with its clefts closed and its holes filled."""
    wide = int(CLOSING / GRID) + 1
    near = _near(np.pad(mask, wide), CLOSING)
    closed = ndimage.distance_transform_edt(near, GRID) > CLOSING
    inner = (slice(wide, -wide),) * 3
    return _fill(closed[inner] | mask)


def _near(mask: np.ndarray, radius: float) -> np.ndarray:
    """Within ``radius`` mm of ``mask``, on the 2 mm grid."""
    return ndimage.distance_transform_edt(~mask, GRID) <= radius


def _fill(mask: np.ndarray) -> np.ndarray:
    """``mask`` with everything that it encloses."""
    outside, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]


def _not_background(data: np.ndarray) -> np.ndarray:
    corners = data[tuple(slice(None, None, n - 1) for n in data.shape)]
    values, counts = np.unique(corners, return_counts=True)
    return data != values[counts.argmax()]


def _box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box around ``mask``; the whole grid if it is empty."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    return boxes[0] if boxes else tuple(slice(0, n) for n in mask.shape)
