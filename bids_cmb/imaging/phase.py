"""Phase images: unwrapped by a homodyne filter, their sign inferred.

As scanners write it, phase is wrapped, drifts by many turns over the head, comes in several units
and turns forwards or backwards in a higher field as the vendor pleases. The normalized map has none
of that: it is a half where nothing disturbs the field, more where the field is higher than
around, as in veins along B0 and in the middle of microbleeds, and less where it is lower.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.phase_files import read_units
from bids_cmb.imaging.preprocessing import dilate_brain, preprocess
from bids_cmb.imaging.volume import Volume

# Of units: one turn as files have it (rad, degrees, rad x 1000, 12, 13 and 16 bits), and how much
# of it an image must span to be in that unit.
TURNS = (2 * np.pi, 360.0, 2000 * np.pi, 4096.0, 8192.0, 65536.0)
SPAN_RANGE = (0.9, 1.01)
MAX_RAD = 200.0  # that unwrapped phase may reach; whole numbers up to 4096 are no rad
MIN_VALUES = 16
MIN_TURN_SHARE = 0.005  # between the 1st and the 99th percentile of the brain
MAX_CORNER_DISTANCE_VOXELS = 0.1  # of the smallest voxel, by which grids may lie apart
# Of the filter
HIGH_PASS_SIGMA_MM = 3.0  # standard deviation, in the slice, of what is slow
MIN_COHERENCE = 0.3  # share of the signal about a place that is in step; the map fades below
NEUTRAL = 0.5  # of the map
RAD_PER_UNIT = np.pi  # rad from 0 to 1 of the map
# Of the sign
MIN_DEPTH_MM = 6.0  # below the brain's surface, where no air bends the field
SURROUND_SIGMA_MM = 1.5  # standard deviation, in the slice, of the surround of a dark voxel
DARKEST_SHARE = 0.003  # share of the deep voxels that are darkest against their surround
MAX_VOTE_RAD = 1.0  # rad that a voxel may say: in black ones phase is noise
MIN_SLICES = 5
MIN_STANDARD_ERRORS = 2.0  # standard errors over slices


class UndecidedError(ValueError):
    """Raised when the sign of a phase image cannot be inferred."""


def load_phase_map(path: Path, scan: Volume, brain: Volume) -> Volume:
    """Load a phase image and normalize it.

    Args:
        path: The phase image, within a BIDS dataset.
        scan: The magnitude or SWI it belongs to.
        brain: True inside the brain, on the grid of ``scan``.

    Returns:
        On the grid of ``scan``, 0 to 1, float32: 0, 1/2 and 1 are a quarter turn back, none and a
        quarter turn forth of the phase without its slow part, forth being a higher field.

    Raises:
        ValueError: If it cannot be used, lies on another grid than ``scan`` or is no plausible
            phase. The sentence names the file.
        UndecidedError: If its sign cannot be inferred.
        OSError: If it cannot be read at all.
    """
    image, _ = load(path)
    if (
        image.shape != scan.shape
        or image.max_corner_distance(scan) > MAX_CORNER_DISTANCE_VOXELS * scan.spacing.min()
    ):
        raise ValueError(
            f"{path}: a phase image must lie on the grid of its scan, {_format_shape(scan)} "
            f"voxels; found {_format_shape(image)}, their corners up to "
            f"{image.max_corner_distance(scan):.1f} mm elsewhere."
        )
    try:
        turn = infer_turn(image.data, read_units(path), brain.data)
        return normalize_phase(
            Volume(image.data * np.float32(2 * np.pi / turn), scan.affine), scan, brain
        )
    except UndecidedError as error:
        raise UndecidedError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def infer_turn(data: np.ndarray, units: object, brain: np.ndarray) -> float:
    """Infer the value of one turn of phase in the unit of a file.

    It is 2 pi for ``rad``. Else it is the one of `TURNS` that the image spans, or, if it spans none
    of them, all that it spans.

    Args:
        data: Phase as stored, (X, Y, Z).
        units: As in the sidecar; BIDS knows ``rad`` and ``arbitrary``.
        brain: Bool, (X, Y, Z).

    Raises:
        ValueError: If this can be no phase.
    """
    low, high = float(data.min()), float(data.max())
    values = np.unique(data[brain][:: max(1, brain.sum() // 100_000)])
    if len(values) < MIN_VALUES:
        raise ValueError(
            f"a phase image must have {MIN_VALUES} values or more in the brain; "
            f"found {len(values)}."
        )
    if units in ("rad", "radian", "radians"):
        if max(-low, high) > MAX_RAD:
            raise ValueError(
                f"phase in rad, as its sidecar has it, must lie within ±{MAX_RAD:g}; "
                f"found {low:g} to {high:g}."
            )
        turn = 2 * np.pi
    else:
        span = high - low
        least, most = SPAN_RANGE
        turn = next(
            (candidate for candidate in TURNS if least * candidate <= span <= most * candidate),
            span,
        )
    first, last = np.percentile(values, [1, 99])
    if last - first < MIN_TURN_SHARE * turn:
        raise ValueError(
            f"phase must vary by {MIN_TURN_SHARE:g} of a turn in the brain; found "
            f"{(last - first) / turn:.3f} of a turn of {turn:g}."
        )
    return float(turn)


def normalize_phase(phase: Volume, scan: Volume, brain: Volume) -> Volume:
    """Normalize phase in rad to the map of `load_phase_map`.

    The complex image is divided by itself, smoothed in the slice (homodyne), so neither wraps nor
    slow drifts matter. Where the signal around a voxel is incoherent the map fades to a half.
    `infer_phase_sign` decides which way the phase turns.

    Raises:
        UndecidedError: If that cannot be inferred.
    """
    fast, coherence = filter_phase(phase.data, scan)
    phase_sign = infer_phase_sign(fast * coherence, scan, brain)
    phase_map = NEUTRAL + (phase_sign / RAD_PER_UNIT) * fast * np.minimum(
        coherence / MIN_COHERENCE, 1
    )
    return Volume(np.clip(phase_map, 0, 1).astype(np.float32), scan.affine)


def filter_phase(phase: np.ndarray, scan: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Filter phase by a high pass, -pi to pi, and measure the local coherence, 0 to 1.

    Args:
        phase: rad, (X, Y, Z).
        scan: Magnitude or SWI on the same grid.

    Source:
        Homodyne filter of SWI: Reichenbach et al. 1997, doi:10.1148/radiology.204.1.9205259.
    """
    fast, coherence = np.zeros((2, *scan.shape), np.float32)
    width, layer_at = _slice_geometry(scan, HIGH_PASS_SIGMA_MM)
    for number in range(scan.shape[scan.slice_axis]):
        layer = layer_at(number)
        weight = np.maximum(scan.data[layer], 0)
        wave = weight * np.exp(1j * phase[layer])
        slow = _smooth(wave.real, width) + 1j * _smooth(wave.imag, width)
        fast[layer] = np.angle(wave * np.conj(slow))
        coherence[layer] = np.abs(slow) / np.maximum(_smooth(weight, width), 1e-6 * scan.data.max())
    return fast, coherence


def infer_phase_sign(fast: np.ndarray, scan: Volume, brain: Volume) -> int:
    """Infer whether phase turns forwards (1) or backwards (-1) in a higher field.

    No sidecar has it. But what is darkest against its surround deep in the brain is nearly all
    paramagnetic, veins and iron, and its field is higher: the mean of its phase has the sign.
    Slices vote, each with its mean.

    Args:
        fast: High-passed phase, (X, Y, Z).
        scan: Magnitude or SWI.
        brain: On its grid.

    Raises:
        UndecidedError: If there are too few slices, or they do not agree.
    """
    inside = np.asarray(brain.data, bool)
    wide = 2 * np.ceil(MIN_DEPTH_MM / scan.spacing).astype(int) + 1
    deep = (scan.data > 0) & (ndimage.minimum_filter(inside.view(np.uint8), wide) > 0)
    dark = np.zeros(scan.shape, np.float32)
    width, layer_at = _slice_geometry(scan, SURROUND_SIGMA_MM)
    for number in range(scan.shape[scan.slice_axis]):
        layer = layer_at(number)
        if deep[layer].any():
            share = _smooth(inside[layer].astype(np.float32), width)
            surround = _smooth(np.where(inside[layer], scan.data[layer], 0), width)
            dark[layer] = 1 - scan.data[layer] * share / np.maximum(
                surround, 1e-6 * scan.data.max()
            )
    if not deep.any():
        raise UndecidedError(
            f"which way phase turns is told {MIN_DEPTH_MM:g} mm deep; found no such place."
        )
    chosen = deep & (dark >= np.quantile(dark[deep], 1 - DARKEST_SHARE))
    slices = np.nonzero(chosen)[scan.slice_axis]
    count = np.bincount(slices)
    phase = np.clip(fast[chosen], -MAX_VOTE_RAD, MAX_VOTE_RAD)
    votes = (np.bincount(slices, phase) / np.maximum(count, 1))[count > 0]
    weights = count[count > 0] / count.sum()
    mean = float(votes @ weights)
    # The standard error of a weighted mean.
    error = float(np.sqrt(((weights * (votes - mean)) ** 2).sum()))
    if len(votes) < MIN_SLICES or abs(mean) < MIN_STANDARD_ERRORS * error or mean == 0:
        raise UndecidedError(
            f"the darkest places of {MIN_SLICES} slices or more must agree on which way phase "
            f"turns; found {mean:.3f} ± {error:.3f} rad over {len(votes)}."
        )
    return 1 if mean > 0 else -1


def _slice_geometry(scan: Volume, width_mm: float):
    """Return a width in voxels of a slice, and a function from a slice's number to its index."""
    axis = scan.slice_axis

    def layer(number: int) -> tuple:
        return (*(slice(None),) * axis, number)

    return width_mm / np.delete(scan.spacing, axis), layer


def _smooth(plane: np.ndarray, width: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(plane.astype(np.float32), width, truncate=3)


def _format_shape(volume: Volume) -> str:
    return " × ".join(map(str, volume.shape))


def resample_phase(phase: Volume, brain: Volume, grid: Grid) -> np.ndarray:
    """Resample the normalized map to the grid of a network, a half beyond the brain, (X, Y, Z).

    Args:
        phase: From `load_phase_map`.
        brain: On the scan's grid.
        grid: Of the network.
    """
    plain_grid = replace(grid, intensity="none", masked=False)
    moved = preprocess(Volume(phase.data - NEUTRAL, phase.affine), brain, plain_grid)
    return np.where(dilate_brain(moved.brain), moved.image.data + NEUTRAL, NEUTRAL).astype(
        np.float32
    )
