"""Measure what fine-tuning on a few scans of an unseen protocol is worth on other scans of it.

    python -m benchmarks.accuracy.fine_tuning RESULT.json TRAINING TEST WORK
        [--member c] [--epochs 3] [--steps 40]

TRAINING and TEST are simulated datasets of one protocol and law with different heads. A member of
the ensemble is fine-tuned twice by the commands of docs/howto/train.md: on the truth of TRAINING,
and on the reviews of an ideal reader who knows it (accept, reject or unsure for what the app
detects there, a point for what it misses). Then the app processes TEST with the member as it came
and as each training left it, and all three are evaluated by the VALDO rule. What WORK holds already
is continued. For the interval of a difference: ``bids-cmb compare`` on the outputs in WORK.
"""

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from benchmarks.accuracy.detection import convert_figures, describe_processor
from benchmarks.measurements import ROOT, find_ignored
from bids_cmb.bids.paths import locate_lesion_table
from bids_cmb.bids.tables import read_columns, read_table, write_table
from bids_cmb.evaluation.annotations import POSITION_COLUMNS, LesionAnnotations, read_annotations
from bids_cmb.evaluation.evaluate import compute_evaluation
from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.evaluation.outputs import to_plain_value
from bids_cmb.evaluation.results import Evaluation
from bids_cmb.files import load_json, write_json
from bids_cmb.metrics.matching import match_valdo
from bids_cmb.networks.model_cards import load_card
from bids_cmb.provenance import software

DETECTOR = "ensemble"
BEFORE, TRUTH, REVIEWS = "as it came", "fine-tuned on the truth", "fine-tuned on reviews"
LOWEST_THRESHOLD = 0.1  # of the runs that are evaluated: the FROC reaches as far down
READER, DATE = "Ideal", "2026-01-01T00:00:00Z"
FIGURES = (
    *("sensitivity", "fp_per_scan", "precision", "f1", "best_f1", "best_f1_fp_per_scan"),
    *(f"sensitivity_at_{rate}_fp" for rate in (2, 4, 8)),
)
PRINTED = (
    "sensitivity", "fp_per_scan", "f1", "sensitivity_at_2_fp", "sensitivity_at_4_fp", "best_f1",
)  # fmt: skip


def main() -> None:
    """Process, review, fine-tune twice, process again, evaluate, print and write."""
    options = make_parser().parse_args()
    work, training = options.work.resolve(), options.training.resolve()
    threshold = load_card(DETECTOR)["threshold"]
    bundled = ["--detector", DETECTOR, "--members", options.member]
    run_app(training, work / "own", *bundled)
    verdicts = review_scans(work / "own", training / "derivatives" / "truth", work / "reviews")
    sources = {TRUTH: [], REVIEWS: ["--truth", work / "own", "--reviews", work / "reviews"]}
    folders = {TRUTH: work / "on-truth", REVIEWS: work / "on-reviews"}
    detectors = {BEFORE: bundled}
    for name, source in sources.items():
        detectors[name] = fine_tune(options, source, folders[name])
    results = {}
    for name, detector in detectors.items():
        output = work / f"found-{len(results)}"
        run_app(options.test.resolve(), output, *detector, "--threshold", LOWEST_THRESHOLD)
        truth = options.test / "derivatives" / "truth"
        results[name] = compute_evaluation(output, truth, EvaluationOptions(threshold=threshold))
    affordable = results[BEFORE].figures["fp_per_scan"].value
    entries = {
        name: load_json(next(folder.glob(f"{DETECTOR}-?.json"))) for name, folder in folders.items()
    }
    report = {
        "member": options.member,
        "epochs": options.epochs,
        "steps": options.steps,
        "threshold": threshold,
        "learnt_from": {
            "verdicts": verdicts,
            **{name: entry["training"]["data"] for name, entry in entries.items()},
        },
        "judged_on": {
            "scans": len(results[BEFORE].scans),
            "lesions": int(results[BEFORE].figures["lesions"].value),
        },
        "cpu": describe_processor(),
        "versions": software(),
        "results": {name: select_figures(each, affordable) for name, each in results.items()},
    }
    write_json(options.result, report)
    print_rows(report["results"])


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("training", type=Path, help="simulated dataset to fine-tune on")
    parser.add_argument("test", type=Path, help="simulated dataset to evaluate on")
    parser.add_argument("work", type=Path, help="folder for outputs and trainings")
    parser.add_argument("--member", default="c", help="of the ensemble (default: c)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    return parser


def run_python(*words: object) -> None:
    """Run a command of the project as a user does."""
    print("$ python", *words, flush=True)
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def run_app(data: Path, output: Path, *words: object) -> None:
    """Run the app; scans that are complete already are left alone."""
    fast = ["--anatomy", "none", "--report", "none", "--validate", "off", "--quiet"]
    run_python("run.py", data, output, "participant", *words, *fast)


def fine_tune(options: argparse.Namespace, source: Sequence[object], folder: Path) -> list[object]:
    """Fine-tune the member and make a model card of it.

    Args:
        options: Of the command line.
        source: Options of ``bids-cmb train`` that name the truth, if not that of the dataset.
        folder: For the training; one that is complete is kept.

    Returns:
        The options that name the new detector to the app.
    """
    recipe = f"{DETECTOR}-{options.member}"
    entry, models = folder / f"{recipe}.json", folder / "models"
    start = Path("bids_cmb", "resources", "models", f"{recipe}.npz")
    length = ["--epochs", options.epochs, "--steps", options.steps]
    train = ["-m", "bids_cmb", "train", recipe, options.training.resolve(), folder, *source]
    if not entry.is_file():
        run_python(*train, "--fine-tune", start, *length)
    run_python("-m", "bids_cmb", "models", "create", "mine", entry, "--model-dir", models)
    return ["--model-dir", models, "--detector", "mine"]


# --- The ideal reader -----------------------------------------------------------------------------


def review_scans(output: Path, truth: Path, folder: Path) -> dict[str, int]:
    """Write a review of every scan as its page would save it, and count the verdicts."""
    true = {lesions.entities["sub"]: lesions for lesions in read_annotations(truth)}
    names, counts = list(read_columns("review")), Counter()
    for mask in sorted(output.glob("sub-*/**/*_label-CMB_*_mask.nii.gz")):
        subject = mask.name.split("_")[0]
        shared = {
            "participant_id": subject, "filename": mask.relative_to(output).as_posix(),
            "reader": READER, "date": DATE, "software_version": software()["bids_cmb"],
        }  # fmt: skip
        detections = read_table(locate_lesion_table(mask))
        rows = give_verdicts(detections, true[subject.removeprefix("sub-")])
        counts.update(row["verdict"] for row in rows)
        path = folder / f"{subject}_reader-{READER}_review.tsv"
        write_table(path, names, [dict.fromkeys(names) | shared | row for row in rows])
    return dict(counts)


def give_verdicts(detections: Sequence[dict], truth: LesionAnnotations) -> list[dict]:
    """Give the verdicts of a reader who knows the truth, as rows of a review."""
    positions = [[float(row[axis]) for axis in POSITION_COLUMNS] for row in detections]
    distances = cdist(np.reshape(positions, (-1, 3)), truth.positions)
    match = match_valdo(distances, find_ignored(truth))
    verdicts = np.select([match.ignored, match.partner >= 0], ["unsure", "accept"], "reject")
    judged = [
        {**{key: row[key] for key in ("index", *POSITION_COLUMNS)}, "verdict": str(verdict)}
        for row, verdict in zip(detections, verdicts, strict=True)
    ]
    missed = [
        {**dict(zip(POSITION_COLUMNS, position, strict=True)), "verdict": "missed"}
        for position in truth.positions[match.missed].round(2).tolist()
    ]
    return [*judged, *missed, {"verdict": "complete"}]


# --- Figures --------------------------------------------------------------------------------------


def select_figures(result: Evaluation, affordable: float) -> dict:
    """Select figures with their intervals; add the sensitivity at so many false alarms per scan."""
    figures, curve = convert_figures(result), result.curve
    return {
        **{name: figures[name] for name in FIGURES},
        "sensitivity_at_false_alarms_before": to_plain_value(curve.sensitivity_at(affordable)),
        "best_f1_threshold": to_plain_value(float(curve.threshold[curve.best()])),
    }


def print_rows(results: dict) -> None:
    """Print the rows of the table in docs/howto/train.md."""
    for name, figures in results.items():
        cells = [
            f"{figures[key]['value']:.2f} ({figures[key]['low']:.2f} to {figures[key]['high']:.2f})"
            for key in PRINTED
        ]
        before = figures["sensitivity_at_false_alarms_before"]
        print(f"| {name} | {' | '.join(cells)} | {before:.2f} |")


if __name__ == "__main__":
    main()
