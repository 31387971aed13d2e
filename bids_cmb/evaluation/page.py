"""The scorecard: an evaluation as one page that needs no network, its plots drawn as SVG."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources
from math import isfinite, log2, sqrt
from string import Template

import pandas as pd

from bids_cmb.evaluation.errors_by_class import UNKNOWN_CLASS
from bids_cmb.metrics.bootstrap import FALSE_ALARM_RATES, LARGE_FALSE_ALARM_RATE
from bids_cmb.metrics.intervals import Figure
from bids_cmb.metrics.scores import LARGE_MM

WIDE, HIGH = 420, 300  # of a plot, in pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44  # its margins
BAR, NAMES, NUMBERS = 22, 195, 190  # of a bar chart: height of a bar, room for names and numbers
Place = Callable[[float, float], tuple[float, float]]  # values of a plot to its pixels
COUNT_TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)
MAIN = (  # what the page shows first: name, title, what it is
    ("sensitivity", "Sensitivity", "part of the true lesions that was found"),
    ("precision", "Precision", "part of what was found that is true"),
    ("f1", "F1, pooled", "2 hits / (2 hits + false alarms + misses), scans added up"),
    ("subject_f1", "F1 per subject", "median over subjects with lesions; the figure of VALDO"),
    ("fp_per_scan", "False alarms per scan", "FPavg; lower is better"),
    ("fp_per_lesion", "False alarms per true lesion", "FPcmb; lower is better"),
    ("best_f1", "Best F1 of all thresholds", "pooled; chosen on these data, so too good"),
    ("best_f1_threshold", "Threshold of the best F1", "lowest probability that counts there"),
    ("best_f1_fp_per_scan", "False alarms per scan at the best F1", "lower is better"),
    *(
        (
            f"sensitivity_at_{rate:g}_fp",
            f"Sensitivity at {rate:g} false per scan",
            "the best that any threshold gives for at most so many false alarms",
        )
        for rate in FALSE_ALARM_RATES
    ),
    (
        f"sensitivity_large_at_{LARGE_FALSE_ALARM_RATE:g}_fp",
        f"Sensitivity at {LARGE_FALSE_ALARM_RATE:g} false per scan, {LARGE_MM:g} mm and more",
        "at the same threshold, of true lesions of that diameter or more",
    ),
    (
        "rank_median",
        "Rank of a true lesion, median",
        "when the findings of its scan are reviewed, the likeliest first: how many until it is "
        "found; one more than all if never; lower is better",
    ),
    ("rank_mean", "Rank of a true lesion, mean", "likewise; lower is better"),
    (
        "false_above_median",
        "False alarms ranked above a true lesion, median",
        "of its scan, all if it is never found; lower is better",
    ),
    (
        "rank_auc",
        "Rank AUC",
        "probability that what hits a true lesion scores higher than a false alarm of the "
        "same scan; equals count half, a lesion never found 0; mean over true lesions",
    ),
    ("subject_sensitivity", "Sensitivity per subject", "median over subjects with lesions"),
    ("subject_precision", "Precision per subject", "median over subjects with findings"),
    ("subject_fp_per_scan", "False alarms per scan per subject", "median over subjects"),
    ("count_icc", "Count: ICC(2,1)", "absolute agreement of found and true counts"),
    ("count_mae", "Count: mean absolute error", "lesions per scan; lower is better"),
    ("count_bias", "Count: mean error", "lesions per scan; above 0 finds too many"),
    ("burden_kappa", "Burden: weighted kappa", "classes 0, 1, 2–4, 5–10, > 10; quadratic weights"),
)
MISSING = (  # what it shows too if scans have no prediction
    ("missing_scans", "Scans without a prediction", "in none of the figures above"),
    ("missing_lesions", "True lesions in them", "likewise"),
    ("sensitivity_all_scans", "Sensitivity, all scans", "as if nothing had been found in those"),
    ("f1_all_scans", "F1, pooled, all scans", "likewise"),
)
DEFINITIONS = {name: f"{title}: {meaning}." for name, title, meaning in (*MAIN, *MISSING)}
REVIEWED = ("sensitivity", "precision", "f1", "fp_per_scan")  # what it shows of them
TITLES = {
    "size": "By diameter",
    "region": "By region",
    "group": "By group of regions",
    "territory": "By territory",
    "protocol": "By protocol",
    "mimic": "What the false alarms are",
}
RULES = {
    "valdo": "VALDO: a found lesion is held against the nearest true one within 5 mm; of several "
    "at the same one the nearest is the hit and the others are false alarms.",
    "overlap": "Any overlap: a true lesion is found if anything found touches it; what touches "
    "none is a false alarm.",
    "one-to-one": "One-to-one: as many pairs within 5 mm as can be, each lesion in one at most.",
}
UNCERTAIN = {
    "ignore": "All true lesions are matched alike; then those marked possible, not visible or not "
    "included are ignored with what was matched to them: no misses, no hits, no false alarms.",
    "include": "True lesions marked possible or not visible count like all others.",
}


def page(
    *,
    settings: dict,
    figures: dict[str, Figure],
    froc: pd.DataFrame,
    breakdown: pd.DataFrame,
    scans: pd.DataFrame,
    missing: Sequence[str],
    without_truth: Sequence[str],
    reviewed: tuple[dict[str, Figure], Sequence[dict]] | None = None,
) -> str:
    """The whole page as HTML.

    Args:
        settings: ``predictions`` and ``truth`` by name, ``match``, ``threshold``, ``uncertain``,
            ``seed`` and ``draws``.
        figures: Over all scans, by name.
        froc: ``sensitivity`` and ``fp_per_scan`` while the threshold falls.
        breakdown: ``by``, ``class``, ``figure``, ``value``, ``low``, ``high``.
        scans: The counts of each.
        missing: Scans without a prediction.
        without_truth: Scans with a prediction only.
        reviewed: The figures after review, over the reviewed scans, and how far every two readers
            agree.
    """
    template = (
        resources.files("bids_cmb")
        .joinpath("resources/templates/evaluation.html")
        .read_text("utf-8")
    )
    return Template(template).substitute(
        predictions=escape(settings["predictions"]),
        truth=escape(settings["truth"]),
        summary=_summary(figures, settings),
        rule=f"{RULES[settings['match']]} {UNCERTAIN[settings['uncertain']]}",
        absent=_absent(missing, without_truth),
        main=_main(figures) + (_after(*reviewed) if reviewed else ""),
        froc=_froc(froc, figures),
        counts=_counts(scans),
        sections="".join(_section(by, table) for by, table in breakdown.groupby("by", sort=False)),
        scans=_scans(scans),
    )


def _summary(figures: dict[str, Figure], settings: dict) -> str:
    plain = {name: figure.value for name, figure in figures.items()}
    return (
        f"{plain['scans']:.0f} scans, {plain['lesions']:.0f} true lesions, "
        f"{plain['found']:.0f} found at probability {settings['threshold']:g} or more: "
        f"{plain['hits']:.0f} hits, {plain['false_alarms']:.0f} false alarms, "
        f"{plain['misses']:.0f} misses. Intervals are 95 % over subjects "
        f"({settings['draws']} draws, seed {settings['seed']}), and never narrower than the exact "
        "ones of the bare counts."
    )


def _after(reviewed: dict[str, Figure], agreement: Sequence[dict]) -> str:
    """The figures that readers left, and how far the readers agree."""
    said = "<h3>After review, over the reviewed scans</h3><table>"
    for name, title, _ in MAIN:
        if name not in REVIEWED:
            continue
        value = reviewed[name].value
        text = f"{value:.3f}" if isfinite(value) else "–"
        said += f'<tr><td>{title}</td><td class="n">{text}</td></tr>'
    said += "</table>"
    for one in agreement:
        readers = escape(f"{one['reader_1']} and {one['reader_2']}")
        known = {key: "–" if one[key] is None else one[key] for key in ("kappa", "icc")}
        said += (
            f"<p>{readers}: same verdict on {one['n_agree']} of {one['n_lesions']} lesions, kappa "
            f"{known['kappa']}; ICC of counts {known['icc']} ({one['n_scans_complete']} scans).</p>"
        )
    return said


def _absent(missing: Sequence[str], without_truth: Sequence[str]) -> str:
    said = ""
    if missing:
        said += (
            f'<p class="absent"><b>{len(missing)} scans of the truth have no prediction</b> and '
            f"are in no figure but those of all scans: {escape(', '.join(missing))}.</p>"
        )
    if without_truth:
        said += (
            f"<p>{len(without_truth)} predictions have no truth and are in no figure: "
            f"{escape(', '.join(without_truth))}.</p>"
        )
    return said


def _main(figures: dict[str, Figure]) -> str:
    rows = []
    for name, words, meaning in (*MAIN, *(MISSING if _any_missing(figures) else ())):
        if name in figures:
            value, span = figures[name].value, _span(figures[name].low, figures[name].high)
        else:
            value, *quartiles = (figures[f"{name}_{part}"].value for part in ("median", "q1", "q3"))
            span = f"IQR {_span(*quartiles)}"
        rows.append((words, _number(value), span, meaning))
    return _table(("Figure", "Value", "95 % interval", "What it is"), rows, numbers=(1, 2))


def _any_missing(figures: dict[str, Figure]) -> bool:
    return "missing_scans" in figures and figures["missing_scans"].value > 0


def _scans(scans: pd.DataFrame) -> str:
    rows = [tuple(str(value) for value in row) for row in scans.itertuples(index=False)]
    names = [name.replace("_", " ").capitalize() for name in scans.columns]
    return _table(names, rows, numbers=range(3, len(names)))


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int]) -> str:
    right = [' class="n"' if at in set(numbers) else "" for at in range(len(names))]
    head = "".join(
        f"<th{kind}>{escape(name)}</th>" for name, kind in zip(names, right, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, right, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _section(by: str, table: pd.DataFrame) -> str:
    figures = {
        kind: {row.figure: Figure(row.value, row.low, row.high) for row in rows.itertuples()}
        for kind, rows in table.groupby("class", sort=False)
    }
    if by == "mimic":
        return _mimics(figures)
    found = [
        (kind, own["sensitivity"], _of(own["sensitivity"], own["lesions"]))
        for kind, own in figures.items()
        if own["lesions"].value
    ]
    charts = []
    if found:
        charts.append(_figure(_bars(found, top=1.0), "Sensitivity, and of how many true lesions"))
    if any(own["false_alarms"].value for kind, own in figures.items() if kind != UNKNOWN_CLASS):
        alarms = [
            (
                kind,
                own["fp_per_scan"],
                f"{_number(own['fp_per_scan'].value)} in {own['scans'].value:.0f}",
            )
            for kind, own in figures.items()
        ]
        charts.append(_figure(_bars(alarms), "False alarms per scan, and in how many scans"))
    if by == "protocol":
        both = [(kind, own["f1"], _number(own["f1"].value)) for kind, own in figures.items()]
        charts.append(_figure(_bars(both, top=1.0), "F1"))
    return f'<section><h2>{TITLES[by]}</h2><div class="pair">{"".join(charts)}</div></section>'


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def _of(figure: Figure, whole: Figure) -> str:
    return f"{_number(figure.value)} of {whole.value:.0f}"


def _mimics(figures: dict[str, dict[str, Figure]]) -> str:
    ordered = sorted(figures.items(), key=lambda item: -item[1]["false_alarms"].value)
    caused = [
        (kind, own["fp_per_scan"], _blamed(kind, own))
        for kind, own in ordered
        if own["false_alarms"].value
    ]
    if not caused:
        return ""
    words = (
        "False alarms per scan by the labelled mimic within 3 mm; none: nothing is labelled there"
    )
    return f"<section><h2>{TITLES['mimic']}</h2>{_figure(_bars(caused), words)}</section>"


def _blamed(kind: str, own: dict[str, Figure]) -> str:
    alarms = f"{own['false_alarms'].value:.0f}"
    return alarms if kind == "none" else f"{alarms} near {own['labelled'].value:.0f} labelled"


# Plots: coordinates in pixels, y downwards.


def _froc(curve: pd.DataFrame, figures: dict[str, Figure]) -> str:
    """Sensitivity over false alarms per scan, all of it, with intervals where it is usually read.

    The axis of the false alarms is linear below a quarter and logarithmic far above it.
    """
    most = max([FALSE_ALARM_RATES[-1], *curve["fp_per_scan"].dropna()])

    def at(fp: float, sensitivity: float) -> tuple[float, float]:
        across = log2(1 + 4 * fp) / log2(1 + 4 * most)
        return (
            LEFT + across * (WIDE - LEFT - RIGHT),
            HIGH - BOTTOM - sensitivity * (HIGH - TOP - BOTTOM),
        )

    known = curve[curve["sensitivity"].notna()]
    way, height = [at(0, 0)], 0.0
    for fp, sensitivity in zip(known["fp_per_scan"], known["sensitivity"], strict=True):
        way += [at(fp, height), at(fp, sensitivity)]
        height = sensitivity
    ticks = [tick for tick in (0, *(2.0**power for power in range(-1, 20))) if tick <= most]
    marks = [_frame(at, ticks, (0, 0.25, 0.5, 0.75, 1))]
    marks.append(_line(way, "curve"))
    for rate in FALSE_ALARM_RATES:
        figure = figures[f"sensitivity_at_{rate:g}_fp"]
        if isfinite(figure.low):
            marks.append(_line([at(rate, figure.low), at(rate, figure.high)], "span"))
    here = figures["fp_per_scan"].value, figures["sensitivity"].value
    if isfinite(here[1]):
        marks.append(_dot(at(*here), "here", "at the threshold"))
    return _svg(WIDE, HIGH, [*marks, *_axis_names("False alarms per scan", "Sensitivity")])


def _counts(scans: pd.DataFrame) -> str:
    """Found over true lesions of every scan, on axes that stretch small numbers."""
    highest = max(int(scans[["lesions", "found"]].max().max()), 5)

    def at(lesions: float, found: float) -> tuple[float, float]:
        across, up = (sqrt(n / (1.05 * highest)) for n in (lesions, found))
        return (
            LEFT + 8 + across * (WIDE - LEFT - RIGHT - 8),
            HIGH - BOTTOM - 8 - up * (HIGH - TOP - BOTTOM - 8),
        )

    ticks = [tick for tick in COUNT_TICKS if tick <= highest]
    marks = [_frame(at, ticks, ticks), _line([at(0, 0), at(highest, highest)], "same")]
    for row in scans.itertuples():
        said = f"{row.scan}: {row.found} found, {row.lesions} true"
        marks.append(_dot(at(row.lesions, row.found), "scan", said))
    return _svg(WIDE, HIGH, [*marks, *_axis_names("True lesions", "Found lesions")])


def _bars(rows: Sequence[tuple[str, Figure, str]], *, top: float | None = None) -> str:
    """A bar for each class with its interval, the name before it and the number behind."""
    ends = [end for _, figure, _ in rows for end in (figure.value, figure.high) if isfinite(end)]
    most = top or max([*ends, 1e-9])
    length = WIDE - NAMES - 10
    marks = []
    for at, (name, figure, said) in enumerate(rows):
        y = at * BAR + BAR / 2
        short = name if len(name) <= 30 else f"{name[:28]}…"
        marks.append(f'<text x="{NAMES - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(short)}'
                     f"<title>{escape(name)}</title></text>")  # fmt: skip
        value = figure.value if isfinite(figure.value) else 0
        marks.append(f'<rect class="bar" x="{NAMES}" y="{y - 7:.1f}" height="14" '
                     f'width="{value / most * length:.1f}"/>')  # fmt: skip
        if isfinite(figure.low):
            low, high = (NAMES + end / most * length for end in (figure.low, figure.high))
            marks.append(_line([(low, y), (high, y)], "span"))
        marks.append(f'<text x="{NAMES + length + 8}" y="{y + 4:.1f}">{escape(said)}</text>')
    return _svg(WIDE + NUMBERS - 40, BAR * len(rows), marks)


def _frame(at: Place, across: Sequence[float], up: Sequence[float]) -> str:
    """Axes with ticks at these values."""
    left, bottom, parts = LEFT, HIGH - BOTTOM, []
    for tick in across:
        x = at(tick, 0)[0]
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(_line([(x, TOP), (x, bottom)], "grid"))
    for tick in up:
        y = at(0, tick)[1]
        parts.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(_line([(left, y), (WIDE - RIGHT, y)], "grid"))
    return "".join([*parts, _line([(left, TOP), (left, bottom), (WIDE - RIGHT, bottom)], "axis")])


def _axis_names(across: str, up: str) -> list[str]:
    centre, middle = (LEFT + WIDE - RIGHT) / 2, (TOP + HIGH - BOTTOM) / 2
    return [
        f'<text x="{centre}" y="{HIGH - 8}" text-anchor="middle">{across}</text>',
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{up}</text>',
    ]


def _line(points: Iterable[tuple[float, float]], kind: str) -> str:
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{way}"/>'


def _dot(point: tuple[float, float], kind: str, said: str) -> str:
    x, y = point
    title = f"<title>{escape(said)}</title>"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{title}</circle>'


def _svg(width: int, height: int, marks: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f"{''.join(marks)}</svg>"
    )


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}" if isfinite(value) else "n/a"  # + 0.0: no -0.00


def _span(low: float, high: float) -> str:
    return f"{_number(low)} to {_number(high)}" if isfinite(low) else "n/a"
