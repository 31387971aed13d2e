"""Every pixel of a slice is to be told whether it lies in a microbleed; its neighbours are seen."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from scipy.special import expit

from bids_cmb.detection.gated import TILE, Ask, ask_tiles
from bids_cmb.networks.inference import entry_patcher
from bids_cmb.networks.model_cards import read_entry
from bids_cmb.training import data as cases
from bids_cmb.training.losses import FocalTverskyLoss
from bids_cmb.training.recipe import Batch, Recipe, Sources, Task, Teach, drawing_of
from bids_cmb.training.tasks.segmentation import read_sources

LOOKED_AT = 12  # slices of each scan where the gate's false alarms are looked for
FALSE_ALARM = 0.5  # chance from which on a tile without a lesion is one


def _teach(recipe: Recipe, sources: Sources, seed: int) -> tuple[Teach, str]:  # noqa: ARG001
    read, drawing = read_sources(recipe, sources), drawing_of(recipe.drawing)
    if "gate" in sources.given:
        ask = _asker(sources.given["gate"])
        read = [_with_alarms(one, ask) for one in read]

    def teach(rng: np.random.Generator) -> Batch:
        images, truths = cases.batch(read, drawing, rng, size=recipe.batch)
        return images[..., 0], truths[..., 1, :]

    lesions = sum(len(one.centres["lesion"]) for one in read)
    alarms = sum(len(one.centres["gate"][0]) for one in read if "gate" in one.centres)
    return teach, f"{len(read)} scans with {lesions} lesions and {alarms} false alarms of a gate"


def _with_alarms(case: cases.Case, ask: Ask) -> cases.Case:
    """The case, with the middles of tiles that the gate takes for lesions among its centres."""
    slices = np.linspace(0, case.image.shape[2] - 1, LOOKED_AT + 2)[1:-1].astype(int)
    where = np.zeros(case.heard.shape, bool)
    where[..., slices] = case.heard[..., slices]
    starts, chances = ask_tiles(ask, case.image.astype(np.float32), where)
    alarms = [
        start
        for start, chance in zip(starts, chances, strict=True)
        if chance >= FALSE_ALARM and not _lesions_about(case.truth, start)
    ]
    middles = np.array(alarms, np.int16).reshape(-1, 3) + np.array([TILE // 2, TILE // 2, 0])
    return replace(case, centres={**case.centres, "gate": [middles]})


def _lesions_about(truth: np.ndarray, start: np.ndarray) -> bool:
    x, y, z = start
    return bool(truth[x : x + TILE, y : y + TILE, max(0, z - 1) : z + 2].any())


def _asker(entry: Path) -> Ask:
    """The gate whose entry that is."""
    member = read_entry(entry)
    ask = entry_patcher(member, entry, precision="mixed")
    return lambda batch: expit(ask(batch))


def _shown(images: np.ndarray, truths: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    chances = keras.ops.convert_to_numpy(keras.ops.sigmoid(logits[..., 0]))
    return images[..., 1:2], truths[..., :1], chances[..., None]


TASK = Task(_teach, lambda recipe: FocalTverskyLoss(**(recipe.loss or {})), _shown)
