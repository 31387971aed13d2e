"""Training: scans with reference labels become weights, by one frozen recipe.

An interrupted training resumes; the weights that did best on the validation set are kept. Every
sample depends on the seed and the step alone.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import keras
import numpy as np

from bids_cmb import __version__
from bids_cmb.files import load_object, read_json, write_json
from bids_cmb.networks.backend import describe_device
from bids_cmb.networks.builders import get_builder
from bids_cmb.networks.weights import read_weights, write_weights
from bids_cmb.provenance import fingerprint, machine, sha256, software
from bids_cmb.training.course import Schedule, TrainingLoop
from bids_cmb.training.figures import draw_report
from bids_cmb.training.recipe import Batch, BatchFunction, Recipe, Sources
from bids_cmb.training.scan_files import find_training_scans
from bids_cmb.training.scan_loading import Loading
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
N_EXAMPLES = 40  # patches of the validation, of which the report shows those with most to see
CLIP_NORM = 1.0
VALIDATION_SEED = 10**6  # its patches are the same whatever the recipe's seed
SHARED_INPUT_OPTIONS = ("hidden", "blind")  # of a drawing: what is taught so is asked so
FINE_TUNING_RATE_SHARE = (
    0.25  # of the recipe's learning rate, for weights that know something already
)
Log = Callable[[str], None]


def read_recipe(name: str) -> Recipe:
    """Read the recipe of that name, or the one in a file.

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
class TrainingData:
    """What a network is trained on.

    Attributes:
        data: BIDS datasets with reference labels; for anatomy also folders of label maps.
        validation: The same, for choosing among epochs; without any, the last epoch is kept.
        truth: Derivative dataset with the reference of all data, where it does not lie in
            ``derivatives/truth`` of each.
        start: Weights to begin with, ``.npz``; random without.
        left_out: Subjects of ``data`` that are validated on instead of trained on.
        pretrained: Networks that this one builds on, see `training.recipe.Sources`.
        loading: How the scans are loaded; makes no difference to what is trained.
    """

    data: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    truth: Path | None = None
    start: Path | None = None
    left_out: tuple[str, ...] = ()
    pretrained: tuple[tuple[str, Path], ...] = ()
    loading: Loading = field(default_factory=Loading)


def draw_batch(draw: BatchFunction, seed: int, epoch: int, step: int) -> Batch:
    """Draw the batch of a step: it depends on the seed, the epoch and the step alone."""
    return draw(np.random.default_rng([seed, epoch, step]))


@contextmanager
def _training_precision() -> Iterator[None]:
    """Build networks meanwhile in the precision that this machine trains fastest in."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(choose_precision())
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@_training_precision()
def train(
    recipe: Recipe, data: TrainingData, out: Path, *, hours: float | None = None,
    log: Log = lambda _: None,
) -> dict:  # fmt: skip
    """Train a network and write its weights and its entry for a model card.

    Args:
        recipe: How.
        data: On what.
        out: Where to: ``<name>.npz``, ``<name>.json``, ``curves.tsv`` (`training.course.COLUMNS`),
            ``report.png`` (the same plotted, and predictions of validation patches),
            and the state to resume from. Training that was interrupted there resumes.
        hours: Budget of wall time, loading and runs before an interruption included; training ends
            by then, at a low learning rate. Without one it ends with the recipe's epochs.
        log: Called with a line of progress.

    Returns:
        The entry.

    Raises:
        ValueError: If ``out`` holds the training of another recipe or from other data, the data or
            the budget cannot be used, or the loss is no number any more.
        OSError: If something cannot be read or written.
    """
    started = (time.monotonic(), time.process_time())
    if hours is not None and not (0 < hours < math.inf):
        raise ValueError(f"A budget must be more than 0 hours; found {hours:g}.")
    sources = _find_sources(recipe, data, learn=True)
    validation_sources = _find_sources(recipe, data, learn=False)
    inputs = {
        "recipe.json": asdict(recipe),
        "material.json": _describe_inputs(data, sources, validation_sources),
    }
    _check_output_dir(out, inputs)
    keras.utils.set_random_seed(recipe.seed)
    task = TASKS[recipe.task]
    draw, description = task.make_batches(recipe, sources, recipe.seed)
    validation = _make_validation_batch(recipe, validation_sources) if validation_sources else None
    log(f"{description}; read in {time.monotonic() - started[0]:.0f} s")
    network = build_network(recipe)
    if data.start:
        _load_initial_weights(network, data.start)
    slower = FINE_TUNING_RATE_SHARE if data.start else 1.0
    schedule = Schedule(recipe.steps, recipe.epochs, slower * recipe.rate, recipe.patience, hours)
    network.compile(_optimizer(recipe, schedule.rate), loss=task.loss(recipe), jit_compile=False)
    log(f"{network.count_params():,} parameters, {choose_precision()}, {describe_device()}")
    for name, content in inputs.items():
        write_json(out / name, content)
    course = TrainingLoop(
        network, schedule, partial(draw_batch, draw, recipe.seed), validation, recipe.batch, out,
        log, started,
    )  # fmt: skip
    stop_reason = course.run()
    # none that was trained on comes again
    recalibrate_batchnorm(
        network, lambda index: draw_batch(draw, recipe.seed, recipe.epochs, index)[0], recipe.settle
    )
    figures = {**course.progress.figures(), "ended_by": stop_reason}
    effort = (
        f"{60 * figures['hours']:.0f} minutes on a {describe_device()}, "
        f"{figures['core_hours']:.2f} core-hours, {figures['voxels']:,} voxels, "
        f"{figures['voxels_per_second']:,} per second"
    )
    log(f"{description}; {effort}; kept epoch {figures['best_epoch']} of {figures['epochs']}")
    draw_report(
        out / "report.png", f"{recipe.name}: {effort}", course.progress.rows,
        _make_examples(network, validation, recipe),
    )  # fmt: skip
    return _write_weights_and_entry(network, recipe, out, f"{description}; {effort}", figures)


def cross_validate(
    recipe: Recipe, data: TrainingData, out: Path, *, folds: int, hours: float | None = None,
    log: Log = lambda _: None,
) -> list[dict]:  # fmt: skip
    """Train anew for each fold on all subjects but those of the fold.

    Args:
        recipe: How.
        data: On what; its data are BIDS datasets.
        out: A folder for each fold.
        folds: How many; the subjects of a dataset are dealt to them in turn.
        hours: Budget of each fold, as `train` takes it.
        log: Called with a line of progress.

    Returns:
        The entry of each fold's network, with the subjects that it was not trained on. Which of its
        epochs is kept was chosen by their validation loss, so figures on them are a little too
        good.

    Raises:
        ValueError: If there are fewer subjects than folds; or as `train`.
    """
    scans = [scan for folder in data.data for scan in find_training_scans(folder, data.truth)]
    subjects = sorted({scan.subject for scan in scans})
    if not 2 <= folds <= len(subjects):
        raise ValueError(
            f"Folds must be 2 or more and no more than subjects with a truth, {len(subjects)}; "
            f"found {folds}."
        )
    entries = []
    for fold in range(folds):
        left_out = tuple(subjects[fold::folds])
        log(f"fold {fold + 1} of {folds}: without {', '.join(left_out)}")
        fold_data = replace(data, left_out=left_out)
        fold_recipe = replace(recipe, name=f"{recipe.name}-{fold + 1}")
        entry = train(fold_recipe, fold_data, out / f"fold-{fold + 1}", hours=hours, log=log)
        entries.append({**entry, "left_out": left_out})
    return entries


def build_network(recipe: Recipe) -> keras.Model:
    """Build the network of a recipe with random weights."""
    return get_builder(recipe.builder)(**_arguments(recipe))


def _arguments(recipe: Recipe) -> dict:
    return recipe.arguments | TASKS[recipe.task].arguments(recipe)


def recalibrate_batchnorm(
    network: keras.Model, images: Callable[[int], np.ndarray], batches: int
) -> None:
    """Recalibrate batch normalisation: average its statistics over batches of images.

    Args:
        network: Whose `keras.layers.BatchNormalization` layers are set.
        images: Gives the images of a batch by number.
        batches: Their number.
    """
    norms = [
        layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)
    ]
    before = [norm.momentum for norm in norms]
    for index in range(batches):
        for norm in norms:
            norm.momentum = index / (index + 1)
        network(images(index), training=True)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def choose_precision() -> str:
    """Choose the policy that trains fastest here: 16 bits where there are units for them."""
    flags = Path("/proc/cpuinfo")
    has = flags.is_file() and "avx512_bf16" in flags.read_text(encoding="utf-8")
    on_gpu = keras.backend.backend() == "tensorflow" and describe_device().startswith("GPU")
    return "mixed_bfloat16" if has or on_gpu else "float32"


def _check_output_dir(out: Path, inputs: dict[str, dict]) -> None:
    """Check that a folder is not that of another training, and no dataset.

    Raises:
        ValueError: If it is.
    """
    if (out / "dataset_description.json").exists():
        raise ValueError(f"{out}: a network is trained in a folder of its own; found a dataset.")
    for name, content in inputs.items():
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
    """List the defaults of the recipe fields that may be left out, as JSON has them."""
    known = {item.name: item.default for item in fields(Recipe) if item.default is not MISSING}
    return json.loads(json.dumps(known))


def _describe_inputs(
    data: TrainingData, sources: Sources, validation_sources: Sources | None
) -> dict:
    """Describe what a network is trained on, wherever it lies: what must not change on resuming."""
    return {
        "data": _digest(sources),
        "validation": _digest(validation_sources) if validation_sources else None,
        "start": sha256(data.start) if data.start else None,
        "given": {
            role: sha256(Path(path)) if Path(path).is_file() else None
            for role, path in data.pretrained
        },
        "left_out": list(data.left_out),
    }


def _digest(sources: Sources) -> dict:
    """Count scans and heads, and checksum them: references by content, images by name and size."""
    scans = [
        [paths.name, sha256(paths.lesions)]
        + [
            (path.name, path.stat().st_size)
            for path in vars(paths).values()
            if isinstance(path, Path)
        ]
        for paths in sources.scans
    ]
    heads = [
        (head.name, head.stat().st_size)
        for folder in sources.label_maps
        for head in sorted(folder.glob("*.nii*"))
    ]
    return {"scans": len(scans), "heads": len(heads), "sha256": fingerprint(of=[scans, heads])}


def _load_initial_weights(network: keras.Model, start: Path) -> None:
    arrays = read_weights(start)
    for variable in network.weights:  # and no state of chance
        if variable.path not in arrays or arrays[variable.path].shape != tuple(variable.shape):
            raise ValueError(
                f"{start}: weights to begin with must be those of the recipe's network; "
                f"found none that fits {variable.path}."
            )
        variable.assign(arrays[variable.path])


def _make_examples(
    network: keras.Model, validation: Batch | None, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Make images, references and predictions of validation patches; None without validation."""
    preview = TASKS[recipe.task].preview
    if validation is None or preview is None:
        return None
    images, truths = validation[0][:N_EXAMPLES], validation[1][:N_EXAMPLES]
    return preview(images, truths, network.predict(images, batch_size=recipe.batch, verbose=0))


def _write_weights_and_entry(
    network: keras.Model, recipe: Recipe, out: Path, description: str, figures: dict
) -> dict:  # fmt: skip
    """Write weights and entry, and return the entry."""
    arrays = {
        variable.path: keras.ops.convert_to_numpy(variable.value) for variable in network.weights
    }
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
            "data": description,
            **figures,
            "bids_cmb": __version__,
            "keras": software()["keras"],
            "machine": machine()["System"],
        },
    }
    entry |= {
        key: value for key in SHARED_INPUT_OPTIONS if (value := (recipe.drawing or {}).get(key))
    }
    write_json(out / f"{recipe.name}.json", entry)
    return entry


def _optimizer(recipe: Recipe, rate: float) -> keras.optimizers.Optimizer:
    return keras.optimizers.AdamW(
        rate, weight_decay=recipe.decay, clipnorm=CLIP_NORM, use_ema=True,
        ema_momentum=recipe.ema,
    )  # fmt: skip


# --- What is taught -------------------------------------------------------------------------------


def _make_validation_batch(recipe: Recipe, validation_sources: Sources) -> Batch:
    """Sample all batches of the validation, once."""
    draw, _ = TASKS[recipe.task].make_batches(recipe, validation_sources, VALIDATION_SEED)
    batches = [draw_batch(draw, VALIDATION_SEED, 0, step) for step in range(VALIDATION_STEPS)]
    images, truths = zip(*batches, strict=True)
    inputs = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *images)
    return inputs, np.concatenate(truths)


def _find_sources(recipe: Recipe, material: TrainingData, *, learn: bool) -> Sources | None:
    """Find what is sampled from, to train or to validate; None without a validation."""
    data = material.data if learn or material.left_out else material.validation
    if not data:
        return None
    label_maps = [folder for folder in data if not (folder / "dataset_description.json").is_file()]
    scans = [
        scan
        for folder in data
        if folder not in label_maps
        for scan in find_training_scans(folder, material.truth)
        if not material.left_out or (scan.subject in material.left_out) != learn
    ]
    if not scans and not label_maps:
        what = "learns from" if learn else "is validated on"
        raise ValueError(
            f"{recipe.name} {what} scans with a truth; found none in "
            f"{', '.join(map(str, data))} but those left out."
        )
    return Sources(scans, label_maps, dict(material.pretrained), material.loading)
