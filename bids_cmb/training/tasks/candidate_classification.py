"""Classify candidates of the box detector as microbleed or false positive."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from bids_cmb.detection.boxes import BoxCandidate
from bids_cmb.detection.cascade import (
    CandidateRules,
    crop_patch,
    find_box_candidates,
    uses_phase,
)
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.networks.loading import load_trained_model
from bids_cmb.training.patches import PatchSampling, augment_intensity, flip_randomly
from bids_cmb.training.recipe import (
    Batch,
    BatchFunction,
    Recipe,
    Sources,
    Task,
    load_pretrained_entry,
    make_patch_sampling,
)
from bids_cmb.training.reference_labels import LESION
from bids_cmb.training.scan_loading import (
    TrainingScan,
    load_phase_on_grid,
    load_scan_and_brain,
    make_training_scan,
)


@dataclass(frozen=True, eq=False)
class CandidateSet:
    """The candidates of a scan.

    Attributes:
        case: The scan.
        positives: Voxels that a microbleed's patch may be centred on, for each a list (N, 3).
        negatives: Voxels of candidates that are no microbleed, (N, 3).
    """

    case: TrainingScan
    positives: list[np.ndarray]
    negatives: np.ndarray


def assign_labels(
    scan: TrainingScan,
    candidates: Sequence[BoxCandidate],
    spacing: Sequence[float],
    near: float,
) -> CandidateSet:
    """Assign candidates to lesions; those near an uncertain lesion are neither.

    Args:
        scan: The scan.
        candidates: In it.
        spacing: mm of a voxel, (3,).
        near: mm from a lesion's nearest voxel within which a candidate is that lesion.
    """
    places = np.array([candidate.centre for candidate in candidates]).reshape(-1, 3)
    taken, positives = np.zeros(len(places), bool), []
    for voxels in scan.sampling_centres["lesion"]:
        offsets = (places[:, None] - voxels[None].astype(float)) * spacing
        is_lesion = (np.linalg.norm(offsets, axis=-1).min(axis=1) <= near) if len(places) else taken
        taken |= is_lesion
        if scan.labels[tuple(voxels[0])] == LESION:
            positives.append(np.concatenate([places[is_lesion], voxels.mean(axis=0)[None]]))
    return CandidateSet(scan, positives, places[~taken])


def _make_batches(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:  # noqa: ARG001
    if "boxes" not in sources.pretrained:
        raise ValueError(
            "Patches are learnt after a network for boxes: --pretrained boxes=OUT/NAME.json; found "
            f"{', '.join(sources.pretrained) or 'none'}."
        )
    path = sources.pretrained["boxes"]
    entry = load_pretrained_entry(path, recipe)
    options = dict(recipe.drawing)
    rules, near = CandidateRules(**options.pop("rules")), options.pop("near_mm")
    shift = np.array(options.pop("shift"))
    sampling = make_patch_sampling(options, shape=tuple(recipe.arguments["shape"]))
    predict, grid = load_trained_model(entry, path), Grid.from_card(recipe.grid)
    candidate_sets = []
    for item in sources.scans:
        scan = load_scan_and_brain(item)
        fed = preprocess(*scan, grid)
        phase = load_phase_on_grid(item, *scan, grid) if uses_phase(entry) else None
        candidates = find_box_candidates(predict, entry, fed, rules, phase)
        candidate_sets.append(
            assign_labels(make_training_scan(item, fed), candidates, fed.image.spacing, near)
        )
    positives = [(item, place) for item in candidate_sets for place in item.positives]
    negatives = [(item, place) for item in candidate_sets for place in item.negatives]
    mimics = [
        (item, place) for item in candidate_sets for place in item.case.sampling_centres["mimic"]
    ]
    if not positives or not negatives:
        raise ValueError(
            f"{path}: patches need suspects that are microbleeds and some that are none; "
            f"found {len(positives)} and {len(negatives)}."
        )

    def sample(rng: np.random.Generator) -> Batch:
        truths = (np.arange(recipe.batch) % 2).astype(np.float32)  # as many of each
        shares = sampling.shares
        images = []
        for truth in truths:
            if truth:
                item, places = positives[rng.integers(len(positives))]
                place = places[rng.integers(len(places))]
            elif mimics and rng.random() < shares.get("mimic", 0):
                item, places = mimics[rng.integers(len(mimics))]
                place = places[rng.integers(len(places))]
            else:
                item, place = negatives[rng.integers(len(negatives))]
            images.append(
                _sample_patch(item.case, place + rng.uniform(-shift, shift), sampling, rng)
            )
        return np.stack(images), truths[:, None]

    description = (
        f"{len(candidate_sets)} scans with {len(positives)} lesions and {len(negatives)} "
        "false suspects"
    )
    return sample, description


def _sample_patch(
    scan: TrainingScan,
    place: np.ndarray,
    sampling: PatchSampling,
    rng: np.random.Generator,
) -> np.ndarray:
    """Cut and augment a patch around a place."""
    block = crop_patch(scan.image, place, sampling.shape)
    return augment_intensity(flip_randomly(block, rng, swaps=sampling.swaps), sampling, rng)


TASK = Task(
    _make_batches,
    lambda recipe: keras.losses.BinaryCrossentropy(from_logits=True, **(recipe.loss or {})),
)
