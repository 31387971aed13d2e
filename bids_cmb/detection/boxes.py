"""Boxes around dark spots in slices: compared, thinned out, joined across slices, clustered.

A box is (x, y, w, h) in pixels of a slice: its middle and its sides. Pixel i reaches from i to
i + 1, so the middle of pixel i lies at i + 0.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_cmb.lesions.measure import MAX_DIAMETER_MM, MIN_DIAMETER_MM

SURE, UNSURE = 1, 2  # kinds of true boxes; 0 is no box
PART = 0.3  # of a lesion's largest area: slices that show less of it may be missed
LEAST = 1e-6  # confidence, below which all weigh the same
STEEPEST = 4.0  # a box is at most e to this times larger, or smaller, than its anchor


@dataclass(frozen=True)
class Suspect:
    """Boxes of neighbouring slices that may show one microbleed; in voxels of the network's grid.

    Attributes:
        centre: Mean of the boxes' middles and slices, weighed by their confidence; from 0, where
            a voxel has its middle, unlike a box.
        size: Sides of the surest box.
        slices: First and last.
        confidence: Of the surest box, 0 to 1.
        boxes: How many.
    """

    centre: tuple[float, float, float]
    size: tuple[float, float]
    slices: tuple[int, int]
    confidence: float
    boxes: int


# --- True boxes -----------------------------------------------------------------------------------


def true_boxes(lesion: np.ndarray, spacing: float, *, sure: bool) -> np.ndarray:
    """The boxes of one lesion, one for each slice it is seen in.

    Args:
        lesion: Its voxels, (N, 3); the slice last.
        spacing: mm of a pixel.
        sure: Whether it has to be found. Slices that show less than `PART` of its largest area
            need not be found in any case.

    Returns:
        Slice, x, y, w, h and kind, `SURE` or `UNSURE`, float32 (M, 6). Sides are 2 to 10 mm, as a
        microbleed's are by definition.
    """
    slices, areas = np.unique(lesion[:, 2], return_counts=True)
    rows = []
    for at, area in zip(slices, areas, strict=True):
        pixels = lesion[lesion[:, 2] == at, :2].astype(float)
        low, high = pixels.min(axis=0), pixels.max(axis=0) + 1
        sides = np.clip(high - low, MIN_DIAMETER_MM / spacing, MAX_DIAMETER_MM / spacing)
        kind = SURE if sure and area >= PART * areas.max() else UNSURE
        rows.append([at, *(low + high) / 2, *sides, kind])
    return np.array(rows, np.float32).reshape(-1, 6)


def cluster_sizes(sizes: np.ndarray, count: int, *, rounds: int = 200) -> np.ndarray:
    """Anchors: the sizes that most sizes are alike, by k-means whose distance is 1 - IoU.

    Args:
        sizes: Sides of boxes, (N, 2), in any unit.
        count: How many anchors.
        rounds: At most.

    Returns:
        The smallest first, (count, 2). It begins with sizes at equal shares of the areas, so that
        the same sizes give the same anchors.

    Raises:
        ValueError: If there are fewer sizes than anchors.

    Source:
        Redmon & Farhadi 2017, doi:10.1109/CVPR.2017.690.
    """
    if len(sizes) < count:
        raise ValueError(f"Anchors must not be more than boxes, {len(sizes)}; found {count}.")
    sizes = np.asarray(sizes, float)
    ordered = sizes[np.argsort(sizes.prod(axis=1), kind="stable")]
    anchors = ordered[((np.arange(count) + 0.5) / count * len(sizes)).astype(int)]
    owner = np.full(len(sizes), -1)
    for _ in range(rounds):
        nearest = overlap_of_sizes(sizes, anchors).argmax(axis=1)
        if (nearest == owner).all():
            break
        owner = nearest
        held = [sizes[owner == one] for one in range(count)]
        anchors = np.array(
            [
                part.mean(axis=0) if len(part) else was
                for part, was in zip(held, anchors, strict=True)
            ]
        )
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


# --- What a network says --------------------------------------------------------------------------


def read_boxes(answer: np.ndarray, anchors: Sequence[Sequence[float]], stride: int) -> np.ndarray:
    """The boxes of a slice that `networks.architectures.yolo` answers with.

    Args:
        answer: Raw numbers, (X, Y, 5 x anchors or more): for each cell and anchor where the
            box's middle lies in the cell and how much larger it is than the anchor, then for each
            anchor the confidence.
        anchors: Sides in pixels, (A, 2).
        stride: Pixels of a cell.

    Returns:
        x, y, w, h and confidence, 0 to 1, float32 (X · Y · A, 5).
    """
    cells, count = answer.shape[:2], len(anchors)
    shape = answer[..., : 4 * count].reshape(*cells, count, 4)
    said = answer[..., 4 * count : 5 * count]
    corner = np.stack(np.meshgrid(*map(np.arange, cells), indexing="ij"), axis=-1)[:, :, None]
    middle = (corner + _logistic(shape[..., :2])) * stride
    sides = np.asarray(anchors) * np.exp(np.clip(shape[..., 2:], -STEEPEST, STEEPEST))
    boxes = np.concatenate([middle, sides, _logistic(said)[..., None]], axis=-1)
    return boxes.reshape(-1, 5).astype(np.float32)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(np.asarray(x, float) / 2)


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) with others (M, 4): (N, M)."""
    low = np.maximum(_low(boxes)[:, None], _low(others)[None])
    high = np.minimum(_high(boxes)[:, None], _high(others)[None])
    common = np.clip(high - low, 0, None).prod(axis=-1)
    total = boxes[:, None, 2:4].prod(axis=-1) + others[None, :, 2:4].prod(axis=-1)
    return common / np.maximum(total - common, 1e-9)


def overlap_of_sizes(sizes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes with a common middle, (N, 2) and (M, 2): (N, M)."""
    common = np.minimum(sizes[:, None], others[None]).prod(axis=-1)
    return common / (sizes.prod(axis=1)[:, None] + others.prod(axis=1)[None] - common)


def _low(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, :2] - boxes[:, 2:4] / 2


def _high(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, :2] + boxes[:, 2:4] / 2


def thinned(boxes: np.ndarray, most: float) -> np.ndarray:
    """Boxes of a slice of which no two overlap by more than ``most``: the surer one stays.

    Args:
        boxes: x, y, w, h and confidence, (N, 5).
        most: Intersection over union, 0 to 1.

    Returns:
        Those that stay, the surest first; among equals, the one that came first.
    """
    left = boxes[np.argsort(-boxes[:, 4], kind="stable")]
    kept = []
    while len(left):
        kept.append(left[0])
        left = left[1:][overlap(left[:1], left[1:])[0] <= most]
    return np.array(kept, boxes.dtype).reshape(-1, 5)


def joined(slices: Sequence[np.ndarray], *, near: float, gap: int) -> list[Suspect]:
    """Boxes of all slices, joined where they may show the same thing.

    The surest box that is left begins a suspect. From it, slice by slice up and then down, the
    box nearest to the last one joins if their middles are less than ``near`` apart; the walk ends
    after more than ``gap`` slices without one. So each box belongs to one suspect, each suspect
    has one box in a slice, and what runs through many slices is one suspect.

    Args:
        slices: x, y, w, h and confidence of each slice's boxes, (N, 5).
        near: Pixels.
        gap: Slices.

    Returns:
        The surest first; among equals the one in the lower slice, then that with the lower x, y.
    """
    table = np.array(
        [(at, *box) for at, boxes in enumerate(slices) for box in boxes], float
    ).reshape(-1, 6)
    table = table[np.lexsort(table.T[[4, 3, 2, 1, 0, 5]] * [[1], [1], [1], [1], [1], [-1]])]
    free = np.ones(len(table), bool)
    suspects = []
    for seed in range(len(table)):
        if free[seed]:
            free[seed] = False
            members = [seed, *_walk(table, free, seed, near, 1 + gap)]
            suspects.append(_suspect(table[members]))
    return suspects


def _walk(table: np.ndarray, free: np.ndarray, seed: int, near: float, reach: int) -> list[int]:
    """Boxes that join on the way up and on the way down; they are free no longer."""
    found = []
    for way in (1, -1):
        last, at = seed, table[seed, 0]
        while abs(at - table[last, 0]) < reach:
            at += way
            there = np.flatnonzero(free & (table[:, 0] == at))
            away = np.hypot(*(table[there, 1:3] - table[last, 1:3]).T)
            if len(there) and away.min() < near:
                last = int(there[away.argmin()])
                free[last] = False
                found.append(last)
    return found


def _suspect(boxes: np.ndarray) -> Suspect:
    """One suspect from its boxes, slice and box (N, 6), the surest first."""
    at, x, y = np.average(boxes[:, :3], axis=0, weights=np.maximum(boxes[:, 5], LEAST))
    first, last = boxes[:, 0].min(), boxes[:, 0].max()
    return Suspect(
        centre=(float(x - 0.5), float(y - 0.5), float(at)),
        size=(float(boxes[0, 3]), float(boxes[0, 4])),
        slices=(int(first), int(last)),
        confidence=float(boxes[0, 5]),
        boxes=len(boxes),
    )
