"""Ghosts of a moving head: signal in the air beside it, along the direction of phase encoding.

A head that moves while k-space is read repeats along the direction of phase encoding, also where
there is only air. Noise is there as well, but it is the same on all sides. So the power beside the
head along one axis, less the power in the rest of the air, is that of ghosts along this axis; noise
of a magnitude image adds its power and drops out exactly. Which axis is that of phase encoding
need not be known: ghosts along one axis make the difference along the other negative.

Source: percent signal ghosting of the American College of Radiology's MRI quality control, here by
power instead of amplitude, and beside a head instead of a phantom.
"""

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.volume import Volume

GHOST_LIMIT_PERCENT = 3.0  # more than twice that of a head at rest; see docs/methods/accuracy.md
MARGIN_MM = 8.0  # around the head, for the ringing of its edge
HEAD_LEVELS = (0.25, 0.5)  # of the brain's median, above which a smoothed pixel is no air
SCALP_MM = 12.0  # from the brain's edge, for the second level: the scalp may be darker than that
SMOOTHING_MM = 8.0  # of that decision
BLANK_RANGE = 5e-4  # of the brain's median; 3 × 3 pixels that differ by less are no scanner's noise
MIN_SLICE_SHARE = 0.25  # of the largest cross-section of the brain
MIN_PIXELS = 200  # of a slice, beside the head and in the rest of its air
MIN_SLICES = 3
MAX_PIXELS = 1_500_000  # to look at, so that large scans cost no more


def measure_ghosting(image: Volume, brain: Volume, level: float) -> float | None:
    """Measure the ghosts in the air beside a head.

    The median over slices through the brain of the difference in power described above, of the
    in-plane axis where it is larger; its square root.

    Args:
        image: The scan, not negative.
        brain: Its brain mask, bool, on the same grid.
        level: Median intensity in the brain.

    Returns:
        Root mean square signal of the ghosts, in per cent of ``level``; 0 where there are none
        above the noise. None without enough air on all sides that holds noise: the background was
        removed, or the field of view is tight.
    """
    if level <= 0:
        return None
    data, inside = (np.moveaxis(each.data, image.slice_axis, 2) for each in (image, brain))
    spacing = np.delete(image.spacing, image.slice_axis)
    differences = [
        _compare_sides(
            np.asarray(data[:, :, k], np.float32) / np.float32(level), inside[:, :, k], spacing
        )
        for k in _choose_slices(inside)
    ]
    measured = [each for each in differences if each is not None]
    if len(measured) < MIN_SLICES:
        return None
    power = float(np.median(measured, axis=0).max())
    return 100 * float(np.sqrt(max(0.0, power)))


def _choose_slices(inside: np.ndarray) -> np.ndarray:
    """Choose slices through the brain (X, Y, Z), evenly, as many as may be looked at."""
    area = np.count_nonzero(inside, axis=(0, 1))
    slices = np.flatnonzero(area > MIN_SLICE_SHARE * area.max())
    most = max(2 * MIN_SLICES, MAX_PIXELS // (inside.shape[0] * inside.shape[1]))
    return slices[:: int(np.ceil(len(slices) / most)) or 1]


def _compare_sides(
    values: np.ndarray, brain: np.ndarray, spacing: np.ndarray
) -> tuple[float, float] | None:
    """Compute the power beside the head less that in the rest of the air, along each axis.

    Ghosts that are as bright as a head leave no air by the lower level that marks a head; then the
    higher one is taken, and whatever surrounds the brain for scalp.

    Args:
        values: A slice, in levels of the brain, (X, Y).
        brain: Its brain mask, (X, Y).
        spacing: Of its pixels, mm, (2,).
    """
    smooth = ndimage.uniform_filter(values, np.maximum(1, SMOOTHING_MM / spacing).astype(int))
    blank, power = _find_blank(values), values**2
    for head_level, around_brain in zip(
        HEAD_LEVELS, (brain, _grow(brain, SCALP_MM, spacing)), strict=True
    ):
        differences = _subtract_rest(power, blank, (smooth > head_level) | around_brain, spacing)
        if differences is not None:
            return differences
    return None


def _subtract_rest(
    power: np.ndarray, blank: np.ndarray, head: np.ndarray, spacing: np.ndarray
) -> tuple[float, float] | None:
    """Subtract the mean power in the rest of the air from that beside a head, along each axis."""
    near = _grow(head, MARGIN_MM, spacing)
    air, differences = ~(blank | _fill_between(near, 0) | _fill_between(near, 1)), []
    for axis in (0, 1):
        beside = air & head.any(axis, keepdims=True) & ~near.any(1 - axis, keepdims=True)
        rest = air & ~near.any(axis, keepdims=True)
        if min(np.count_nonzero(beside), np.count_nonzero(rest)) < MIN_PIXELS:
            return None
        differences.append(float(power[beside].mean() - power[rest].mean()))
    return differences[0], differences[1]


def _grow(mask: np.ndarray, distance_mm: float, spacing: np.ndarray) -> np.ndarray:
    """Grow a mask by a box of so many mm to all sides, or a little more."""
    return ndimage.maximum_filter(mask, 2 * np.ceil(distance_mm / spacing).astype(int) + 1)


def _find_blank(values: np.ndarray) -> np.ndarray:
    """Find pixels without noise, as where the background or a face was removed, and next to it."""
    flat = ndimage.maximum_filter(values, 3) - ndimage.minimum_filter(values, 3) < BLANK_RANGE
    return ndimage.binary_dilation(flat, np.ones((3, 3)))


def _fill_between(mask: np.ndarray, axis: int) -> np.ndarray:
    """Mark what is between the first and the last pixel of a mask along an axis."""
    after = np.maximum.accumulate(mask, axis)
    before = np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis)
    return after & before
