"""How well an output folder of the app agrees with the truth, by two rules of matching.

    python benchmarks/detection.py DERIVATIVES TRUTH --name radial-real

Run the app with a low ``--threshold`` first if the FROC shall reach below the detector's own
threshold, and give that one here as ``--threshold``: what is not in the lesion tables cannot be
counted. Results go to ``benchmarks/results/NAME.tsv`` (the FROC) and ``NAME.json`` (figures with
their 95 % intervals over subjects, and how they came about). The tables and the page of one rule:
``bids-cmb evaluate``.
"""

import argparse
import math
import platform
import shlex
from datetime import UTC, datetime
from pathlib import Path

from bids_cmb.evaluation.evaluate import compute_evaluation
from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.evaluation.outputs import Evaluation, make_froc_table
from bids_cmb.files import write_json
from bids_cmb.provenance import software

RESULTS = Path(__file__).parent / "results"
RULES = ("valdo", "one-to-one")


def main() -> None:
    """Read, measure, print and write."""
    asked = arguments()
    results = {
        rule: compute_evaluation(
            asked.derivatives,
            asked.truth,
            EvaluationOptions(match=rule, threshold=asked.threshold, seed=asked.seed),
        )
        for rule in RULES
    }
    first = results[RULES[0]]
    report = {
        "name": asked.name,
        "command": shlex.join(["python", "benchmarks/detection.py", *told(asked)]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "versions": software(),
        "threshold": asked.threshold,
        "seed": asked.seed,
        "missing": first.missing,
        "without_truth": first.without_truth,
        "scans": first.scans.to_dict("records"),
        "rules": {rule: figures(result) for rule, result in results.items()},
        "breakdown": {rule: breakdown(result) for rule, result in results.items()},
    }
    show(report["rules"])
    write_json(RESULTS / f"{asked.name}.json", report)
    curve = make_froc_table(first.curve).round(4)
    curve.to_csv(RESULTS / f"{asked.name}.tsv", sep="\t", index=False, na_rep="n/a")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("derivatives", type=Path, help="output folder of the app")
    parser.add_argument("truth", type=Path, help="derivative dataset, or TSV of coordinates")
    parser.add_argument("--name", required=True, help="of the two files of results")
    parser.add_argument(
        "--threshold", type=float, default=0.0, help="lowest probability_max that counts"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args()


def told(asked: argparse.Namespace) -> list[str]:
    """The command's arguments, of its paths the last part only: results travel, folders do not."""
    return [
        *(asked.derivatives.name, asked.truth.name, "--name", asked.name),
        *("--threshold", f"{asked.threshold:g}", "--seed", str(asked.seed)),
    ]


def figures(result: Evaluation) -> dict[str, dict]:
    """Every figure and its 95 % interval."""
    return {
        name: {key: plain(value) for key, value in vars(figure).items()}
        for name, figure in result.figures.items()
    }


def breakdown(result: Evaluation) -> list[dict]:
    """The same by class."""
    rows = result.breakdown.to_dict("records")
    return [{key: plain(value) for key, value in row.items()} for row in rows]


def plain(value: object) -> object:
    """A number that JSON has, None for one that is not defined; words as they are."""
    if isinstance(value, str):
        return value
    return round(value, 4) if math.isfinite(value) else None


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
            print(f"  {figure:30} {value:>9}  [{low}, {high}]")


if __name__ == "__main__":
    main()
