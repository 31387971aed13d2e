"""The gated detector: a classifier says which tiles of a slice hold microbleeds, a U-Net where.

Both see a slice with its two neighbours. Tiles overlap by half; a pixel's gate is as open as that
of the most suspicious tile over it. Slices that no tile opens are not segmented.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.special import expit

from bids_cmb.detection.outputs import Evidence, Opening
from bids_cmb.imaging.preprocessing import Grid, find_bounds, preprocess, resample_to_scan
from bids_cmb.imaging.volume import Volume, crop
from bids_cmb.networks.inference import ModelOptions, load_patch_model
from bids_cmb.networks.model_cards import locate_weights

GATES = ("off", "hard", "soft")
TILE = 32  # voxels a side, as the gate's recipe has it
TILES = 256  # at once
SLICES = 4  # at once
Ask = Callable[[np.ndarray], np.ndarray]


def gated(
    image: Volume, brain: Volume, said: dict, models: ModelOptions
) -> tuple[Volume, Evidence]:
    """The chance of microbleed at every voxel, and how far the gate opened in each slice.

    Args:
        image: T2*-weighted magnitude or SWI, as it came.
        brain: True inside the brain, on the grid of ``image``.
        said: The card: members ``gate`` and ``segmenter``, on one grid, and ``parameters``: how the
            gate counts (``gate``, one of `GATES`) and its threshold (``gate_threshold``).
        models: Which networks, and how.

    Returns:
        On the grid of ``image``, 0 to 1, float32; and the gate's openings, none if it is off.

    Raises:
        ValueError: If the card lacks a member or names another gate, or weights are not its own.
    """
    how, threshold = _gating(said)
    gate, segmenter = _members(said)
    fed = preprocess(image, brain, Grid.from_card(segmenter["grid"]))
    inside = ndimage.binary_dilation(fed.brain.data, np.ones((3, 3, 3), bool))
    opened = np.ones(fed.image.shape, np.float32)
    openings = ()
    if how != "off":
        opened = gate_map(asker(said["name"], gate, models), fed.image.data, inside)
        openings = openings_of(said["name"], Volume(opened, fed.image.affine), threshold)
    slices = np.flatnonzero((inside & (opened >= threshold)).any(axis=(0, 1)))
    found = segmented(asker(said["name"], segmenter, models), fed.image.data, slices)
    kept = Volume(combined(opened, found, how, threshold), fed.image.affine)
    low, high = find_bounds(np.asarray(brain.data) > 0)
    box, window = tuple(map(slice, low, high)), crop(image, low, high)
    chance = np.zeros(image.shape, np.float32)
    chance[box] = resample_to_scan(kept, window).data
    return Volume(chance, image.affine), Evidence(openings=openings)


def asker(name: str, member: dict, models: ModelOptions) -> Ask:
    """From batches (B, X, Y, 3) to chances, of a member of the card of that name."""
    ask = load_patch_model(
        member, locate_weights(name, member, models.folder), precision=models.precision
    )
    return lambda batch: expit(ask(batch))


def gate_map(ask: Ask, image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """How open the gate is at every pixel.

    Args:
        ask: From tiles (B, TILE, TILE, 3) to chances (B, 1).
        image: On the networks' grid, (X, Y, Z).
        where: True where the answer is wanted, (X, Y, Z); tiles without such a voxel in their
            middle slice stay shut.

    Returns:
        The highest chance of the tiles over the pixel, float32 (X, Y, Z).
    """
    opened = np.zeros(image.shape, np.float32)
    for (x, y, z), chance in zip(*ask_tiles(ask, image, where), strict=True):
        part = opened[x : x + TILE, y : y + TILE, z]
        np.maximum(part, chance, out=part)
    return opened


def openings_of(name: str, opened: Volume, threshold: float) -> tuple[Opening, ...]:
    """How far the gate opens in each slice that it was asked about, and where.

    Args:
        name: Of the detector.
        opened: How open the gate is at every pixel of its grid.
        threshold: From which on it is open.
    """
    found = []
    for at in np.flatnonzero(opened.data.any(axis=(0, 1))):
        plane = opened.data[:, :, at]
        middle = np.argwhere(plane == plane.max()).mean(axis=0)
        place = tuple(opened.world(np.array([*middle, at])).tolist())
        found.append(Opening(name, place, float(plane.max()), threshold))
    return tuple(found)


def ask_tiles(ask: Ask, image: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first voxel of each tile, (N, 3), and the chance that it holds a lesion, (N,).

    Args and tiles as `gate_map` has them.
    """
    padded = np.pad(image, [(0, TILE), (0, TILE), (1, 1)])
    starts, chances = [], []
    for x in _starts(image.shape[0]):
        for y in _starts(image.shape[1]):
            wanted = np.flatnonzero(where[x : x + TILE, y : y + TILE].any(axis=(0, 1)))
            for some in _parts(wanted, TILES):
                tiles = [padded[x : x + TILE, y : y + TILE, z : z + 3] for z in some]
                chances.append(ask(np.stack(tiles))[:, 0])
                starts += [(x, y, z) for z in some]
    if not starts:
        return np.zeros((0, 3), int), np.zeros(0, np.float32)
    return np.array(starts), np.concatenate(chances)


def segmented(ask: Ask, image: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """What the segmenter says of some slices, 0 elsewhere: float32 (X, Y, Z).

    Args:
        ask: From slices (B, X, Y, 3) to chances (B, X, Y, 1).
        image: On the networks' grid, (X, Y, Z); X and Y are multiples of what it halves.
        slices: Indices of those that it is asked about.
    """
    padded, found = np.pad(image, [(0, 0), (0, 0), (1, 1)]), np.zeros(image.shape, np.float32)
    for some in _parts(slices, SLICES):
        said = ask(np.stack([padded[..., z : z + 3] for z in some]))
        found[..., some] = np.moveaxis(said[..., 0], 0, -1)
    return found


def combined(opened: np.ndarray, found: np.ndarray, how: str, threshold: float) -> np.ndarray:
    """Gate and segmentation together.

    Args:
        opened: How open the gate is, 0 to 1.
        found: Chance of microbleed, of the same shape.
        how: ``off``, no gate; ``hard``, 0 where it is shut; ``soft``, the product where it is open.
        threshold: At or above which it is open.
    """
    if how == "off":
        return found
    return np.where(opened >= threshold, found * opened if how == "soft" else found, 0)


def _gating(said: dict) -> tuple[str, float]:
    given = said.get("parameters", {})
    if given.get("gate") not in GATES:
        raise ValueError(
            f"{said['name']}: `gate` of a gated detector's parameters must be one of "
            f"{', '.join(GATES)}; found {given.get('gate')!r}."
        )
    return given["gate"], given["gate_threshold"]


def _members(said: dict) -> tuple[dict, dict]:
    members = {member["name"]: member for member in said["members"]}
    for part in ("gate", "segmenter"):
        if part not in members:
            raise ValueError(
                f"{said['name']}: a gated detector needs the members gate and segmenter; "
                f"found {', '.join(members) or 'none'}."
            )
    return members["gate"], members["segmenter"]


def _starts(size: int) -> range:
    """First voxels of tiles that overlap by half and leave nothing out."""
    return range(0, max(1, size - TILE // 2), TILE // 2)


def _parts(indices: np.ndarray, most: int) -> list[np.ndarray]:
    return [indices[at : at + most] for at in range(0, len(indices), most)]
