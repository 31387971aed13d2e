"""Training task: segment structures and their side."""

import numpy as np

from bids_cmb.anatomy.labels import build_class_table
from bids_cmb.imaging.grid import Grid
from bids_cmb.simulation.head_model import list_head_models
from bids_cmb.training import synthetic_contrast
from bids_cmb.training.losses import StructuresLoss
from bids_cmb.training.recipe import Batch, BatchFunction, Recipe, Sources, Task


def _make_batches(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:
    grid, atlas_ = Grid.from_card(recipe.grid), build_class_table(recipe.classes)
    scanned = [synthetic_contrast.load_subject(files, grid) for files in sources.scans]
    painted = [
        synthetic_contrast.sample_subject(
            path, np.random.default_rng([seed, number, person]), float(grid.spacing[0])
        )
        for folder in sources.label_maps
        for number, path in enumerate(list_head_models(folder))
        for person in range(recipe.people)
    ]

    def sample(rng: np.random.Generator) -> Batch:
        pool = scanned if scanned and (not painted or rng.random() < recipe.scanned) else painted
        return synthetic_contrast.sample_batch(pool, atlas_, recipe.patch, rng, size=recipe.batch)

    return sample, f"{len(painted)} people to paint and {len(scanned)} simulated scans"


def _preview(images: np.ndarray, truths: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    return images[..., 0], truths[..., 0], logits[..., :-1].argmax(-1)


TASK = Task(
    _make_batches,
    lambda recipe: StructuresLoss(classes=len(recipe.classes)),
    _preview,
    lambda recipe: {"outputs": len(recipe.classes) + 1},
)
