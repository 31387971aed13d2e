"""The corridor of the makers: scans with their truth become weights, by one frozen recipe.

Training goes on where it was interrupted; the weights that did best on the validation set are
kept. What is drawn depends on the seed and the step alone.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import keras
import numpy as np

from bids_cmb import cases, contrasts
from bids_cmb.heads import head_paths
from bids_cmb.models.losses import LesionLoss, StructuresLoss
from bids_cmb.models.unet import unet
from bids_cmb.preprocessing import Grid

BUILDERS = {"unet": unet}
VALIDATION_STEPS = 24
CLIP_NORM = 1.0
Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained; ``data/recipes/<name>.json``.

    Attributes:
        name: Of the network.
        task: ``lesions`` or ``anatomy``.
        builder: Of the network, in ``models``.
        arguments: For the builder.
        grid: What the network is fed, as `Grid.from_card` reads it.
        seed: Of weights, patches and their variation.
        batch: Patches in a step.
        steps: In an epoch.
        epochs: At most.
        rate: Highest learning rate; it rises in the first epoch and falls by a cosine.
        decay: Of the weights.
        ema: Momentum of the averaged weights, which are those that are kept.
        patience: Epochs without a better validation after which training ends.
        drawing: For lesions: how patches are drawn, `cases.Drawing`.
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
    drawing: dict | None = None
    loss: dict | None = None
    patch: tuple[int, ...] = ()
    people: int = 0
    scanned: float = 0.5
    classes: tuple[dict, ...] = ()


def read_recipe(name: str) -> Recipe:
    """The recipe of that name, or the one in a file.

    Raises:
        ValueError: If there is no such recipe, or it holds something that no recipe has.
        OSError: If the file cannot be read.
    """
    shelf = files("bids_cmb") / "data" / "recipes"
    known = sorted(entry.name.removesuffix(".json") for entry in shelf.iterdir())
    if name not in known and not name.endswith(".json"):
        raise ValueError(f"A recipe must be one of {', '.join(known)}; found {name!r}.")
    source = Path(name) if name.endswith(".json") else shelf / f"{name}.json"
    try:
        return Recipe(**json.loads(source.read_text(encoding="utf-8")))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{source}: a recipe must hold what `Recipe` lists; {error}.") from error


class Lessons(keras.utils.PyDataset):
    """Batches for `fit`: each is drawn anew, and depends on the seed, the epoch and the step."""

    def __init__(self, teach: Callable[[np.random.Generator], Batch], steps: int, seed: int):
        """``teach`` draws a batch."""
        super().__init__(workers=1, use_multiprocessing=False)
        self.teach, self.steps, self.seed, self.epoch = teach, steps, seed, 0

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """Batch of a step of this epoch."""
        return self.teach(np.random.default_rng([self.seed, self.epoch, step]))


def train(
    recipe: Recipe, data: Sequence[Path], out: Path, *, validation: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
) -> dict:  # fmt: skip
    """Train a network.

    Args:
        recipe: How.
        data: BIDS datasets with their truth; for anatomy also folders of label maps.
        out: Where weights, state and curves go; what is there of the same recipe is gone on with.
        validation: The same as ``data``, for choosing among epochs.
        say: Told what goes on.

    Returns:
        The figures of the best epoch.
    """
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(recipe.seed)
    keras.mixed_precision.set_global_policy(precision())
    source = {"lesions": _lesion_lessons, "anatomy": _anatomy_lessons}[recipe.task]
    lessons = Lessons(source(recipe, data, recipe.seed, say), recipe.steps, recipe.seed)
    judged = None
    if validation:
        exam = Lessons(source(recipe, validation, 10**6, say), VALIDATION_STEPS, 10**6)
        judged = _fixed(exam)
    say(f"data read in {time.monotonic() - began:.0f} s")
    network = BUILDERS[recipe.builder](**recipe.arguments, **_outputs(recipe))
    network.compile(optimizer=_optimizer(recipe), loss=_loss(recipe), jit_compile=False)
    say(f"{network.count_params():,} parameters, {precision()}")
    best = out / "best.weights.h5"
    history = network.fit(
        lessons,
        epochs=recipe.epochs,
        validation_data=judged,
        validation_batch_size=recipe.batch,
        verbose=0,
        shuffle=False,
        callbacks=_callbacks(recipe, lessons, best, out, say),
    )
    figures = {key: float(values[-1]) for key, values in history.history.items()}
    if not best.exists():
        network.save_weights(best)
    return figures


def precision() -> str:
    """The policy that this machine computes fastest with: 16 bits where it has units for them."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return "mixed_bfloat16"
    flags = Path("/proc/cpuinfo")
    has = flags.is_file() and "avx512_bf16" in flags.read_text(encoding="utf-8")
    return "mixed_bfloat16" if has or os.environ.get("CUDA_VISIBLE_DEVICES") else "float32"


def _optimizer(recipe: Recipe) -> keras.optimizers.Optimizer:
    total = recipe.steps * recipe.epochs
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.rate / 20, total - recipe.steps, alpha=0.01, warmup_target=recipe.rate,
        warmup_steps=recipe.steps,
    )  # fmt: skip
    return keras.optimizers.AdamW(
        rate, weight_decay=recipe.decay, clipnorm=CLIP_NORM, use_ema=True,
        ema_momentum=recipe.ema,
    )  # fmt: skip


def _outputs(recipe: Recipe) -> dict:
    return {"outputs": len(recipe.classes) + 1} if recipe.task == "anatomy" else {}


def _loss(recipe: Recipe) -> keras.losses.Loss:
    if recipe.task == "anatomy":
        return StructuresLoss(classes=len(recipe.classes))
    return LesionLoss(**recipe.loss)


def _callbacks(recipe: Recipe, lessons: Lessons, best: Path, out: Path, say: Callable) -> list:
    since = time.monotonic()

    def begin(epoch: int, logs: dict | None = None) -> None:  # noqa: ARG001
        lessons.epoch = epoch

    def end(epoch: int, logs: dict | None = None) -> None:
        passed = time.monotonic() - since
        left = passed / (epoch + 1) * (recipe.epochs - epoch - 1)
        told = ", ".join(f"{key} {value:.4f}" for key, value in (logs or {}).items())
        say(f"epoch {epoch + 1} of {recipe.epochs}: {told}; about {left / 60:.0f} min to go")

    return [
        keras.callbacks.LambdaCallback(on_epoch_begin=begin),
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.ModelCheckpoint(
            best, monitor="val_loss", save_best_only=True, save_weights_only=True
        ),
        keras.callbacks.BackupAndRestore(out / "state", delete_checkpoint=False),
        keras.callbacks.CSVLogger(out / "curves.csv", append=True),
        keras.callbacks.EarlyStopping("val_loss", patience=recipe.patience),
        keras.callbacks.LambdaCallback(on_epoch_end=end),
    ]


def _fixed(exam: Lessons) -> Batch:
    """All batches of an examination, once."""
    parts = [exam[step] for step in range(len(exam))]
    images, truths = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(truths)


def _lesion_lessons(recipe: Recipe, data: Sequence[Path], seed: int, say: Callable) -> Callable:  # noqa: ARG001
    grid = Grid.from_card(recipe.grid)
    found = [one for folder in data for one in cases.find_cases(folder)]
    read = [cases.read_case(one, grid) for one in found]
    say(f"{len(read)} scans, {sum(len(one.centres['lesion']) for one in read)} lesions")
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in recipe.drawing.items()}
    drawing = cases.Drawing(**given)
    return lambda rng: cases.batch(read, drawing, rng, size=recipe.batch)


def _anatomy_lessons(recipe: Recipe, data: Sequence[Path], seed: int, say: Callable) -> Callable:
    grid, known = Grid.from_card(recipe.grid), contrasts.atlas(recipe.classes)
    scanned, painted = [], []
    for folder in data:
        if (folder / "dataset_description.json").is_file():
            scanned += [contrasts.scanned_subject(one, grid) for one in cases.find_cases(folder)]
            continue
        for at, path in enumerate(head_paths(folder)):
            for person in range(recipe.people):
                rng = np.random.default_rng([seed, at, person])
                painted.append(contrasts.painted_subject(path, rng, float(grid.spacing[0])))
    say(f"{len(painted)} people to paint, {len(scanned)} simulated scans")

    def teach(rng: np.random.Generator) -> Batch:
        pool = scanned if scanned and (not painted or rng.random() < recipe.scanned) else painted
        return contrasts.batch(pool, known, recipe.patch, rng, size=recipe.batch)

    return teach
