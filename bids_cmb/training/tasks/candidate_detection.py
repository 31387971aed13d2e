"""Every voxel is to be told whether it may lie in a microbleed, from darkness and symmetry."""

from dataclasses import dataclass

import keras
import numpy as np
from scipy import ndimage

from bids_cmb.detection.distilled import channels, symmetry
from bids_cmb.imaging.preprocessing import Grid, preprocess
from bids_cmb.training import data as cases
from bids_cmb.training.distillation import CandidateLoss
from bids_cmb.training.recipe import (
    Batch,
    Recipe,
    Sources,
    Task,
    Teach,
    drawing_of,
    refuse_label_maps,
)

AROUND_MM = 1.0  # width of the Gaussian by which voxels around a lesion weigh more
HEAVY = 9.0  # how much more a voxel weighs that is lesion, and all around it


@dataclass(frozen=True, eq=False)
class Lesson:
    """A scan and its symmetry, float16, (X, Y, Z)."""

    case: cases.Case
    symmetric: np.ndarray


def read_lesson(paths: cases.Paths, grid: Grid) -> Lesson:
    """A scan with its truth and its symmetry on the grid of a network.

    Raises:
        ValueError: If a file cannot be used.
        OSError: If it cannot be read.
    """
    fed = preprocess(*cases.read_scan(paths), grid)
    return Lesson(cases.case_of(paths, fed), symmetry(fed).astype(np.float16))


def weights(truth: np.ndarray, heard: np.ndarray, around: np.ndarray) -> np.ndarray:
    """1 + 9 G(lesion): the published weights, voxel by voxel; 0 where nobody knows.

    Args:
        truth: `cases.Case.truth`.
        heard: `cases.Case.heard`.
        around: Width of the Gaussian in voxels, (3,).
    """
    lesion = (truth == cases.LESION).astype(np.float32)
    heavy = 1 + HEAVY * ndimage.gaussian_filter(lesion, around)
    return heavy * (heard & (truth != cases.UNSURE))


def shown_patch(
    stacked: np.ndarray, drawing: cases.Drawing, rng: np.random.Generator, *, symmetric: bool
) -> np.ndarray:
    """From image, symmetry and where is heard, (X, Y, Z, 3), what a network sees, varied.

    Noise, contrast and brightness vary the image alone, as published.
    """
    image = cases.varied(stacked[..., 0], drawing, rng)
    return channels(image, symmetric * stacked[..., 1], stacked[..., 2] > 0)


def _teach(recipe: Recipe, sources: Sources, seed: int) -> tuple[Teach, str]:  # noqa: ARG001
    refuse_label_maps(sources, "lesions")
    grid, given = Grid.from_card(recipe.grid), dict(recipe.drawing or {})
    symmetric = given.pop("symmetry", True)
    drawing = drawing_of(given)
    read = [read_lesson(one, grid) for one in sources.scans]
    of = {id(one.case): one for one in read}  # names come again in other datasets
    pool, around = [one.case for one in read], AROUND_MM / np.array(grid.spacing, float)

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        case, centre = cases.drawn(pool, drawing.shares, rng)
        shape = np.array(drawing.shape)
        start = centre - shape // 2 + rng.integers(-(shape // 3), shape // 3 + 1)
        parts = (case.image, of[id(case)].symmetric, case.heard, case.truth)
        stacked = np.stack(
            [cases.cut(one, start, shape).astype(np.float32) for one in parts], axis=-1
        )
        stacked = cases.turned(stacked, rng, swaps=drawing.swaps)
        truth, heard = stacked[..., 3], stacked[..., 2] > 0
        known = np.stack([truth == cases.LESION, weights(truth, heard, around)], axis=-1)
        image = shown_patch(stacked[..., :3], drawing, rng, symmetric=symmetric)
        return image, known.astype(np.float32)

    def teach(rng: np.random.Generator) -> Batch:
        images, truths = zip(*[draw(rng) for _ in range(recipe.batch)], strict=True)
        return np.stack(images), np.stack(truths)

    lesions = sum(len(one.centres["lesion"]) for one in pool)
    return teach, f"{len(pool)} scans with {lesions} lesions"


def shown(images: np.ndarray, truths: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    """Brightness, truth and chance of each voxel, for the report."""
    chances = keras.ops.convert_to_numpy(keras.ops.sigmoid(logits[..., 1] - logits[..., 0]))
    return 1 - images[..., 0], truths[..., 0], chances


TASK = Task(_teach, lambda recipe: CandidateLoss(), shown)  # noqa: ARG005
