"""Brain extraction from intensities and geometry alone: no learned weights, no template.

Everything is decided on a 2 mm grid. The brain is the roundest bright thing around the deepest
point of the head: a threshold at half its own level, the bridges to scalp, eyes and neck cut by an
opening, whose radius is the smallest that leaves a round shape.
"""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.cropping import find_box
from bids_cmb.imaging.dilation import dilate
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume

PLAUSIBLE_ML = (900, 1900)  # a whole adult brain with its ventricles; outside, look at the mask
POSSIBLE_ML = (150, 2600)  # from a slab of a small brain to a very large one with all its CSF
MAX_FOV_SHARE = (
    0.95  # share of the field of view beyond which there is no surround to tell a brain by
)

GRID_MM = 2.0  # mm
THRESHOLD_LEVELS = (
    0.5,
    0.65,
)  # of the brain's own; the second where thin bone in thick slices is no gap
OPENING_RADII_MM = (4.5, 6.5, 9.0, 12.0)  # mm, of the opening that cuts bridges
MIN_RELATIVE_ROUNDNESS = 0.96  # of the roundest: the opening is no wider than it must be
MIN_RELATIVE_SIZE = 0.3  # of the largest candidate; a crumb is rounder than any brain
CLOSING_RADIUS_MM = 10.0  # mm, wide enough for the dropouts above sinuses and ear canals
FORAMEN_CM2 = 14.0  # the foramen magnum has 8; the lowest slices through a cerebellum 20 and more
CORD_MARGIN_MM = 8.0  # mm of cord that stay, for a head that nods
LEAK_MM = 3.0  # beyond this outline a mask by a network has leaked
MAX_LEAK_SHARE = 0.06  # of that mask; more would be no leak, but an outline that went wrong


def segment_brain(image: Volume) -> Volume:
    """Segment the brain in a T2*-weighted or susceptibility-weighted magnitude image.

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
    mask = _check_plausible(_upsample_mask(_outline_brain(image), image))
    foreground = Volume(_find_foreground(image.data), image.affine)
    if (
        0.85 * measure_volume_ml(foreground) < measure_volume_ml(mask)
        and measure_volume_ml(foreground) < PLAUSIBLE_ML[1]
    ):
        return mask_stripped_brain(image)  # nothing but brain was there: its edge is known exactly
    return mask


def cut_leaks(brain: Volume, image: Volume) -> Volume:
    """Cut from a brain mask what lies beyond the brain as intensities and shape outline it.

    Where the outline cannot be a whole brain, or would cut much, the mask stays as it is.

    Args:
        brain: By a network, bool, on any grid.
        image: The scan, as for `segment_brain`.

    Returns:
        bool, on the grid of ``brain``.
    """
    outline = _outline_brain(image)
    if not PLAUSIBLE_ML[0] <= measure_volume_ml(outline) <= PLAUSIBLE_ML[1]:
        return brain
    margin = int(LEAK_MM / GRID_MM) + 1
    near = dilate(np.pad(outline.data, margin), LEAK_MM, GRID_MM).astype(np.float32)
    affine = outline.affine.copy()
    affine[:3, 3] = outline.world(np.full(3, -margin))
    kept = brain.data & (resample(Volume(near, affine), brain.affine, brain.shape).data > 0.5)
    if kept.sum() < (1 - MAX_LEAK_SHARE) * brain.data.sum():
        return brain
    return Volume(kept, brain.affine)


def mask_stripped_brain(image: Volume) -> Volume:
    """Mask the brain of an image whose background has already been set to one value.

    Args:
        image: Skull-stripped; the background is the value most of its corners have.

    Returns:
        bool, True where ``image`` is not background, holes filled, specks under 1 ml left out.

    Raises:
        ValueError: If no background is left, or the brain has fewer than 150 or more than 2600 ml.
    """
    inside = _find_foreground(image.data)
    box = _find_box(inside)
    pieces, _ = ndimage.label(inside[box])
    large = np.bincount(pieces.ravel()) * image.voxel_volume >= 1000
    large[0] = False
    filled = np.zeros(image.shape, bool)
    filled[box] = _fill(large[pieces])
    return _check_plausible(Volume(filled, image.affine))


def measure_volume_ml(mask: Volume) -> float:
    """Measure the volume in ml of the voxels that are True."""
    return float(np.count_nonzero(mask.data) * mask.voxel_volume / 1000)


def _outline_brain(image: Volume) -> Volume:
    """Outline the brain by intensities and shape, bool, on a 2 mm grid around the head."""
    head, depth = _find_head(_downsample(image))
    flat = Volume(_correct_bias(head.data, depth), head.affine)
    return Volume(_close_clefts(_select_roundest(flat, _find_centre(depth))), head.affine)


def _check_plausible(mask: Volume) -> Volume:
    volume, (least, most) = measure_volume_ml(mask), POSSIBLE_ML
    if mask.data.mean() > MAX_FOV_SHARE:
        raise ValueError(
            "No brain was found: a brain must leave some background around it; what was found "
            f"({volume:.0f} ml) fills {100 * mask.data.mean():.0f} % of the field of view."
        )
    if not least <= volume <= most:
        raise ValueError(
            f"No brain was found: a brain must have {least} to {most} ml; "
            f"what was found has {volume:.0f} ml."
        )
    return mask


def _downsample(image: Volume) -> Volume:
    """Downsample by block means, then linearly, to a 2 mm grid along the same axes."""
    block = np.maximum(1, np.round(GRID_MM / image.spacing)).astype(int)
    count = np.array(image.shape) // block
    data = image.data[tuple(slice(n) for n in count * block)]
    data = data.reshape(np.column_stack([count, block]).ravel()).mean((1, 3, 5), dtype=np.float32)
    step = GRID_MM / (image.spacing * block)  # in blocks
    shape = np.floor((count - 1) / step).astype(int) + 1
    affine = image.affine @ np.diag([*step * block, 1])
    affine[:3, 3] = image.world((block - 1) / 2)
    return Volume(ndimage.affine_transform(data, step, output_shape=tuple(shape), order=1), affine)


def _upsample_mask(mask: Volume, image: Volume) -> Volume:
    """Upsample a 2 mm mask to the grid of ``image``, its steps smoothed."""
    soft = np.pad(mask.data.astype(np.float32), 2, mode="edge")
    soft = ndimage.gaussian_filter(soft, 0.7)
    step = image.spacing / GRID_MM
    start = np.linalg.solve(mask.affine, image.affine[:, 3])[:3] + 2
    # Only around the mask: looking up a whole 512 x 512 x 160 grid takes a second.
    reach = np.array([(side.start - 1, side.stop) for side in _find_box(soft > 0.5)]).T
    first, last = np.clip(np.round((reach - start) / step).astype(int), 0, image.shape)
    upsampled = np.zeros(image.shape, bool)
    upsampled[tuple(map(slice, first, last))] = (
        ndimage.affine_transform(
            soft, step, start + step * first, output_shape=tuple(last - first), order=1
        )
        > 0.5
    )
    return Volume(upsampled, image.affine)


def _find_head(image: Volume) -> tuple[Volume, np.ndarray]:
    """Find the head, cropped and above its background, with the depth of each voxel in mm."""
    data = image.data
    high = np.percentile(data[data > data.min()], 98) if np.ptp(data) > 0 else data.max()
    soft = ndimage.gaussian_filter(np.minimum(data, high), 6 / GRID_MM)
    low = np.percentile(soft, 5)
    inside = soft > low + 0.1 * (high - low)
    box = _find_box(inside)
    affine = image.affine.copy()
    affine[:3, 3] = image.world([side.start for side in box])
    depth = ndimage.distance_transform_edt(_fill(inside[box]), GRID_MM)
    return Volume(np.maximum(data[box] - low, 0), affine), depth


def _correct_bias(data: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Divide the image by the brain's level, which is followed through the bias field."""
    level = np.median(data[_find_centre(depth)])
    field = np.full_like(data, level)
    for _ in range(3):
        alike = ((data > 0.6 * field) & (data < 1.5 * field) & (depth > 8)).astype(np.float32)
        field = (_blur(data * alike) + 0.02 * level) / (_blur(alike) + 0.02)
    flat = data / np.maximum(field, np.finfo(np.float32).tiny)
    rim = flat[(depth > 2) & (depth < 9) & (flat > 0.5)]
    if rim.size and np.percentile(rim, 90) > 1.7:
        flat[flat > 1.6] = 0  # a rim so much brighter than brain is fat
    return flat


def _blur(data: np.ndarray) -> np.ndarray:
    """Blur so far that anatomy is gone and the bias field stays."""
    return ndimage.gaussian_filter(data, 24 / GRID_MM, truncate=2)


def _find_centre(depth: np.ndarray) -> np.ndarray:
    """Find a ball of 25 mm around the deepest point of the head, bool."""
    deepest = np.argwhere(depth >= 0.9 * depth.max()).mean(0)
    apart = sum((i - m) ** 2 for i, m in zip(np.indices(depth.shape), deepest, strict=True))
    return apart <= (25 / GRID_MM) ** 2


def _select_roundest(flat: Volume, centre: np.ndarray) -> np.ndarray:
    """Select the tissue around the centre, opened as little as gives a round shape."""
    opened = [
        mask for level in THRESHOLD_LEVELS for mask in _open_by_radius(flat.data > level, centre)
    ]
    tried = [_cut_neck(mask, flat.affine) for mask in opened]
    sizes = np.array([np.count_nonzero(mask) for mask in tried])
    roundness = np.array([_measure_roundness(mask) for mask in tried])
    roundness[sizes < MIN_RELATIVE_SIZE * sizes.max()] = 0
    return tried[int(np.argmax(roundness >= MIN_RELATIVE_ROUNDNESS * roundness.max()))]


def _open_by_radius(tissue: np.ndarray, centre: np.ndarray) -> Iterator[np.ndarray]:
    """Open ``tissue`` by ever larger radii; yield what stays connected to its centre."""
    room = ndimage.distance_transform_edt(tissue, GRID_MM)
    for radius in OPENING_RADII_MM:
        pieces, _ = ndimage.label(room > radius)
        sizes = np.bincount(pieces[centre], minlength=2)
        sizes[0] = 0
        if sizes.any():
            yield tissue & dilate(pieces == sizes.argmax(), radius + 1, GRID_MM)
        else:
            yield np.zeros_like(tissue)


def _measure_roundness(mask: np.ndarray) -> float:
    """Measure the surface of the ball of equal volume over the surface; a brain has about 0.9."""
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 2) > 0.5
    faces = sum(np.count_nonzero(np.diff(soft, axis=axis)) for axis in range(3))
    surface = faces / 1.5  # a stair has on average 1.5 times the surface of its ramp
    return float((36 * np.pi * mask.sum() ** 2) ** (1 / 3) / max(surface, 1))


def _cut_neck(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Remove what lies below the foramen magnum, where slices become small."""
    rise = affine[2, :3]
    axis = int(np.abs(rise).argmax())
    upward = np.moveaxis(mask, axis, 2)[:, :, :: 1 if rise[axis] > 0 else -1].copy()
    area = upward.sum((0, 1)) * GRID_MM**2 / 100  # cm²
    widest = int(area.argmax())
    narrow = np.flatnonzero(area[:widest] < FORAMEN_CM2)
    if narrow.size:
        upward[:, :, : max(0, narrow[-1] - int(CORD_MARGIN_MM / GRID_MM))] = False
    return np.moveaxis(upward[:, :, :: 1 if rise[axis] > 0 else -1], 2, axis)


def _close_clefts(mask: np.ndarray) -> np.ndarray:
    """Close the clefts of ``mask`` and fill its holes."""
    wide = int(CLOSING_RADIUS_MM / GRID_MM) + 1
    near = dilate(np.pad(mask, wide), CLOSING_RADIUS_MM, GRID_MM)
    box, closed = _find_box(near, 1), np.zeros_like(near)
    closed[box] = ndimage.distance_transform_edt(near[box], GRID_MM) > CLOSING_RADIUS_MM
    inner = (slice(wide, -wide),) * 3
    return _fill(closed[inner] | mask)


def _fill(mask: np.ndarray) -> np.ndarray:
    """Fill everything that ``mask`` encloses."""
    outside, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]


def _find_foreground(data: np.ndarray) -> np.ndarray:
    corners = data[tuple(slice(None, None, n - 1) for n in data.shape)]
    values, counts = np.unique(corners, return_counts=True)
    return data != values[counts.argmax()]


def _find_box(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice, slice]:
    """Find the smallest box around ``mask``; the whole grid if it is empty."""
    return find_box(mask, margin) if mask.any() else tuple(slice(0, n) for n in mask.shape)
