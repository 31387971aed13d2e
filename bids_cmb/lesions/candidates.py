"""Candidates: what a detector holds for less likely than a lesion, and is still worth a look."""

from dataclasses import dataclass, replace

import numpy as np

from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import DetectionMap, Lesion, Thresholds, find_lesions, label_pieces

CANDIDATE = "candidate"  # the certainty of all of them
MAX_CANDIDATES = 20  # more than a reader will look at


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates of a scan below the threshold of its lesions; none of them is counted.

    Attributes:
        threshold: Lowest probability of their voxels.
        labels: Each candidate's index in its voxels, on the scan's grid; 0 in every lesion.
        lesions: Their measures, by falling probability; indices go on from the last lesion.
        n_omitted: Number of further, less likely ones.
    """

    threshold: float
    labels: Volume
    lesions: list[Lesion]
    n_omitted: int = 0


def find_candidates(
    detected: DetectionMap,
    image: Volume,
    brain: Volume,
    labels: Volume,
    *,
    threshold: float,
    min_volume: float = 0.0,
) -> Candidates:
    """Find what reaches a lower threshold than the lesions do and touches none of them.

    Args:
        detected: By the detectors, on the grid of the scan.
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        labels: Index of each lesion in its voxels, from `find_lesions` at its higher threshold.
        threshold: Lowest probability of a candidate's voxels.
        min_volume: mm³; smaller candidates are dropped.

    Returns:
        The `MAX_CANDIDATES` most likely ones.
    """
    probability = detected.probability
    pieces, count = label_pieces(probability.data >= threshold, detected.instances)
    inside = pieces > 0
    number, value = pieces[inside], probability.data[inside]  # of the few voxels in a piece
    volumes = np.bincount(number, minlength=count + 1) * probability.voxel_volume
    highest = np.zeros(count + 1, np.float32)
    np.maximum.at(highest, number, value)
    is_eligible = volumes >= min_volume
    is_eligible[[0, *pieces[labels.data > 0]]] = False  # the background, lesions
    eligible = np.flatnonzero(is_eligible)
    listed = eligible[np.argsort(-highest[eligible], kind="stable")][:MAX_CANDIDATES]
    shown = np.zeros_like(probability.data)
    shown[inside] = np.where(np.isin(number, listed), value, np.float32(0))
    local_labels, measured = find_lesions(
        replace(detected, probability=Volume(shown, probability.affine)),
        image,
        brain,
        Thresholds(threshold, 1.0, min_volume),
    )
    first = int(labels.data.max(initial=0))
    shifted = np.where(local_labels.data > 0, local_labels.data + first, 0).astype(np.uint16)
    return Candidates(
        threshold,
        Volume(shifted, labels.affine),
        [
            replace(lesion, index=lesion.index + first, certainty=CANDIDATE, included=False)
            for lesion in measured
        ],
        len(eligible) - len(listed),
    )
