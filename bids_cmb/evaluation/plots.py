"""Plots of an evaluation as SVG; coordinates are in pixels, y downwards."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import isfinite, log2, sqrt

import pandas as pd

from bids_cmb.metrics.bootstrap import FALSE_ALARM_RATES
from bids_cmb.metrics.intervals import Figure

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44  # its margins
BAR_HEIGHT, NAME_WIDTH, NUMBER_WIDTH = 22, 195, 190  # of a bar chart
ToPixels = Callable[[float, float], tuple[float, float]]  # values of a plot to its pixels
COUNT_TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def draw_froc(curve: pd.DataFrame, figures: dict[str, Figure]) -> str:
    """Draw the whole FROC, with intervals at the usual rates of false alarms.

    The axis of false alarms per scan is linear below a quarter and logarithmic far above it.
    """
    max_rate = max([FALSE_ALARM_RATES[-1], *curve["fp_per_scan"].dropna()])

    def to_pixels(fp: float, sensitivity: float) -> tuple[float, float]:
        across = log2(1 + 4 * fp) / log2(1 + 4 * max_rate)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - sensitivity * (HEIGHT - TOP - BOTTOM),
        )

    known = curve[curve["sensitivity"].notna()]
    points, height = [to_pixels(0, 0)], 0.0
    for fp, sensitivity in zip(known["fp_per_scan"], known["sensitivity"], strict=True):
        points += [to_pixels(fp, height), to_pixels(fp, sensitivity)]
        height = sensitivity
    ticks = [tick for tick in (0, *(2.0**power for power in range(-1, 20))) if tick <= max_rate]
    marks = [_draw_axes(to_pixels, ticks, (0, 0.25, 0.5, 0.75, 1))]
    marks.append(_draw_line(points, "curve"))
    for rate in FALSE_ALARM_RATES:
        figure = figures[f"sensitivity_at_{rate:g}_fp"]
        if isfinite(figure.low):
            marks.append(
                _draw_line([to_pixels(rate, figure.low), to_pixels(rate, figure.high)], "span")
            )
    operating_point = figures["fp_per_scan"].value, figures["sensitivity"].value
    if isfinite(operating_point[1]):
        marks.append(_draw_dot(to_pixels(*operating_point), "here", "at the threshold"))
    marks += _label_axes("False alarms per scan", "Sensitivity")
    return _make_svg(WIDTH, HEIGHT, marks, "FROC: sensitivity over false alarms per scan")


def draw_counts(scans: pd.DataFrame) -> str:
    """Draw found over true lesions of every scan, on axes that stretch small numbers."""
    highest = max(int(scans[["lesions", "found"]].max().max()), 5)

    def to_pixels(lesions: float, predicted: float) -> tuple[float, float]:
        across, up = (sqrt(n / (1.05 * highest)) for n in (lesions, predicted))
        return (
            LEFT + 8 + across * (WIDTH - LEFT - RIGHT - 8),
            HEIGHT - BOTTOM - 8 - up * (HEIGHT - TOP - BOTTOM - 8),
        )

    ticks = [tick for tick in COUNT_TICKS if tick <= highest]
    marks = [
        _draw_axes(to_pixels, ticks, ticks),
        _draw_line([to_pixels(0, 0), to_pixels(highest, highest)], "same"),
    ]
    for row in scans.itertuples():
        title = f"{row.scan}: {row.found} found, {row.lesions} true"
        marks.append(_draw_dot(to_pixels(row.lesions, row.found), "scan", title))
    marks += _label_axes("True lesions", "Found lesions")
    return _make_svg(WIDTH, HEIGHT, marks, "Found over true lesions of each scan")


def draw_bars(
    rows: Sequence[tuple[str, Figure, str]], title: str, *, top: float | None = None
) -> str:
    """Draw a bar for each class with its interval, the name before it and the label behind.

    Args:
        rows: Name, figure and label of each class.
        title: What is shown; for those who do not see it.
        top: The value of a bar as long as there is room; by default the highest there is.
    """
    ends = [end for _, figure, _ in rows for end in (figure.value, figure.high) if isfinite(end)]
    maximum = top or max([*ends, 1e-9])
    length = WIDTH - NAME_WIDTH - 10
    marks = []
    for index, (name, figure, label) in enumerate(rows):
        y = index * BAR_HEIGHT + BAR_HEIGHT / 2
        short_name = name if len(name) <= 30 else f"{name[:28]}…"
        marks.append(
            f'<text x="{NAME_WIDTH - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(short_name)}'
            f"<title>{escape(name)}</title></text>"
        )
        value = figure.value if isfinite(figure.value) else 0
        marks.append(
            f'<rect class="bar" x="{NAME_WIDTH}" y="{y - 7:.1f}" height="14" '
            f'width="{value / maximum * length:.1f}"/>'
        )
        if isfinite(figure.low):
            low, high = (NAME_WIDTH + end / maximum * length for end in (figure.low, figure.high))
            marks.append(_draw_line([(low, y), (high, y)], "span"))
        marks.append(f'<text x="{NAME_WIDTH + length + 8}" y="{y + 4:.1f}">{escape(label)}</text>')
    values = "; ".join(f"{name} {label}" for name, _, label in rows)
    return _make_svg(WIDTH + NUMBER_WIDTH - 40, BAR_HEIGHT * len(rows), marks, f"{title}: {values}")


def _draw_axes(to_pixels: ToPixels, across: Sequence[float], up: Sequence[float]) -> str:
    """Draw axes with ticks at these values."""
    left, bottom, parts = LEFT, HEIGHT - BOTTOM, []
    for tick in across:
        x = to_pixels(tick, 0)[0]
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(_draw_line([(x, TOP), (x, bottom)], "grid"))
    for tick in up:
        y = to_pixels(0, tick)[1]
        parts.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(_draw_line([(left, y), (WIDTH - RIGHT, y)], "grid"))
    return "".join(
        [*parts, _draw_line([(left, TOP), (left, bottom), (WIDTH - RIGHT, bottom)], "axis")]
    )


def _label_axes(across: str, up: str) -> list[str]:
    centre, middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<text x="{centre}" y="{HEIGHT - 8}" text-anchor="middle">{across}</text>',
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{up}</text>',
    ]


def _draw_line(points: Iterable[tuple[float, float]], kind: str) -> str:
    coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{coordinates}"/>'


def _draw_dot(point: tuple[float, float], kind: str, title: str) -> str:
    x, y = point
    title = f"<title>{escape(title)}</title>"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{title}</circle>'


def _make_svg(width: int, height: int, marks: Iterable[str], name: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(name)}">'
        f"{''.join(marks)}</svg>"
    )
