"""The corridor of the makers: scans with their truth become weights, by one frozen recipe.

Training goes on where it was interrupted; the weights that did best on the validation set are
kept. What is drawn depends on the seed and the step alone.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path

import keras
import numpy as np

from bids_cmb import __version__, cases
from bids_cmb.files import write_json, write_text
from bids_cmb.lessons import (
    anatomy,
    boxes,
    candidates,
    classification,
    discrimination,
    gate,
    lesions,
    patches,
    slices,
    tissue,
)
from bids_cmb.lessons.task import Batch, Recipe, Sources, Teach
from bids_cmb.networks import builder, device
from bids_cmb.provenance import machine, software
from bids_cmb.training_report import draw_report
from bids_cmb.weights import read_weights, write_weights

TASKS = {
    "lesions": lesions.TASK,
    "anatomy": anatomy.TASK,
    "tissue": tissue.TASK,
    "boxes": boxes.TASK,
    "patches": patches.TASK,
    "gate": gate.TASK,
    "slices": slices.TASK,
    "candidates": candidates.TASK,
    "classification": classification.TASK,
    "teacher": discrimination.TEACHER,
    "student": discrimination.STUDENT,
}
VALIDATION_STEPS = 24
EXAMPLES = 40  # patches of the validation, of which the report shows those with most to see
CLIP_NORM = 1.0
VALIDATION_SEED = 10**6  # its patches are the same whatever the recipe's seed
FINER = 0.25  # of the recipe's learning rate, for weights that know something already
Say = Callable[[str], None]


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
        recipe = Recipe(**json.loads(source.read_text(encoding="utf-8")))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{source}: a recipe must hold what `Recipe` lists; {error}.") from error
    if recipe.task not in TASKS:
        raise ValueError(
            f"{source}: a recipe's task must be one of {', '.join(TASKS)}; found {recipe.task!r}."
        )
    return recipe


@dataclass(frozen=True)
class Material:
    """What a network learns from.

    Attributes:
        data: BIDS datasets with their truth; for anatomy also folders of label maps.
        validation: The same, for choosing among epochs; without any, the last epoch is kept.
        truth: Derivative dataset with the truth of all data, where it does not lie in
            ``derivatives/truth`` of each.
        start: Weights to begin with, ``.npz``; by chance without.
        left_out: Subjects of ``data`` that are not learnt from but validated on.
        given: Networks that this one learns after, `lessons.task.Sources`.
    """

    data: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    truth: Path | None = None
    start: Path | None = None
    left_out: tuple[str, ...] = ()
    given: tuple[tuple[str, Path], ...] = ()


class Lessons(keras.utils.PyDataset):
    """Batches for `fit`: each is drawn anew, and depends on the seed, the epoch and the step."""

    def __init__(self, teach: Teach, steps: int, seed: int):
        """``teach`` draws a batch."""
        super().__init__(workers=1, use_multiprocessing=False)
        self.teach, self.steps, self.seed, self.epoch = teach, steps, seed, 0

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """Batch of a step of this epoch."""
        return self.teach(np.random.default_rng([self.seed, self.epoch, step]))


@contextmanager
def _own_precision() -> Iterator[None]:
    """Networks that are built meanwhile compute as this machine learns fastest."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision())
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@_own_precision()
def train(recipe: Recipe, material: Material, out: Path, *, say: Say = lambda _: None) -> dict:
    """Train a network and write its weights and its entry for a model card.

    Args:
        recipe: How.
        material: From what.
        out: Where to: ``<name>.npz``, ``<name>.json``, ``curves.tsv`` (epoch, loss, validation),
            ``report.png`` (the same drawn, and what the network says about validation patches),
            and the state to go on from. Training that was interrupted there goes on.
        say: Told what goes on.

    Returns:
        The entry.

    Raises:
        ValueError: If ``out`` holds the training of another recipe, or the data cannot be used.
        OSError: If something cannot be read or written.
    """
    began = time.monotonic()
    _claim(out, recipe)
    keras.utils.set_random_seed(recipe.seed)
    teach, told = _teacher(recipe, material.data, material, recipe.seed, learn=True)
    lessons = Lessons(teach, recipe.steps, recipe.seed)
    judged = _examination(recipe, material)
    say(f"{told}; read in {time.monotonic() - began:.0f} s")
    network = build(recipe)
    if material.start:
        _fill(network, material.start)
    slower = FINER if material.start else 1.0
    network.compile(
        _optimizer(recipe, slower), loss=TASKS[recipe.task].loss(recipe), jit_compile=False
    )
    say(f"{network.count_params():,} parameters, {precision()}, {device()}")
    best = out / "best.weights.h5"
    network.fit(
        lessons,
        epochs=recipe.epochs,
        validation_data=judged,
        validation_batch_size=recipe.batch,
        verbose=0,
        shuffle=False,
        callbacks=_callbacks(recipe, lessons, out, say, judged=judged is not None),
    )
    if best.exists():
        network.load_weights(best)
    lessons.epoch = recipe.epochs  # none that was trained on comes again
    settle(network, lambda at: lessons[at][0], recipe.settle)
    curves = [[float(cell) for cell in line.split()] for line in _lines(out / "curves.tsv")]
    draw_report(out / "report.png", recipe.name, curves, _examples(network, judged, recipe))
    minutes = (time.monotonic() - began) / 60
    return _written(network, recipe, out, f"{told}; {minutes:.0f} minutes on a {device()}")


def cross_validate(
    recipe: Recipe, material: Material, out: Path, *, folds: int, say: Say = lambda _: None
) -> list[dict]:
    """Train anew for each fold on all subjects but those of the fold.

    Args:
        recipe: How.
        material: From what; its data are BIDS datasets.
        out: A folder for each fold.
        folds: How many; the subjects of a dataset are dealt to them in turn.
        say: Told what goes on.

    Returns:
        The entry of each fold's network, with the subjects that it has not seen.

    Raises:
        ValueError: If there are fewer subjects than folds; or as `train`.
    """
    found = [one for folder in material.data for one in cases.find_cases(folder, material.truth)]
    subjects = sorted({one.subject for one in found})
    if not 2 <= folds <= len(subjects):
        raise ValueError(
            f"Folds must be 2 or more and no more than subjects with a truth, {len(subjects)}; "
            f"found {folds}."
        )
    entries = []
    for fold in range(folds):
        left_out = tuple(subjects[fold::folds])
        say(f"fold {fold + 1} of {folds}: without {', '.join(left_out)}")
        apart = replace(material, left_out=left_out)
        named = replace(recipe, name=f"{recipe.name}-{fold + 1}")
        entry = train(named, apart, out / f"fold-{fold + 1}", say=say)
        entries.append({**entry, "left_out": left_out})
    return entries


def build(recipe: Recipe) -> keras.Model:
    """The network of a recipe, its weights by chance."""
    return builder(recipe.builder)(**_arguments(recipe))


def _arguments(recipe: Recipe) -> dict:
    return recipe.arguments | TASKS[recipe.task].arguments(recipe)


def settle(network: keras.Model, images: Callable[[int], np.ndarray], batches: int) -> None:
    """Measure what normalisations divide by anew, as the mean over so many batches of images."""
    norms = [one for one in network.layers if isinstance(one, keras.layers.BatchNormalization)]
    before = [norm.momentum for norm in norms]
    for at in range(batches):
        for norm in norms:
            norm.momentum = at / (at + 1)
        network(images(at), training=True)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def precision() -> str:
    """The policy that this machine computes fastest with: 16 bits where it has units for them."""
    flags = Path("/proc/cpuinfo")
    has = flags.is_file() and "avx512_bf16" in flags.read_text(encoding="utf-8")
    on_gpu = keras.backend.backend() == "tensorflow" and device().startswith("GPU")
    return "mixed_bfloat16" if has or on_gpu else "float32"


def _claim(out: Path, recipe: Recipe) -> None:
    """Mark a folder as that of a recipe, or make sure that it is."""
    said, mark = json.dumps(asdict(recipe), indent=2) + "\n", out / "recipe.json"
    if mark.is_file() and mark.read_text(encoding="utf-8") != said:
        raise ValueError(
            f"{mark}: training goes on with the recipe that it began with; found another one."
        )
    write_text(mark, said)


def _fill(network: keras.Model, start: Path) -> None:
    arrays = read_weights(start)
    for variable in network.weights:  # and no state of chance
        if variable.path not in arrays or arrays[variable.path].shape != tuple(variable.shape):
            raise ValueError(
                f"{start}: weights to begin with must be those of the recipe's network; "
                f"found none that fits {variable.path}."
            )
        variable.assign(arrays[variable.path])


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _examples(
    network: keras.Model, judged: Batch | None, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Images, truths and answers of the first patches of the validation; None without one."""
    shown = TASKS[recipe.task].shown
    if judged is None or shown is None:
        return None
    images, truths = judged[0][:EXAMPLES], judged[1][:EXAMPLES]
    return shown(images, truths, network.predict(images, batch_size=recipe.batch, verbose=0))


def _written(network: keras.Model, recipe: Recipe, out: Path, told: str) -> dict:
    """Write weights and entry."""
    arrays = {one.path: keras.ops.convert_to_numpy(one.value) for one in network.weights}
    path = out / f"{recipe.name}.npz"
    arguments = {key: value for key, value in _arguments(recipe).items() if key != "start"}
    entry = {
        "name": recipe.name,
        "builder": recipe.builder,
        "arguments": arguments,
        "grid": recipe.grid,
        "flips": [],
        "weights": path.name,
        "sha256": write_weights(path, arrays),
        "training": {
            "recipe": recipe.name,
            "seed": recipe.seed,
            "data": told,
            "bids_cmb": __version__,
            "keras": software()["keras"],
            "machine": machine()["System"],
        },
    }
    write_json(out / f"{recipe.name}.json", entry)
    return entry


def _optimizer(recipe: Recipe, slower: float) -> keras.optimizers.Optimizer:
    rate = keras.optimizers.schedules.CosineDecay(
        slower * recipe.rate / 20, max(1, recipe.steps * (recipe.epochs - 1)), alpha=0.01,
        warmup_target=slower * recipe.rate, warmup_steps=recipe.steps,
    )  # fmt: skip
    return keras.optimizers.AdamW(
        rate, weight_decay=recipe.decay, clipnorm=CLIP_NORM, use_ema=True,
        ema_momentum=recipe.ema,
    )  # fmt: skip


def _callbacks(
    recipe: Recipe, lessons: Lessons, out: Path, say: Say, *, judged: bool
) -> list[keras.callbacks.Callback]:
    began: list[tuple[int, float]] = []  # the first epoch of this run, which may go on from others

    def begin(epoch: int, logs: dict | None = None) -> None:  # noqa: ARG001
        lessons.epoch = epoch
        if not began:
            began.append((epoch, time.monotonic()))

    def end(epoch: int, logs: dict | None = None) -> None:
        first, since = began[0]
        left = (time.monotonic() - since) / (epoch + 1 - first) * (recipe.epochs - epoch - 1)
        told = ", ".join(f"{key} {value:.4f}" for key, value in (logs or {}).items())
        with (out / "curves.tsv").open("a", encoding="utf-8") as curves:
            curves.write("\t".join(map(str, [epoch + 1, *(logs or {}).values()])) + "\n")
        say(f"epoch {epoch + 1} of {recipe.epochs}: {told}; about {left / 60:.0f} min to go")

    measure = "val_loss" if judged else "loss"
    return [
        keras.callbacks.LambdaCallback(on_epoch_begin=begin),
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.ModelCheckpoint(
            out / "best.weights.h5", monitor=measure, save_best_only=judged,
            save_weights_only=True,
        ),
        keras.callbacks.BackupAndRestore(out / "state", delete_checkpoint=False),
        keras.callbacks.EarlyStopping(measure, patience=recipe.patience),
        keras.callbacks.LambdaCallback(on_epoch_end=end),
    ]  # fmt: skip


# --- What is taught -------------------------------------------------------------------------------


def _examination(recipe: Recipe, material: Material) -> Batch | None:
    """All batches of the validation, once; None without any."""
    data = material.data if material.left_out else material.validation
    if not data:
        return None
    teach, _ = _teacher(recipe, data, material, VALIDATION_SEED, learn=False)
    exam = Lessons(teach, VALIDATION_STEPS, VALIDATION_SEED)
    images, truths = zip(*[exam[step] for step in range(len(exam))], strict=True)
    together = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *images)
    return together, np.concatenate(truths)


def _teacher(
    recipe: Recipe, data: Sequence[Path], material: Material, seed: int, *, learn: bool
) -> tuple[Teach, str]:
    """What draws a batch, and in words what it draws from."""
    label_maps = [folder for folder in data if not (folder / "dataset_description.json").is_file()]
    scans = [
        one
        for folder in data
        if folder not in label_maps
        for one in cases.find_cases(folder, material.truth)
        if not material.left_out or (one.subject in material.left_out) != learn
    ]
    sources = Sources(scans, label_maps, dict(material.given))
    return TASKS[recipe.task].teach(recipe, sources, seed)
