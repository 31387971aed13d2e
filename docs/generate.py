"""Write the pages of docs/ that come from the package: models, columns, packages.

    python docs/generate.py

What it writes is committed, for readers on GitHub; a test fails while a page differs from what
this would write.
"""

import inspect
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import numpy as np

from bids_cmb.bids.tables import read_columns
from bids_cmb.cli.descriptor import make_descriptor
from bids_cmb.cli.parser import make_parser
from bids_cmb.config import RESEARCH_DETECTORS, Config
from bids_cmb.detection.cascade import CandidateRules
from bids_cmb.detection.proposals import ProposalRules
from bids_cmb.networks.model_cards import ANATOMY, list_cards, load_card, locate_weights
from bids_cmb.report.performance import CONTRASTS

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PACKAGE = ROOT / "bids_cmb"
NOTE = "<!-- Written by docs/generate.py from {source}: change that, and run it. -->\n"
MODELS = "bids_cmb/resources/models"
RULES = {"cascade": CandidateRules, "two-stage": ProposalRules}  # of a design; parameters of cards
TABLES = {  # the file of each table, and what a row of it is
    "lesion": (
        "`…_seg-CMB_desc-…_dseg.tsv` and `…_seg-candidates_desc-…_dseg.tsv`",
        "A lesion, or a candidate.",
    ),
    "scan": ("`sub-…_scans.tsv` and `group_microbleeds.tsv`", "A scan."),
    "group": ("`group_microbleeds.tsv`", "A scan; the columns of the scans' tables follow."),
    "regions": (
        "`group_regions.tsv` and `group_regions_reviewed.tsv`",
        "A region, in all participants or in some of them.",
    ),
    "review": ("the reviews that pages save", "What a reader says of a lesion, or of the scan."),
    "lesion_review": (
        "`group_lesions.tsv` with `--reviews`",
        "A lesion of the cohort; participant, session, scan and the columns of lesions come first.",
    ),
    "reviewed": ("`group_microbleeds.tsv` with `--reviews`", "A scan; these come last."),
    "agreement": ("`group_agreement.tsv`", "Two readers."),
    "followed_lesion": (
        "`sub-…_desc-longitudinal…_lesions.tsv`",
        "A lesion over all visits of a participant.",
    ),
    "followed_observation": (
        "`sub-…_desc-longitudinal…_observations.tsv`",
        "A followed lesion at one visit.",
    ),
    "followed_pair": (
        "`sub-…_desc-longitudinal…_pairs.tsv` and `group_longitudinal.tsv`",
        "Two visits of a participant; of the group consecutive ones only.",
    ),
    "followed_reviewed": (
        "`group_longitudinal.tsv` with `--reviews`",
        "Two consecutive visits; these come last.",
    ),
    "boxes": ("`…_boxes.tsv`", "A candidate of a detector that draws boxes."),
    "gate": ("`…_gate.tsv`", "A place at which a detector with a gate looked."),
}
WORDS = {  # of keys of cards
    "f1": "F1",
    "best_f1": "best F1",
    "fp_per_scan": "false per scan",
    "sensitivity_large": "sensitivity, 2.5 mm and more",
    "bids_cmb": "bids_cmb",
    "min_volume_mm3": "smallest volume, mm³",
}
SIZES = {  # figures of benchmarks.code_size
    "modules": "modules",
    "packages": "packages",
    "module_circles": "modules that import each other, groups",
    "package_circles": "packages that import each other, groups",
    "functions": "functions",
    "body_median": "lines of a function's body, median",
    "body_p90": "… nine of ten have at most",
    "body_max": "… most",
    "parameters_max": "parameters of a function, most",
    "many_parameters": "functions with more than 6",
    "long_modules": "modules with more than 400 lines",
    "duplicates": "duplicates in the package",
    "duplicates_tests": "duplicates in the tests",
    "lines": "lines of the package",
    "lines_tests": "lines of the tests",
}
PERFORMANCE_HEADS = ["scans", "kind", "threshold", "microbleeds found", "false per scan"]


def main() -> None:
    """Write every page, and remove those of models that are gone."""
    written = pages()
    for path, text in written.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in set((DOCS / "models").glob("*.md")) - set(written):
        path.unlink()


def pages() -> dict[Path, str]:
    """Every page that is generated: its path and its text."""
    names = list_cards()
    cards = {name: load_card(name) for name in names}
    return {
        DOCS / "models" / "index.md": models_page(cards),
        **{DOCS / "models" / f"{name}.md": model_page(cards[name]) for name in names},
        DOCS / "guide" / "columns.md": columns_page(),
        DOCS / "develop" / "floors.svg": floors_drawing(),
        DOCS / "develop" / "size.md": size_page(),
        DOCS / "hpc" / "nipoppy" / "descriptor.json": descriptor_file(),
    }


def models_page(cards: Mapping[str, Mapping]) -> str:
    """All detectors and networks in one table."""
    rows = [
        [
            f"[`{name}`]({name}.md)",
            _use(about),
            about.get("threshold", "–"),
            _value(sum(map(_parameters, _files(about)))),
            _megabytes(_files(about)),
            about.get("licence", "–"),
        ]
        for name, about in cards.items()
    ]
    heads = ["card", "for", "threshold", "parameters", "MB of weights", "licence of the weights"]
    return "\n".join(
        [
            NOTE.format(source=MODELS),
            "# Models",
            "",
            "A page for each model card of the package. How they compare: "
            "[accuracy and cost](../methods/accuracy.md); what all of them miss: "
            "[limits](../methods/limits.md); how they were trained: "
            "[notes](../notes/training.md). `bids-cmb models list` prints the cards of an "
            "installation, your own included.",
            "",
            *_table(heads, rows),
            "",
        ]
    )


def model_page(about: Mapping) -> str:
    """All that the card of a detector or network says, for readers."""
    name = about["name"]
    sections = {
        "Design": _design(about),
        "Thresholds": _thresholds(about),
        "Operating points": _operating_points(about),
        "Calibration": _calibration(about),
        "Accuracy": _accuracy(about),
        "Training": _training(about),
        "Limits": _limits(about),
        "Citation": [f"- {_cited(work)}" for work in about.get("citation", [])],
    }
    lines = [
        NOTE.format(source=f"{MODELS}/{name}.json"),
        f"# {name}",
        "",
        _plain(about["description"]),
        "",
        *_table(["", ""], _facts(about)),
    ]
    for title, content in sections.items():
        if content:
            lines += ["", f"## {title}", "", *content]
    return "\n".join([*lines, ""]).rstrip() + "\n"


def _facts(about: Mapping) -> list[list[str]]:
    files = _files(about)
    weights = f"{_megabytes(files)} MB, {_value(sum(map(_parameters, files)))} parameters"
    return [
        ["for", _use(about)],
        [
            "networks",
            ", ".join(f"`{member['name']}`" for member in about.get("members", [])) or "none",
        ],
        ["weights", weights if files else "none"],
        ["licence of the weights", about.get("licence", "–")],
    ]


def _use(about: Mapping) -> str:
    if about["task"] == ANATOMY:
        return "structures, sides and the brain mask: `--anatomy network`, the default"
    name = about["name"]
    status = ", the default" if Config.detector == (name,) else ""
    status = ", for research" if name in RESEARCH_DETECTORS else status
    return f"{about['task']}: `--detector {name}`{status}"


def _design(about: Mapping) -> list[str]:
    lines = []
    if members := about.get("members"):
        rows = [
            [
                f"`{member['name']}`",
                f"`{member['builder']}`",
                _voxels(member["grid"]),
                _value(_parameters(path)),
                _megabytes([path]),
                f"`{member['sha256'][:16]}…`",
            ]
            for member, path in zip(members, _files(about), strict=True)
        ]
        heads = ["network", "architecture", "voxels, mm", "parameters", "MB", "SHA-256"]
        lines += _table(heads, rows)
        kinds = about.get("views_for")
        lines += [line for member in members for line in [*_views(member, kinds), *_kinds(member)]]
    parameters = dict(about.get("parameters", {}))
    gates = parameters.pop("gates", [])
    reasons = [parameters.pop(key) for key in list(parameters) if key.endswith("_reason")]
    if parameters:
        rows = [[_words(key), _value(value)] for key, value in parameters.items()]
        heads = ["parameter", "value"]
        if rules := RULES.get(about["design"]):
            meanings = _read_attributes(rules)
            rows = [[*row, meanings[key]] for row, key in zip(rows, parameters, strict=True)]
            heads = [*heads, "meaning"]
        lines += ["", *_table(heads, rows)]
    if gates:
        heads = ["measure", "kept", "half way at", "width", "why"]
        rows = [[_words(gate["measure"]), *list(gate.values())[1:]] for gate in gates]
        lines += ["", *_table(heads, rows)]
    for reason in reasons:
        lines += ["", _plain(reason)]
    if classes := about.get("classes"):
        rows = [
            [each["name"], each["left"], each["right"], ", ".join(map(str, each["codes"]))]
            for each in classes
        ]
        heads = ["structure", "left", "right", "FreeSurfer's codes that it stands for"]
        lines += ["", *_table(heads, rows)]
    if source := about.get("mni_centroids_from"):
        purpose = "to which the mean head of the MNI fit is brought"
        lines += ["", f"Centroids of the structures in MNI space, {purpose}: {source}."]
    return lines[1:] if lines[:1] == [""] else lines


def _thresholds(about: Mapping) -> list[str]:
    keys = ("threshold", "definite_threshold", "min_volume_mm3", "first_stage_weight")
    rows = [[_words(key), _value(about[key])] for key in keys if key in about]
    lines = _table(["", ""], rows) if rows else []
    return [*lines, "", _plain(about["threshold_reason"])] if "threshold_reason" in about else lines


def _operating_points(about: Mapping) -> list[str]:
    points = about.get("operating_points", [])
    keys = list(dict.fromkeys(key for point in points for key in point))
    if not points:
        return []
    named = "`--operating-point NAME` takes one of them.\n" if "name" in keys else ""
    rows = [[_value(point.get(key)) for key in keys] for point in points]
    return [*([named] if named else []), *_table([_words(key) for key in keys], rows)]


def _calibration(about: Mapping) -> list[str]:
    if curve := about.get("calibration"):
        sign = "+" if curve["offset"] >= 0 else "−"
        return [
            f"Probabilities are calibrated: log-odds × {curve['slope']:g} "
            f"{sign} {abs(curve['offset']):g}."
        ]
    return ["None: its probabilities are not chances."] if about["task"] != ANATOMY else []


def _accuracy(about: Mapping) -> list[str]:
    lines = []
    for scans, figures in about.get("metrics", {}).items():
        listed = ", ".join(f"{_words(key)} {_value(value)}" for key, value in figures.items())
        lines.append(f"- {_plain(scans[0].upper() + scans[1:])}: {listed}")
    if performance := about.get("performance"):
        lines += ["", *_table(PERFORMANCE_HEADS, _performance_rows(performance))]
    see = "[Accuracy and cost](../methods/accuracy.md) has intervals, and all detectors."
    return [*lines, "", see] if lines else [see]


def _performance_rows(performance: Iterable[Mapping]) -> list[list[str]]:
    """What was found and missed, a row for each kind of scans and threshold."""
    return [
        [
            f"{entry['scans']} {entry['data']}",
            CONTRASTS.get(entry.get("contrast"), "") or entry["kind"],
            _value(point["threshold"]),
            f"{point['found']} of {entry['microbleeds']}",
            f"{point['false_per_scan']:.1f}",
        ]
        for entry in performance
        for point in entry["points"]
    ]


def _training(about: Mapping) -> list[str]:
    lines = []
    if "training" in about:
        text = about["training"].replace("docs/notes/training.md", "[notes](../notes/training.md)")
        lines += [text, ""]
    for member in about.get("members", []):
        rows = [[_words(key), _value(value)] for key, value in member["training"].items()]
        lines += [f"**`{member['name']}`**", "", *_table(["", ""], rows), ""]
    return lines[:-1]


def _limits(about: Mapping) -> list[str]:
    see = "What holds for the whole app: [limits](../methods/limits.md)."
    limits = [f"- {_plain(limit)}" for limit in about.get("limits", [])]
    return [*limits, "", see] if limits else [see]


def _cited(work: Mapping) -> str:
    return f"{_plain(work['text'])} [doi:{work['doi']}](https://doi.org/{work['doi']})"


def _views(member: Mapping, kinds: list[str] | None) -> list[str]:
    """Say what a network is shown besides the scan as it is, for which kinds of protocol."""
    views = [
        text.format(", ".join(f"{value:g}" for value in member[key]))
        for key, text in (
            ("zooms", "slices enlarged by {}"),
            ("exponents", "brightness to the power of {}"),
        )
        if member.get(key)
    ]
    if not views:
        return []
    also = " and ".join([*views, *(["both"] if len(views) > 1 else [])])
    where = f"In protocols with {' or '.join(kinds)} " if kinds else ""
    return ["", f"{where}`{member['name']}` is also shown {also}; the predictions are averaged."]


def _kinds(member: Mapping) -> list[str]:
    """Say for which kinds of protocol a network is used, unless for all."""
    if not (kinds := member.get("protocol_kinds")):
        return []
    return ["", f"`{member['name']}` is used in protocols with {' or '.join(kinds)}."]


def _voxels(grid: Mapping) -> str:
    spacing = grid["spacing"] if isinstance(grid["spacing"], list) else [grid["spacing"]] * 3
    return " × ".join("slice" if size is None else f"{size:g}" for size in spacing)


def _files(about: Mapping) -> list[Path]:
    return [locate_weights(about["name"], member) for member in about.get("members", [])]


def _megabytes(files: Iterable[Path]) -> str:
    return f"{sum(path.stat().st_size for path in files) / 1e6:.1f}"


def _read_attributes(kind: type) -> dict[str, str]:
    """Read what the docstring of a class says of each of its attributes."""
    text = inspect.getdoc(kind).partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def _parameters(path: Path) -> int:
    with np.load(path) as arrays:
        return sum(arrays[name].size for name in arrays.files)


def columns_page() -> str:
    """The columns of every table, as their sidecars describe them."""
    lines = [
        NOTE.format(source="bids_cmb/resources/tables"),
        "# Columns of the tables",
        "",
        "As the `.json` beside each table describes them. Lengths are in mm, volumes in mm³, "
        "positions in scanner space (RAS+) unless a column says otherwise; what is not known is "
        "`n/a`. What the files are: [outputs](outputs.md).",
    ]
    names = [path.stem for path in sorted((PACKAGE / "resources" / "tables").glob("*.json"))]
    if lacking := set(names) - set(TABLES):
        raise ValueError(f"TABLES must name the file of each table; found none of {lacking}.")
    for name in sorted(names, key=list(TABLES).index):
        file, row = TABLES[name]
        rows = [[f"`{key}`", _meaning(about)] for key, about in read_columns(name).items()]
        title = name[0].upper() + name[1:]
        lines += ["", f"## {title}", "", f"File: {file}. Row: {row[0].lower()}{row[1:]}"]
        lines += ["", *_table(["column", "meaning"], rows)]
    return "\n".join([*lines, ""])


def _meaning(about: Mapping) -> str:
    units = f" ({about['Units'].replace('^3', '³')})" if "Units" in about else ""
    levels = "".join(
        f"<br>`{level}`: {meaning}" for level, meaning in about.get("Levels", {}).items()
    )
    return f"{about['Description']}{units}{levels}"


def floors() -> list[list[str]]:
    """The floors of the packages from the top down, as import-linter holds them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    [layers] = [
        contract["layers"] for contract in contracts["contracts"] if contract["type"] == "layers"
    ]
    return [re.split(r"\s*\|\s*", layer) for layer in layers]


def floors_drawing() -> str:
    """The floors as an SVG that needs nothing else, readable on light and dark pages."""
    line, gap, width = 24, 10, 900
    parts, top = [], gap
    for floor in floors():
        height = line * len(floor) + gap
        parts.append(
            f'<rect x="10" y="{top}" width="{width - 20}" height="{height}" rx="6" '
            'fill="#eef2f7" stroke="#5b6b7f"/>'
        )
        for number, name in enumerate(floor):
            y = top + line * (number + 1) - 4
            parts.append(f'<text x="24" y="{y}" font-weight="bold">{name}</text>')
            parts.append(f'<text x="140" y="{y}">{escape(_first_line(name))}</text>')
        top += height + gap
    size = f'width="{width}" height="{top}" viewBox="0 0 {width} {top}"'
    title = "<title>The floors of the packages, the highest first</title>"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" '
            'font-size="14" fill="#1b2733">',
            title,
            *parts,
            "</svg>\n",
        ]
    )


def _first_line(name: str) -> str:
    path = PACKAGE / name / "__init__.py"
    source = (path if path.is_file() else PACKAGE / f"{name}.py").read_text("utf-8")
    return source.split('"""')[1].split("\n")[0].replace("``", "")


def size_page() -> str:
    """How large the code was and is, and what its tests cost."""
    source = "benchmarks/results/code-size.json"
    trees = json.loads((ROOT / source).read_text("utf-8"))
    sizes = [
        [words, *(f"{tree[key]:g}" for tree in trees.values())] for key, words in SIZES.items()
    ]
    suites = {name: tree["suite_seconds"] for name, tree in trees.items() if tree["suite_seconds"]}
    folders = sorted({folder for suite in suites.values() for folder in suite})
    rows = [
        [f"`{folder}`", *(_value(suite.get(folder)) for suite in suites.values())]
        for folder in folders
    ]
    return "\n".join(
        [
            NOTE.format(source=source),
            "# The code in figures",
            "",
            "Counted by `benchmarks/code_size.py`, which says how. A body has no docstring; a "
            "circle is of imports at the top of modules; a duplicate is a run of statements "
            "that stands a second time but for the names of its variables.",
            "",
            *_table(["", *trees], sizes),
            "",
            "The processor's seconds of the tests of a folder, in a process of their own, on a "
            "machine that did other work as well: they hold beside each other, and a quiet "
            "machine needs fewer. `bash .ci/test` shares all folders between two processes. What "
            "is not listed was not measured.",
            "",
            *_table(["tests", *suites], rows),
            "",
        ]
    )


def descriptor_file() -> str:
    """What ``--bids-exec-spec`` prints, for the bundle of nipoppy."""
    return json.dumps(make_descriptor(make_parser()), indent=2) + "\n"


def _words(key: str) -> str:
    return WORDS.get(key, key.replace("_", " "))


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def _table(heads: list[str], rows: Iterable[list]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(_plain(str(cell)) for cell in line)} |" for line in lines]


def _plain(text: str) -> str:
    """The text with what Markdown would take for a table's bar or for emphasis marked as none."""
    return re.sub(r"([|*])", r"\\\1", text)


if __name__ == "__main__":
    main()
