"""A task: what a network is shown, what it is told, and how wrong it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from bids_cmb.files import replacing
from bids_cmb.imaging.preprocessing import Grid
from bids_cmb.networks.model_cards import read_entry
from bids_cmb.training.data import Drawing, Paths

Batch = tuple[np.ndarray, np.ndarray]
Teach = Callable[[np.random.Generator], Batch]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained; ``resources/recipes/<name>.json``.

    Attributes:
        name: Of the network.
        task: What it learns: one of `training.train.TASKS`.
        builder: Of the network, one of `networks.inference.BUILDERS`.
        arguments: For the builder.
        grid: What the network is fed, as `Grid.from_card` reads it.
        seed: Of weights, patches and their variation.
        batch: Patches in a step.
        steps: In an epoch.
        epochs: At most.
        rate: Highest learning rate; it rises in the first epoch and falls by a cosine.
        decay: Of the weights.
        ema: Momentum of the averaged weights, which are those that are kept.
        patience: Epochs without a better median validation, of three, after which training ends.
        settle: Batches after training, over which the normalisations are measured anew, under
            the weights that are kept.
        drawing: How patches are drawn; what it holds is the task's own affair.
        loss: Arguments of the loss.
        patch: For anatomy: voxels of a part of a head.
        people: For anatomy: people drawn from each label map.
        scanned: For anatomy: share of batches that are simulated scans, if there are any.
        classes: For anatomy: what the network tells apart.
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
    """What batches are drawn from.

    Attributes:
        scans: With their truth.
        label_maps: Folders of heads.
        given: Entries (``.json``, weights beside) of networks that this one learns after, by what
            they are to it: a teacher, whoever finds the candidates.
    """

    scans: Sequence[Paths]
    label_maps: Sequence[Path] = ()
    given: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """How one kind of network is taught.

    Attributes:
        teach: From the recipe, the sources and a seed to what draws a batch, images and truths
            that `fit` takes, and in words what it draws from.
        loss: Of a recipe.
        shown: Images, truths and answers of a few examples → three arrays (N, X, Y, Z) for the
            report; None where pictures say nothing.
        arguments: Further ones for the builder.
    """

    teach: Callable[[Recipe, Sources, int], tuple[Teach, str]]
    loss: Callable[[Recipe], keras.losses.Loss]
    shown: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, ...]] | None = None
    arguments: Callable[[Recipe], dict] = lambda _: {}


def drawing_of(given: Mapping, **more: object) -> Drawing:
    """How patches are drawn and varied, from a recipe's ``drawing``."""
    read = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    return Drawing(**read, **more)


def read_given(path: Path, recipe: Recipe) -> dict:
    """Read the entry of a network that this one learns after.

    Raises:
        ValueError: If it is no entry of a network, or that sees another grid.
        OSError: If it cannot be read.
    """
    entry = read_entry(path)
    if Grid.from_card(entry["grid"]) != Grid.from_card(recipe.grid):
        raise ValueError(
            f"{path}: a network that {recipe.name} learns after must see the same grid, "
            f"{recipe.grid}; found {entry['grid']}."
        )
    return entry


def refuse_label_maps(sources: Sources, what: str) -> None:
    """Say that ``what`` cannot be learnt from label maps alone.

    Raises:
        ValueError: If there are some.
    """
    if sources.label_maps:
        raise ValueError(
            f"{sources.label_maps[0]}: {what} are learnt from BIDS datasets; found no "
            "dataset_description.json."
        )


def keep_arrays(path: Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Read named arrays from a file; where it is not there, make and write them first.

    Args:
        path: Of the ``.npz``; its name tells all that the arrays depend on.
        make: Makes them.

    Raises:
        OSError: If the file cannot be read or written.
    """
    if not path.is_file():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(file, **made)
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
