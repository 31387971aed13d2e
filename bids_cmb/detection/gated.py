"""The design `gated`: a classifier selects tiles of a slice, a U-Net segments microbleeds in them.

Both see a slice with its two neighbours. Tiles overlap by half; a pixel's gate response is the
highest of the tiles over it. Slices in which the gate is shut everywhere are not segmented.
"""

from collections.abc import Mapping

import numpy as np
from scipy.special import expit

from bids_cmb.detection.members import (
    dilate_by_voxel,
    index_members,
    load_predictor,
    resample_within_brain,
    split_batches,
)
from bids_cmb.detection.outputs import DetectorOutputs, GateResponse
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.inference import Predictor
from bids_cmb.networks.loading import ModelOptions

GATE_MODES = ("off", "hard", "soft")
TILE_VOXELS = 32  # a side, as in the gate's recipe
TILES_PER_BATCH = 256
SLICES_PER_BATCH = 4


def run_gated(
    image: Volume, brain: Volume, card: Mapping, models: ModelOptions
) -> tuple[Volume, DetectorOutputs]:
    """Predict the probability of microbleed at every voxel, and the gate response of each slice.

    Args:
        image: T2*-weighted magnitude or SWI, as acquired.
        brain: True inside the brain, on the grid of ``image``.
        card: With the members ``gate`` and ``segmenter``, on one grid, and ``parameters``: how the
            gate is applied (``gate``, one of `GATE_MODES`) and its threshold (``gate_threshold``).
        models: Which networks, and how.

    Returns:
        On the grid of ``image``, 0 to 1, float32; and the gate responses, none if it is off.

    Raises:
        ValueError: If the card lacks a member or names another mode, or weights are not its own.
    """
    mode, threshold = _read_gate(card)
    gate, segmenter = _get_members(card)
    fed = preprocess(image, brain, Grid.from_card(segmenter["grid"]))
    inside = dilate_by_voxel(fed.brain)
    response = np.ones(fed.image.shape, np.float32)
    located = ()
    if mode != "off":
        predict = load_probability_predictor(card, gate, models)
        response = compute_gate_map(predict, fed.image.data, inside)
        volume = Volume(response, fed.image.affine)
        located = locate_gate_responses(card["name"], volume, threshold)
    slices = np.flatnonzero((inside & (response >= threshold)).any(axis=(0, 1)))
    predict = load_probability_predictor(card, segmenter, models)
    segmentation = segment_slices(predict, fed.image.data, slices)
    gated = Volume(apply_gate(response, segmentation, mode, threshold), fed.image.affine)
    probability = Volume(resample_within_brain(gated, image, brain), image.affine)
    return probability, DetectorOutputs(gate_responses=located)


def load_probability_predictor(card: Mapping, member: Mapping, models: ModelOptions) -> Predictor:
    """Load a member whose logits become probabilities: from batches (B, X, Y, 3)."""
    predict = load_predictor(card, member, models)
    return lambda batch: expit(predict(batch))


def compute_gate_map(predict: Predictor, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Compute the gate response at every pixel.

    Args:
        predict: From tiles (B, `TILE_VOXELS`, `TILE_VOXELS`, 3) to probabilities (B, 1).
        image: On the networks' grid, (X, Y, Z).
        mask: True where the response is needed, (X, Y, Z); tiles without such a voxel in their
            middle slice are left out.

    Returns:
        The highest probability of the tiles over the pixel, float32 (X, Y, Z); 0 without one.
    """
    response = np.zeros(image.shape, np.float32)
    starts, probabilities = predict_tiles(predict, image, mask)
    for (x, y, z), probability in zip(starts, probabilities, strict=True):
        tile = response[x : x + TILE_VOXELS, y : y + TILE_VOXELS, z]
        np.maximum(tile, probability, out=tile)
    return response


def locate_gate_responses(
    name: str, response: Volume, threshold: float
) -> tuple[GateResponse, ...]:  # fmt: skip
    """Locate the highest gate response of each slice that has one.

    Args:
        name: Of the detector.
        response: From `compute_gate_map`, on the networks' grid.
        threshold: From which the gate is open.
    """
    located = []
    for index in np.flatnonzero(response.data.any(axis=(0, 1))):
        plane = response.data[:, :, index]
        middle = np.argwhere(plane == plane.max()).mean(axis=0)
        position = tuple(response.world(np.array([*middle, index])).tolist())
        located.append(GateResponse(name, position, float(plane.max()), threshold))
    return tuple(located)


def predict_tiles(
    predict: Predictor, image: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Predict the probability that a tile holds a lesion.

    Args are those of `compute_gate_map`.

    Returns:
        starts: The first voxel of each tile, (N, 3).
        probabilities: (N,).
    """
    padded = np.pad(image, [(0, TILE_VOXELS), (0, TILE_VOXELS), (1, 1)])
    starts, probabilities = [], []
    for x in _list_tile_starts(image.shape[0]):
        for y in _list_tile_starts(image.shape[1]):
            window = np.s_[x : x + TILE_VOXELS, y : y + TILE_VOXELS]
            for batch in split_batches(
                np.flatnonzero(mask[window].any(axis=(0, 1))), TILES_PER_BATCH
            ):
                tiles = [padded[window][..., z : z + 3] for z in batch]
                probabilities.append(predict(np.stack(tiles))[:, 0])
                starts += [(x, y, z) for z in batch]
    if not starts:
        return np.zeros((0, 3), int), np.zeros(0, np.float32)
    return np.array(starts), np.concatenate(probabilities)


def segment_slices(predict: Predictor, image: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """Segment some slices.

    Args:
        predict: From slices (B, X, Y, 3) to probabilities (B, X, Y, 1).
        image: On the networks' grid, (X, Y, Z); X and Y are multiples of what it halves.
        slices: Their indices.

    Returns:
        Probability of microbleed, float32 (X, Y, Z); 0 in the other slices.
    """
    padded, probability = np.pad(image, [(0, 0), (0, 0), (1, 1)]), np.zeros(image.shape, np.float32)
    for batch in split_batches(slices, SLICES_PER_BATCH):
        output = predict(np.stack([padded[..., z : z + 3] for z in batch]))
        probability[..., batch] = np.moveaxis(output[..., 0], 0, -1)
    return probability


def apply_gate(
    response: np.ndarray, probability: np.ndarray, mode: str, threshold: float
) -> np.ndarray:
    """Apply a gate to a segmentation.

    Args:
        response: Of the gate, 0 to 1.
        probability: Of microbleed, of the same shape.
        mode: ``off``, no gate; ``hard``, 0 where it is shut; ``soft``, the product
            where it is open.
        threshold: At or above which it is open.
    """
    if mode == "off":
        return probability
    passed = probability * response if mode == "soft" else probability
    return np.where(response >= threshold, passed, 0)


def _read_gate(card: Mapping) -> tuple[str, float]:
    """Read mode and threshold of the gate."""
    parameters = card.get("parameters", {})
    if parameters.get("gate") not in GATE_MODES:
        raise ValueError(
            f"{card['name']}: `gate` of a gated detector's parameters must be one of "
            f"{', '.join(GATE_MODES)}; found {parameters.get('gate')!r}."
        )
    return parameters["gate"], parameters["gate_threshold"]


def _get_members(card: Mapping) -> tuple[Mapping, Mapping]:
    members = index_members(card)
    if not {"gate", "segmenter"} <= set(members):
        raise ValueError(
            f"{card['name']}: a gated detector needs the members gate and segmenter; "
            f"found {', '.join(members) or 'none'}."
        )
    return members["gate"], members["segmenter"]


def _list_tile_starts(size: int) -> range:
    """List the first voxels of tiles that overlap by half and cover everything."""
    return range(0, max(1, size - TILE_VOXELS // 2), TILE_VOXELS // 2)
