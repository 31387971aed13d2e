"""Tell what the false alarms of a two-stage detector are, on simulated scans.

    python -m benchmarks.accuracy.false_alarms NAME DATA [DATA ...] --results V deep

Every candidate stands in ``benchmarks/results/two-stage-*.json`` (`two_stage.py`), what is dark and
no microbleed in ``derivatives/truth`` of the same datasets (``seg-mimics``). A candidate above the
threshold that matches no microbleed by the VALDO rule is a false alarm; its cause is the nearest
mimic within 3 mm, as `bids-cmb evaluate` has it, else whether it lies in the true brain. Counted at
the card's threshold and at that of the best F1 of all these scans. Writes
``benchmarks/results/false-alarms-NAME.json``.
"""

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.accuracy.two_stage import SHIPPED, make_stages, parse_candidates
from benchmarks.measurements import RESULTS
from bids_cmb.detection.two_stage import drop_doubles
from bids_cmb.evaluation.annotations import Mimics, read_annotations, read_mimics
from bids_cmb.evaluation.errors_by_class import MIMIC_DISTANCE_MM
from bids_cmb.files import read_json, write_json
from bids_cmb.imaging.nifti import load_labels
from bids_cmb.imaging.volume import Volume
from bids_cmb.metrics.bootstrap import compute_figures
from bids_cmb.metrics.matching import match_valdo
from bids_cmb.networks.model_cards import load_card
from bids_cmb.provenance import software
from bids_cmb.training.operating_points import ScanCandidates
from bids_cmb.training.scan_files import ScanFiles, find_training_scans

TISSUE, OUTSIDE = "nothing that was drawn, in the brain", "nothing that was drawn, beyond the brain"


def main() -> None:
    """Count, print and write."""
    options = make_parser().parse_args()
    card = load_card("two-stage")
    score = make_stages(card, with_opinion=True)[SHIPPED]
    judged = [
        (files, parse_candidates(content))
        for name, data in zip(options.results, options.data, strict=True)
        for files, content in pair_scans(data, RESULTS / f"two-stage-{name}.json")
    ]
    scores = [score(scan) for _, scan in judged]
    matches = [scan.match(given) for (_, scan), given in zip(judged, scores, strict=True)]
    best = compute_figures(matches, match_valdo, threshold=card["threshold"], seed=1, draws=2)
    thresholds = {
        "of the card": card["threshold"],
        "of the best F1": float(best["best_f1_threshold"].value),
    }
    causes = {label: Counter() for label in thresholds}
    for (files, scan), given in zip(judged, scores, strict=True):
        [truth] = read_annotations(files.lesions)
        mimics, brain = read_mimics(truth), load_labels(files.brain)
        for label, threshold in thresholds.items():
            alarms = find_false_alarms(scan, given, threshold)
            causes[label].update(find_causes(mimics, brain, alarms))
    report = {
        "name": options.name,
        "scans": len(judged),
        "software": software(),
        "thresholds": {
            label: {
                "threshold": threshold,
                "false alarms": causes[label].total(),
                "causes": dict(causes[label].most_common()),
            }
            for label, threshold in thresholds.items()
        },
    }
    print(report["thresholds"])
    write_json(RESULTS / f"false-alarms-{options.name}.json", report)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="of the result file")
    parser.add_argument("data", type=Path, nargs="+", help="simulated datasets with their truth")
    parser.add_argument("--results", nargs="+", required=True, help="two-stage-NAME of each")
    return parser


def pair_scans(data: Path, results: Path) -> list[tuple[ScanFiles, Mapping]]:
    """Pair the scans of a dataset with what was found in them."""
    contents = {content["name"]: content for content in read_json(results)["judged"]}
    return [(files, contents[files.name]) for files in find_training_scans(data)]


def find_false_alarms(scan: ScanCandidates, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Find the positions, (N, 3), of candidates above a threshold that match no lesion."""
    kept = drop_doubles(scores, scan.doubles) & (scores >= threshold)
    matched = scan.match(scores).match(match_valdo, threshold)
    return scan.positions[kept][matched.partner < 0]


def find_causes(mimics: Mimics, brain: Volume, positions: np.ndarray) -> list[str]:
    """Find the cause of each false alarm of a scan, world mm (N, 3)."""
    kinds, distances = mimics.find_nearest(positions)
    voxels = np.rint(brain.index(positions)).astype(int)
    elsewhere = np.where(brain.data[tuple(voxels.T)] > 0, TISSUE, OUTSIDE)
    return np.where(distances <= MIMIC_DISTANCE_MM, kinds, elsewhere).tolist()


if __name__ == "__main__":
    main()
