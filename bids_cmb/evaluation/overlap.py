"""The volume that predicted and true lesions share."""

import numpy as np

from bids_cmb.evaluation.annotations import LesionAnnotations
from bids_cmb.lesions.label_maps import grids_overlap, load_label_map, measure_overlap


def measure_shared_volume(predicted: LesionAnnotations, truth: LesionAnnotations) -> np.ndarray:
    """Measure the volume that every predicted lesion shares with every true one.

    Returns:
        mm³, shape (F, T).

    Raises:
        ValueError: If either has no label map, or if the grids do not overlap.
    """
    for annotations in (predicted, truth):
        if annotations.image is None and len(annotations.lesions):
            raise ValueError(
                f"{annotations.name}: overlap needs a mask or label map of both sides; "
                "found coordinates only."
            )
    if not len(predicted.lesions) or not len(truth.lesions):
        return np.zeros((len(predicted.lesions), len(truth.lesions)))
    first, second = load_label_map(predicted.image), load_label_map(truth.image)
    if not grids_overlap(first, second):
        raise ValueError(
            f"{predicted.image}: must lie in the same space as {truth.image.name}; "
            "the two grids have no place in common."
        )
    numbers = (annotations.lesions["index"].to_numpy() for annotations in (predicted, truth))
    return measure_overlap(first, second, *numbers)
