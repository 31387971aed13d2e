"""How well an output folder of the app agrees with a table of true lesions.

    python benchmarks/detection.py DERIVATIVES TRUTH.tsv --name radial-real

Run the app with a low ``--threshold`` first if the FROC shall reach below the detector's own
threshold, and give that one here as ``--threshold``: what is not in the lesion tables cannot be
counted. Results go to ``benchmarks/results/NAME.tsv`` (the FROC) and ``NAME.json`` (figures with
their 95 % intervals over subjects, and how they came about).
"""

import argparse
import json
import math
import platform
import shlex
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from bids_cmb.evaluation import (
    Case,
    Froc,
    bootstrap,
    froc,
    match_one_to_one,
    match_valdo,
    read_cases,
    score,
    summary,
)

RESULTS = Path(__file__).parent / "results"
RULES = {"valdo": match_valdo, "one-to-one": match_one_to_one}
PACKAGES = ("bids-cmb", "numpy", "scipy", "pandas")


def main() -> None:
    """Read, measure, print and write."""
    asked = arguments()
    cases = read_cases(asked.derivatives, asked.truth)
    rules = {
        name: figures(cases, rule, threshold=asked.threshold, seed=asked.seed)
        for name, rule in RULES.items()
    }
    report = {
        "name": asked.name,
        "command": shlex.join(["python", "benchmarks/detection.py", *told(asked)]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "threshold": asked.threshold,
        "seed": asked.seed,
        "scans": [
            {"subject": c.subject, "found": len(c.found), "truth": len(c.truth)} for c in cases
        ],
        "rules": rules,
    }
    show(rules)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (RESULTS / f"{asked.name}.json").write_text(text + "\n", encoding="utf-8")
    table(froc(cases)).to_csv(RESULTS / f"{asked.name}.tsv", sep="\t", index=False, na_rep="n/a")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("derivatives", type=Path, help="output folder of the app")
    parser.add_argument("truth", type=Path, help="TSV: subject, x_mm, y_mm, z_mm")
    parser.add_argument("--name", required=True, help="of the two files of results")
    parser.add_argument("--threshold", type=float, default=0.0, help="lowest prob_max that counts")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args()


def told(asked: argparse.Namespace) -> list[str]:
    """The command's arguments, of its paths the last part only: results travel, folders do not."""
    return [
        *(asked.derivatives.name, asked.truth.name, "--name", asked.name),
        *("--threshold", f"{asked.threshold:g}", "--seed", str(asked.seed)),
    ]


def figures(cases: list[Case], rule, *, threshold: float, seed: int) -> dict[str, dict]:
    """Every figure and its 95 % interval under one rule."""
    values = summary(score(cases, threshold=threshold, rule=rule), froc(cases, rule=rule))
    spans = bootstrap(cases, threshold=threshold, seed=seed, rule=rule)
    return {
        name: {"value": plain(value), "low": plain(spans[name][0]), "high": plain(spans[name][1])}
        for name, value in values.items()
    }


def plain(value: float) -> float | None:
    """A number that JSON has; None for one that is not defined."""
    return round(value, 4) if math.isfinite(value) else None


def table(curve: Froc) -> pd.DataFrame:
    """The FROC, a row per threshold at which something changes."""
    metrics = curve.metrics
    rows = {
        "threshold": curve.threshold,
        "sensitivity": metrics.sensitivity,
        "fp_per_scan": metrics.fp_per_scan,
        "precision": metrics.precision,
        "f1": metrics.f1,
    }
    return pd.DataFrame(rows).iloc[1:].round(4)  # the first row is an infinite threshold


def cpu() -> str:
    """The processor's name as the system tells it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} × {len(names)}" if names else platform.processor()


def show(rules: dict[str, dict]) -> None:
    """The figures side by side, on the terminal."""
    for name, values in rules.items():
        print(name)
        for figure, of in values.items():
            value, low, high = (
                "n/a" if of[key] is None else f"{of[key]:.3f}" for key in ("value", "low", "high")
            )
            print(f"  {figure:24} {value:>9}  [{low}, {high}]")


if __name__ == "__main__":
    main()
