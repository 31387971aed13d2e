"""Every voxel is to be told whether it lies in a microbleed."""

import keras
import numpy as np

from bids_cmb.imaging.preprocessing import Grid
from bids_cmb.training import data as cases
from bids_cmb.training.losses import LesionLoss
from bids_cmb.training.recipe import (
    Batch,
    Recipe,
    Sources,
    Task,
    Teach,
    drawing_of,
    refuse_label_maps,
)


def _teach(recipe: Recipe, sources: Sources, seed: int) -> tuple[Teach, str]:  # noqa: ARG001
    read, drawing = read_sources(recipe, sources), drawing_of(recipe.drawing)

    def teach(rng: np.random.Generator) -> Batch:
        return cases.batch(read, drawing, rng, size=recipe.batch)

    lesions = sum(len(one.centres["lesion"]) for one in read)
    return teach, f"{len(read)} scans with {lesions} lesions"


def read_sources(recipe: Recipe, sources: Sources) -> list[cases.Case]:
    """The scans on the recipe's grid.

    Raises:
        ValueError: If there are label maps among the sources.
    """
    refuse_label_maps(sources, "lesions")
    grid = Grid.from_card(recipe.grid)
    return [cases.read_case(one, grid) for one in sources.scans]


def _shown(images: np.ndarray, truths: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    chances = keras.ops.convert_to_numpy(keras.ops.sigmoid(logits[..., 0]))
    return images[..., 0], truths[..., 0], chances


TASK = Task(_teach, lambda recipe: LesionLoss(**(recipe.loss or {})), _shown)
