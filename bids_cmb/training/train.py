"""Training: scans with reference labels become weights, by one frozen recipe.

An interrupted training resumes; the weights that did best on the validation set are kept. Every
sample depends on the seed and the step alone.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from functools import partial
from pathlib import Path

import keras
import numpy as np

from bids_cmb import __version__
from bids_cmb.files import load_object, write_json
from bids_cmb.networks.backend import describe_device
from bids_cmb.networks.builders import get_builder
from bids_cmb.networks.weights import read_weights, write_weights
from bids_cmb.provenance import machine, software
from bids_cmb.training.catalogue import list_next_commands, list_recipes
from bids_cmb.training.figures import Report, write_report
from bids_cmb.training.inputs import TrainingData, check_output_dir, describe_inputs, find_sources
from bids_cmb.training.loop import Batches, TrainingLoop
from bids_cmb.training.progress import Schedule
from bids_cmb.training.recipe import Batch, BatchFunction, Recipe, Sources
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
SHARED_INPUT_OPTIONS = ("hidden",)  # of a drawing, that hold in use too
# Of the recipe's learning rate, for weights that know something already
FINE_TUNING_RATE_SHARE = 0.25
Log = Callable[[str], None]


def read_recipe(name: str) -> Recipe:
    """Read the recipe of that name, or the one in a file.

    Raises:
        ValueError: If there is no such recipe, or it holds something that no recipe has.
        OSError: If the file cannot be read.
    """
    known = list_recipes()
    if name not in known and not name.endswith(".json"):
        raise ValueError(f"A recipe must be one of {', '.join(known)}; found {name!r}.")
    source = known.get(name, Path(name))
    content = load_object(source, "a recipe")
    needed = [field.name for field in fields(Recipe) if field.default is MISSING]
    faults = {
        "lacking": [key for key in needed if key not in content],
        "unknown": sorted(content.keys() - {field.name for field in fields(Recipe)}),
    }
    if any(faults.values()):
        reasons = "; ".join(f"{fault}: {', '.join(keys)}" for fault, keys in faults.items() if keys)
        raise ValueError(f"{source}: a recipe must hold what `Recipe` lists; {reasons}.")
    recipe = Recipe(**content)
    if recipe.task not in TASKS:
        raise ValueError(
            f"{source}: a recipe's task must be one of {', '.join(TASKS)}; found {recipe.task!r}."
        )
    return recipe


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
        out: Where to: ``<name>.npz``, ``<name>.json``, ``curves.tsv`` (of the columns
            `training.progress.COLUMNS`), ``report.html`` (the same plotted, predictions of
            validation patches, and what to do next), and the state to resume from. Training that
            was interrupted there resumes.
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
    sources = find_sources(recipe, data, learn=True)
    validation_sources = find_sources(recipe, data, learn=False)
    inputs = {
        "recipe.json": asdict(recipe),
        "material.json": describe_inputs(data, sources, validation_sources),
    }
    check_output_dir(out, inputs)
    keras.utils.set_random_seed(recipe.seed)
    task = TASKS[recipe.task]
    draw, description = task.make_batches(recipe, sources, recipe.seed)
    validation = _make_validation_batch(recipe, validation_sources) if validation_sources else None
    log(f"{description}; loaded in {time.monotonic() - started[0]:.0f} s")
    network = build_network(recipe)
    on_cpu_in_16_bits = network.compute_dtype != "float32" and not _is_on_gpu()
    if on_cpu_in_16_bits and has_wrong_gradients(network, draw_batch(draw, recipe.seed, 0, 0)[0]):
        network = _rebuild_in_32_bits(network, recipe)
    if data.start:
        _load_initial_weights(network, data.start)
    slower = FINE_TUNING_RATE_SHARE if data.start else 1.0
    schedule = Schedule(recipe.steps, recipe.epochs, slower * recipe.rate, recipe.patience, hours)
    network.compile(_optimizer(recipe, schedule.rate), loss=task.loss(recipe), jit_compile=False)
    precision = keras.config.dtype_policy().name
    log(f"{network.count_params():,} parameters, {precision}, {describe_device()}")
    for name, content in inputs.items():
        write_json(out / name, content)
    course = TrainingLoop(
        network,
        schedule,
        Batches(partial(draw_batch, draw, recipe.seed), validation, recipe.batch),
        out,
        log,
        started,
    )
    stop_reason = course.run()
    # none that was trained on comes again
    recalibrate_batchnorm(
        network, lambda index: draw_batch(draw, recipe.seed, recipe.epochs, index)[0], recipe.settle
    )
    figures = {**course.progress.figures(), "ended_by": stop_reason}
    effort = (
        f"{60 * figures['hours']:.0f} min on a {describe_device()}, "
        f"{figures['core_hours']:.2f} core-hours, {figures['voxels']:,} voxels, "
        f"{figures['voxels_per_second']:,} per second"
    )
    log(f"{description}; {effort}; epoch {figures['best_epoch']} of {figures['epochs']} kept")
    report = Report(
        recipe.name,
        f"{description}.",
        f"{effort}; epoch {figures['best_epoch']} of {figures['epochs']} kept.",
        course.progress.rows,
        _make_examples(network, validation, recipe),
        list_next_commands(recipe.name, out / f"{recipe.name}.json"),
    )
    write_report(out / "report.html", report)
    return _write_weights_and_entry(network, recipe, out, f"{description}; {effort}", figures)


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
    return "mixed_bfloat16" if has or _is_on_gpu() else "float32"


def _is_on_gpu() -> bool:
    return keras.backend.backend() == "tensorflow" and describe_device().startswith("GPU")


def has_wrong_gradients(network: keras.Model, images: Batch | np.ndarray) -> bool:
    """Check whether a CPU gets some gradients of a network wrong in 16 bits.

    TensorFlow's kernel (2.21, by oneDNN) reads memory that nobody wrote where a 3D convolution in
    steps of one voxel is wider along the first axis than its image, unless that is one voxel wide:
    the gradient of its weights is another each time, at times no number. Layers that compute in 32
    bits by their builder (`candidate_discriminator.FULL_PRECISION`) are safe.

    Args:
        network: As it was built.
        images: A batch of what it will see: an array or several, (B, X, Y, Z, C).
    """
    inputs = [keras.Input(image.shape[1:]) for image in keras.tree.flatten(images)]
    inputs = keras.tree.pack_sequence_as(network.input, inputs)
    fixed = keras.models.clone_model(network, input_tensors=inputs)
    convolutions = [layer for layer in fixed.layers if isinstance(layer, keras.layers.Conv3D)]
    return any(
        layer.compute_dtype != "float32"
        and layer.strides[0] == 1
        and 1 < layer.input.shape[1] < layer.kernel_size[0]
        for layer in convolutions
    )


def _rebuild_in_32_bits(network: keras.Model, recipe: Recipe) -> keras.Model:
    """Build the network of a recipe anew in 32 bits, with the weights that it has."""
    keras.config.set_dtype_policy("float32")
    rebuilt = build_network(recipe)
    rebuilt.set_weights(network.get_weights())
    return rebuilt


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


def _make_validation_batch(recipe: Recipe, validation_sources: Sources) -> Batch:
    """Sample all batches of the validation, once."""
    draw, _ = TASKS[recipe.task].make_batches(recipe, validation_sources, VALIDATION_SEED)
    batches = [draw_batch(draw, VALIDATION_SEED, 0, step) for step in range(VALIDATION_STEPS)]
    images, truths = zip(*batches, strict=True)
    inputs = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *images)
    return inputs, np.concatenate(truths)
