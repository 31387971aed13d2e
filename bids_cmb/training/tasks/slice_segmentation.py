"""Training task: segment microbleeds in a slice with its neighbours as context."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from scipy.special import expit

from bids_cmb.detection.gated import TILE_VOXELS, predict_tiles
from bids_cmb.networks.inference import Predictor
from bids_cmb.networks.loading import load_trained_model
from bids_cmb.networks.model_cards import read_entry
from bids_cmb.training.losses import FocalTverskyLoss
from bids_cmb.training.patches import sample_batch
from bids_cmb.training.recipe import (
    Batch,
    BatchFunction,
    Recipe,
    Sources,
    Task,
    make_patch_sampling,
)
from bids_cmb.training.scan_loading import TrainingScan, describe_scans
from bids_cmb.training.tasks.segmentation import load_scans

N_GATE_SLICES = 12  # slices of each scan where the gate's false alarms are looked for
FALSE_ALARM_PROBABILITY = 0.5  # chance from which on a tile without a lesion is one


def _make_batches(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:  # noqa: ARG001
    scans, sampling = load_scans(recipe, sources), make_patch_sampling(recipe.drawing)
    if "gate" in sources.pretrained:
        gate = _load_gate(sources.pretrained["gate"])
        scans = [_add_false_alarms(scan, gate) for scan in scans]

    def sample(rng: np.random.Generator) -> Batch:
        images, truths = sample_batch(scans, sampling, rng, size=recipe.batch)
        return images[..., 0], truths[..., 1, :]

    alarms = sum(
        len(scan.sampling_centres["gate"][0]) for scan in scans if "gate" in scan.sampling_centres
    )
    return sample, f"{describe_scans(scans)} and {alarms} false alarms of a gate"


def _add_false_alarms(scan: TrainingScan, gate: Predictor) -> TrainingScan:
    """Add the middles of tiles that the gate takes for lesions to the sampling centres."""
    slices = np.linspace(0, scan.image.shape[2] - 1, N_GATE_SLICES + 2)[1:-1].astype(int)
    mask = np.zeros(scan.loss_mask.shape, bool)
    mask[..., slices] = scan.loss_mask[..., slices]
    starts, probabilities = predict_tiles(gate, scan.image.astype(np.float32), mask)
    alarms = [
        start
        for start, probability in zip(starts, probabilities, strict=True)
        if probability >= FALSE_ALARM_PROBABILITY and not _has_lesion(scan.labels, start)
    ]
    middles = np.array(alarms, np.int16).reshape(-1, 3) + np.array(
        [TILE_VOXELS // 2, TILE_VOXELS // 2, 0]
    )
    return replace(scan, sampling_centres={**scan.sampling_centres, "gate": [middles]})


def _has_lesion(truth: np.ndarray, start: np.ndarray) -> bool:
    x, y, z = start
    return bool(truth[x : x + TILE_VOXELS, y : y + TILE_VOXELS, max(0, z - 1) : z + 2].any())


def _load_gate(entry: Path) -> Predictor:
    """Load the gate of an entry."""
    member = read_entry(entry)
    predict = load_trained_model(member, entry, precision="mixed")
    return lambda batch: expit(predict(batch))


def _preview(images: np.ndarray, truths: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    chances = keras.ops.convert_to_numpy(keras.ops.sigmoid(logits[..., 0]))
    return images[..., 1:2], truths[..., :1], chances[..., None]


TASK = Task(_make_batches, lambda recipe: FocalTverskyLoss(**(recipe.loss or {})), _preview)
