"""Patches of training scans, sampled around lesions, mimics and dark spots, and augmented."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.cropping import crop_or_pad
from bids_cmb.training.reference_labels import LESION, UNCERTAIN
from bids_cmb.training.scan_loading import TrainingScan


@dataclass(frozen=True)
class PatchSampling:
    """How patches are sampled and augmented.

    Attributes:
        shape: Voxels of a patch.
        shares: Sampling weight of each kind of centre; they need not add up to 1. Around a kind of
            weight 2 twice as many patches are sampled as around one of weight 1, in a scan that has
            both; around a kind without a weight hardly any, unless the scan has no other.
        gain: Least and most that a patch is multiplied by.
        gamma: Least and most exponent of its values.
        noise: Most noise that is added, in brain medians.
        grain: Most standard deviation, in voxels of a slice, that the noise is smoothed by:
            noise of scans whose pixels are finer than what was measured. Its strength stays.
        swaps: Whether the first two axes may change places.
        reach: Voxels by which the middle may lie off the centre along each axis; a third of the
            shape without.
    """

    shape: tuple[int, int, int]
    shares: dict[str, float]
    gain: tuple[float, float] = (0.8, 1.25)
    gamma: tuple[float, float] = (0.75, 1.35)
    noise: float = 0.03
    grain: float = 0.0
    swaps: bool = True
    reach: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class LabelledPatch:
    """A patch of a training scan, augmented.

    Attributes:
        image: float32, (X, Y, Z, 1).
        labels: As `TrainingScan.labels`, (X, Y, Z).
        loss_mask: bool, (X, Y, Z).
    """

    image: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray


def sample_batch(
    scans: Sequence[TrainingScan], sampling: PatchSampling, rng: np.random.Generator, *, size: int
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Sample a batch of patches; see `sample_patch`."""
    return collate(sample_patch(scans, sampling, rng) for _ in range(size))


def collate(samples: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Collate patches and their labels into one batch."""
    images, truths = zip(*samples, strict=True)
    return np.stack(images), np.stack(truths)


def sample_patch(
    scans: Sequence[TrainingScan], sampling: PatchSampling, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Sample and augment a patch.

    Returns:
        The image, float32 (X, Y, Z, 1); and, float32 (X, Y, Z, 2): 1 in a certain lesion, and the
        weight of the voxel.
    """
    patch = sample_labelled_patch(scans, sampling, rng)
    weight = patch.loss_mask & (patch.labels != UNCERTAIN)
    return patch.image, np.stack([patch.labels == LESION, weight], axis=-1).astype(np.float32)


def sample_labelled_patch(
    scans: Sequence[TrainingScan], sampling: PatchSampling, rng: np.random.Generator
) -> LabelledPatch:  # fmt: skip
    """Sample and augment a patch, with what is known of its voxels."""
    scan, centre = sample_centre(scans, sampling.shares, rng)
    shape = np.array(sampling.shape)
    reach = shape // 3 if sampling.reach is None else np.array(sampling.reach)
    start = centre - shape // 2 + rng.integers(-reach, reach + 1)
    parts = [crop_or_pad(data, start, shape) for data in (scan.image, scan.labels, scan.loss_mask)]
    stacked = np.stack([part.astype(np.float32) for part in parts], axis=-1)
    stacked = flip_randomly(stacked, rng, swaps=sampling.swaps)
    image = augment_intensity(stacked[..., :1], sampling, rng)
    labels, loss_mask = stacked[..., 1].astype(np.uint8), stacked[..., 2] > 0
    return LabelledPatch(image, labels, loss_mask)


def sample_centre(
    scans: Sequence[TrainingScan], shares: Mapping[str, float], rng: np.random.Generator
) -> tuple[TrainingScan, np.ndarray]:
    """Sample a scan, and a voxel of it to centre a patch on, its kind weighted by ``shares``."""
    scan = scans[rng.integers(len(scans))]
    kinds = [
        kind for kind, candidates in scan.sampling_centres.items() if any(map(len, candidates))
    ]
    chances = np.array([shares.get(kind, 0) for kind in kinds]) + 1e-9
    kind = kinds[rng.choice(len(kinds), p=chances / chances.sum())]
    candidates = [voxels for voxels in scan.sampling_centres[kind] if len(voxels)]
    chosen = candidates[rng.integers(len(candidates))]
    return scan, chosen[rng.integers(len(chosen))].astype(int)


def flip_randomly(stacked: np.ndarray, rng: np.random.Generator, *, swaps: bool) -> np.ndarray:
    """Flip a patch (X, Y, Z, C) along random axes, at times swapping the first two."""
    for axis in range(3):
        if rng.random() < 0.5:
            stacked = np.flip(stacked, axis)
    if swaps and stacked.shape[0] == stacked.shape[1] and rng.random() < 0.5:
        stacked = np.swapaxes(stacked, 0, 1)
    return stacked


def augment_intensity(
    image: np.ndarray, sampling: PatchSampling, rng: np.random.Generator
) -> np.ndarray:
    """Vary contrast, brightness and noise of an image in brain medians."""
    image = np.maximum(image, 0) ** np.float32(rng.uniform(*sampling.gamma))
    image = image * np.float32(np.exp(rng.uniform(*np.log(sampling.gain))))
    noise = rng.standard_normal(image.shape, np.float32)
    strength = np.float32(rng.uniform(0, sampling.noise))
    if sampling.grain:
        noise = _smooth_noise(noise, rng.uniform(0, sampling.grain))
    return image + strength * noise * (image != 0)


def _smooth_noise(noise: np.ndarray, width: float) -> np.ndarray:
    """Smooth noise within slices by ``width`` voxels (standard deviation), keeping its strength."""
    smooth = ndimage.gaussian_filter(noise, (width, width, 0, 0)[: noise.ndim])
    return smooth * np.float32(1 / max(smooth.std(), 1e-6))
