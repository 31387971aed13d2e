"""Training task: classify patches as microbleed or not, by a teacher and then a student.

Patches lie about true lesions and about the candidates of a pretrained network. A candidate that
touches a microbleed is one, one that touches an uncertain lesion alone is left out, all others are
hard negatives. The student also learns from the teacher's prediction of the very patch it sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from scipy import ndimage

from bids_cmb.detection.distilled import (
    PATCH_VOXELS,
    NetworkInput,
    find_regions,
    predict_candidates,
    prepare_input,
)
from bids_cmb.imaging.cropping import crop_or_pad
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import Preprocessed, preprocess
from bids_cmb.lesions.measure import CONNECTIVITY_26
from bids_cmb.networks.inference import Predictor
from bids_cmb.networks.loading import load_trained_model
from bids_cmb.provenance import fingerprint
from bids_cmb.training.distillation import StudentLoss, TeacherLoss
from bids_cmb.training.patches import flip_randomly
from bids_cmb.training.recipe import (
    Batch,
    BatchFunction,
    Recipe,
    Sources,
    Task,
    check_no_label_maps,
    load_pretrained_entry,
    make_patch_sampling,
)
from bids_cmb.training.reference_labels import LESION, UNCERTAIN
from bids_cmb.training.scan_files import ScanFiles, digest_files
from bids_cmb.training.scan_loading import (
    TrainingScan,
    load_or_make_arrays,
    load_scan_and_brain,
    make_training_scan,
)
from bids_cmb.training.tasks.candidate_detection import (
    WEIGHT_SIGMA_MM,
    make_input,
    preview,
    weigh_voxels,
)

MARGIN_VOXELS = 2  # voxels to each side by which patches can be shifted
SAMPLING_OPTIONS = (
    "threshold",
    "most",
    "negatives",
    "symmetry",
)  # of a drawing, besides `training.patches.PatchSampling`
LOSS_MASK_OFFSET = 4  # added to the truth where the network is told what is there


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of one scan, with `MARGIN_VOXELS` around each.

    Attributes:
        images: In brain medians, and symmetry, float16, (N, X, Y, Z, 2).
        marks: `TrainingScan.labels`, plus `LOSS_MASK_OFFSET` in the loss mask, uint8, (N, X, Y, Z).
        positive: Whether a microbleed lies in the middle, bool, (N,).
    """

    images: np.ndarray
    marks: np.ndarray
    positive: np.ndarray


# --- What is drawn from ---------------------------------------------------------------------------


def load_pretrained(recipe: Recipe, sources: Sources, role: str) -> tuple[dict, Predictor]:
    """Load a network that this one builds on: its entry, and a function that predicts.

    Raises:
        ValueError: If none is given in that role, or it has another grid.
        OSError: If its entry cannot be read.
    """
    if role not in sources.pretrained:
        raise ValueError(
            f"{recipe.name} learns after another network: give it "
            f"--pretrained {role}=OUT/NAME.json; found {', '.join(sources.pretrained) or 'none'}."
        )
    path = Path(sources.pretrained[role])
    entry = load_pretrained_entry(path, recipe)
    coarse = keras.config.dtype_policy().compute_dtype == "bfloat16"  # as everything in training
    precision = "mixed" if coarse else "full"
    return entry, load_trained_model(entry, path, precision=precision)


def load_patches(
    paths: ScanFiles, entry: dict, predict: Predictor, recipe: Recipe, cache_dir: Path
) -> Patches:  # fmt: skip
    """Load the patches about lesions and candidates of a scan, from the cache if they are there.

    Args:
        paths: Of the scan.
        entry: Of the candidate network.
        predict: The candidate network.
        recipe: Of the network to train; ``drawing`` with ``threshold`` and ``most`` candidates as
            the card of the detector has them, and ``negatives``, at most, of a scan.
        cache_dir: A folder, where patches are kept under what they depend on.

    Raises:
        ValueError: If a file cannot be used.
        OSError: If something cannot be read or written.
    """
    drawing = recipe.drawing or {}
    key = fingerprint(
        network=entry["sha256"], grid=entry["grid"], room=MARGIN_VOXELS,
        asked=[drawing[name] for name in SAMPLING_OPTIONS[:3]],
        files=digest_files(paths),
    )  # fmt: skip
    path = cache_dir / f"{key[:16]}.npz"
    grid = Grid.from_card(entry["grid"])
    arrays = load_or_make_arrays(
        path, lambda: vars(_extract_patches(paths, grid, predict, drawing))
    )
    return Patches(**arrays)


def _extract_patches(paths: ScanFiles, grid: Grid, predict: Predictor, drawing: dict) -> Patches:
    fed, scan, network_input = _prepare(paths, grid)
    probability = predict_candidates(predict, network_input)
    regions = find_regions(probability, threshold=drawing["threshold"], most=drawing["most"])
    near = ndimage.binary_dilation(scan.labels == LESION, CONNECTIVITY_26)
    unsure = ndimage.binary_dilation(scan.labels == UNCERTAIN, CONNECTIVITY_26)
    hit = np.array([near[tuple(region.voxels.T)].any() for region in regions], bool)
    uncertain_hit = np.array([unsure[tuple(region.voxels.T)].any() for region in regions], bool)
    centres = [region.centre for region in regions]
    lesions = [
        np.rint(voxels.mean(axis=0)).astype(int)
        for voxels in scan.sampling_centres["lesion"]
        if scan.labels[tuple(voxels[0])] == LESION
    ]
    positives = lesions + [voxel for voxel, yes in zip(centres, hit, strict=True) if yes]
    negatives = [voxel for voxel, no in zip(centres, ~hit & ~uncertain_hit, strict=True) if no]
    # Sorted by chance: every so many-th, so that likely and unlikely ones are there.
    negatives = negatives[:: max(1, -(-len(negatives) // drawing["negatives"]))]
    image = np.stack([fed.image.data, network_input.channels[..., 1]], axis=-1).astype(np.float16)
    marks = (scan.labels + LOSS_MASK_OFFSET * scan.loss_mask).astype(np.uint8)
    shape = (PATCH_VOXELS + 2 * MARGIN_VOXELS,) * 3
    boxes = [voxel - shape[0] // 2 for voxel in positives + negatives]
    return Patches(
        np.array([crop_or_pad(image, voxel, shape) for voxel in boxes]).reshape(-1, *shape, 2),
        np.array([crop_or_pad(marks, voxel, shape) for voxel in boxes]).reshape(-1, *shape),
        np.arange(len(boxes)) < len(positives),
    )


def _prepare(paths: ScanFiles, grid: Grid) -> tuple[Preprocessed, TrainingScan, NetworkInput]:
    fed = preprocess(*load_scan_and_brain(paths), grid)
    return fed, make_training_scan(paths, fed), prepare_input(fed)


# --- What is shown and told -----------------------------------------------------------------------


def _make_sampler(recipe: Recipe, sources: Sources):
    """Make a sampler of images (B, 24, 24, 24, 2), labels with weights (same, 2) and kinds (B,)."""
    check_no_label_maps(sources, "lesions")
    entry, predict = load_pretrained(recipe, sources, "candidates")
    cache_dir = Path(sources.pretrained["candidates"]).parent / "seen"
    patches = [load_patches(files, entry, predict, recipe, cache_dir) for files in sources.scans]
    positives, negatives = (_find_patches(patches, positive=positive) for positive in (True, False))
    if not len(positives) or not len(negatives):
        raise ValueError(
            f"{recipe.name} learns from microbleeds and from what looks like them; "
            f"found {len(positives)} and {len(negatives)} in {len(patches)} scans."
        )
    options = dict(recipe.drawing or {})
    symmetric = options.get("symmetry", True)
    augmentation = {key: value for key, value in options.items() if key not in SAMPLING_OPTIONS}
    sampling = make_patch_sampling(augmentation, shape=(PATCH_VOXELS,) * 3, shares={})
    sigma = WEIGHT_SIGMA_MM / np.array(Grid.from_card(recipe.grid).spacing, float)

    def sample_patch(place: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        scan_patches, number = patches[place[0]], place[1]
        box = tuple(
            slice(start, start + PATCH_VOXELS)
            for start in rng.integers(0, 2 * MARGIN_VOXELS + 1, 3)
        )
        marks = scan_patches.marks[number][box][..., None]
        stacked = np.concatenate(
            [scan_patches.images[number][box], marks >= LOSS_MASK_OFFSET, marks % LOSS_MASK_OFFSET],
            axis=-1,
            dtype=np.float32,
        )
        stacked = flip_randomly(stacked, rng, swaps=sampling.swaps)
        truth, loss_mask = stacked[..., 3], stacked[..., 2] > 0
        known = np.stack([truth == LESION, weigh_voxels(truth, loss_mask, sigma)], axis=-1)
        return make_input(stacked[..., :3], sampling, rng, symmetric=symmetric), known

    def sample(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kinds = np.arange(recipe.batch) % 2  # one for one, as published
        places = [
            (positives if kind else negatives)[rng.integers(len((negatives, positives)[kind]))]
            for kind in kinds
        ]
        images, known = zip(*[sample_patch(place, rng) for place in places], strict=True)
        return np.stack(images), np.stack(known).astype(np.float32), kinds.astype(np.float32)

    description = (
        f"{len(patches)} scans, {len(positives)} patches about microbleeds and "
        f"{len(negatives)} others"
    )
    return sample, description


def _find_patches(patches: Sequence[Patches], *, positive: bool) -> np.ndarray:
    """List scan and number of all patches of a kind, (N, 2)."""
    return np.array(
        [
            (scan_index, number)
            for scan_index, scan_patches in enumerate(patches)
            for number in np.flatnonzero(scan_patches.positive == positive)
        ],
        int,
    ).reshape(-1, 2)


def _make_teacher_batches(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:  # noqa: ARG001
    draw, description = _make_sampler(recipe, sources)

    def sample(rng: np.random.Generator) -> Batch:
        images, known, kinds = draw(rng)
        everywhere = np.broadcast_to(kinds[:, None, None, None, None], (*known.shape[:4], 1))
        return images, np.concatenate([known, everywhere], axis=-1)

    return sample, description


def _make_student_batches(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:  # noqa: ARG001
    draw, description = _make_sampler(recipe, sources)
    without_teacher = not (recipe.loss or {}).get("alpha", 0.1)
    predict = None if without_teacher else load_pretrained(recipe, sources, "teacher")[1]

    def sample(rng: np.random.Generator) -> Batch:
        images, _, kinds = draw(rng)
        teacher_logits = np.zeros((len(kinds), 2), np.float32)
        if predict is not None:
            teacher_logits = predict(images)[:, 0, 0, 0, 2:]
        return images, np.concatenate([kinds[:, None], teacher_logits], axis=-1)

    return sample, f"{description}, {'no' if without_teacher else 'a'} teacher"


TEACHER = Task(_make_teacher_batches, lambda recipe: TeacherLoss(**(recipe.loss or {})), preview)
STUDENT = Task(_make_student_batches, lambda recipe: StudentLoss(**(recipe.loss or {})))
