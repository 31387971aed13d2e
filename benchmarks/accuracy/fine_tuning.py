"""What fine-tuning on a few scans of a protocol that no network saw is worth on other scans of it.

    python benchmarks/fine_tuning.py RESULT.json OWN OTHERS WORK --epochs 3 --steps 40

OWN and OTHERS are simulated datasets of one protocol and law with different heads. A member of
the ensemble is fine-tuned twice by the commands of docs/notes/training.md: on the truth of OWN, and
on what an ideal reader says of the app's findings there (accept, reject or unsure by the truth, and
what is missed by a point). Then the app reads OTHERS with the member as it came and as it left each
training, and all three are counted by the VALDO rule. What WORK holds already is gone on with.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detection import cpu, plain
from scipy.spatial.distance import cdist

from bids_cmb.bids.paths import locate_lesion_table
from bids_cmb.bids.tables import read_columns, read_table, write_table
from bids_cmb.evaluation.annotations import POSITION_COLUMNS, LesionAnnotations, read_annotations
from bids_cmb.evaluation.evaluate import compute_evaluation
from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.evaluation.outputs import Evaluation
from bids_cmb.files import write_json
from bids_cmb.metrics.matching import match_valdo
from bids_cmb.networks.model_cards import load_card
from bids_cmb.provenance import software

ROOT = Path(__file__).parent.parent
DETECTOR = "ensemble"
BEFORE, TRUTH, REVIEWS = "as it came", "fine-tuned on the truth", "fine-tuned on reviews"
LOWEST = 0.1  # of the runs that are counted: as far down as the FROC reaches
READER, DATE = "Ideal", "2026-01-01T00:00:00Z"
FIGURES = (
    *("sensitivity", "fp_per_scan", "precision", "f1", "best_f1", "best_f1_fp_per_scan"),
    *(f"sensitivity_at_{rate}_fp" for rate in (2, 4, 8)),
)
SHOWN = (
    "sensitivity",
    "fp_per_scan",
    "f1",
    "sensitivity_at_2_fp",
    "sensitivity_at_4_fp",
    "best_f1",
)


def main() -> None:
    """Read, judge like a reader, train twice, read again, count, print and write."""
    asked = arguments()
    work, own, threshold = asked.work, asked.own, load_card(DETECTOR)["threshold"]
    bundled = ["--detector", DETECTOR, "--members", asked.member]
    app(own, work / "own", *bundled)
    said = review(work / "own", own / "derivatives" / "truth", work / "reviews")
    ways = {
        TRUTH: [],
        REVIEWS: ["--truth", work / "own", "--reviews", work / "reviews"],
    }
    detectors = {BEFORE: bundled}
    for name, how in ways.items():
        folder = trained(work, name)
        detectors[name] = tuned(asked, how, folder)
    results = {}
    for name, detector in detectors.items():
        found = work / f"found-{len(results)}"
        app(asked.others, found, *detector, "--threshold", LOWEST)
        truth = asked.others / "derivatives" / "truth"
        results[name] = compute_evaluation(found, truth, EvaluationOptions(threshold=threshold))
    spared = results[BEFORE].figures["fp_per_scan"].value
    report = {
        "member": asked.member,
        "epochs": asked.epochs,
        "steps": asked.steps,
        "threshold": threshold,
        "learnt_from": learnt_from(work, said),
        "judged_on": {
            "scans": len(results[BEFORE].scans),
            "lesions": int(results[BEFORE].figures["lesions"].value),
        },
        "cpu": cpu(),
        "versions": software(),
        "results": {name: figures(one, spared) for name, one in results.items()},
    }
    write_json(asked.result, report)
    show(report["results"])


def trained(work: Path, name: str) -> Path:
    """Where a training goes, apart from the reviews that it may learn from."""
    return work / f"on-{name.rsplit(maxsplit=1)[-1]}"


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("result", type=Path, help="where to")
    parser.add_argument("own", type=Path, help="simulated dataset to learn from")
    parser.add_argument("others", type=Path, help="simulated dataset to be judged on")
    parser.add_argument("work", type=Path, help="folder for runs and trainings")
    parser.add_argument("--member", default="c", help="of the ensemble (default: c)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    return parser.parse_args()


def call(*words: object) -> None:
    """Run a command of the project as a user does."""
    print("$ python", *words, flush=True)
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def app(data: Path, out: Path, *words: object) -> None:
    """Read the scans; those that stand already are left alone."""
    fast = ["--anatomy", "none", "--report", "none", "--validate", "off", "--quiet"]
    call("run.py", data.resolve(), out.resolve(), "participant", *words, *fast)


def tuned(asked: argparse.Namespace, how: Sequence[object], folder: Path) -> list[object]:
    """Fine-tune the member and put it on a card; the words that name it to the app."""
    recipe = f"{DETECTOR}-{asked.member}"
    folder = folder.resolve()
    start = Path("bids_cmb", "resources", "models", f"{recipe}.npz")
    length = ["--epochs", asked.epochs, "--steps", asked.steps]
    how = [one.resolve() if isinstance(one, Path) else one for one in how]
    train = ["-m", "bids_cmb", "train", recipe, asked.own.resolve(), folder, *how]
    if not (folder / f"{recipe}.json").is_file():
        call(*train, "--fine-tune", start, *length)
    models = folder / "models"
    entry = folder / f"{recipe}.json"
    call("-m", "bids_cmb", "models", "create", "mine", entry, "--model-dir", models)
    return ["--model-dir", models, "--detector", "mine"]


# --- The ideal reader -----------------------------------------------------------------------------


def review(found: Path, truth: Path, folder: Path) -> dict[str, int]:
    """Write a review of every scan as its page would save it; how often each verdict was given."""
    true = {one.entities["sub"]: one for one in read_annotations(truth)}
    said: dict[str, int] = {}
    for mask in sorted(found.glob("sub-*/**/*_label-CMB_*_mask.nii.gz")):
        subject = mask.name.split("_")[0]
        rows = read_table(locate_lesion_table(mask))
        about = {
            "participant_id": subject, "filename": mask.relative_to(found).as_posix(),
            "reader": READER, "date": DATE, "software_version": software()["bids_cmb"],
        }  # fmt: skip
        lines = list(verdicts(rows, true[subject.removeprefix("sub-")]))
        for line in lines:
            said[line["verdict"]] = said.get(line["verdict"], 0) + 1
        names = list(read_columns("review"))
        place = folder / f"{subject}_reader-{READER}_review.tsv"
        write_table(place, names, [dict.fromkeys(names) | about | line for line in lines])
    return said


def verdicts(rows: Sequence[dict], true: LesionAnnotations) -> list[dict]:
    """What somebody says of a scan who knows the truth."""
    places = np.array([[float(row[axis]) for axis in POSITION_COLUMNS] for row in rows]).reshape(
        -1, 3
    )
    unsure = (true.lesions["uncertain"] | ~true.lesions["included"]).to_numpy(
        bool
    )  # unseen ones too
    match = match_valdo(cdist(places, true.positions), unsure)
    words = np.select([match.ignored, match.partner >= 0], ["unsure", "accept"], "reject")
    judged = [
        {**{key: row[key] for key in ("index", *POSITION_COLUMNS)}, "verdict": str(word)}
        for row, word in zip(rows, words, strict=True)
    ]
    missed = [
        {**dict(zip(POSITION_COLUMNS, place, strict=True)), "verdict": "missed"}
        for place in true.positions[match.missed].round(2).tolist()
    ]
    return [*judged, *missed, {"verdict": "complete"}]


# --- What came of it ------------------------------------------------------------------------------


def learnt_from(work: Path, said: dict[str, int]) -> dict:
    """What the two trainings were told, and the verdicts."""
    entries = {name: next(trained(work, name).glob(f"{DETECTOR}-?.json"))
               for name in (TRUTH, REVIEWS)}  # fmt: skip
    told = {name: json.loads(path.read_text()) for name, path in entries.items()}
    return {"verdicts": said} | {name: one["training"]["data"] for name, one in told.items()}


def figures(result: Evaluation, spared: float) -> dict:
    """Figures with their intervals, and the sensitivity at as many false alarms as before."""
    chosen = {
        name: {key: plain(value) for key, value in vars(result.figures[name]).items()}
        for name in FIGURES
    }
    return chosen | {
        "sensitivity_at_false_alarms_before": plain(result.curve.sensitivity_at(spared)),
        "best_f1_threshold": plain(float(result.curve.threshold[result.curve.best()])),
    }


def show(results: dict) -> None:
    """The rows of the table in docs/notes/training.md."""
    for name, of in results.items():
        cells = [
            f"{of[key]['value']:.2f} ({of[key]['low']:.2f} to {of[key]['high']:.2f})"
            for key in SHOWN
        ]
        at = of["sensitivity_at_false_alarms_before"]
        print(f"| {name} | {' | '.join(cells)} | {at:.2f} |")


if __name__ == "__main__":
    main()
