"""How a network learns: batches drawn beside the step, a budget, and a state to go on from.

Everything that decides how learning goes on stands in ``state/state.json``, which names the weights
beside it: what was interrupted goes on as if it had not been.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import keras

from bids_cmb.files import read_json, write_json, write_text
from bids_cmb.parallel.processes import cores

AHEAD = 4  # batches that are drawn before their step
DRAWERS = max(1, min(4, cores() // 2))  # threads that draw; the steps have the other cores
SAVE_S = 300.0  # between states: what a killed run loses at most
SMOOTHED = 3  # epochs whose median decides whether training still gets better
FIRST, LOWEST = 0.05, 0.01  # learning rates, as shares of the highest
WARM = 0.05  # share of a budget in which the rate rises, if that is shorter than an epoch
EARLIER = "training_metadata.json"  # the state of an earlier version
COLUMNS = (
    *("epoch", "loss", "val_loss", "rate", "voxels", "voxels_per_s", "waiting"),
    *("hours", "core_hours"),
)
Place = tuple[int, int]


@dataclass(frozen=True)
class Schedule:
    """How long a network learns, and how fast.

    Attributes:
        steps: In an epoch.
        epochs: At most.
        rate: The highest learning rate; it rises in the first epoch and falls by a cosine.
        patience: Epochs without a better median of `SMOOTHED` epochs after which learning ends.
        hours: At most, of wall time; None without a budget.
    """

    steps: int
    epochs: int
    rate: float
    patience: int
    hours: float | None = None

    def rate_at(self, step: int, used: float = 0.0) -> float:
        """Compute the learning rate of a step.

        Args:
            step: From 0, over all epochs.
            used: Share of the budget that is used up; the cosine follows whichever is further on,
                so the rate is low at the end of the steps and at that of the budget.
        """
        risen = max(step / self.steps, used / WARM)
        if risen < 1:
            return self.rate * (FIRST + (1 - FIRST) * risen)
        share = (step - self.steps) / max(1, self.steps * (self.epochs - 1))
        done = min(1.0, max(0.0, share, (used - WARM) / (1 - WARM)))
        return self.rate * (LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * done)) / 2)


@dataclass
class Progress:
    """How far a training came.

    Attributes:
        epoch: From 0.
        step: Of the epoch, the next one.
        loss: Mean over the epoch's steps so far.
        voxels: That the network was shown.
        steps_s: Wall time of all steps, s.
        waited_s: The part of it that steps waited for their batch, s.
        learning_s: Wall time of steps and validations, s.
        other_s: Wall time of all else, above all of reading, s.
        core_s: Processor time of this process, all threads together, s.
        rows: What is known of each finished epoch: `COLUMNS`, ``waited_s`` and ``steps_s``.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    voxels: int = 0
    steps_s: float = 0.0
    waited_s: float = 0.0
    learning_s: float = 0.0
    other_s: float = 0.0
    core_s: float = 0.0
    rows: list[dict] = field(default_factory=list)

    @property
    def watched(self) -> list[float]:
        """The loss of each epoch that tells good from bad: the validation's, if there is one."""
        return [row["val_loss"] if row["val_loss"] is not None else row["loss"]
                for row in self.rows]  # fmt: skip

    @property
    def best(self) -> int:
        """Number of the epoch with the lowest loss of validation, from 1; the last without one."""
        if self.rows[-1]["val_loss"] is None:
            return len(self.rows)
        return 1 + min(range(len(self.rows)), key=self.watched.__getitem__)

    def waits(self, patience: int) -> bool:
        """Tell whether the smoothed curve has not got better for ``patience`` epochs."""
        watched = self.watched
        smooth = [
            statistics.median(watched[at : at + SMOOTHED])
            for at in range(len(watched) - SMOOTHED + 1)
        ]
        lowest = min(range(len(smooth)), key=smooth.__getitem__, default=0)
        return len(smooth) - 1 - lowest >= max(1, patience)

    def figures(self) -> dict[str, float]:
        """Summarise what the training took."""
        return {
            "epochs": len(self.rows),
            "best_epoch": self.best,
            "voxels": self.voxels,
            "voxels_per_second": round(self.voxels / max(self.steps_s, 1e-9)),
            "waiting": round(self.waited_s / max(self.steps_s, 1e-9), 4),
            "hours": round((self.learning_s + self.other_s) / 3600, 4),
            "core_hours": round(self.core_s / 3600, 4),
        }


class Drawn:
    """Batches, drawn by threads beside the steps and handed out in the order of their places.

    At most `AHEAD` wait at a time. What a batch holds depends on its place alone, never on timing.
    """

    def __init__(self, draw: Callable, places: Iterable[Place]):
        """``draw`` draws the batch of an epoch and a step."""
        self._draw, self._places = draw, iter(places)
        self._threads = ThreadPoolExecutor(DRAWERS, "drawing")
        self._waiting: deque[Future] = deque()

    def __enter__(self) -> "Drawn":
        """Begin to draw."""
        for _ in range(AHEAD):
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        """Draw no more."""
        self._threads.shutdown(cancel_futures=True)

    def take(self) -> tuple:
        """Return the next batch; what went wrong when it was drawn is raised here."""
        batch = self._waiting.popleft()
        self._begin()
        return batch.result()

    def _begin(self) -> None:
        place = next(self._places, None)
        if place is not None:
            self._waiting.append(self._threads.submit(self._draw, *place))


def voxels_of(images: object) -> int:
    """Count the voxels of a batch of images, channels aside; of several inputs all images."""
    shapes = [one.shape for one in keras.tree.flatten(images)]
    return sum(math.prod(shape[:-1]) for shape in shapes if len(shape) >= 4)


class Course:
    """The training of one network in one folder, which may have been begun before."""

    def __init__(
        self, network: keras.Model, schedule: Schedule, draw: Callable, judged: tuple | None,
        batch: int, out: Path, say: Callable[[str], None], since: tuple[float, float],
    ):  # fmt: skip
        """Prepare a training.

        Args:
            network: Compiled, with averaged weights (``use_ema``).
            schedule: How long and how fast.
            draw: Draws images and truths of an epoch and a step.
            judged: Images and truths of the validation; None without.
            batch: Patches at once in the validation.
            out: The folder: ``curves.tsv``, ``best.weights.h5`` and ``state``.
            say: Told of each epoch.
            since: `time.monotonic` and `time.process_time` when this run began.
        """
        self.network, self.schedule, self.draw, self.judged = network, schedule, draw, judged
        self.batch, self.out, self.say = batch, out, say
        self.state, self.best = out / "state", out / "best.weights.h5"
        self.progress = Progress()
        self._wall, self._core = since
        self._saved_at = self._judging_s = 0.0
        self._first, self._spent = 0, False

    def run(self) -> str:
        """Learn to the end, and leave the best weights in the network.

        Returns:
            What ended it: ``epochs``, ``patience`` or ``hours``.

        Raises:
            ValueError: If the state is one of an earlier version, the loss is no number any more,
                or the budget leaves no time to learn.
            OSError: If something cannot be read or written.
        """
        self.network.optimizer.build(self.network.trainable_variables)
        self._restore()
        self._clock(learning=False)
        self._saved_at, self._first = self._wall, self.progress.epoch
        now, schedule = self.progress, self.schedule
        if self._used() >= 1 and not now.rows and not now.step:
            raise ValueError(
                f"A budget must leave time to learn; found {schedule.hours:g} hours, of which "
                f"reading took {now.other_s / 3600:.2g}."
            )
        steps = schedule.steps
        places = range(now.epoch * steps + now.step, schedule.epochs * steps)
        if not (ended := self._ended()):
            with Drawn(self.draw, (divmod(place, steps) for place in places)) as drawn:
                while not (ended := self._ended()):
                    self._learn(drawn)
                    self._close()
        self.network.load_weights(self.best)
        return ended

    # --- An epoch ---------------------------------------------------------------------------------

    def _learn(self, drawn: Drawn) -> None:
        """Take the steps of an epoch that are left, as far as the budget goes."""
        now, schedule, network = self.progress, self.schedule, self.network
        while now.step < schedule.steps:
            if now.step and self._used() >= 1:
                self._spent = True
                return
            began = time.monotonic()
            images, truths = drawn.take()
            taken = time.monotonic()
            network.optimizer.learning_rate = self._rate()
            self._seed_dropout()
            network.reset_metrics()  # not every version of Keras does so: the loss is this batch's
            loss = network.train_on_batch(images, truths, return_dict=True)["loss"]
            ended = time.monotonic()
            now.step += 1
            now.loss += (float(loss) - now.loss) / now.step
            now.voxels += voxels_of(images)
            now.steps_s += ended - began
            now.waited_s += taken - began
            if ended - self._saved_at >= SAVE_S:
                self._save()

    def _seed_dropout(self) -> None:
        """Let what dropout leaves out depend on the step alone; Keras keeps no state of it."""
        place = self.progress.epoch * self.schedule.steps + self.progress.step
        for number, variable in enumerate(self.network.variables):
            if variable.path.endswith("seed_generator_state"):
                variable.assign([number, place])

    def _close(self) -> None:
        """Judge an epoch, keep its weights if they are the best, and write down all of it."""
        now = self.progress
        row = {"epoch": now.epoch + 1, "loss": now.loss, "val_loss": None, "rate": self._rate()}
        self._must_be_a_number(now.loss)
        with averaged(self.network):
            if self.judged is not None:
                began = time.monotonic()
                row["val_loss"] = float(self.network.evaluate(
                    *self.judged, batch_size=self.batch, verbose=0, return_dict=True
                )["loss"])  # fmt: skip
                self._must_be_a_number(row["val_loss"])
                self._judging_s = time.monotonic() - began
            if self.judged is None or row["val_loss"] < min(now.watched, default=math.inf):
                beside = self.out / f".{self.best.name}"
                self.network.save_weights(beside)
                beside.replace(self.best)
        self._clock()
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
        self._tell(row)

    def _rate(self) -> float:
        now = self.progress
        return self.schedule.rate_at(now.epoch * self.schedule.steps + now.step, self._used())

    def _used(self) -> float:
        """Share of the budget that is used up, 0 to 1; reading and the next validation aside."""
        if self.schedule.hours is None:
            return 0.0
        whole = 3600 * self.schedule.hours - self.progress.other_s - self._judging_s
        used = self.progress.learning_s + time.monotonic() - self._wall
        return min(1.0, used / whole) if whole > 0 else 1.0

    def _ended(self) -> str:
        now, schedule = self.progress, self.schedule
        if now.epoch >= schedule.epochs:
            return "epochs"
        if now.waits(schedule.patience):
            return "patience"
        return "hours" if now.rows and (self._spent or self._used() >= 1) else ""

    def _tell(self, row: dict) -> None:
        now, schedule = self.progress, self.schedule
        began = now.rows[self._first - 1]["hours"] if self._first else 0.0
        left = (row["hours"] - began) / (now.epoch - self._first) * (schedule.epochs - now.epoch)
        if schedule.hours is not None:
            left = min(left, max(0.0, schedule.hours - row["hours"]))
        judged = "" if row["val_loss"] is None else f", val_loss {row['val_loss']:.4f}"
        self.say(
            f"epoch {row['epoch']} of {schedule.epochs}: loss {row['loss']:.4f}{judged}; "
            f"{row['voxels_per_s']:,} voxels/s, {100 * row['waiting']:.0f} % of it waiting for "
            f"data; about {60 * left:.0f} min to go"
        )

    def _must_be_a_number(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ValueError(
                f"{self.out}: the loss must stay a number; found {loss} in epoch "
                f"{self.progress.epoch + 1}. The state before it is kept; a lower `rate` in the "
                "recipe, and another folder, may help."
            )

    # --- The state --------------------------------------------------------------------------------

    def _clock(self, *, learning: bool = True) -> None:
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
        self._must_be_a_number(now.loss)
        self._clock()
        self.state.mkdir(parents=True, exist_ok=True)
        weights = self.state / f"{now.epoch}-{now.step}.weights.h5"
        self.network.save_weights(weights)
        write_json(self.state / "state.json", {"weights": weights.name, **asdict(now)})
        for old in self.state.glob("*.weights.h5"):
            if old != weights:
                old.unlink(missing_ok=True)
        if now.rows:
            write_text(self.out / "curves.tsv", curves_of(now.rows))
        self._saved_at = time.monotonic()

    def _restore(self) -> None:
        stored = read_json(self.state / "state.json")
        if stored is None:
            if any((self.state / name).exists() for name in ("state.json", EARLIER)):
                raise ValueError(
                    f"{self.state}: a training goes on from its state.json; found none that can be "
                    "read. Train in another folder; what lies here stays as it is."
                )
            return
        weights = stored.pop("weights")
        self.progress = Progress(**stored)
        self.network.load_weights(self.state / weights)


@contextmanager
def averaged(network: keras.Model) -> Iterator[None]:
    """Put the averaged weights into a network, and take them out again."""
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(network)
    swap.on_test_begin()
    try:
        yield
    finally:
        swap.on_test_end()


def curves_of(rows: Sequence[dict]) -> str:
    """Write the curves of a training as a table, tab-separated, missing numbers as ``n/a``."""
    lines = [[f"{row[name]:.6g}" if isinstance(row[name], float) else str(row[name])
              for name in COLUMNS] for row in rows]  # fmt: skip
    text = "\n".join("\t".join(line) for line in [COLUMNS, *lines]) + "\n"
    return text.replace("None", "n/a")
