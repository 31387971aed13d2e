"""Inference: prediction of whole images, slab by slab, or around some voxels; flipped and not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# At once: about 1.5 GB of activations; larger images are cut in slabs
MAX_VOXELS_AT_ONCE = 7_500_000
HALO_VOXELS = 32  # voxels that slabs overlap by at either end: beyond, nothing changes by 0.001
PROBABILITY_STEPS = 255  # of a probability that is kept in 8 bits
Predictor = Callable[[np.ndarray], np.ndarray]  # from a batch (B, ..., channels) to the output


@dataclass(frozen=True, eq=False)
class Network:
    """A network that is ready to predict.

    Attributes:
        name: Of the member.
        predict: From (X, Y, Z) float32, and where the prediction is wanted or None, to it.
        multiple: What each side of the input must be a multiple of, (3,).
        flips: Axes along which the image is flipped for each further prediction (test-time
            augmentation); predictions are averaged.
    """

    name: str
    predict: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    multiple: tuple[int, int, int]
    flips: tuple[tuple[int, ...], ...]


def predict(
    network: Network, image: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """Predict with a network.

    Args:
        network: From `load_network`.
        image: Scaled as in training, (X, Y, Z); each side a multiple of the network's.
        mask: True where the prediction is wanted, (X, Y, Z): a network may leave out the rest, or
            not. Everywhere without.

    Returns:
        Probability, float32 (X, Y, Z), of a network for lesions; probabilities of the classes and
        of the left side in 255ths, uint8 (X, Y, Z, classes + 1), of one for anatomy.

    Raises:
        ValueError: If a side is no multiple.
    """
    remainder = np.array(image.shape) % network.multiple
    if remainder.any():
        raise ValueError(
            f"Sides of an image for {network.name} must be multiples of {network.multiple}; "
            f"found {image.shape}."
        )
    predictions = [network.predict(image, mask)]
    for axes in network.flips:
        flipped = np.ascontiguousarray(np.flip(image, axes))
        flipped_mask = None if mask is None else np.flip(mask, axes)
        predictions.append(np.flip(network.predict(flipped, flipped_mask), axes))
    return (
        predictions[0] if len(predictions) == 1 else np.mean(predictions, axis=0, dtype=np.float32)
    )


def predict_around(
    network: Network, image: np.ndarray, voxels: np.ndarray, reach: np.ndarray, context: np.ndarray
) -> np.ndarray:  # fmt: skip
    """Predict in boxes around some voxels only, or everywhere if that is less work.

    Voxels share a box where one around them all is smaller than their own together.

    Args:
        network: From `load_network`.
        image: As `predict` takes it, (X, Y, Z).
        voxels: Where, (N, 3).
        reach: Voxels to either side of each for which the prediction is wanted, (3,).
        context: Voxels beyond these that the network sees besides, (3,). Less than its field of
            view changes the prediction a little.

    Returns:
        Probability, float32 (X, Y, Z); 0 beyond the boxes.
    """
    shape, multiple = np.array(image.shape), np.array(network.multiple)
    voxels = np.clip(voxels, 0, shape - 1)
    low, high = np.maximum(voxels - reach, 0), np.minimum(voxels + reach + 1, shape)

    def measure(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Measure what the network must see of boxes, voxels (..., 3)."""
        return np.minimum(-(-(high - low + 2 * context) // multiple) * multiple, shape)

    groups = _merge_boxes(low, high, measure)
    boxes = [(low[members].min(axis=0), high[members].max(axis=0)) for members in groups]
    sizes = [measure(*box) for box in boxes]
    if sum(size.prod() for size in sizes) >= shape.prod():
        return predict(network, image)
    prediction = np.zeros(image.shape, np.float32)
    for members, box, size in zip(groups, boxes, sizes, strict=True):
        start = np.clip((box[0] + box[1] - size) // 2, 0, shape - size)
        part = predict(network, np.ascontiguousarray(image[_slice(start, start + size)]))
        for each in members:
            inside = _slice(low[each] - start, high[each] - start)
            prediction[_slice(low[each], high[each])] = part[inside]
    return prediction


def _merge_boxes(low: np.ndarray, high: np.ndarray, measure: Callable) -> list[list[int]]:
    """Merge boxes as long as that makes less to see in all; the pair that gains most first.

    Args:
        low: First voxel of each, (N, 3).
        high: The one behind the last, (N, 3).
        measure: Gives from such arrays the sides (..., 3) that must be seen of boxes.

    Returns:
        Numbers of the boxes that are one, for each of these.
    """
    low, high, groups = low.copy(), high.copy(), [[number] for number in range(len(low))]
    while len(groups) > 1:
        both_low, both_high = np.minimum(low[:, None], low), np.maximum(high[:, None], high)
        alone = measure(low, high).prod(axis=-1)
        gain = alone[:, None] + alone - measure(both_low, both_high).prod(axis=-1)
        np.fill_diagonal(gain, 0)
        first, second = sorted(np.unravel_index(gain.argmax(), gain.shape))
        if gain[first, second] <= 0:
            break
        low[first], high[first] = both_low[first, second], both_high[first, second]
        groups[first] += groups.pop(second)
        low, high = np.delete(low, second, axis=0), np.delete(high, second, axis=0)
    return groups


def _slice(low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    return tuple(map(slice, low, high))


def predict_in_slabs(
    run: Callable, multiple: Sequence[int], images: np.ndarray | Sequence[np.ndarray],
    max_voxels: int | None = None, overlap: int | None = None,
) -> np.ndarray:  # fmt: skip
    """Predict slab by slab along the longest axis with a halo, so that large images fit in memory.

    Args:
        run: From (1, X, Y, Z, C), of each image, to a prediction whose first three axes are X, Y
            and Z.
        multiple: What the sides of a slab must be multiples of.
        images: (X, Y, Z) or (X, Y, Z, C); or several of one grid, such as those that ``run`` makes
            a larger input from.
        max_voxels: Voxels at once, overlap aside; `MAX_VOXELS_AT_ONCE` without.
        overlap: Voxels of context at either end of a slab; `HALO_VOXELS` without.
    """
    images = (images,) if isinstance(images, np.ndarray) else tuple(images)
    images = [image[..., None] if image.ndim == 3 else image for image in images]
    shape = images[0].shape[:3]
    axis = int(np.argmax(shape))
    step, length = multiple[axis], shape[axis]
    pieces = -(-int(np.prod(shape)) // (max_voxels or MAX_VOXELS_AT_ONCE))
    if pieces == 1:
        return run(*(image[None] for image in images))
    size = -(-length // (pieces * step)) * step
    halo = -(-(HALO_VOXELS if overlap is None else overlap) // step) * step
    parts = []
    for start in range(0, length, size):
        low, high = max(0, start - halo), min(length, start + size + halo)
        slabs = (np.take(image, range(low, high), axis) for image in images)
        prediction = run(*(np.ascontiguousarray(slab)[None] for slab in slabs))
        parts.append(np.take(prediction, range(start - low, min(start + size, length) - low), axis))
    return np.concatenate(parts, axis)
