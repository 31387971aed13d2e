"""The training loop: steps and validations within a time budget, and a state to resume from.

Everything that decides how training goes on stands in ``state/state.json``, which names the weights
beside it: an interrupted training resumes as if it had not been.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import keras

from bids_cmb.files import read_json, write_json, write_text
from bids_cmb.training.prefetching import Prefetcher
from bids_cmb.training.progress import Progress, Schedule, format_curves

SAVE_INTERVAL_S = 300.0  # between states: what a killed run loses at most


def count_voxels(images: object) -> int:
    """Count the voxels of a batch of images, channels aside; of several inputs all images."""
    shapes = [image.shape for image in keras.tree.flatten(images)]
    return sum(math.prod(shape[:-1]) for shape in shapes if len(shape) >= 4)


@dataclass(frozen=True, eq=False)
class Batches:
    """What a network learns from.

    Attributes:
        draw: Samples images and labels of an epoch and a step.
        validation: Images and labels of the validation; None without.
        size: Patches at once in the validation.
    """

    draw: Callable
    validation: tuple | None
    size: int


class TrainingLoop:
    """Train one network in one folder, where training may have begun before."""

    def __init__(
        self, network: keras.Model, schedule: Schedule, batches: Batches,
        out: Path, log: Callable[[str], None], started: tuple[float, float],
    ):  # fmt: skip
        """Prepare a training.

        Args:
            network: Compiled, with averaged weights (``use_ema``).
            schedule: How long and how fast.
            batches: What it learns from.
            out: The folder: ``curves.tsv``, ``best.weights.h5`` and ``state``.
            log: Called with a line for each epoch.
            started: `time.monotonic` and `time.process_time` when this run began.
        """
        self.network, self.schedule, self.batches = network, schedule, batches
        self.out, self.log = out, log
        self.state, self.best = out / "state", out / "best.weights.h5"
        self.progress = Progress()
        self._wall, self._core = started
        self._saved_at = self._validation_s = 0.0
        self._first, self._spent = 0, False

    def run(self) -> str:
        """Train to the end, and leave the best weights in the network.

        Returns:
            What ended it: ``epochs``, ``patience`` or ``hours``.

        Raises:
            ValueError: If the state cannot be read, the loss is no number any more,
                or the budget leaves no time to train.
            OSError: If something cannot be read or written.
        """
        self.network.optimizer.build(self.network.trainable_variables)
        self._restore()
        self._update_times(learning=False)
        self._saved_at, self._first = self._wall, self.progress.epoch
        now, schedule = self.progress, self.schedule
        if self._budget_share() >= 1 and not now.rows and not now.step:
            raise ValueError(
                f"A budget must leave time to learn; found {schedule.hours:g} hours, of which "
                f"reading took {now.other_s / 3600:.2g}."
            )
        steps = schedule.steps
        places = range(now.epoch * steps + now.step, schedule.epochs * steps)
        if not (stop_reason := self._stop_reason()):
            with Prefetcher(
                self.batches.draw, (divmod(place, steps) for place in places)
            ) as batches:
                while not (stop_reason := self._stop_reason()):
                    self._train_epoch(batches)
                    self._finish_epoch()
        self.network.load_weights(self.best)
        return stop_reason

    # --- An epoch ---------------------------------------------------------------------------------

    def _train_epoch(self, batches: Prefetcher) -> None:
        """Take the remaining steps of an epoch, as far as the budget goes."""
        now, schedule, network = self.progress, self.schedule, self.network
        while now.step < schedule.steps:
            if now.step and self._budget_share() >= 1:
                self._spent = True
                return
            began = time.monotonic()
            images, truths = batches.take()
            taken = time.monotonic()
            network.optimizer.learning_rate = self._learning_rate()
            self._seed_dropout()
            network.reset_metrics()  # not every version of Keras does so: the loss is this batch's
            loss = network.train_on_batch(images, truths, return_dict=True)["loss"]
            ended = time.monotonic()
            now.step += 1
            now.loss += (float(loss) - now.loss) / now.step
            now.voxels += count_voxels(images)
            now.steps_s += ended - began
            now.waited_s += taken - began
            if ended - self._saved_at >= SAVE_INTERVAL_S:
                self._save()

    def _seed_dropout(self) -> None:
        """Let dropout depend on the step alone; Keras keeps no state of it."""
        place = self.progress.epoch * self.schedule.steps + self.progress.step
        for number, variable in enumerate(self.network.variables):
            if variable.path.endswith("seed_generator_state"):
                variable.assign([number, place])

    def _finish_epoch(self) -> None:
        """Validate an epoch, keep its weights if they are the best, and save the state."""
        now = self.progress
        row = {
            "epoch": now.epoch + 1,
            "loss": now.loss,
            "val_loss": None,
            "rate": self._learning_rate(),
        }
        self._check_finite(now.loss)
        validation = self.batches.validation
        with averaged_weights(self.network):
            if validation is not None:
                began = time.monotonic()
                row["val_loss"] = float(self.network.evaluate(
                    *validation, batch_size=self.batches.size, verbose=0, return_dict=True
                )["loss"])  # fmt: skip
                self._check_finite(row["val_loss"])
                self._validation_s = time.monotonic() - began
            if validation is None or row["val_loss"] < min(now.monitored_losses, default=math.inf):
                beside = self.out / f".{self.best.name}"
                self.network.save_weights(beside)
                beside.replace(self.best)
        self._update_times()
        last = now.rows[-1] if now.rows else dict.fromkeys(("voxels", "steps_s", "waited_s"), 0)
        took = max(now.steps_s - last["steps_s"], 1e-9)
        row |= {
            "voxels": now.voxels,
            "voxels_per_s": round((now.voxels - last["voxels"]) / took),
            "waiting": round((now.waited_s - last["waited_s"]) / took, 4),
            "hours": (now.learning_s + now.other_s) / 3600,
            "core_hours": now.core_s / 3600,
            "steps_s": now.steps_s,
            "waited_s": now.waited_s,
        }
        now.rows.append(row)
        now.epoch, now.step, now.loss = now.epoch + 1, 0, 0.0
        self._save()
        self._log_epoch(row)

    def _learning_rate(self) -> float:
        now = self.progress
        return self.schedule.rate_at(
            now.epoch * self.schedule.steps + now.step, self._budget_share()
        )

    def _budget_share(self) -> float:
        """Compute the used share of the budget, 0 to 1, without loading and the next validation."""
        if self.schedule.hours is None:
            return 0.0
        whole = 3600 * self.schedule.hours - self.progress.other_s - self._validation_s
        used = self.progress.learning_s + time.monotonic() - self._wall
        return min(1.0, used / whole) if whole > 0 else 1.0

    def _stop_reason(self) -> str:
        now, schedule = self.progress, self.schedule
        if now.epoch >= schedule.epochs:
            return "epochs"
        if now.has_stalled(schedule.patience):
            return "patience"
        return "hours" if now.rows and (self._spent or self._budget_share() >= 1) else ""

    def _log_epoch(self, row: dict) -> None:
        now, schedule = self.progress, self.schedule
        first_hours = now.rows[self._first - 1]["hours"] if self._first else 0.0
        left = (
            (row["hours"] - first_hours) / (now.epoch - self._first) * (schedule.epochs - now.epoch)
        )
        if schedule.hours is not None:
            left = min(left, max(0.0, schedule.hours - row["hours"]))
        validation_text = "" if row["val_loss"] is None else f", val_loss {row['val_loss']:.4f}"
        remaining = f"; about {60 * left:.0f} min left" if left else ""
        self.log(
            f"epoch {row['epoch']} of {schedule.epochs}: loss {row['loss']:.4f}{validation_text}; "
            f"{row['voxels_per_s']:,} voxels/s, {100 * row['waiting']:.0f} % of the time waiting "
            f"for data{remaining}"
        )

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ValueError(
                f"{self.out}: the loss must stay a number; found {loss} in epoch "
                f"{self.progress.epoch + 1}. The state before it is kept; a lower `rate` in the "
                "recipe, and another folder, may help."
            )

    # --- The state --------------------------------------------------------------------------------

    def _update_times(self, *, learning: bool = True) -> None:
        """Count the time since the last call."""
        wall, core, now = time.monotonic(), time.process_time(), self.progress
        if learning:
            now.learning_s += wall - self._wall
        else:
            now.other_s += wall - self._wall
        now.core_s += core - self._core
        self._wall, self._core = wall, core

    def _save(self) -> None:
        """Write the state: weights first, then what names them; so a kill leaves a whole one."""
        now = self.progress
        self._check_finite(now.loss)
        self._update_times()
        self.state.mkdir(parents=True, exist_ok=True)
        weights = self.state / f"{now.epoch}-{now.step}.weights.h5"
        self.network.save_weights(weights)
        write_json(self.state / "state.json", {"weights": weights.name, **asdict(now)})
        for old in self.state.glob("*.weights.h5"):
            if old != weights:
                old.unlink(missing_ok=True)
        if now.rows:
            write_text(self.out / "curves.tsv", format_curves(now.rows))
        self._saved_at = time.monotonic()

    def _restore(self) -> None:
        stored = read_json(self.state / "state.json")
        if stored is None:
            if (self.state / "state.json").exists():
                raise ValueError(
                    f"{self.state}: a training goes on from its state.json; found none that can be "
                    "read. Train in another folder; what lies here stays as it is."
                )
            return
        weights = stored.pop("weights")
        self.progress = Progress(**stored)
        self.network.load_weights(self.state / weights)


@contextmanager
def averaged_weights(network: keras.Model) -> Iterator[None]:
    """Put the averaged weights into a network, and take them out again."""
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(network)
    swap.on_test_begin()
    try:
        yield
    finally:
        swap.on_test_end()
