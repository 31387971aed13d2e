"""The corridor of the makers: scans with their truth become weights, by one frozen recipe.

Training goes on where it was interrupted; the weights that did best on the validation set are
kept. What is drawn depends on the seed and the step alone.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import keras
import numpy as np

from bids_cmb import __version__
from bids_cmb.files import load_object, read_json, write_json
from bids_cmb.networks.inference import builder, device
from bids_cmb.networks.weights import read_weights, write_weights
from bids_cmb.provenance import fingerprint, machine, sha256, software
from bids_cmb.training import data as cases
from bids_cmb.training.course import Course, Schedule
from bids_cmb.training.figures import draw_report
from bids_cmb.training.recipe import Batch, Recipe, Sources, Teach
from bids_cmb.training.tasks import (
    anatomy,
    box_detection,
    candidate_classification,
    candidate_detection,
    distillation,
    proposal_classification,
    segmentation,
    slice_segmentation,
    tile_classification,
    tissue,
)

TASKS = {
    "lesions": segmentation.TASK,
    "anatomy": anatomy.TASK,
    "tissue": tissue.TASK,
    "boxes": box_detection.TASK,
    "patches": candidate_classification.TASK,
    "gate": tile_classification.TASK,
    "slices": slice_segmentation.TASK,
    "candidates": candidate_detection.TASK,
    "classification": proposal_classification.TASK,
    "teacher": distillation.TEACHER,
    "student": distillation.STUDENT,
}
VALIDATION_STEPS = 24
EXAMPLES = 40  # patches of the validation, of which the report shows those with most to see
CLIP_NORM = 1.0
VALIDATION_SEED = 10**6  # its patches are the same whatever the recipe's seed
ASKED_ALIKE = ("hidden", "blind")  # of a drawing: what is taught so is asked so
FINER = 0.25  # of the recipe's learning rate, for weights that know something already
Say = Callable[[str], None]


def read_recipe(name: str) -> Recipe:
    """The recipe of that name, or the one in a file.

    Raises:
        ValueError: If there is no such recipe, or it holds something that no recipe has.
        OSError: If the file cannot be read.
    """
    shelf = files("bids_cmb") / "resources" / "recipes"
    known = sorted(entry.name.removesuffix(".json") for entry in shelf.iterdir())
    if name not in known and not name.endswith(".json"):
        raise ValueError(f"A recipe must be one of {', '.join(known)}; found {name!r}.")
    source = Path(name) if name.endswith(".json") else shelf / f"{name}.json"
    try:
        recipe = Recipe(**load_object(source, "a recipe"))
    except TypeError as error:
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
        given: Networks that this one learns after, `training.recipe.Sources`.
    """

    data: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    truth: Path | None = None
    start: Path | None = None
    left_out: tuple[str, ...] = ()
    given: tuple[tuple[str, Path], ...] = ()


def draw_batch(teach: Teach, seed: int, epoch: int, step: int) -> Batch:
    """Draw the batch of a step: it depends on the seed, the epoch and the step alone."""
    return teach(np.random.default_rng([seed, epoch, step]))


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
def train(
    recipe: Recipe, material: Material, out: Path, *, hours: float | None = None,
    say: Say = lambda _: None,
) -> dict:  # fmt: skip
    """Train a network and write its weights and its entry for a model card.

    Args:
        recipe: How.
        material: From what.
        out: Where to: ``<name>.npz``, ``<name>.json``, ``curves.tsv`` (`training.course.COLUMNS`),
            ``report.png`` (the same drawn, and what the network says about validation patches),
            and the state to go on from. Training that was interrupted there goes on.
        hours: Budget of wall time, reading and runs before an interruption included; training ends
            by then, at a low learning rate. Without one it ends with the recipe's epochs.
        say: Told what goes on.

    Returns:
        The entry.

    Raises:
        ValueError: If ``out`` holds the training of another recipe or from other data, the data or
            the budget cannot be used, or the loss is no number any more.
        OSError: If something cannot be read or written.
    """
    since = (time.monotonic(), time.process_time())
    if hours is not None and not (0 < hours < math.inf):
        raise ValueError(f"A budget must be more than 0 hours; found {hours:g}.")
    sources = _sources(recipe, material, learn=True)
    judges = _sources(recipe, material, learn=False)
    claims = {
        "recipe.json": asdict(recipe),
        "material.json": _described(material, sources, judges),
    }
    _check_claims(out, claims)
    keras.utils.set_random_seed(recipe.seed)
    task = TASKS[recipe.task]
    teach, told = task.teach(recipe, sources, recipe.seed)
    judged = _examination(recipe, judges) if judges else None
    say(f"{told}; read in {time.monotonic() - since[0]:.0f} s")
    network = build(recipe)
    if material.start:
        _fill(network, material.start)
    slower = FINER if material.start else 1.0
    schedule = Schedule(recipe.steps, recipe.epochs, slower * recipe.rate, recipe.patience, hours)
    network.compile(_optimizer(recipe, schedule.rate), loss=task.loss(recipe), jit_compile=False)
    say(f"{network.count_params():,} parameters, {precision()}, {device()}")
    for name, content in claims.items():
        write_json(out / name, content)
    course = Course(
        network, schedule, partial(draw_batch, teach, recipe.seed), judged, recipe.batch, out, say,
        since,
    )  # fmt: skip
    ended = course.run()
    # none that was trained on comes again
    settle(network, lambda at: draw_batch(teach, recipe.seed, recipe.epochs, at)[0], recipe.settle)
    figures = {**course.progress.figures(), "ended_by": ended}
    took = (
        f"{60 * figures['hours']:.0f} minutes on a {device()}, {figures['core_hours']:.2f} "
        f"core-hours, {figures['voxels']:,} voxels, {figures['voxels_per_second']:,} per second"
    )
    say(f"{told}; {took}; kept epoch {figures['best_epoch']} of {figures['epochs']}")
    draw_report(
        out / "report.png", f"{recipe.name}: {took}", course.progress.rows,
        _examples(network, judged, recipe),
    )  # fmt: skip
    return _written(network, recipe, out, f"{told}; {took}", figures)


def cross_validate(
    recipe: Recipe, material: Material, out: Path, *, folds: int, hours: float | None = None,
    say: Say = lambda _: None,
) -> list[dict]:  # fmt: skip
    """Train anew for each fold on all subjects but those of the fold.

    Args:
        recipe: How.
        material: From what; its data are BIDS datasets.
        out: A folder for each fold.
        folds: How many; the subjects of a dataset are dealt to them in turn.
        hours: Budget of each fold, as `train` takes it.
        say: Told what goes on.

    Returns:
        The entry of each fold's network, with the subjects that it was not trained on. Which of its
        epochs is kept was chosen by their validation loss, so figures on them are a little too
        good.

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
        entry = train(named, apart, out / f"fold-{fold + 1}", hours=hours, say=say)
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


def _check_claims(out: Path, claims: dict[str, dict]) -> None:
    """Make sure that a folder is not that of another training, and no dataset.

    Raises:
        ValueError: If it is.
    """
    if (out / "dataset_description.json").exists():
        raise ValueError(f"{out}: a network is trained in a folder of its own; found a dataset.")
    for name, content in claims.items():
        stored, wanted = read_json(out / name), json.loads(json.dumps(content))
        if stored is None:
            if (out / name).exists():
                raise ValueError(f"{out / name}: a training goes on by this file; found no JSON.")
            continue
        if name == "recipe.json":  # fields that came after it was written have their defaults
            stored = {key: stored.get(key, was) for key, was in _defaults().items()} | stored
        if stored != wanted:
            other = [key for key in {**wanted, **stored} if stored.get(key) != wanted.get(key)]
            what = name.removesuffix(".json")
            raise ValueError(
                f"{out / name}: training goes on with the {what} that it began with; found another "
                f"one ({', '.join(other)})."
            )


def _defaults() -> dict:
    """The fields of a recipe that may be left out, as JSON has them."""
    known = {one.name: one.default for one in fields(Recipe) if one.default is not MISSING}
    return json.loads(json.dumps(known))


def _described(material: Material, sources: Sources, judges: Sources | None) -> dict:
    """What a network learns from, wherever it lies: what must not change in a training."""
    return {
        "data": _digest(sources),
        "validation": _digest(judges) if judges else None,
        "start": sha256(material.start) if material.start else None,
        "given": {
            role: sha256(Path(path)) if Path(path).is_file() else None
            for role, path in material.given
        },
        "left_out": list(material.left_out),
    }


def _digest(sources: Sources) -> dict:
    """Scans, heads and a checksum: of the truth by content, of images by name and size."""
    scans = [
        [paths.name, sha256(paths.lesions)]
        + [(one.name, one.stat().st_size) for one in vars(paths).values() if isinstance(one, Path)]
        for paths in sources.scans
    ]
    heads = [
        (head.name, head.stat().st_size)
        for folder in sources.label_maps
        for head in sorted(folder.glob("*.nii*"))
    ]
    return {"scans": len(scans), "heads": len(heads), "sha256": fingerprint(of=[scans, heads])}


def _fill(network: keras.Model, start: Path) -> None:
    arrays = read_weights(start)
    for variable in network.weights:  # and no state of chance
        if variable.path not in arrays or arrays[variable.path].shape != tuple(variable.shape):
            raise ValueError(
                f"{start}: weights to begin with must be those of the recipe's network; "
                f"found none that fits {variable.path}."
            )
        variable.assign(arrays[variable.path])


def _examples(
    network: keras.Model, judged: Batch | None, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Images, truths and answers of the first patches of the validation; None without one."""
    shown = TASKS[recipe.task].shown
    if judged is None or shown is None:
        return None
    images, truths = judged[0][:EXAMPLES], judged[1][:EXAMPLES]
    return shown(images, truths, network.predict(images, batch_size=recipe.batch, verbose=0))


def _written(
    network: keras.Model, recipe: Recipe, out: Path, told: str, figures: dict
) -> dict:  # fmt: skip
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
            **figures,
            "bids_cmb": __version__,
            "keras": software()["keras"],
            "machine": machine()["System"],
        },
    }
    entry |= {key: value for key in ASKED_ALIKE if (value := (recipe.drawing or {}).get(key))}
    write_json(out / f"{recipe.name}.json", entry)
    return entry


def _optimizer(recipe: Recipe, rate: float) -> keras.optimizers.Optimizer:
    return keras.optimizers.AdamW(
        rate, weight_decay=recipe.decay, clipnorm=CLIP_NORM, use_ema=True,
        ema_momentum=recipe.ema,
    )  # fmt: skip


# --- What is taught -------------------------------------------------------------------------------


def _examination(recipe: Recipe, judges: Sources) -> Batch:
    """All batches of the validation, once."""
    teach, _ = TASKS[recipe.task].teach(recipe, judges, VALIDATION_SEED)
    batches = [draw_batch(teach, VALIDATION_SEED, 0, step) for step in range(VALIDATION_STEPS)]
    images, truths = zip(*batches, strict=True)
    together = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *images)
    return together, np.concatenate(truths)


def _sources(recipe: Recipe, material: Material, *, learn: bool) -> Sources | None:
    """What is drawn from, to learn or to validate; None without a validation."""
    data = material.data if learn or material.left_out else material.validation
    if not data:
        return None
    label_maps = [folder for folder in data if not (folder / "dataset_description.json").is_file()]
    scans = [
        one
        for folder in data
        if folder not in label_maps
        for one in cases.find_cases(folder, material.truth)
        if not material.left_out or (one.subject in material.left_out) != learn
    ]
    if not scans and not label_maps:
        what = "learns from" if learn else "is validated on"
        raise ValueError(
            f"{recipe.name} {what} scans with a truth; found none in "
            f"{', '.join(map(str, data))} but those left out."
        )
    return Sources(scans, label_maps, dict(material.given))
