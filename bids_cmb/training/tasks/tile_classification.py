"""Training task: classify tiles of three slices by whether the middle one has a microbleed."""

from dataclasses import replace

import numpy as np

from bids_cmb.training.losses import TileLoss
from bids_cmb.training.patches import PatchSampling, collate, sample_labelled_patch
from bids_cmb.training.recipe import (
    Batch,
    BatchFunction,
    Recipe,
    Sources,
    Task,
    make_patch_sampling,
)
from bids_cmb.training.reference_labels import LESION
from bids_cmb.training.scan_loading import TrainingScan, describe_scans
from bids_cmb.training.tasks.segmentation import load_scans

# Voxels at a tile's border where lesions are not asked for: the next tile has them whole
RIM_VOXELS = 4
MAX_DRAWS = 20  # to draw a tile of the kind that is wanted


def _make_batches(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:  # noqa: ARG001
    scans, sampling = load_scans(recipe, sources), make_patch_sampling(recipe.drawing)
    share = sampling.shares["lesion"]
    others = {
        kind: share_of_kind for kind, share_of_kind in sampling.shares.items() if kind != "lesion"
    }
    kinds = {1: replace(sampling, shares={"lesion": 1.0}), 0: replace(sampling, shares=others)}
    wanted = [int(index < share * recipe.batch) for index in range(recipe.batch)]

    def sample(rng: np.random.Generator) -> Batch:
        images, truths = collate(_sample_tile(scans, kinds[kind], rng, kind) for kind in wanted)
        return images, truths.astype(np.float32)

    return sample, describe_scans(scans)


def _sample_tile(
    scans: list[TrainingScan],
    sampling: PatchSampling,
    rng: np.random.Generator,
    wanted: int,
) -> tuple[np.ndarray, tuple[float, float]]:
    """Sample a tile (X, Y, 3), whether a lesion is in it, and its weight."""
    for _ in range(MAX_DRAWS):
        patch = sample_labelled_patch(scans, sampling, rng)
        label = label_tile(patch.labels)
        if label == wanted:
            break
    return patch.image[..., 0], (float(label == 1), float(label is not None))


def label_tile(codes: np.ndarray) -> int | None:
    """Label a tile: 1 with a microbleed, 0 without; None where that is ambiguous.

    Args:
        codes: `TrainingScan.labels` in the tile, (X, Y, 3).

    Returns:
        1 with a certain lesion on the middle slice, off the rim; 0 without any lesion, certain or
        not, on any of the slices.
    """
    if (codes[RIM_VOXELS:-RIM_VOXELS, RIM_VOXELS:-RIM_VOXELS, 1] == LESION).any():
        return 1
    return None if codes.any() else 0


TASK = Task(_make_batches, lambda recipe: TileLoss())  # noqa: ARG005
