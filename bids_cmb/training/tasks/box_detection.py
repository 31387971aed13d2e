"""Every microbleed of a slice is to be boxed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bids_cmb.detection.boxes import true_boxes
from bids_cmb.detection.cascade import cell, in_pixels, planes, sees_phase
from bids_cmb.imaging.phase import NEUTRAL
from bids_cmb.imaging.preprocessing import Grid
from bids_cmb.lesions.measure import LARGEST_MM
from bids_cmb.training import data as cases
from bids_cmb.training.losses import BoxLoss
from bids_cmb.training.recipe import (
    Batch,
    Recipe,
    Sources,
    Task,
    Teach,
    drawing_of,
    refuse_label_maps,
)

BLIND = 0.3  # share of patches without their phase, so that the network can do without
SHIFT = 3  # the place that a patch is drawn around lies within a third of a side of its middle


@dataclass(frozen=True, eq=False)
class Boxed:
    """A scan and the true boxes of its slices, (N, 6) as `detection.boxes.true_boxes`."""

    case: cases.Case
    boxes: np.ndarray


def boxed(case: cases.Case, spacing: float) -> Boxed:
    """A scan with the boxes of its lesions."""
    rows = [
        true_boxes(voxels.astype(int), spacing, sure=case.truth[tuple(voxels[0])] == cases.LESION)
        for voxels in case.centres["lesion"]
    ]
    return Boxed(case, np.concatenate([np.zeros((0, 6), np.float32), *rows]))


def draw(
    known: Mapping[int, Boxed], drawing: cases.Drawing, rng: np.random.Generator, *,
    inputs: int, most: int, blind: float = BLIND,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """A part of a slice and its boxes, varied: (X, Y, inputs) and (most, 5), see `BoxLoss`.

    A network that takes phase is shown none in a share ``blind`` of them.
    """
    case, centre = cases.drawn([one.case for one in known.values()], drawing.shares, rng)
    side = drawing.shape[0]
    shift = rng.integers(-(side // SHIFT), side // SHIFT + 1, 2)
    start = centre[:2] - side // 2 + shift
    three = (np.array([*start, centre[2] - 1]), (side, side, 3))
    block = np.maximum(cases.cut(case.image, *three), 0).astype(np.float32)
    phase = None
    if case.phase is not None and rng.random() >= blind:
        phase = cases.cut(case.phase, *three, beyond=NEUTRAL).astype(np.float32)
    if centre[2] == 0 or centre[2] == case.image.shape[2] - 1:  # as `planes` has it
        for one in (block, phase) if phase is not None else (block,):
            one[:, :, 0 if centre[2] == 0 else 2] = one[:, :, 1]
    block = cases.varied(block, drawing, rng)
    boxes = known[id(case)].boxes
    boxes = boxes[boxes[:, 0] == centre[2]][:, 1:]
    boxes = boxes - np.array([*start, 0, 0, 0], np.float32)
    boxes = boxes[((boxes[:, :2] >= 0) & (boxes[:, :2] < side)).all(axis=1)][:most]
    image, boxes = _turned(planes(block, 1, inputs, phase), boxes, rng, swaps=drawing.swaps)
    truth = np.zeros((most, 5), np.float32)
    truth[: len(boxes)] = boxes
    return image, truth


def _turned(
    image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator, *, swaps: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A square and its boxes turned around along any axis, at times with its axes swapped."""
    boxes = boxes.copy()
    for axis in range(2):
        if rng.random() < 0.5:
            image = np.flip(image, axis)
            # A middle on the last edge would leave the square on the first: no cell is there.
            boxes[:, axis] = np.minimum(
                image.shape[axis] - boxes[:, axis], image.shape[axis] - 0.01
            )
    if swaps and rng.random() < 0.5:
        image, boxes = np.swapaxes(image, 0, 1), boxes[:, [1, 0, 3, 2, 4]]
    return np.ascontiguousarray(image), boxes


def _teach(recipe: Recipe, sources: Sources, seed: int) -> tuple[Teach, str]:  # noqa: ARG001
    refuse_label_maps(sources, "boxes")
    grid, asked = Grid.from_card(recipe.grid), sees_phase({"arguments": recipe.arguments})
    read = [
        boxed(cases.read_case(one, grid, with_phase=asked), grid.spacing[0])
        for one in sources.scans
    ]
    known = {id(one.case): one for one in read}
    given = dict(recipe.drawing)
    most, blind = given.pop("most"), given.pop("blind", BLIND)
    drawing = drawing_of(given)

    def teach(rng: np.random.Generator) -> Batch:
        return cases.together(
            draw(known, drawing, rng, inputs=recipe.arguments["inputs"], most=most, blind=blind)
            for _ in range(recipe.batch)
        )

    boxes = sum(len(one.boxes) for one in read)
    phased = sum(one.case.phase is not None for one in read)
    told = f"{len(read)} scans with {boxes} boxes in slices"
    return teach, f"{told}, {phased} of them with phase" if asked else told


def _loss(recipe: Recipe) -> BoxLoss:
    anchors = in_pixels({"arguments": recipe.arguments, "grid": recipe.grid})
    widest = LARGEST_MM / recipe.grid["spacing"][0]
    given = {"anchors": anchors.tolist(), "stride": cell(recipe.arguments), "widest": widest}
    return BoxLoss(**given, **(recipe.loss or {}))


TASK = Task(_teach, _loss)
