"""Figure of a training: its curves, and predictions of validation patches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bids_cmb.files import replacing

N_PATCHES = 6  # patches


def draw_report(
    path: Path,
    title: str,
    curves: Sequence[dict],
    examples: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> None:
    """Plot the curves and examples of a training, PNG.

    Args:
        path: Where to.
        title: Which training.
        curves: For each epoch ``epoch``, ``loss`` and ``val_loss``; None without a validation.
        examples: Images, references and predictions, each (N, X, Y, Z), of the same N patches:
            lesions and their probabilities, or classes; None without a validation set.
    """
    figure = Figure(figsize=(12, 9 if examples else 3.5), layout="constrained")
    rows = figure.subfigures(2 if examples else 1, 1, height_ratios=[1, 2] if examples else [1])
    top, *below = np.atleast_1d(rows)
    top.suptitle(title)
    axis = top.subplots()
    epochs = [row["epoch"] for row in curves]
    for key, name in (("loss", "training"), ("val_loss", "validation")):
        losses = [row[key] for row in curves]
        if None not in losses:
            axis.plot(epochs, losses, marker=".", label=name)
    axis.set(xlabel="epoch", ylabel="loss", xlim=(0.5, max(epochs) + 0.5))
    axis.legend(frameon=False)
    if examples:
        _draw_patches(below[0], *examples)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=90)


def _draw_patches(
    figure: Figure, images: np.ndarray, truths: np.ndarray, predictions: np.ndarray
) -> None:
    """Draw the fullest slice of the fullest patches, above reference and prediction."""
    order = np.argsort(
        [-len(np.unique(truth)) - (truth > 0).mean() for truth in truths], kind="stable"
    )
    axes = figure.subplots(3, N_PATCHES, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for column, patch in enumerate(order[:N_PATCHES]):
        z = int(np.argmax((truths[patch] > 0).sum(axis=(0, 1))))
        high = max(float(truths.max()), 1.0)
        for row, (data, colours) in enumerate(
            [
                (images[patch], {"cmap": "gray", "vmin": 0}),
                *_colour(truths[patch], predictions[patch], high),
            ]
        ):
            axes[row, column].imshow(np.rot90(data[..., z]), **colours)
    for row, word in enumerate(("image", "truth", "answer")):
        axes[row, 0].set_title(word, loc="left", fontsize=9)


def _colour(
    truth: np.ndarray, prediction: np.ndarray, high: float
) -> list[tuple[np.ndarray, dict]]:
    colours = {"cmap": "viridis", "vmin": 0, "vmax": high, "interpolation": "nearest"}
    return [(truth, colours), (prediction, colours)]
