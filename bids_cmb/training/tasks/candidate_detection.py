"""Training task: detect candidate voxels from darkness and radial symmetry."""

from dataclasses import dataclass

import keras
import numpy as np
from scipy import ndimage

from bids_cmb.detection.distilled import scale_symmetry, stack_channels
from bids_cmb.imaging.cropping import crop_or_pad
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.training.distillation import CandidateLoss
from bids_cmb.training.patches import (
    PatchSampling,
    augment_intensity,
    collate,
    flip_randomly,
    sample_centre,
)
from bids_cmb.training.recipe import (
    Batch,
    BatchFunction,
    Recipe,
    Sources,
    Task,
    check_no_label_maps,
    make_patch_sampling,
)
from bids_cmb.training.reference_labels import LESION, UNCERTAIN
from bids_cmb.training.scan_files import ScanFiles
from bids_cmb.training.scan_loading import (
    TrainingScan,
    describe_scans,
    load_scan_and_brain,
    make_training_scan,
)

WEIGHT_SIGMA_MM = 1.0  # width of the Gaussian by which voxels around a lesion weigh more
LESION_WEIGHT = 9.0  # how much more a voxel weighs that is lesion, and all around it


@dataclass(frozen=True, eq=False)
class SymmetryScan:
    """A scan and its symmetry, float16, (X, Y, Z)."""

    case: TrainingScan
    symmetric: np.ndarray


def load_symmetry_scan(paths: ScanFiles, grid: Grid) -> SymmetryScan:
    """Load a scan, its labels and its symmetry on the grid of a network.

    Raises:
        ValueError: If a file cannot be used.
        OSError: If it cannot be read.
    """
    fed = preprocess(*load_scan_and_brain(paths), grid)
    return SymmetryScan(make_training_scan(paths, fed), scale_symmetry(fed).astype(np.float16))


def weigh_voxels(labels: np.ndarray, loss_mask: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Weigh voxels by 1 + 9 G(lesion), as published; 0 where the label is unknown.

    Args:
        labels: `TrainingScan.labels`.
        loss_mask: `TrainingScan.loss_mask`.
        sigma: Width of the Gaussian in voxels, (3,).
    """
    lesion = (labels == LESION).astype(np.float32)
    weight = 1 + LESION_WEIGHT * ndimage.gaussian_filter(lesion, sigma)
    return weight * (loss_mask & (labels != UNCERTAIN))


def make_input(
    stacked: np.ndarray,
    sampling: PatchSampling,
    rng: np.random.Generator,
    *,
    symmetric: bool,
) -> np.ndarray:
    """Make and augment the network's input of image, symmetry and loss mask, (X, Y, Z, 3).

    Noise, contrast and brightness vary the image alone, as published.
    """
    image = augment_intensity(stacked[..., 0], sampling, rng)
    return stack_channels(image, symmetric * stacked[..., 1], stacked[..., 2] > 0)


def _make_batches(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:  # noqa: ARG001
    check_no_label_maps(sources, "lesions")
    grid, options = Grid.from_card(recipe.grid), dict(recipe.drawing or {})
    symmetric = options.pop("symmetry", True)
    sampling = make_patch_sampling(options)
    scans = [load_symmetry_scan(item, grid) for item in sources.scans]
    scan_of = {id(item.case): item for item in scans}  # names come again in other datasets
    training_scans, sigma = (
        [item.case for item in scans],
        WEIGHT_SIGMA_MM / np.array(grid.spacing, float),
    )

    def sample_patch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        scan, centre = sample_centre(training_scans, sampling.shares, rng)
        shape = np.array(sampling.shape)
        start = centre - shape // 2 + rng.integers(-(shape // 3), shape // 3 + 1)
        parts = (scan.image, scan_of[id(scan)].symmetric, scan.loss_mask, scan.labels)
        stacked = np.stack(
            [crop_or_pad(item, start, shape).astype(np.float32) for item in parts],
            axis=-1,
        )
        stacked = flip_randomly(stacked, rng, swaps=sampling.swaps)
        labels, loss_mask = stacked[..., 3], stacked[..., 2] > 0
        known = np.stack([labels == LESION, weigh_voxels(labels, loss_mask, sigma)], axis=-1)
        image = make_input(stacked[..., :3], sampling, rng, symmetric=symmetric)
        return image, known.astype(np.float32)

    def sample(rng: np.random.Generator) -> Batch:
        return collate(sample_patch(rng) for _ in range(recipe.batch))

    return sample, describe_scans(training_scans)


def preview(images: np.ndarray, truths: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return brightness, label and probability of each voxel, for the report."""
    chances = keras.ops.convert_to_numpy(keras.ops.sigmoid(logits[..., 1] - logits[..., 0]))
    return 1 - images[..., 0], truths[..., 0], chances


TASK = Task(_make_batches, lambda recipe: CandidateLoss(), preview)  # noqa: ARG005
