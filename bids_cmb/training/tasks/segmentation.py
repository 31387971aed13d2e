"""Training task: segment microbleeds in 3D."""

import keras
import numpy as np

from bids_cmb.imaging.grid import Grid
from bids_cmb.training.losses import LesionLoss
from bids_cmb.training.patches import sample_batch
from bids_cmb.training.recipe import (
    Batch,
    BatchFunction,
    Recipe,
    Sources,
    Task,
    check_no_label_maps,
    make_patch_sampling,
)
from bids_cmb.training.scan_loading import TrainingScan, describe_scans, load_training_scans


def _make_batches(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:  # noqa: ARG001
    scans, sampling = load_scans(recipe, sources), make_patch_sampling(recipe.drawing)

    def sample(rng: np.random.Generator) -> Batch:
        return sample_batch(scans, sampling, rng, size=recipe.batch)

    return sample, describe_scans(scans)


def load_scans(recipe: Recipe, sources: Sources) -> list[TrainingScan]:
    """Load the scans on the recipe's grid.

    Raises:
        ValueError: If there are label maps among the sources.
    """
    check_no_label_maps(sources, "lesions")
    return load_training_scans(sources.scans, Grid.from_card(recipe.grid), sources.loading)


def _preview(images: np.ndarray, truths: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    chances = keras.ops.convert_to_numpy(keras.ops.sigmoid(logits[..., 0]))
    return images[..., 0], truths[..., 0], chances


def _make_loss(recipe: Recipe) -> LesionLoss:
    return LesionLoss(**(recipe.loss or {}))


TASK = Task(_make_batches, _make_loss, _preview)
