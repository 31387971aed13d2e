"""How long a network is trained, and how far its training has come."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

SMOOTHING_EPOCHS = 3  # epochs whose median decides whether training still gets better
INITIAL_RATE_SHARE, FINAL_RATE_SHARE = 0.05, 0.01  # learning rates, as shares of the highest
# Share of a budget in which the rate rises, if that is shorter than an epoch
WARMUP_BUDGET_SHARE = 0.05
COLUMNS = (
    *("epoch", "loss", "val_loss", "rate", "voxels", "voxels_per_s", "waiting"),
    *("hours", "core_hours"),
)


@dataclass(frozen=True)
class Schedule:
    """How long a network is trained, and at which rate.

    Attributes:
        steps: In an epoch.
        epochs: At most.
        rate: The highest learning rate; it rises in the first epoch and falls by a cosine.
        patience: Epochs without a better median of `SMOOTHING_EPOCHS` epochs after which it ends.
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
        risen = max(step / self.steps, used / WARMUP_BUDGET_SHARE)
        if risen < 1:
            return self.rate * (INITIAL_RATE_SHARE + (1 - INITIAL_RATE_SHARE) * risen)
        share = (step - self.steps) / max(1, self.steps * (self.epochs - 1))
        done = min(1.0, max(0.0, share, (used - WARMUP_BUDGET_SHARE) / (1 - WARMUP_BUDGET_SHARE)))
        return self.rate * (
            FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * (1 + math.cos(math.pi * done)) / 2
        )


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: From 0.
        step: Of the epoch, the next one.
        loss: Mean over the epoch's steps so far.
        voxels: That were trained on.
        steps_s: Wall time of all steps, s.
        waited_s: The part of it that steps waited for their batch, s.
        learning_s: Wall time of steps and validations, s.
        other_s: Wall time of all else, above all of loading, s.
        core_s: Processor time of this process, all threads together, s.
        rows: Of each finished epoch: `COLUMNS`, ``waited_s`` and ``steps_s``.
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
    def monitored_losses(self) -> list[float]:
        """The monitored loss of each epoch: the validation's, if there is one."""
        return [row["val_loss"] if row["val_loss"] is not None else row["loss"]
                for row in self.rows]  # fmt: skip

    @property
    def best(self) -> int:
        """Number of the epoch with the lowest loss of validation, from 1; the last without one."""
        if self.rows[-1]["val_loss"] is None:
            return len(self.rows)
        return 1 + min(range(len(self.rows)), key=self.monitored_losses.__getitem__)

    def has_stalled(self, patience: int) -> bool:
        """Tell whether the smoothed curve has not got better for ``patience`` epochs."""
        losses = self.monitored_losses
        smooth = [
            statistics.median(losses[start : start + SMOOTHING_EPOCHS])
            for start in range(len(losses) - SMOOTHING_EPOCHS + 1)
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


def format_curves(rows: Sequence[dict]) -> str:
    """Format the curves of a training as a table, tab-separated, missing numbers as ``n/a``."""
    lines = [[f"{row[name]:.6g}" if isinstance(row[name], float) else str(row[name])
              for name in COLUMNS] for row in rows]  # fmt: skip
    text = "\n".join("\t".join(line) for line in [COLUMNS, *lines]) + "\n"
    return text.replace("None", "n/a")
