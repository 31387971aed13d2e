"""The figures in README and docs are those of the files in benchmarks/results."""

import importlib
import json
import statistics
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ACCURACY = "docs/methods/accuracy.md"
DETECTORS = ("ensemble", "cascade", "distilled", "gated", "radial")
SETS = {"real": "Five real T2", "simulated-default": "30 simulated scans of 15 protocols"}


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def words_of(page):
    """The text of a page without its line breaks."""
    return " ".join((ROOT / page).read_text("utf-8").split())


def valdo(name, *figures):
    """Figures of an evaluation by the VALDO rule."""
    rules = read(name)["rules"]["valdo"]
    return [rules[figure]["value"] for figure in figures]


def at_false_alarms(name):
    return valdo(name, *(f"sensitivity_at_{rate}_fp" for rate in ("0.5", "1", "2", "4")))


def part(name, *keys):
    """A value of a result file."""
    value = read(name)
    for key in keys:
        value = value[key]
    return value


CUTS = [f"below z = {height} mm" for height in ("-45", "-15", "+0", "+10")]


def cut_figures(name, cut):
    """Figures of heads that are cut, as the tables have them."""
    row, centroids = part(name, cut), ("centroids", "centroids apart, rms, mm")
    extent = [f"{figure}, {which}, mm" for figure in ("moved", "off the true structures' fit")
              for which in ("median", "maximum")]  # fmt: skip
    keys = [*extent[: 4 if name.endswith("scans") else 2], "uncertainty given, median, mm",
            *centroids, "uncertainty given there, rms, mm"]  # fmt: skip
    return [row[key] for key in keys]


def pooled(figure):
    """A figure of the anatomy in all simulated scans."""
    sets = [part("anatomy-simulated", f"scans of {kind} slices") for kind in KINDS]
    return sum(scans[figure] * scans["of"] for scans in sets) / sum(scans["of"] for scans in sets)


def dice(*structures):
    """Dice of structures, the mean of both sides: with the finer network and without, in turn."""
    return [
        statistics.mean(pooled(f"{side} {structure}{network}") for side in ("left", "right"))
        for structure in structures
        for network in ("", " without the finer network")
    ]


def painted():
    """Dice on painted label maps: brain, structures (least and most of the slices), sides in %."""
    sets = [part("anatomy-simulated", f"{slices} mm") for slices in (1, 3, 4, 5)]
    left_out = ("brain", "side", "fluid outside the brain", "left accumbens", "right accumbens")
    means = [
        statistics.mean(value for name, value in dice.items() if name not in left_out)
        for dice in sets
    ]
    brain, side = (statistics.mean(dice[key] for dice in sets) for key in ("brain", "side"))
    return [brain, min(means), max(means), 100 * side]


KINDS = ("thick", "thin")
STRUCTURES = (
    "lateral ventricle", "cerebral white matter", "thalamus", "putamen", "pallidum", "caudate",
    "cerebral cortex",
)  # fmt: skip


def longer(name):
    """Sensitivity at 4 false per scan after fine-tuning, and the interval of the gain."""
    gain = part(name, "figures", "sensitivity_at_4_fp")
    return [gain["after"], gain["low"], gain["high"]]


def two_stage(scans, *figures):
    """Figures of the default detector as shipped."""
    return [part(f"two-stage-{scans}", "figures", "as shipped", figure, 0) for figure in figures]


def curve(scans, stage):
    """Sensitivities of a stage of the default detector, its best F1 and what that costs."""
    rates = (f"sensitivity_at_{rate}_fp" for rate in ("0.5", "1", "2", "4"))
    keys = (*rates, "best_f1", "best_f1_fp_per_scan")
    return [part(f"two-stage-{scans}", "figures", stage, key, 0) for key in keys]


def interval(scans, figure):
    return part(f"two-stage-{scans}", "figures", "as shipped", figure)[1:]


def follow_up(*names):
    """Figures of lesions followed over simulated pairs of sessions."""
    return [part("longitudinal-simulated", "figures", name) for name in names]


# What a page says, with places for the figures, and the figures.
QUOTED = [
    (
        "docs/methods/longitudinal.md",
        "on {} simulated pairs",
        lambda: follow_up("pairs"),
    ),
    (
        "docs/methods/longitudinal.md",
        "of {} new lesions {} were detected; the rule calls {} of them new, the threshold alone "
        "{}; the threshold alone calls {} others new, {:.2f} per pair, the rule {}, {:.2f} per "
        "pair. All {} lesions",
        lambda: follow_up(
            "true_new",
            "true_new_detected",
            "new_by_evidence",
            "new_by_threshold",
            "false_by_threshold",
            "false_per_pair_by_threshold",
            "false_by_evidence",
            "false_per_pair_by_evidence",
            "identified",
        ),
    ),
    (
        "README.md",
        "with {:.0f} microbleeds the default detector, `two-stage`, finds {:.0f} with {:.0f} false "
        "ones",
        lambda: two_stage("real", "lesions", "hits", "false_alarms"),
    ),
    *(
        (
            ACCURACY,
            f"| {name} | `two-stage` | {{:.2f}}, {{:.2f}}, {{:.2f}}, {{:.2f}} | {{:.2f}} "
            "[{:.2f}, {:.2f}] ({:.2f}) |",
            lambda scans=scans: [
                *curve(scans, "as shipped")[:5],
                *interval(scans, "best_f1"),
                curve(scans, "as shipped")[5],
            ],
        )
        for name, scans in (
            ("V", "V"),
            ("the 30 benchmark scans of the default priors (39 sure)", "simulated-default"),
            ("the 30 benchmark scans of the priors `other` (55 sure)", "simulated-other"),
            ("20 scans of the same heads, priors `deep` (120 sure)", "deep"),
            ("12 scans of the same heads, priors `crowded-large` (189 sure)", "large"),
            ("five real", "real"),
        )
    ),
    (
        ACCURACY,
        "at the threshold of the best F1 ({:.2f}) `two-stage` has {} false alarms in all",
        lambda: [
            part("false-alarms-simulated", "thresholds", "of the best F1", key)
            for key in ("threshold", "false alarms")
        ],
    ),
    (
        ACCURACY,
        "At the balanced threshold there are {}: {} dots",
        lambda: [
            part("false-alarms-simulated", "thresholds", "of the card", "false alarms"),
            sum(
                number
                for cause, number in part(
                    "false-alarms-simulated", "thresholds", "of the card", "causes"
                ).items()
                if cause.endswith(" dot")
            ),
        ],
    ),
    (
        ACCURACY,
        "| V | `c` of `ensemble`, at the same candidates | {:.2f}, {:.2f}, {:.2f}, {:.2f} "
        "| {:.2f} ({:.2f}) |",
        lambda: curve("V", "second opinion"),
    ),
    (
        ACCURACY,
        "it finds {:.0f} of {:.0f} with {:.1f} false per scan (F1 {:.2f} [{:.2f}, {:.2f}]), on V "
        "{:.2f} with {:.1f}",
        lambda: [
            *two_stage("real", "hits", "lesions", "fp_per_scan", "f1"),
            *interval("real", "f1"),
            *two_stage("V", "sensitivity", "fp_per_scan"),
        ],
    ),
    (
        ACCURACY,
        "lesions of 2.5 mm and more at 0.5 false per scan: {:.2f})",
        lambda: two_stage("simulated-default", "sensitivity_large_at_0.5_fp"),
    ),
    (
        ACCURACY,
        "`ensemble` has {:.2f}, {:.2f}, {:.2f} and {:.2f} of them at 0.5, 1, 2 and 4 false per",
        lambda: at_false_alarms("ensemble-real-whole"),
    ),
    (
        ACCURACY,
        "`cascade` {:.2f}, {:.2f}, {:.2f} and {:.2f} and never",
        lambda: at_false_alarms("cascade-real-whole"),
    ),
    (
        ACCURACY,
        "the median true lesion ranks {:.0f}th and {:.0f}th",
        lambda: (
            valdo("ensemble-real-whole", "rank_median") + valdo("cascade-real-whole", "rank_median")
        ),
    ),
    (
        ACCURACY,
        "(F1 {:.2f} against {:.2f} and {:.2f}, each threshold chosen on the other half",
        lambda: [
            part("fusion-simulated-default", "rules", rule, "judged", "f1")
            for rule in ("cascade gated: mean", "cascade", "gated")
        ],
    ),
    (
        ACCURACY,
        "brain {:.2f} (`segment_brain`: {:.2f}), lateral ventricles {:.2f} ({:.2f}), "
        "white matter {:.2f} ({:.2f}), thalamus {:.2f} ({:.2f}), putamen {:.2f} ({:.2f}), "
        "pallidum {:.2f} ({:.2f}), caudate {:.2f} ({:.2f}), cortex {:.2f} ({:.2f})",
        lambda: [pooled("brain"), pooled("brain by find_brain"), *dice(*STRUCTURES)],
    ),
    (
        ACCURACY,
        "cortex 0.70 (0.57); side right in {:.1f} % of voxels",
        lambda: [100 * pooled("side")],
    ),
    (
        ACCURACY,
        "1 to 5 mm | brain {:.2f}, mean of the structures {:.2f} to {:.2f}; side {:.0f} %",
        painted,
    ),
    (
        ACCURACY,
        "territory {:.2f} ({:.2f}; aim 0.97), side beyond 3 mm of the midline {:.2f}, "
        "region {:.2f} ({:.2f}), structure {:.2f} ({:.2f}; aim 0.90)",
        lambda: [
            part("anatomy-simulated", "lesions", key)
            for key in (
                "territory",
                "territory without the finer network",
                "side beyond 3 mm",
                "region",
                "region without the finer network",
                "structure",
                "structure without the finer network",
            )
        ],
    ),
    (
        ACCURACY,
        "{:.2f} of {:.0f} in slices over 2.5 mm, {:.2f} of {:.0f} in thinner ones",
        lambda: [
            part("anatomy-simulated", f"lesions of {kind} slices", key)
            for kind in KINDS
            for key in ("structure", "of")
        ],
    ),
    (
        ACCURACY,
        "twelve other scans: {:.1f} mm from those of the true structures in the median",
        lambda: [part("cut-heads-scans", "whole", "off the true structures' fit, median, mm")],
    ),
    (
        ACCURACY,
        "of {:d} of the benchmark {:d} have air that can be measured; {:d} of them have {:.1f} % "
        "at most, and {:d} have more than the limit ({:.1f} % and more)",
        lambda: [
            part("ghosting-simulated", key)
            for key in (
                "scans",
                "measured",
                "below the limit",
                "highest below the limit, %",
                "above the limit",
                "least above the limit, %",
            )
        ],
    ),
    (
        ACCURACY,
        "Of those 60 scans none took more than {:.2f} s of one core",
        lambda: [part("ghosting-simulated", "seconds, most")],
    ),
    *(
        (
            ACCURACY,
            f"| {amount} | {{:.1f}} % | {{:.1f}} % |",
            partial(
                lambda amount: [
                    part("ghosting-simulated", "moved", amount, f"{which}, %")
                    for which in ("median", "least")
                ],
                amount,
            ),
        )
        for amount in ("0.25 mm", "0.5 mm", "1 mm", "2 mm")
    ),
    *(
        (
            ACCURACY,
            f"| {cut} | {{:.1f}} ({{:.1f}}) | {seen}{{:.1f}} | {{:.0f}} | {{:.1f}} | {{:.1f}} |",
            partial(cut_figures, name, cut),
        )
        for name, seen in (
            ("cut-heads-labels", ""),
            ("cut-heads-scans", "{:.1f} ({:.1f}) | "),
        )
        for cut in CUTS
    ),
    (
        ACCURACY,
        "(55 microbleeds) | sensitivity {:.2f} at {:.0f} false per scan; best F1 {:.2f}",
        lambda: valdo("radial-simulated-other", "sensitivity", "fp_per_scan", "best_f1"),
    ),
    (
        ACCURACY,
        "{:.2f} before; {:.2f} after (+{:.2f} to +{:.2f}), ",
        lambda: [
            part("fine-tuning-longer", "figures", "sensitivity_at_4_fp", "before"),
            *longer("fine-tuning-longer"),
        ],
    ),
    (
        ACCURACY,
        "{:.2f} from review files instead of the truth (+{:.2f} to +{:.2f}); ",
        lambda: longer("fine-tuning-longer-reviews"),
    ),
    (
        ACCURACY,
        "best F1 {:.2f}; {:.2f}; {:.2f}. The card's threshold no longer fits",
        lambda: [
            part("fine-tuning-longer", "figures", "best_f1", "before"),
            part("fine-tuning-longer", "figures", "best_f1", "after"),
            part("fine-tuning-longer-reviews", "figures", "best_f1", "after"),
        ],
    ),
    (
        ACCURACY,
        "from files to the group table | {:.0f} s, at most {:.0f} MB per process",
        lambda: list(part("timing-real", "figures", "participant and group").values()),
    ),
    (
        ACCURACY,
        "the same call again | {:.0f} s",
        lambda: [part("timing-real", "figures", "a second call", "seconds")],
    ),
    (
        ACCURACY,
        "(30 000 images) | {:.1f} s",
        lambda: [part("timing-real", "figures", "100 of 5000 subjects discovered", "seconds")],
    ),
    (
        ACCURACY,
        "{:.1f} and {:.1f} s a scan, {:.1f} and {:.1f} processor seconds; that process computed "
        "{:.0f} % of the time",
        lambda: [
            *(
                part("pipeline-real", "runs", way, figure)
                for figure in ("seconds_per_scan", "processor_s_per_scan")
                for way in ("one process, full", "one each, full")
            ),
            100 * part("pipeline-real", "runs", "one process, full", "busy_share"),
        ],
    ),
    *(
        (
            ACCURACY,
            words
            + " | {:.1f} and {:.1f} processor seconds ({:.1f} and {:.1f} "
            + products
            + "), {:.0f} and {:.0f} MB |",
            lambda scan=scan: [
                part("engines-real", "scans", scan, engine, key)
                for key in ("processor_s", "matrix_products", "memory_mb")
                for engine in ("openvino", "tensorflow")
            ],
        )
        for scan, words, products in (
            ("320", "by TensorFlow, in turn", "matrix products of the same run"),
            ("101", "of 0.45 × 0.45 × 4 mm", "products"),
        )
    ),
    (
        ACCURACY,
        "| `--help` | {:.2f} s",
        lambda: [part("timing-real", "figures", "--help", "seconds")],
    ),
    (
        ACCURACY,
        "busy machine | {:.1f} to {:.1f}; {:.1f} to {:.1f}",
        lambda: [
            seconds
            for kind in ("static", "interactive")
            for seconds in part("report-time-simulated", "scans", 0, kind).values()
        ],
    ),
    (
        ACCURACY,
        "1000 more rows shown | {:.1f}, {:.1f} and {:.1f} s ({:.2f}, {:.2f} and {:.2f} processor",
        lambda: [
            part("group-page-made", "pages", 1, act, kind)
            for kind in ("seconds", "processor_seconds")
            for act in ("opened", "slowest sort", "more rows")
        ],
    ),
    *(
        (
            ACCURACY,
            f"{words} | {{:.2f}} ({{:.2f}} to {{:.2f}}) | {{:.2f}} mm",
            lambda of=of: [
                part("sizes-real", of, "median_ratio"),
                *part("sizes-real", of, "ratio_quartiles"),
                part("sizes-real", of, "median_difference_mm"),
            ],
        )
        for words, of in (
            ("at half depth, at the experts' positions | 16 of 21", "half_depth_diameter"),
            ("of the outline, of those that were found | 11 of 21", "outline"),
        )
    ),
    (
        ACCURACY,
        "the app, without pages | {:.0f}",
        lambda: [part("shiva-real", "runs", "app", 0, "seconds")],
    ),
    (
        ACCURACY,
        "in the same runs | {:.0f}",
        lambda: [part("shiva-real", "runs", "script, a process per scan", 0, "seconds")],
    ),
    (
        "docs/methods/longitudinal.md",
        "the error in the brain was at most {:.2f} mm (median) and {:.2f} mm (95 %), and the "
        "correlation at least {:.2f}; between scans of two of these people it was at most {:.3f}",
        lambda: list(part("longitudinal-registration", "figures").values()),
    ),
    (
        "docs/methods/longitudinal.md",
        "found {:d} lesions before and {:d} after; {:d} were called new and {:d} not seen again. "
        "The registration was off by {:.1f} mm or less in 95 %",
        lambda: list(part("longitudinal-real", "figures").values()),
    ),
]


def test_what_a_reader_meets_on_the_pages_of_the_real_scans_is_what_the_card_says():
    """Marks are what was found and what is false, at the sensitive and at the balanced point."""
    card = json.loads((ROOT / "bids_cmb/resources/models/two-stage.json").read_text("utf-8"))
    (real,) = (entry for entry in card["performance"] if entry["data"] == "real")
    points = {point["threshold"]: point for point in real["points"]}
    met, counted = (
        points[threshold["threshold"]]
        for name in ("sensitive", "balanced")
        for threshold in card["operating_points"]
        if threshold["name"] == name
    )
    marks = [round(point["found"] + real["scans"] * point["false_per_scan"])
             for point in (met, counted)]  # fmt: skip
    sentence = (
        f"meets {met['found']} of the {real['microbleeds']} among {marks[0]} marks, "
        f"{marks[1]} of them counted"
    )
    assert sentence in words_of(ACCURACY)


@pytest.mark.parametrize(("page", "sentence", "figures"), QUOTED, ids=[q[1] for q in QUOTED])
def test_a_figure_is_that_of_its_result_file(page, sentence, figures):
    assert sentence.format(*figures()) in words_of(page)


@pytest.mark.parametrize("scans", SETS)
def test_detectors_stand_beside_each_other_with_the_figures_of_their_results(scans, detectors):
    below = (ROOT / ACCURACY).read_text("utf-8").split(SETS[scans])[1].splitlines()
    table = [line for line in below if line.startswith("| `")][: len(DETECTORS)]
    for detector, line in zip(DETECTORS, table, strict=True):
        cells = [
            detectors.format_interval(*figure) for figure in detectors.read_figures(detector, scans)
        ]
        size = f"{detectors.count_parameters(detector):,}".replace(",", " ")
        assert line == detectors.format_row([f"`{detector}`", size, *cells])


def test_the_costs_of_detectors_are_those_that_were_measured():
    table = [line for line in (ROOT / ACCURACY).read_text("utf-8").splitlines() if "; " in line]
    runs = part("detectors-cost", "runs")
    for detector in DETECTORS:
        of = [run for run in runs if run["detector"] == detector]
        cells = [
            "; ".join(f"{run[key]:{digits}}" for run in of)
            for key, digits in (("processor_seconds", ".0f"), ("seconds", ".0f"), ("gb", ".1f"))
        ]
        assert f"| `{detector}` | {' | '.join(cells)} |" in table


def test_the_table_of_detectors_among_the_results_is_current(detectors):
    kept = (RESULTS / "detectors.md").read_text("utf-8")
    assert kept == "\n".join(
        [*detectors.tabulate_sets(DETECTORS), "", *detectors.tabulate_protocols(DETECTORS), ""]
    )


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_card_has_the_figures_of_its_results(detector):
    metrics = json.loads((ROOT / f"bids_cmb/resources/models/{detector}.json").read_text("utf-8"))[
        "metrics"
    ]
    names = {"false_per_scan": "fp_per_scan"}
    for scans, name in zip(("five real", "30 simulated"), SETS, strict=True):
        [said] = [figures for words, figures in metrics.items() if words.startswith(scans)]
        for key, value in said.items():
            [result] = valdo(f"{detector}-{name}", names.get(key, key))
            assert value == pytest.approx(result, abs=0.051 if "false" in key else 0.0051)


@pytest.fixture
def detectors(monkeypatch):
    """The script that puts detectors beside each other."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.accuracy.detectors")
