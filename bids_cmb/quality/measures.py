"""Image quality: measures, and flags for what may make the counts of a scan doubtful."""

from dataclasses import dataclass

import numpy as np

from bids_cmb.anatomy.brain_extraction import PLAUSIBLE_ML, measure_volume_ml
from bids_cmb.imaging.volume import Volume
from bids_cmb.quality.ghosting import measure_ghosting

MAX_TRUNCATION_PERCENT = 25.0
MAX_SPACING_MM = 5.0
SIDES = {
    "L": "left", "R": "right", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior",
}  # fmt: skip
MIN_ECHO_T_MS = 30.0  # T·ms; half of the usual 60 (3 T and 20 ms, 1.5 T and 40 ms)


@dataclass(frozen=True)
class Quality:
    """The quality of one scan.

    Attributes:
        brain_ml: Volume of the brain mask.
        fov_truncation_percent: Area of the brain on the worst face of the field of view, of its
            largest cross-section parallel to that face; 0 for a brain that is covered whole.
        brain_snr: Median intensity in the brain / noise.
        flags: Of measures and protocol, those out of the ordinary.
        fov_truncation_side: Of the participant, where that face lies: ``inferior``, ``left`` …;
            None for a brain that is covered whole.
        ghost_percent: Signal of ghosts in the air beside the head, of the median in the brain;
            None where there is no air to look at.
    """

    brain_ml: float
    fov_truncation_percent: float
    brain_snr: float
    flags: tuple[str, ...]
    fov_truncation_side: str | None = None
    ghost_percent: float | None = None


def assess_quality(
    image: Volume,
    brain: Volume,
    *,
    field_strength_t: float | None,
    echo_time_s: float | None,
    header_corrected: bool,
    nonfinite_voxels: int,
) -> Quality:
    """Measure the quality of a scan and flag what is out of the ordinary.

    Args:
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        field_strength_t: B0 in tesla, None if unknown.
        echo_time_s: TE in seconds, None if unknown.
        header_corrected: Whether something in the header had to be corrected or preferred.
        nonfinite_voxels: Number of NaN and infinite voxels in the file.
    """
    brain_ml = measure_volume_ml(brain)
    truncation = measure_fov_truncation(brain.data)
    product = 1000 * field_strength_t * echo_time_s if field_strength_t and echo_time_s else None
    criteria = {
        "brain_volume": not PLAUSIBLE_ML[0] <= brain_ml <= PLAUSIBLE_ML[1],
        "partial_coverage": truncation > MAX_TRUNCATION_PERCENT,
        "thick_slices": image.spacing.max() > MAX_SPACING_MM,
        "short_echo": product is not None and product < MIN_ECHO_T_MS,
        "header_corrected": header_corrected,
        "nonfinite": nonfinite_voxels > 0,
    }
    flags = tuple(flag for flag, applies in criteria.items() if applies)
    level = float(np.median(image.data[brain.data])) if brain.data.any() else 0.0
    return Quality(
        brain_ml,
        truncation,
        measure_snr(image, brain, level),
        flags,
        find_truncated_side(brain),
        measure_ghosting(image, brain, level),
    )


def measure_fov_truncation(brain: np.ndarray) -> float:
    """Measure the area of a mask (X, Y, Z) on the face of its grid that truncates it most.

    Returns:
        Per cent of the largest cross-section parallel to that face: about 0 for a ball that just
        touches it, 100 for one cut through the middle.
    """
    return 100 * float(_measure_faces(brain).max())


def find_truncated_side(brain: Volume) -> str | None:
    """Find the side of the participant on which the field of view truncates a mask most.

    Returns:
        ``left``, ``right``, ``anterior``, ``posterior``, ``superior`` or ``inferior``; None if the
        mask touches no face of its grid.
    """
    faces = _measure_faces(brain.data)
    axis, end = np.unravel_index(faces.argmax(), faces.shape)
    return SIDES[brain.directions[axis][end]] if faces.max() > 0 else None


def _measure_faces(brain: np.ndarray) -> np.ndarray:
    """Measure the area of a mask on each face, of its largest parallel cross-section, (3, 2)."""
    areas = [brain.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    return np.array([area[[0, -1]] / max(area.max(), 1) for area in areas])


def measure_snr(image: Volume, brain: Volume, level: float | None = None) -> float:
    """Measure the signal-to-noise ratio: the brain's median over that of in-plane differences.

    The median absolute difference of two independent normal values is 0.6745 · √2 standard
    deviations. Texture counts as noise, so this is a lower bound.

    Args:
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        level: The median in the brain, if known.
    """
    axis = min(set(range(3)) - {image.slice_axis})
    first = [slice(None)] * 3
    second = [slice(None)] * 3
    first[axis], second[axis] = slice(0, -1), slice(1, None)
    both = brain.data[tuple(first)] & brain.data[tuple(second)]
    differences = np.abs(np.diff(image.data, axis=axis)[both])  # indexing first would be slower
    noise = float(np.median(differences)) / (0.6745 * np.sqrt(2)) if differences.size else 0.0
    if level is None:
        level = float(np.median(image.data[brain.data])) if brain.data.any() else 0.0
    return level / noise if noise > 0 else 0.0
