"""What may make the counts of a scan doubtful, in figures and in flags."""

from dataclasses import dataclass

import numpy as np

from bids_cmb.anatomy.brain_extraction import PLAUSIBLE_ML, measure_volume_ml
from bids_cmb.imaging.volume import Volume

CUT_PERCENT = 25.0
THICK_MM = 5.0
SHORT_ECHO = 30.0  # T·ms; half of the usual 60 (3 T and 20 ms, 1.5 T and 40 ms)


@dataclass(frozen=True)
class Quality:
    """The quality of one scan.

    Attributes:
        brain_ml: Volume of the brain mask.
        fov_truncation_percent: Brain on the worst face of the field of view, of its largest
            cross-section parallel to that face. 0 is a brain covered whole.
        brain_snr: Median intensity in the brain / noise. Higher is better.
        flags: Which of these, or of the protocol, is out of the ordinary.
    """

    brain_ml: float
    fov_truncation_percent: float
    brain_snr: float
    flags: tuple[str, ...]


def quality(
    image: Volume,
    brain: Volume,
    *,
    field_strength_t: float | None,
    echo_time_s: float | None,
    header_corrected: bool,
    nonfinite_voxels: int,
) -> Quality:
    """Measure a scan and say what is out of the ordinary.

    Args:
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        field_strength_t: B0 in tesla, None if unknown.
        echo_time_s: TE in seconds, None if unknown.
        header_corrected: Whether something in the header had to be corrected or preferred.
        nonfinite_voxels: NaN and infinite voxels in the file.
    """
    brain_ml = measure_volume_ml(brain)
    cut = cut_percent(brain.data)
    product = 1000 * field_strength_t * echo_time_s if field_strength_t and echo_time_s else None
    said = {
        "brain_volume": not PLAUSIBLE_ML[0] <= brain_ml <= PLAUSIBLE_ML[1],
        "partial_coverage": cut > CUT_PERCENT,
        "thick_slices": image.spacing.max() > THICK_MM,
        "short_echo": product is not None and product < SHORT_ECHO,
        "header_corrected": header_corrected,
        "nonfinite": nonfinite_voxels > 0,
    }
    flags = tuple(flag for flag, is_so in said.items() if is_so)
    return Quality(brain_ml, cut, signal_to_noise(image, brain), flags)


def cut_percent(brain: np.ndarray) -> float:
    """Area of a mask (X, Y, Z) on the face of its grid that cuts it most, in per cent.

    Relative to the largest cross-section parallel to that face. A ball that just touches a face
    has about 0, one cut through the middle 100.
    """
    worst = 0.0
    for axis in range(3):
        areas = brain.sum(axis=tuple({0, 1, 2} - {axis}))
        if areas.max():
            worst = max(worst, max(areas[0], areas[-1]) / areas.max())
    return 100 * float(worst)


def signal_to_noise(image: Volume, brain: Volume, level: float | None = None) -> float:
    """Median intensity in the brain / noise, the latter from differences of in-plane neighbours.

    The median absolute difference of two independent normal values is 0.6745 · √2 standard
    deviations. Texture counts as noise, so this is a lower bound.

    Args:
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        level: The median in the brain, if it is known already.
    """
    axis = min(set(range(3)) - {image.slice_axis})
    first = [slice(None)] * 3
    second = [slice(None)] * 3
    first[axis], second[axis] = slice(0, -1), slice(1, None)
    both = brain.data[tuple(first)] & brain.data[tuple(second)]
    steps = np.abs(np.diff(image.data, axis=axis)[both])  # picking is dearer than the difference
    noise = float(np.median(steps)) / (0.6745 * np.sqrt(2)) if steps.size else 0.0
    if level is None:
        level = float(np.median(image.data[brain.data])) if brain.data.any() else 0.0
    return level / noise if noise > 0 else 0.0
