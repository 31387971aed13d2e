"""A detector's model card in use: its rules, its members' networks, and what all of them share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.cropping import crop, find_bounds
from bids_cmb.imaging.resampling import resample_to_scan
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.inference import Predictor
from bids_cmb.networks.loading import ModelOptions, load_patch_model
from bids_cmb.networks.model_cards import locate_weights

MAX_INTENSITY = 3.0  # brain medians: above, fluid and fat look the same
Items = TypeVar("Items", np.ndarray, Sequence)
Rules = TypeVar("Rules")


def read_rules(kind: type[Rules], parameters: Mapping, owner: str, name: str = "") -> Rules:
    """Read rules from the parameters of a card; what they leave out has its default.

    Args:
        kind: A dataclass, each field a parameter.
        parameters: Of the card.
        owner: Whose rules they are, for the sentence of an error.
        name: Of the detector, likewise.

    Raises:
        ValueError: If there is a parameter that is no field.
    """
    known = [field.name for field in fields(kind)]
    if unknown := sorted(set(parameters) - set(known)):
        detector = f" for {name}" if name else ""
        raise ValueError(
            f"The parameters of {owner} may be {', '.join(known)}; "
            f"found {', '.join(unknown)}{detector}."
        )
    return kind(**parameters)


def index_members(card: Mapping) -> dict[str, Mapping]:
    """Index the members of a card by their names."""
    return {member["name"]: member for member in card["members"]}


def locate_member(card: Mapping, member: Mapping, models: ModelOptions) -> Path:
    """Locate the weights of a member; see `networks.model_cards.locate_weights`."""
    return locate_weights(card["name"], member, models.folder)


def load_predictor(card: Mapping, member: Mapping, models: ModelOptions) -> Predictor:
    """Load a member that predicts patches; see `networks.loading.load_patch_model`."""
    path = locate_member(card, member, models)
    return load_patch_model(member, path, precision=models.precision)


def split_batches(items: Items, size: int) -> Iterator[Items]:
    """Split an array or a sequence into batches of at most ``size``."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def dilate_by_voxel(brain: Volume) -> np.ndarray:
    """Dilate a brain mask by a voxel, bool (X, Y, Z).

    On a network's grid: the edge of the brain lies between its voxels.
    """
    return ndimage.binary_dilation(brain.data, np.ones((3, 3, 3), bool))


def resample_within_brain(volume: Volume, image: Volume, brain: Volume) -> np.ndarray:
    """Resample a map to the scan within the bounding box of the brain.

    Args:
        volume: On the network's grid.
        image: The scan.
        brain: True inside the brain, on the grid of ``image``.

    Returns:
        float32 (X, Y, Z), on the grid of ``image``; 0 outside the box.
    """
    low, high = find_bounds(np.asarray(brain.data) > 0)
    return _resample_boxes(volume, image, [(low, high)])


def resample_around(
    volume: Volume, image: Volume, positions: np.ndarray, reach_mm: float
) -> np.ndarray:
    """Resample a map to the scan in boxes around positions.

    Args:
        volume: On the network's grid.
        image: The scan.
        positions: World mm, (N, 3).
        reach_mm: From a position to the sides of its box, at least.

    Returns:
        float32 (X, Y, Z), on the grid of ``image``; 0 outside the boxes.
    """
    middles = np.rint(image.index(positions)).astype(int)
    reach = np.ceil(reach_mm / image.spacing).astype(int) + 1
    shape = np.array(image.shape)
    boxes = zip(
        np.clip(middles - reach, 0, shape), np.clip(middles + reach + 1, 0, shape), strict=True
    )
    return _resample_boxes(volume, image, [box for box in boxes if (box[0] < box[1]).all()])


def _resample_boxes(volume: Volume, image: Volume, boxes: Sequence) -> np.ndarray:
    data = np.zeros(image.shape, np.float32)
    for low, high in boxes:
        data[tuple(map(slice, low, high))] = resample_to_scan(volume, crop(image, low, high)).data
    return data
