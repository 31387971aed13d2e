"""Training task: classify the tissue of voxels, with the anatomy network's prior as input."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from bids_cmb.anatomy.labels import build_class_table
from bids_cmb.anatomy.refinement import (
    make_input,
    make_query_mask,
    map_classes_to_kinds,
    resample_prior,
)
from bids_cmb.anatomy.segmentation import predict_anatomy, resample_brain
from bids_cmb.imaging.cropping import crop_or_pad
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.resampling import resample_like
from bids_cmb.networks.model_cards import ANATOMY, load_card
from bids_cmb.training.losses import TissueLoss
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
from bids_cmb.training.scan_files import ScanFiles
from bids_cmb.training.scan_loading import (
    TrainingScan,
    describe_scans,
    load_structures,
    make_training_scan,
)

CENTRE_SIGMA_MM = 2.0  # standard deviation of the weight about the place a patch was drawn around
CENTRE_WEIGHT = 40.0  # how much heavier that place is: it is what the network will be asked about


@dataclass(frozen=True, eq=False)
class TissueScan:
    """A scan on the network's grid, the anatomy network's prior, and the true tissue.

    Attributes:
        case: The scan and its lesions.
        prior: As `anatomy.refinement.resample_prior` gives it.
        kinds: Of `KINDS`, uint8 (X, Y, Z).
        spacing: mm between voxels, (3,).
    """

    case: TrainingScan
    prior: np.ndarray
    kinds: np.ndarray
    spacing: np.ndarray


def load_tissue_scan(paths: ScanFiles, grid: Grid, classes: Sequence[dict]) -> TissueScan:
    """Load a scan and segment it with the anatomy network of the package.

    Raises:
        ValueError: If the scan has no reference structures, or a file cannot be used.
        OSError: If a file cannot be read.
    """
    stored = load_structures(paths, "tissue")
    image, _ = load(paths.image)
    anatomy, kinds = predict_anatomy(image), map_classes_to_kinds(classes)
    fed = preprocess(image, resample_brain(anatomy, image), grid)
    codes = resample_like(stored, fed.image, order=0).data
    true_kinds = kinds[build_class_table(classes).classes[np.rint(codes).astype(np.uint16)]]
    prior = resample_prior(anatomy, kinds, fed.image.affine, fed.image.shape)
    return TissueScan(make_training_scan(paths, fed), prior, true_kinds, fed.image.spacing)


def sample_patch(
    known: dict[int, TissueScan], sampling: PatchSampling, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample and augment a patch (X, Y, Z, kinds) and its kinds with weights (X, Y, Z, 2)."""
    training_scan, centre = sample_centre(
        [scan.case for scan in known.values()], sampling.shares, rng
    )
    scan, shape, reach = (
        known[id(training_scan)],
        np.array(sampling.shape),
        np.array(sampling.reach),
    )
    start = centre - shape // 2 + rng.integers(-reach, reach + 1)
    image, prior, kinds = (
        crop_or_pad(data, start, shape) for data in (training_scan.image, scan.prior, scan.kinds)
    )
    steps = [
        (np.arange(side) + first - middle) * mm
        for side, first, middle, mm in zip(shape, start, centre, scan.spacing, strict=True)
    ]
    away = sum(step**2 for step in np.ix_(*steps))
    weight = ((kinds > 0) | make_query_mask(prior)) * (
        1 + CENTRE_WEIGHT * np.exp(-away / (2 * CENTRE_SIGMA_MM**2))
    )
    augmented = augment_intensity(image[..., None].astype(np.float32), sampling, rng)
    stacked = np.concatenate(
        [make_input(augmented[..., 0], prior), np.stack([kinds, weight], axis=-1)], axis=-1
    ).astype(np.float32)
    stacked = flip_randomly(stacked, rng, swaps=sampling.swaps)
    return stacked[..., :-2], stacked[..., -2:]


def _make_batches(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:  # noqa: ARG001
    check_no_label_maps(sources, "tissues")
    grid, classes = Grid.from_card(recipe.grid), load_card(ANATOMY)["classes"]
    scans = [load_tissue_scan(scan, grid, classes) for scan in sources.scans]
    known, sampling = {id(scan.case): scan for scan in scans}, make_patch_sampling(recipe.drawing)

    def sample(rng: np.random.Generator) -> Batch:
        return collate(sample_patch(known, sampling, rng) for _ in range(recipe.batch))

    return sample, describe_scans([scan.case for scan in scans])


def _preview(images: np.ndarray, truths: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    return images[..., 0], truths[..., 0], keras.ops.convert_to_numpy(logits).argmax(axis=-1)


TASK = Task(_make_batches, lambda _: TissueLoss(), _preview)
