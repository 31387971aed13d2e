"""Tiles of an image: boxes about what is wanted, few, and each small enough to compute at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

MAX_TILE_VOXELS = 350_000  # voxels that are decoded at a time, with what lies about them
CALL_COST_VOXELS = 8_000  # voxels that could be decoded in the time that asking for a tile takes
SPLIT_COST = 0.2  # of a tile's cost, for each time that it will have to be halved
BLOCK_VOXELS = 4  # voxels: where one tile may end and the next begin
MIN_TILE_BLOCKS = 2  # blocks that a tile has along each axis where it was cut
N_TILED_LEVELS = 2  # levels, from the finest, that are
DECODER_HALO = (4, 2)  # by which all of the decoder's look beyond a tile, at each level in tiles
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class LevelPlan:
    """The tiles of a level, so that the finest one is computed where it is wanted.

    Attributes:
        shape: Of the level, in voxels.
        tiles: First voxel of, and end beyond, the box about what is needed in each tile.
        halo: Voxels by which the decoder looks beyond a tile.
    """

    shape: tuple[int, ...]
    tiles: Sequence[tuple[Array, Array]]
    halo: int


@lru_cache(maxsize=1)
def plan_levels(wanted: bytes, shape: tuple[int, ...]) -> tuple[LevelPlan, ...]:
    """Plan the levels in tiles; every fold of a scan has the same.

    Args:
        wanted: Bits of the voxels of the finest level whose probability is wanted.
        shape: Of that level.
    """
    bits = np.unpackbits(np.frombuffer(wanted, np.uint8), count=int(np.prod(shape)))
    finest, plans = bits.reshape(shape).astype(bool), []
    for level in range(N_TILED_LEVELS):
        needed = _find_needed(finest, level, shape)
        plans.append(
            LevelPlan(shape, _divide_into_tiles(needed, DECODER_HALO[level]), DECODER_HALO[level])
        )
        shape = tuple(side // 2 for side in shape)
    return tuple(plans)


def _find_needed(wanted: Array, level: int, shape: tuple[int, ...]) -> Array:
    """Find the voxels of a level that can reach what is wanted at the finest one."""
    if level == 0:
        return wanted
    step = 2**level
    sides = np.array(shape) * step
    padded = np.pad(wanted, [(0, max(0, int(n - m))) for n, m in zip(sides, wanted.shape)])  # noqa: B905
    padded = padded[: sides[0], : sides[1], : sides[2]]
    blocks = padded.reshape(shape[0], step, shape[1], step, shape[2], step)
    reach = np.ones((3, 3, 3), bool)
    # A tile reaches 4 voxels further, two of these, and one more where it must begin evenly.
    return ndimage.binary_dilation(blocks.any(axis=(1, 3, 5)), reach, iterations=3)


def _divide_into_tiles(needed: Array, halo: int) -> list[tuple[Array, Array]]:
    """Divide all that is needed into boxes, few above `MAX_TILE_VOXELS`: first voxels and ends."""
    sides = -(-np.array(needed.shape) // BLOCK_VOXELS)
    padded = np.pad(
        needed, [(0, n * BLOCK_VOXELS - m) for n, m in zip(sides, needed.shape, strict=True)]
    )
    blocks = padded.reshape(*(size for side in sides for size in (side, BLOCK_VOXELS))).any(
        axis=(1, 3, 5)
    )
    [whole] = _bound(blocks, np.zeros(3, int), sides)
    return [
        tile
        for first, end in _divide(blocks, whole, halo)
        for tile in _bound(
            needed, first * BLOCK_VOXELS, np.minimum(end * BLOCK_VOXELS, needed.shape)
        )
    ]


def _divide(blocks: Array, box: tuple[Array, Array], halo: int) -> list[tuple[Array, Array]]:
    """Divide a box, in blocks, in two where both sides cost least together; and so on.

    Ends where the whole costs less, and may be computed at once.
    """
    first, end = box
    fits = np.prod((end - first) * BLOCK_VOXELS + 2 * halo) <= MAX_TILE_VOXELS
    least, halves = (_estimate_cost(box, halo) if fits else np.inf), []
    for axis in range(3):
        for position in range(first[axis] + MIN_TILE_BLOCKS, end[axis] - MIN_TILE_BLOCKS + 1):
            until, since = end.copy(), first.copy()
            until[axis] = since[axis] = position
            pair = [*_bound(blocks, first, until), *_bound(blocks, since, end)]
            together = sum(_estimate_cost(half, halo) for half in pair)
            if together < least:
                least, halves = together, pair
    return [tile for half in halves for tile in _divide(blocks, half, halo)] or [box]


def _estimate_cost(box: tuple[Array, Array], halo: int) -> float:
    """Estimate the cost of a box in voxels, most of the halo and later divisions included."""
    voxels = np.prod((box[1] - box[0]) * BLOCK_VOXELS + 1.25 * halo) + CALL_COST_VOXELS
    return float(voxels * (1 + SPLIT_COST * np.log2(max(1.0, voxels / MAX_TILE_VOXELS))))


def _bound(needed: Array, first: Array, end: Array) -> list[tuple[Array, Array]]:
    """Bound what is needed between ``first`` and ``end`` by a box; none about nothing."""
    part = needed[box_slices(first, end)]
    spots = [np.flatnonzero(part.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(spots[0]):
        return []
    low, high = np.transpose([(along[0], along[-1] + 1) for along in spots])
    return [(first + low, first + high)]


def box_slices(first: Array, end: Array) -> tuple[slice, ...]:
    """Make the slices from ``first`` to before ``end``."""
    return tuple(slice(int(low), int(high)) for low, high in zip(first, end, strict=True))
