"""Boxes around dark spots in slices: decode, compare, suppress and link them across slices.

A box is (x, y, w, h) in pixels of a slice: its centre and its sides. Pixel i reaches from i to
i + 1, so the centre of pixel i lies at i + 0.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from bids_cmb.lesions.measure import MAX_DIAMETER_MM, MIN_DIAMETER_MM

CERTAIN, UNCERTAIN = 1, 2  # kinds of target boxes; 0 is no box
MIN_AREA_SHARE = 0.3  # of a lesion's largest area: slices that show less of it may be missed
MIN_WEIGHT = 1e-6  # confidence below which all boxes weigh the same
MAX_LOG_SCALE = 4.0  # a box is at most e to this times larger, or smaller, than its anchor


@dataclass(frozen=True)
class BoxCandidate:
    """Boxes of neighbouring slices that may show one microbleed; in voxels of the network's grid.

    Attributes:
        centre: Mean of the boxes' centres and slices, weighted by their confidence; from 0, where
            a voxel has its centre, unlike a box.
        size: Sides of the box of highest confidence.
        slices: First and last.
        confidence: The highest of the boxes, 0 to 1.
        boxes: Their number.
    """

    centre: tuple[float, float, float]
    size: tuple[float, float]
    slices: tuple[int, int]
    confidence: float
    boxes: int


# --- Target boxes ---------------------------------------------------------------------------------


def make_target_boxes(lesion: np.ndarray, spacing: float, *, certain: bool) -> np.ndarray:
    """Make the target boxes of a lesion, one for each slice that shows it.

    Args:
        lesion: Its voxels, (N, 3); the slice last.
        spacing: mm of a pixel.
        certain: Whether it has to be detected. In slices that show less than `MIN_AREA_SHARE` of
            its largest area it need not be.

    Returns:
        Slice, x, y, w, h and kind, `CERTAIN` or `UNCERTAIN`, float32 (M, 6). Sides are 2 to 10 mm,
        as a microbleed's are by definition.
    """
    slices, areas = np.unique(lesion[:, 2], return_counts=True)
    rows = []
    for index, area in zip(slices, areas, strict=True):
        pixels = lesion[lesion[:, 2] == index, :2].astype(float)
        low, high = pixels.min(axis=0), pixels.max(axis=0) + 1
        sides = np.clip(high - low, MIN_DIAMETER_MM / spacing, MAX_DIAMETER_MM / spacing)
        kind = CERTAIN if certain and area >= MIN_AREA_SHARE * areas.max() else UNCERTAIN
        rows.append([index, *(low + high) / 2, *sides, kind])
    return np.array(rows, np.float32).reshape(-1, 6)


# --- Predicted boxes ------------------------------------------------------------------------------


def decode_boxes(
    output: np.ndarray, anchors: Sequence[Sequence[float]], stride: int
) -> np.ndarray:  # fmt: skip
    """Decode the boxes of a slice from the output of `networks.architectures.yolo`.

    Args:
        output: Raw numbers, (X, Y, 5 x anchors or more): for each cell and anchor where the
            box's centre lies in the cell and how much larger it is than the anchor, then for each
            anchor the confidence.
        anchors: Sides in pixels, (A, 2).
        stride: Pixels of a cell.

    Returns:
        x, y, w, h and confidence, 0 to 1, float32 (X · Y · A, 5).
    """
    cells, count = output.shape[:2], len(anchors)
    shape = output[..., : 4 * count].reshape(*cells, count, 4)
    confidence = expit(output[..., 4 * count : 5 * count].astype(float))
    corner = np.stack(np.meshgrid(*map(np.arange, cells), indexing="ij"), axis=-1)[:, :, None]
    centre = (corner + expit(shape[..., :2].astype(float))) * stride
    log_scale = np.clip(shape[..., 2:], -MAX_LOG_SCALE, MAX_LOG_SCALE)
    sides = np.asarray(anchors) * np.exp(log_scale)
    boxes = np.concatenate([centre, sides, confidence[..., None]], axis=-1)
    return boxes.reshape(-1, 5).astype(np.float32)


def compute_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of boxes (N, 4) with others (M, 4): (N, M)."""
    common = 1.0
    for axis in (0, 1):
        centre, half = boxes[:, None, axis], boxes[:, None, 2 + axis] / 2
        other, other_half = others[None, :, axis], others[None, :, 2 + axis] / 2
        low = np.maximum(centre - half, other - other_half)
        high = np.minimum(centre + half, other + other_half)
        common = common * np.maximum(high - low, 0)
    total = (boxes[:, 2] * boxes[:, 3])[:, None] + others[:, 2] * others[:, 3]
    return common / np.maximum(total - common, 1e-9)


def suppress_non_maxima(boxes: np.ndarray, max_iou: float) -> np.ndarray:
    """Suppress the boxes of a slice that overlap one of higher confidence by more than a share.

    Args:
        boxes: x, y, w, h and confidence, (N, 5).
        max_iou: Intersection over union, 0 to 1.

    Returns:
        The boxes that remain, by falling confidence; equals in their order.
    """
    remaining = boxes[np.argsort(-boxes[:, 4], kind="stable")]
    kept = []
    while len(remaining):
        kept.append(remaining[0])
        remaining = remaining[1:][compute_iou(remaining[:1], remaining[1:])[0] <= max_iou]
    return np.array(kept, boxes.dtype).reshape(-1, 5)


def link_boxes(slices: Sequence[np.ndarray], *, near: float, gap: int) -> list[BoxCandidate]:
    """Link the boxes of all slices where they may show the same thing.

    The box of highest confidence that is left begins a candidate. From it, slice by slice up and
    then down, the box nearest to the last one is linked if their centres are less than ``near``
    apart; this ends after more than ``gap`` slices without one. So each box belongs to one
    candidate, each candidate has one box in a slice, and what runs through many slices is one
    candidate.

    Args:
        slices: x, y, w, h and confidence of each slice's boxes, (N, 5).
        near: Pixels.
        gap: Slices.

    Returns:
        By falling confidence; among equals the one in the lower slice, then that with the lower x,
        y.
    """
    table = np.array(
        [(index, *box) for index, boxes in enumerate(slices) for box in boxes], float
    ).reshape(-1, 6)
    table = table[np.lexsort(table.T[[4, 3, 2, 1, 0, 5]] * [[1], [1], [1], [1], [1], [-1]])]
    free = np.ones(len(table), bool)
    rows = [np.flatnonzero(table[:, 0] == index) for index in range(len(slices))]
    candidates = []
    for seed in range(len(table)):
        if free[seed]:
            free[seed] = False
            members = [seed, *_follow(table, rows, free, seed, near=near, reach=1 + gap)]
            candidates.append(_merge(table[members]))
    return candidates


def _follow(
    table: np.ndarray, rows: Sequence[np.ndarray], free: np.ndarray, seed: int, *,
    near: float, reach: int,
) -> list[int]:  # fmt: skip
    """Follow a box up and down through the slices; the boxes it is linked to are free no longer.

    ``rows`` are those of the table in each slice.
    """
    linked = []
    for step in (1, -1):
        last, index = seed, int(table[seed, 0])
        while abs(index - table[last, 0]) < reach and 0 <= index + step < len(rows):
            index += step
            in_slice = rows[index][free[rows[index]]]
            distance = np.hypot(*(table[in_slice, 1:3] - table[last, 1:3]).T)
            if len(in_slice) and distance.min() < near:
                last = int(in_slice[distance.argmin()])
                free[last] = False
                linked.append(last)
    return linked


def _merge(boxes: np.ndarray) -> BoxCandidate:
    """Merge linked boxes, slice and box (N, 6), the one of highest confidence first."""
    weights = np.maximum(boxes[:, 5], MIN_WEIGHT)
    index, x, y = np.average(boxes[:, :3], axis=0, weights=weights)
    first, last = boxes[:, 0].min(), boxes[:, 0].max()
    return BoxCandidate(
        centre=(float(x - 0.5), float(y - 0.5), float(index)),
        size=(float(boxes[0, 3]), float(boxes[0, 4])),
        slices=(int(first), int(last)),
        confidence=float(boxes[0, 5]),
        boxes=len(boxes),
    )
