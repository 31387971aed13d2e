"""Page of an evaluation: a single HTML file that needs no network, with plots in SVG."""

from collections.abc import Iterable, Sequence
from html import escape
from math import isfinite
from string import Template

import pandas as pd

from bids_cmb.evaluation.errors_by_class import UNKNOWN_CLASS
from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.evaluation.plots import draw_bars, draw_counts, draw_froc
from bids_cmb.evaluation.results import Evaluation, ReviewedEvaluation, make_froc_table
from bids_cmb.metrics.bootstrap import FALSE_ALARM_RATES, LARGE_FALSE_ALARM_RATE
from bids_cmb.metrics.intervals import Figure
from bids_cmb.metrics.scores import LARGE_MM
from bids_cmb.resource_files import read_resource

MAIN_FIGURES = (  # of the first table: name, title, meaning
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
MISSING_FIGURES = (  # likewise, if scans have no prediction
    ("missing_scans", "Scans without a prediction", "in none of the figures above"),
    ("missing_lesions", "True lesions in them", "likewise"),
    ("sensitivity_all_scans", "Sensitivity, all scans", "as if nothing had been found in those"),
    ("f1_all_scans", "F1, pooled, all scans", "likewise"),
)
DEFINITIONS = {
    name: f"{title}: {meaning}." for name, title, meaning in (*MAIN_FIGURES, *MISSING_FIGURES)
}
REVIEWED_FIGURES = ("sensitivity", "precision", "f1", "fp_per_scan")  # shown after review
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


def render_page(
    result: Evaluation, names: tuple[str, str], reviewed: ReviewedEvaluation | None = None
) -> str:
    """Render the page as HTML.

    Args:
        result: The evaluation.
        names: Of predictions and truth.
        reviewed: The same after review.
    """
    figures, options = result.figures, result.options
    template = read_resource("templates/evaluation.html")
    return Template(template).substitute(
        predictions=escape(names[0]),
        truth=escape(names[1]),
        summary=_summarize(figures, options),
        rule=f"{RULES[options.match]} {UNCERTAIN[options.uncertain]}",
        absent=_render_missing(result.missing, result.without_truth),
        main=_render_main_table(figures) + (_render_reviewed(reviewed) if reviewed else ""),
        froc=draw_froc(make_froc_table(result.curve), figures),
        counts=draw_counts(result.scans),
        sections="".join(
            _render_section(by, table) for by, table in result.breakdown.groupby("by", sort=False)
        ),
        scans=_render_scans(result.scans),
    )


def _summarize(figures: dict[str, Figure], options: EvaluationOptions) -> str:
    values = {name: figure.value for name, figure in figures.items()}
    return (
        f"{values['scans']:.0f} scans, {values['lesions']:.0f} true lesions, "
        f"{values['found']:.0f} found at probability {options.threshold:g} or more: "
        f"{values['hits']:.0f} hits, {values['false_alarms']:.0f} false alarms, "
        f"{values['misses']:.0f} misses. Intervals are 95 % over subjects "
        f"({options.draws} draws, seed {options.seed}), and never narrower than the exact "
        "ones of the bare counts."
    )


def _render_reviewed(reviewed: ReviewedEvaluation) -> str:
    """Render the figures after review, and how far the readers agree."""
    html = "<h3>After review, over the reviewed scans</h3><table>"
    for name, title, _ in MAIN_FIGURES:
        if name not in REVIEWED_FIGURES:
            continue
        value = reviewed.result.figures[name].value
        text = f"{value:.3f}" if isfinite(value) else "–"
        html += f'<tr><td>{title}</td><td class="n">{text}</td></tr>'
    html += "</table>"
    for row in reviewed.agreement:
        readers = escape(f"{row['reader_1']} and {row['reader_2']}")
        known = {key: "–" if row[key] is None else row[key] for key in ("kappa", "icc")}
        html += (
            f"<p>{readers}: same verdict on {row['n_agree']} of {row['n_lesions']} lesions, kappa "
            f"{known['kappa']}; ICC of counts {known['icc']} ({row['n_scans_complete']} scans).</p>"
        )
    return html


def _render_missing(missing: Sequence[str], without_truth: Sequence[str]) -> str:
    html = ""
    if missing:
        html += (
            f'<p class="absent"><b>{len(missing)} scans of the truth have no prediction</b> and '
            f"are in no figure but those of all scans: {escape(', '.join(missing))}.</p>"
        )
    if without_truth:
        html += (
            f"<p>{len(without_truth)} predictions have no truth and are in no figure: "
            f"{escape(', '.join(without_truth))}.</p>"
        )
    return html


def _render_main_table(figures: dict[str, Figure]) -> str:
    rows = []
    for name, title, meaning in (
        *MAIN_FIGURES,
        *(MISSING_FIGURES if _any_missing(figures) else ()),
    ):
        if name in figures:
            figure = figures[name]
            value, interval = figure.value, _format_interval(figure.low, figure.high)
        else:
            value, *quartiles = (figures[f"{name}_{part}"].value for part in ("median", "q1", "q3"))
            interval = f"IQR {_format_interval(*quartiles)}"
        rows.append((title, _format_number(value), interval, meaning))
    return _render_table(("Figure", "Value", "95 % interval", "What it is"), rows, numbers=(1, 2))


def _any_missing(figures: dict[str, Figure]) -> bool:
    return "missing_scans" in figures and figures["missing_scans"].value > 0


def _render_scans(scans: pd.DataFrame) -> str:
    rows = [tuple(str(value) for value in row) for row in scans.itertuples(index=False)]
    names = [name.replace("_", " ").capitalize() for name in scans.columns]
    return _render_table(names, rows, numbers=range(3, len(names)))


def _render_table(
    names: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int]
) -> str:
    """Render a table as HTML.

    Args:
        names: Of the columns.
        rows: Text of the cells.
        numbers: Indices of the columns of numbers, which are right-aligned.
    """
    attributes = [' class="n"' if index in set(numbers) else "" for index in range(len(names))]

    def render_row(tag: str, cells: Sequence[str]) -> str:
        rendered = (
            f"<{tag}{attribute}>{escape(cell)}</{tag}>"
            for cell, attribute in zip(cells, attributes, strict=True)
        )
        return f"<tr>{''.join(rendered)}</tr>"

    body = "".join(render_row("td", row) for row in rows)
    return f"<table><thead>{render_row('th', names)}</thead><tbody>{body}</tbody></table>"


def _render_section(by: str, table: pd.DataFrame) -> str:
    """Render the charts of a breakdown by one variable."""
    figures = {
        kind: {row.figure: Figure(row.value, row.low, row.high) for row in rows.itertuples()}
        for kind, rows in table.groupby("class", sort=False)
    }
    if by == "mimic":
        return _render_mimics(figures)
    sensitivities = [
        (kind, values["sensitivity"], _format_share(values["sensitivity"], values["lesions"]))
        for kind, values in figures.items()
        if values["lesions"].value
    ]
    charts = []
    if sensitivities:
        charts.append(
            _render_bars(sensitivities, "Sensitivity, and of how many true lesions", top=1.0)
        )
    if any(
        values["false_alarms"].value for kind, values in figures.items() if kind != UNKNOWN_CLASS
    ):
        alarms = [
            (kind, rate := values["fp_per_scan"],
             f"{_format_number(rate.value)} in {values['scans'].value:.0f}")
            for kind, values in figures.items()
        ]  # fmt: skip
        charts.append(_render_bars(alarms, "False alarms per scan, and in how many scans"))
    if by == "protocol":
        f1s = [
            (kind, f1 := values["f1"], _format_number(f1.value)) for kind, values in figures.items()
        ]
        charts.append(_render_bars(f1s, "F1", top=1.0))
    return f'<section><h2>{TITLES[by]}</h2><div class="pair">{"".join(charts)}</div></section>'


def _render_bars(
    rows: Sequence[tuple[str, Figure, str]], caption: str, *, top: float | None = None
) -> str:
    chart = draw_bars(rows, caption, top=top)
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def _format_share(figure: Figure, total: Figure) -> str:
    return f"{_format_number(figure.value)} of {total.value:.0f}"


def _render_mimics(figures: dict[str, dict[str, Figure]]) -> str:
    ordered = sorted(figures.items(), key=lambda item: -item[1]["false_alarms"].value)
    caused = [
        (kind, values["fp_per_scan"], _format_mimic(kind, values))
        for kind, values in ordered
        if values["false_alarms"].value
    ]
    if not caused:
        return ""
    caption = (
        "False alarms per scan by the labelled mimic within 3 mm; none: nothing is labelled there"
    )
    return f"<section><h2>{TITLES['mimic']}</h2>{_render_bars(caused, caption)}</section>"


def _format_mimic(kind: str, values: dict[str, Figure]) -> str:
    alarms = f"{values['false_alarms'].value:.0f}"
    return alarms if kind == "none" else f"{alarms} near {values['labelled'].value:.0f} labelled"


def _format_number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}" if isfinite(value) else "n/a"  # + 0.0: no -0.00


def _format_interval(low: float, high: float) -> str:
    return f"{_format_number(low)} to {_format_number(high)}" if isfinite(low) else "n/a"
