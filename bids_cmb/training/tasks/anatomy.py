"""Every voxel is to be told its structure and its side."""

import numpy as np

from bids_cmb.anatomy.labels import atlas
from bids_cmb.imaging.preprocessing import Grid
from bids_cmb.simulation.head_model import list_head_models
from bids_cmb.training import synthetic_contrast
from bids_cmb.training.losses import StructuresLoss
from bids_cmb.training.recipe import Batch, Recipe, Sources, Task, Teach


def _teach(recipe: Recipe, sources: Sources, seed: int) -> tuple[Teach, str]:
    grid, known = Grid.from_card(recipe.grid), atlas(recipe.classes)
    scanned = [synthetic_contrast.scanned_subject(one, grid) for one in sources.scans]
    painted = [
        synthetic_contrast.painted_subject(
            path, np.random.default_rng([seed, at, person]), float(grid.spacing[0])
        )
        for folder in sources.label_maps
        for at, path in enumerate(list_head_models(folder))
        for person in range(recipe.people)
    ]

    def teach(rng: np.random.Generator) -> Batch:
        pool = scanned if scanned and (not painted or rng.random() < recipe.scanned) else painted
        return synthetic_contrast.batch(pool, known, recipe.patch, rng, size=recipe.batch)

    return teach, f"{len(painted)} people to paint and {len(scanned)} simulated scans"


def _shown(images: np.ndarray, truths: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    return images[..., 0], truths[..., 0], logits[..., :-1].argmax(-1)


TASK = Task(
    _teach,
    lambda recipe: StructuresLoss(classes=len(recipe.classes)),
    _shown,
    lambda recipe: {"outputs": len(recipe.classes) + 1},
)
