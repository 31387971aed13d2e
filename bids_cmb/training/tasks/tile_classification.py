"""Of every tile, three slices deep, it is to be told whether its middle slice has a microbleed."""

from dataclasses import replace

import numpy as np

from bids_cmb.training import data as cases
from bids_cmb.training.losses import TileLoss
from bids_cmb.training.recipe import Batch, Recipe, Sources, Task, Teach, drawing_of
from bids_cmb.training.tasks.segmentation import read_sources

RIM = 4  # voxels at a tile's border where lesions are not asked for: the next tile has them whole
TRIES = 20  # to draw a tile of the kind that is wanted


def _teach(recipe: Recipe, sources: Sources, seed: int) -> tuple[Teach, str]:  # noqa: ARG001
    read, drawing = read_sources(recipe, sources), drawing_of(recipe.drawing)
    share = drawing.shares["lesion"]
    others = {kind: one for kind, one in drawing.shares.items() if kind != "lesion"}
    kinds = {1: replace(drawing, shares={"lesion": 1.0}), 0: replace(drawing, shares=others)}
    wanted = [int(at < share * recipe.batch) for at in range(recipe.batch)]

    def teach(rng: np.random.Generator) -> Batch:
        drawn = [_tile(read, kinds[kind], rng, kind) for kind in wanted]
        images, truths = zip(*drawn, strict=True)
        return np.stack(images), np.array(truths, np.float32)

    lesions = sum(len(one.centres["lesion"]) for one in read)
    return teach, f"{len(read)} scans with {lesions} lesions"


def _tile(
    read: list[cases.Case], drawing: cases.Drawing, rng: np.random.Generator, wanted: int
) -> tuple[np.ndarray, tuple[float, float]]:
    """A tile (X, Y, 3), whether a lesion is in it, and what that weighs."""
    for _ in range(TRIES):
        image, codes, _ = cases.draw_codes(read, drawing, rng)
        known = holds(codes)
        if known == wanted:
            break
    return image[..., 0], (float(known == 1), float(known is not None))


def holds(codes: np.ndarray) -> int | None:
    """Whether a tile holds a microbleed, 1 or 0; None where that is no fair question.

    Args:
        codes: `cases.Case.truth` in the tile, (X, Y, 3).

    Returns:
        1 with a sure lesion on the middle slice, off the rim; 0 without any lesion, sure or not, on
        any of the slices.
    """
    if (codes[RIM:-RIM, RIM:-RIM, 1] == cases.LESION).any():
        return 1
    return None if codes.any() else 0


TASK = Task(_teach, lambda recipe: TileLoss())  # noqa: ARG005
