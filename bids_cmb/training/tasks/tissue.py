"""Every voxel is to be told what kind of tissue it is, after what the anatomy network thinks."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from bids_cmb.anatomy.labels import atlas
from bids_cmb.anatomy.refinement import KINDS, heard, kinds_of, opinion, shown
from bids_cmb.anatomy.segmentation import brain_of, find_anatomy
from bids_cmb.imaging.preprocessing import Grid, preprocess
from bids_cmb.imaging.volume import load, resample_like
from bids_cmb.networks.model_cards import ANATOMY, card
from bids_cmb.training import data as cases
from bids_cmb.training.losses import TissueLoss
from bids_cmb.training.recipe import (
    Batch,
    Recipe,
    Sources,
    Task,
    Teach,
    drawing_of,
    refuse_label_maps,
)

SURE_MM = 2.0  # standard deviation of the weight about the place a patch was drawn around
PULL = 40.0  # how much heavier that place is: it is what the network will be asked about


@dataclass(frozen=True, eq=False)
class Seen:
    """A scan on the network's grid, what the anatomy network thinks of it, and what is there.

    Attributes:
        case: The scan and its lesions.
        told: As `anatomy.refinement.opinion` gives it.
        kinds: Of `KINDS`, uint8 (X, Y, Z).
        spacing: mm between voxels, (3,).
    """

    case: cases.Case
    told: np.ndarray
    kinds: np.ndarray
    spacing: np.ndarray


def read_seen(paths: cases.Paths, grid: Grid, classes: Sequence[dict]) -> Seen:
    """A scan, looked at by the anatomy network of the package.

    Raises:
        ValueError: If the scan has no truth of structures, or a file cannot be used.
        OSError: If a file cannot be read.
    """
    stored = cases.structures_of(paths, "tissue")
    image, _ = load(paths.image)
    anatomy, kinds = find_anatomy(image), kinds_of(classes)
    fed = preprocess(image, brain_of(anatomy, image), grid)
    codes = resample_like(stored, fed.image, order=0).data
    there = kinds[atlas(classes).classes[np.rint(codes).astype(np.uint16)]]
    told = opinion(anatomy, kinds, fed.image.affine, fed.image.shape)
    return Seen(cases.case_of(paths, fed), told, there, fed.image.spacing)


def draw(
    known: dict[int, Seen], drawing: cases.Drawing, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One patch, (X, Y, Z, kinds), and its kinds with weights, (X, Y, Z, 2), varied."""
    case, centre = cases.drawn([one.case for one in known.values()], drawing.shares, rng)
    one, shape, reach = known[id(case)], np.array(drawing.shape), np.array(drawing.reach)
    start = centre - shape // 2 + rng.integers(-reach, reach + 1)
    image, told, kinds = (
        cases.cut(data, start, shape) for data in (case.image, one.told, one.kinds)
    )
    steps = [
        (np.arange(side) + first - at) * mm
        for side, first, at, mm in zip(shape, start, centre, one.spacing, strict=True)
    ]
    away = sum(step**2 for step in np.ix_(*steps))
    weight = ((kinds > 0) | heard(told)) * (1 + PULL * np.exp(-away / (2 * SURE_MM**2)))
    varied = cases.varied(image[..., None].astype(np.float32), drawing, rng)
    stacked = np.concatenate(
        [shown(varied[..., 0], told), np.stack([kinds, weight], axis=-1)], axis=-1
    ).astype(np.float32)
    stacked = cases.turned(stacked, rng, swaps=drawing.swaps)
    return stacked[..., :-2], stacked[..., -2:]


def _teach(recipe: Recipe, sources: Sources, seed: int) -> tuple[Teach, str]:  # noqa: ARG001
    refuse_label_maps(sources, "tissues")
    grid, classes = Grid.from_card(recipe.grid), card(ANATOMY)["classes"]
    read = [read_seen(one, grid, classes) for one in sources.scans]
    known, drawing = {id(one.case): one for one in read}, drawing_of(recipe.drawing)

    def teach(rng: np.random.Generator) -> Batch:
        return cases.together(draw(known, drawing, rng) for _ in range(recipe.batch))

    lesions = sum(len(one.case.centres["lesion"]) for one in read)
    return teach, f"{len(read)} scans with {lesions} lesions"


def _shown(images: np.ndarray, truths: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    return images[..., 0], truths[..., 0], keras.ops.convert_to_numpy(logits).argmax(axis=-1)


TASK = Task(_teach, lambda _: TissueLoss(kinds=len(KINDS)), _shown)
