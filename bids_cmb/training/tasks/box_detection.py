"""Training task: detect microbleeds in slices as boxes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bids_cmb.detection.boxes import make_target_boxes
from bids_cmb.detection.cascade import (
    compute_stride,
    make_slice_input,
    scale_anchors,
    uses_phase,
)
from bids_cmb.imaging.cropping import crop_or_pad
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.phase import NEUTRAL
from bids_cmb.lesions.measure import MAX_DIAMETER_MM
from bids_cmb.training.losses import BoxLoss
from bids_cmb.training.patches import PatchSampling, augment_intensity, collate, sample_centre
from bids_cmb.training.recipe import (
    Batch,
    BatchFunction,
    Recipe,
    Sources,
    Task,
    check_no_label_maps,
    make_patch_sampling,
)
from bids_cmb.training.reference_labels import LESION
from bids_cmb.training.scan_loading import TrainingScan, load_training_scans

PHASE_DROPOUT = 0.3  # share of patches without their phase, so that the network can do without
# The place that a patch is drawn around lies within a third of a side of its middle
SHIFT_DIVISOR = 3


@dataclass(frozen=True, eq=False)
class SliceBoxes:
    """A scan and the boxes of its slices, (N, 6), from `detection.boxes.make_target_boxes`."""

    case: TrainingScan
    boxes: np.ndarray


def find_slice_boxes(scan: TrainingScan, spacing: float) -> SliceBoxes:
    """Find the boxes of a scan's lesions in its slices."""
    rows = [
        make_target_boxes(
            voxels.astype(int),
            spacing,
            certain=scan.labels[tuple(voxels[0])] == LESION,
        )
        for voxels in scan.sampling_centres["lesion"]
    ]
    return SliceBoxes(scan, np.concatenate([np.zeros((0, 6), np.float32), *rows]))


def sample_patch(
    known: Mapping[int, SliceBoxes], sampling: PatchSampling,
    rng: np.random.Generator, *, inputs: int, most: int, blind: float = PHASE_DROPOUT,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Sample and augment a part of a slice (X, Y, inputs) and its boxes (most, 5), see `BoxLoss`.

    A network with phase input gets none in a share ``blind`` of the patches.
    """
    scan, centre = sample_centre([block_.case for block_ in known.values()], sampling.shares, rng)
    side = sampling.shape[0]
    shift = rng.integers(-(side // SHIFT_DIVISOR), side // SHIFT_DIVISOR + 1, 2)
    start = centre[:2] - side // 2 + shift
    window = (np.array([*start, centre[2] - 1]), (side, side, 3))
    block = np.maximum(crop_or_pad(scan.image, *window), 0).astype(np.float32)
    phase = None
    if scan.phase is not None and rng.random() >= blind:
        phase = crop_or_pad(scan.phase, *window, beyond=NEUTRAL).astype(np.float32)
    if centre[2] == 0 or centre[2] == scan.image.shape[2] - 1:  # as `make_slice_input` has it
        for block_ in (block, phase) if phase is not None else (block,):
            block_[:, :, 0 if centre[2] == 0 else 2] = block_[:, :, 1]
    block = augment_intensity(block, sampling, rng)
    boxes = known[id(scan)].boxes
    boxes = boxes[boxes[:, 0] == centre[2]][:, 1:]
    boxes = boxes - np.array([*start, 0, 0, 0], np.float32)
    boxes = boxes[((boxes[:, :2] >= 0) & (boxes[:, :2] < side)).all(axis=1)][:most]
    image, boxes = _flip_randomly(
        make_slice_input(block, 1, inputs, phase), boxes, rng, swaps=sampling.swaps
    )
    truth = np.zeros((most, 5), np.float32)
    truth[: len(boxes)] = boxes
    return image, truth


def _flip_randomly(
    image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator, *, swaps: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Flip a square and its boxes along random axes, at times swapping its axes."""
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


def _make_batches(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:  # noqa: ARG001
    check_no_label_maps(sources, "boxes")
    grid, with_phase = Grid.from_card(recipe.grid), uses_phase({"arguments": recipe.arguments})
    scans = [
        find_slice_boxes(scan, grid.spacing[0])
        for scan in load_training_scans(sources.scans, grid, sources.loading, with_phase=with_phase)
    ]
    known = {id(item.case): item for item in scans}
    options = dict(recipe.drawing)
    most, blind = options.pop("most"), options.pop("blind", PHASE_DROPOUT)
    sampling = make_patch_sampling(options)

    def sample(rng: np.random.Generator) -> Batch:
        return collate(
            sample_patch(
                known, sampling, rng, inputs=recipe.arguments["inputs"], most=most, blind=blind
            )
            for _ in range(recipe.batch)
        )

    boxes = sum(len(item.boxes) for item in scans)
    phased = sum(item.case.phase is not None for item in scans)
    description = f"{len(scans)} scans with {boxes} boxes in slices"
    return sample, f"{description}, {phased} of them with phase" if with_phase else description


def _make_loss(recipe: Recipe) -> BoxLoss:
    anchors = scale_anchors({"arguments": recipe.arguments, "grid": recipe.grid})
    widest = MAX_DIAMETER_MM / recipe.grid["spacing"][0]
    settings = {
        "anchors": anchors.tolist(),
        "stride": compute_stride(recipe.arguments),
        "widest": widest,
    }
    return BoxLoss(**settings, **(recipe.loss or {}))


TASK = Task(_make_batches, _make_loss)
