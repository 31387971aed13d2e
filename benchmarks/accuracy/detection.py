"""Evaluate an output folder of the app against the truth by two rules of matching, for `results`.

    python -m benchmarks.accuracy.detection DERIVATIVES TRUTH --name radial-real [--threshold P]
        [--seed N]

Run the app with a low ``--threshold`` first if the FROC shall reach below the detector's own
threshold, and give that one here as ``--threshold``: what is not in the lesion tables cannot be
counted. Writes ``benchmarks/results/NAME.tsv`` (the FROC) and ``NAME.json`` (figures with 95 %
intervals over subjects, and provenance), which `benchmarks.accuracy.detectors` reads. Tables and a
page for one rule: ``bids-cmb evaluate``.
"""

import argparse
import platform
import shlex
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measurements import RESULTS
from bids_cmb.evaluation.evaluate import compute_evaluation
from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.evaluation.outputs import to_plain_rows, to_plain_value
from bids_cmb.evaluation.results import Evaluation, make_froc_table
from bids_cmb.files import write_json
from bids_cmb.provenance import software

RULES = ("valdo", "one-to-one")


def main() -> None:
    """Evaluate, print and write."""
    options = make_parser().parse_args()
    results = {
        rule: compute_evaluation(
            options.derivatives,
            options.truth,
            EvaluationOptions(match=rule, threshold=options.threshold, seed=options.seed),
        )
        for rule in RULES
    }
    first = results[RULES[0]]
    report = {
        "name": options.name,
        "command": make_command(options),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": describe_processor(),
        "versions": software(),
        "threshold": options.threshold,
        "seed": options.seed,
        "missing": first.missing,
        "without_truth": first.without_truth,
        "scans": first.scans.to_dict("records"),
        "rules": {rule: convert_figures(result) for rule, result in results.items()},
        "breakdown": {rule: to_plain_rows(result.breakdown) for rule, result in results.items()},
    }
    write_json(RESULTS / f"{options.name}.json", report)
    curve = make_froc_table(first.curve).round(4)
    curve.to_csv(RESULTS / f"{options.name}.tsv", sep="\t", index=False, na_rep="n/a")
    for rule, figures in report["rules"].items():
        print_figures(rule, figures)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("derivatives", type=Path, help="output folder of the app")
    parser.add_argument("truth", type=Path, help="derivative dataset, or TSV of coordinates")
    parser.add_argument("--name", required=True, help="of the two result files")
    parser.add_argument(
        "--threshold", type=float, default=0.0, help="lowest probability_max that counts"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser


def make_command(options: argparse.Namespace) -> str:
    """Make the command line again, with the last part of each path only: results are published."""
    words = ["python", "-m", "benchmarks.accuracy.detection"]
    words += [options.derivatives.name, options.truth.name, "--name", options.name]
    words += ["--threshold", f"{options.threshold:g}", "--seed", str(options.seed)]
    return shlex.join(words)


def convert_figures(result: Evaluation) -> dict[str, dict]:
    """Convert every figure and its 95 % interval to plain values."""
    return {
        name: {key: to_plain_value(value) for key, value in vars(figure).items()}
        for name, figure in result.figures.items()
    }


def describe_processor() -> str:
    """Describe the processor by the name that the system gives it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} × {len(names)}" if names else platform.processor()


def print_figures(rule: str, figures: dict[str, dict]) -> None:
    """Print the figures of a rule with their intervals."""
    print(rule)
    for name, figure in figures.items():
        value, low, high = (
            "n/a" if figure[key] is None else f"{figure[key]:.3f}"
            for key in ("value", "low", "high")
        )
        print(f"  {name:30} {value:>9}  [{low}, {high}]")


if __name__ == "__main__":
    main()
