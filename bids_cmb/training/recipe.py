"""Recipes, and the protocol of a training task: its batches, its loss, its preview."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from bids_cmb.imaging.grid import Grid
from bids_cmb.networks.model_cards import read_entry
from bids_cmb.training.patches import PatchSampling
from bids_cmb.training.scan_files import ScanFiles
from bids_cmb.training.scan_loading import Loading

Batch = tuple[np.ndarray, np.ndarray]
BatchFunction = Callable[[np.random.Generator], Batch]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained; ``resources/recipes/<name>.json``.

    Attributes:
        name: Of the network.
        task: What it learns: one of `training.train.TASKS`.
        builder: Of the network, one of `networks.builders.BUILDERS`.
        arguments: For the builder.
        grid: Input grid of the network, as `Grid.from_card` reads it.
        seed: Of weights, patches and their augmentation.
        batch: Patches in a step.
        steps: In an epoch.
        epochs: At most.
        rate: Highest learning rate; it rises in the first epoch and falls by a cosine.
        decay: Of the weights.
        ema: Momentum of the averaged weights, which are those that are kept.
        patience: Epochs without a better median validation, of three, after which training ends.
        settle: Batches after training, over which the normalisations are measured anew, under
            the weights that are kept.
        drawing: How patches are sampled; each task reads its own keys.
        loss: Arguments of the loss.
        patch: For anatomy: voxels of a part of a head.
        people: For anatomy: people sampled from each label map.
        scanned: For anatomy: share of batches that are simulated scans, if there are any.
        classes: For anatomy: the classes of the network.
    """

    name: str
    task: str
    builder: str
    arguments: dict
    grid: dict
    seed: int
    batch: int
    steps: int
    epochs: int
    rate: float
    decay: float
    ema: float
    patience: int = 8
    settle: int = 0
    drawing: dict | None = None
    loss: dict | None = None
    patch: tuple[int, ...] = ()
    people: int = 0
    scanned: float = 0.5
    classes: tuple[dict, ...] = ()


@dataclass(frozen=True)
class Sources:
    """What batches are sampled from.

    Attributes:
        scans: With their reference labels.
        label_maps: Folders of heads.
        pretrained: Entries (``.json``, weights beside) of networks that this one builds on, by
            role: a teacher, or the network that proposes the candidates.
        loading: How the scans are loaded.
    """

    scans: Sequence[ScanFiles]
    label_maps: Sequence[Path] = ()
    pretrained: Mapping[str, Path] = field(default_factory=dict)
    loading: Loading = field(default_factory=Loading)


@dataclass(frozen=True)
class Task:
    """How one kind of network is trained.

    Attributes:
        make_batches: Takes the recipe, the sources and a seed; returns a function that samples a
            batch, images and labels as `keras.Model.fit` takes them, and a description of the data.
        loss: Of a recipe.
        preview: Turns images, labels and predictions of a few examples into three arrays
            (N, X, Y, Z) for the report; None where pictures show nothing.
        arguments: Further ones for the builder.
    """

    make_batches: Callable[[Recipe, Sources, int], tuple[BatchFunction, str]]
    loss: Callable[[Recipe], keras.losses.Loss]
    preview: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, ...]] | None = None
    arguments: Callable[[Recipe], dict] = lambda _: {}


def make_patch_sampling(options: Mapping, **more: object) -> PatchSampling:
    """Make a `PatchSampling` of a recipe's ``drawing``."""
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    return PatchSampling(**values, **more)


def load_pretrained_entry(path: Path, recipe: Recipe) -> dict:
    """Read the entry of a network that this one builds on.

    Raises:
        ValueError: If it is no entry of a network, or of one with another grid.
        OSError: If it cannot be read.
    """
    entry = read_entry(path)
    if Grid.from_card(entry["grid"]) != Grid.from_card(recipe.grid):
        raise ValueError(
            f"{path}: a network that {recipe.name} learns after must see the same grid, "
            f"{recipe.grid}; found {entry['grid']}."
        )
    return entry


def check_no_label_maps(sources: Sources, what: str) -> None:
    """Check that ``what`` is not to be learnt from label maps alone.

    Raises:
        ValueError: If there are some.
    """
    if sources.label_maps:
        raise ValueError(
            f"{sources.label_maps[0]}: {what} are learnt from BIDS datasets; found no "
            "dataset_description.json."
        )
