"""Report of a training: its curves, predictions of validation patches, and what to do next."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure

from bids_cmb.files import write_text
from bids_cmb.resource_files import read_resource

N_PATCHES = 6
LOSSES = (("loss", "training"), ("val_loss", "validation"))


@dataclass(frozen=True, eq=False)
class Report:
    """What the report of a training shows.

    Attributes:
        name: Of the recipe.
        data: What was learnt from, in a sentence.
        outcome: What it took, and which epoch was kept, likewise.
        curves: For each epoch ``epoch``, ``loss``, ``val_loss`` (None without a validation) and
            ``hours``.
        examples: Images, references and predictions, each (N, X, Y, Z), of the same N patches:
            lesions and their probabilities, or classes; None without a validation set.
        next_commands: Command lines that follow.
    """

    name: str
    data: str
    outcome: str
    curves: Sequence[dict]
    examples: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    next_commands: Sequence[str] = ()


def write_report(path: Path, report: Report) -> None:
    """Write the report of a training, an HTML file that holds its pictures."""
    template = read_resource("templates/training.html")
    words = (report.name, report.data, report.outcome, _describe_curves(report.curves))
    name, data, outcome, curves_text = map(escape, words)
    page = Template(template).substitute(
        name=name,
        data=data,
        outcome=outcome,
        curves=_encode(_draw_curves(report.curves)),
        curves_text=curves_text,
        rows="\n".join(map(_render_row, report.curves)),
        examples=_render_examples(report.examples),
        next=_render_commands(report.next_commands),
    )
    write_text(path, page)


def _describe_curves(curves: Sequence[dict]) -> str:
    first, last = curves[0], curves[-1]
    parts = [
        f"{name} {first[key]:.4g} in the first epoch, {last[key]:.4g} in the last"
        for key, name in LOSSES
        if last[key] is not None and first[key] is not None
    ]
    return f"Loss over {len(curves)} epochs: {'; '.join(parts)}"


def _render_row(row: dict) -> str:
    numbers = (row[key] for key in ("loss", "val_loss", "hours"))
    cells = ("–" if number is None else f"{number:.4g}" for number in numbers)
    return f"<tr><td>{row['epoch']}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _render_examples(examples: tuple[np.ndarray, ...] | None) -> str:
    if examples is None:
        return (
            '<p class="soft">None: they need <code>--validation</code>, and a network whose '
            "predictions are images.</p>"
        )
    text = "Patches of the validation: image, reference and prediction, one beneath the other"
    picture = _encode(_draw_patches(*examples))
    caption = f"{text}; the slice of each with most to see, dark 0, yellow 1 or the last class."
    return f'<figure><img src="{picture}" alt="{text}"><figcaption>{caption}</figcaption></figure>'


def _render_commands(commands: Sequence[str]) -> str:
    if not commands:
        return "<p>The weights and their entry are beside this page.</p>"
    lines = escape("\n".join(commands))
    return (
        f"<p>Make it a detector, and run the app with it:</p><pre>{lines}</pre><p>It needs a "
        "threshold of its own, chosen on scans that it did not learn from: run it with "
        "<code>--threshold 0.1</code>, then <code>bids-cmb evaluate</code>, then "
        "<code>models create</code> again with <code>--threshold</code>.</p>"
    )


def _encode(figure: Figure) -> str:
    """Encode a figure as a PNG that a page holds in itself."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _draw_curves(curves: Sequence[dict]) -> Figure:
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axis = figure.subplots()
    epochs = [row["epoch"] for row in curves]
    for key, name in LOSSES:
        losses = [row[key] for row in curves]
        if None not in losses:
            axis.plot(epochs, losses, marker=".", label=name)
    axis.set(xlabel="epoch", ylabel="loss", xlim=(0.5, max(epochs) + 0.5))
    axis.legend(frameon=False)
    return figure


def _draw_patches(images: np.ndarray, truths: np.ndarray, predictions: np.ndarray) -> Figure:
    """Draw the fullest slice of the fullest patches, above reference and prediction."""
    order = np.argsort(
        [-len(np.unique(truth)) - (truth > 0).mean() for truth in truths], kind="stable"
    )
    figure = Figure(figsize=(10, 5.5), layout="constrained")
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
    for row, word in enumerate(("image", "reference", "prediction")):
        axes[row, 0].set_title(word, loc="left", fontsize=9)
    return figure


def _colour(
    truth: np.ndarray, prediction: np.ndarray, high: float
) -> list[tuple[np.ndarray, dict]]:
    colours = {"cmap": "viridis", "vmin": 0, "vmax": high, "interpolation": "nearest"}
    return [(truth, colours), (prediction, colours)]
