"""Lay a later scan over an earlier one, say how well that went, and refuse where it did not."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.cropping import crop, find_bounds
from bids_cmb.imaging.registration import measure_rotation_deg, register_scans
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume, map_points

COMPARED_MM = 2.0  # voxels on which two scans are compared; thicker where their slices are
LOCAL_MM = 8.0  # standard deviation of what is taken for bias and left out of the comparison
MIN_SIMILARITY = 0.5  # correlation of local structure below which scans are not of one head
MIN_OVERLAP = 0.75  # share of the smaller brain, as far as the other's field of view reaches


@dataclass(frozen=True, eq=False)
class Alignment:
    """A scan laid over the reference scan of its participant.

    Attributes:
        to_reference: World mm of the scan to world mm of the reference, rigid, (4, 4).
        similarity: Correlation of local structure within both brains, -1 to 1.
        overlap: Share of the smaller brain mask that lies in the other one, 0 to 1.
        rotation_deg: Angle by which the head was turned.
        shift_mm: By which the middle of the brain was moved.
        problem: Why it cannot serve, as the end of a sentence; empty if it can.
    """

    to_reference: np.ndarray
    similarity: float
    overlap: float
    rotation_deg: float
    shift_mm: float
    problem: str = ""


def identify() -> Alignment:
    """Make the alignment of the reference scan with itself."""
    return Alignment(np.eye(4), 1.0, 1.0, 0.0, 0.0)


def align(image: Volume, brain: Volume, reference: Volume, reference_brain: Volume) -> Alignment:
    """Register a scan to the reference, and check that both show one head.

    Args:
        image: The scan.
        brain: Its brain mask, bool, on its grid.
        reference: The scan that it is laid over.
        reference_brain: Likewise.

    Raises:
        ValueError: If one of the brain masks is empty.
    """
    to_reference = register_scans(image, brain, reference, reference_brain)
    moved = [Volume(volume.data, to_reference @ volume.affine) for volume in (image, brain)]
    similarity, overlap = measure_fit(*moved, reference, reference_brain)
    middle = brain.world(np.argwhere(brain.data).mean(axis=0))
    shift = np.linalg.norm(map_points(to_reference, middle) - middle)
    return Alignment(
        to_reference,
        round(similarity, 3),
        round(overlap, 3),
        round(measure_rotation_deg(to_reference), 2),
        round(float(shift), 2),
        _find_problem(similarity, overlap),
    )


def _find_problem(similarity: float, overlap: float) -> str:
    if similarity < MIN_SIMILARITY:
        return (
            "after registration the local structure of both must correlate by at least "
            f"{MIN_SIMILARITY:g}, as it does in scans of one head; found {similarity:.2f}. "
            "Is it the same person?"
        )
    if overlap < MIN_OVERLAP:
        return (
            f"after registration at least {100 * MIN_OVERLAP:g} % of the smaller brain mask must "
            f"lie in the other; found {100 * overlap:.0f} %"
        )
    return ""


def measure_fit(
    image: Volume, brain: Volume, reference: Volume, reference_brain: Volume
) -> tuple[float, float]:
    """Measure how far two scans that were laid over each other agree.

    Args:
        image: The scan, moved to the world of the reference.
        brain: Its brain mask, likewise.
        reference: The reference.
        reference_brain: Its brain mask.

    Returns:
        Correlation of local structure where both brains are, 0 if they share too little; and the
        share of the smaller brain mask that lies in the other, of what both fields of view hold.
    """
    affine, shape = _define_common_grid(reference_brain, (image, reference))
    first, second = (_sample_smooth(volume, affine, shape) for volume in (image, reference))
    masks = [_sample_mask(mask, affine, shape) for mask in (brain, reference_brain)]
    seen = _sample_mask(Volume(np.ones(image.shape, bool), image.affine), affine, shape)
    both = masks[0] & masks[1]
    smaller = min(int((mask & seen).sum()) for mask in masks)
    if both.sum() < 0.1 * masks[1].sum() or not smaller:
        return 0.0, 0.0
    width = LOCAL_MM / np.linalg.norm(affine[:3, :3], axis=0)
    details = [_extract_local(data, both, width)[both] for data in (first, second)]
    similarity = float(np.corrcoef(*details)[0, 1]) if all(np.ptp(d) for d in details) else 0.0
    return similarity, float(both.sum() / smaller)


def _define_common_grid(
    brain: Volume, images: tuple[Volume, Volume]
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Define a grid around the reference's brain, no finer than the slices of either scan."""
    box = crop(brain, *find_bounds(brain.data))
    step = np.maximum(box.spacing, COMPARED_MM)
    step[box.slice_axis] = max(step[box.slice_axis], *(image.spacing.max() for image in images))
    shape = tuple(np.maximum(1, np.ceil(box.shape * box.spacing / step)).astype(int).tolist())
    return box.affine @ np.diag([*(step / box.spacing), 1]), shape


def _sample_smooth(volume: Volume, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    step = np.linalg.norm(affine[:3, :3], axis=0).min()
    width = np.sqrt(np.maximum(0, step**2 - volume.spacing**2)) / 2 / volume.spacing
    smooth = ndimage.gaussian_filter(volume.data.astype(np.float32), width, truncate=3)
    return resample(Volume(smooth, volume.affine), affine, shape).data


def _sample_mask(mask: Volume, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return resample(mask, affine, shape, order=0).data > 0


def _extract_local(data: np.ndarray, mask: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Extract what differs from the mean around it within a mask, as a share of that mean."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), width)
    mean = ndimage.gaussian_filter(np.where(mask, data, 0), width) / np.maximum(weight, 1e-3)
    share = np.where(mask, data / np.maximum(mean, 1e-6) - 1, 0)
    return np.clip(share, -1, 1)
