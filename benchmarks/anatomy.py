"""How well the anatomy network sees heads that it never learnt from, at any contrast.

    python benchmarks/anatomy.py ANATOMY RESULT.json [--scans DATA ...] [--models DIR]

Heads of ANATOMY that the simulated benchmark names are painted with random contrasts and looked at
in slices of 1, 3, 4 and 5 mm; DATA are simulated T2* and SWI datasets with their truth, thin (below
2.5 mm) and thick slices apart. Dice of each structure (left and right apart) and of the brain mask
(for DATA also that of `find_brain`, which needs no network), the share of brain voxels on their
right side, and that of true lesions in their right territory and structure.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy import FLUID, Anatomy, brain_of, find_anatomy, places
from bids_cmb.brain import find_brain
from bids_cmb.cards import card
from bids_cmb.cases import Paths, find_cases
from bids_cmb.contrasts import atlas, degrade, paint, painted_subject
from bids_cmb.derivatives import read_table
from bids_cmb.networks import Models, set_threads
from bids_cmb.regions import locate, region_map
from bids_cmb.scanner import CLEFT_MM
from bids_cmb.volume import Volume, load, load_labels, resample

SLICES_MM = (1, 3, 4, 5)
THICK_MM = 2.5
DEFINITION = Path(__file__).with_name("simulated.json")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("anatomy", type=Path, help="folder of label maps")
    parser.add_argument("result", type=Path, help="where to")
    parser.add_argument("--scans", type=Path, nargs="*", default=[], help="simulated datasets")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    parser.add_argument("--models", type=Path, help="folder of cards and weights")
    parser.add_argument("--contrasts", type=int, default=2, help="for each head (default: 2)")
    asked = parser.parse_args()
    set_threads(asked.threads)
    models = Models(folder=asked.models)
    names = json.loads(DEFINITION.read_text(encoding="utf-8"))["anatomy"]
    found = {
        f"{thickness} mm": [
            measured(asked.anatomy / name, thickness, seed, models)
            for name in names
            for seed in range(asked.contrasts)
        ]
        for thickness in SLICES_MM
    }
    for paths in [one for data in asked.scans for one in find_cases(data)]:
        image, _ = load(paths.image)
        thin = max(image.spacing) < THICK_MM
        found.setdefault("scans of thin slices" if thin else "scans of thick slices", []).append(
            scanned(paths, image, models)
        )
    means = {thickness: averaged(rows) for thickness, rows in found.items()}
    asked.result.write_text(json.dumps(means, indent=2) + "\n", encoding="utf-8")


def measured(path: Path, thickness: float, seed: int, models: Models) -> dict[str, float]:
    """The figures of one head in one contrast."""
    rng = np.random.default_rng([seed, 7])
    codes = painted_subject(path, rng).codes
    seen = thick(degrade(paint(codes, rng), rng, thick=False), thickness)
    found, truth = find_anatomy(seen, models), Volume(codes, np.eye(4))
    figures = structures(found, truth, models)
    figures["brain"] = dice(whole(codes), brain_of(found, truth).data)
    return figures


def scanned(paths: Paths, image: Volume, models: Models) -> dict[str, float]:
    """The figures of one simulated scan, on its own grid."""
    found = find_anatomy(image, models)
    stored = load_labels(paths.structures)
    truth = Volume(np.rint(stored.data).astype(np.uint16), stored.affine)
    brain = load_labels(paths.brain).data > 0
    figures = structures(found, truth, models)
    figures["brain"] = dice(brain, brain_of(found, image).data)
    figures["brain by find_brain"] = dice(brain, find_brain(image).data)
    rows = read_table(paths.lesions.with_name(paths.lesions.name.replace(".nii.gz", ".tsv")))
    if rows:
        regions = region_map(found)
        centres = [[float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")] for row in rows]
        said = [locate(regions, centre, found.midline).territory for centre in centres]
        right = [one == row["territory"] for one, row in zip(said, rows, strict=True)]
        figures["territory"] = float(np.mean(right))
        figures["structure of a lesion"] = _structure(found, truth, centres, models)
    return figures


def _structure(found: Anatomy, truth: Volume, centres: list, models: Models) -> float:
    """The share of lesions in the structure of the truth, of those whose centre lies in tissue."""
    classes = card("anatomy", models.folder)["classes"]
    names = {code: one["name"] for one in classes for code in one["codes"]}
    said = places(found, centres, classes)
    there = [codes_at(truth, centre) for centre in centres]
    right = [
        one.structure == names.get(code) for one, code in zip(said, there, strict=True) if code
    ]
    return float(np.mean(right)) if right else float("nan")


def codes_at(labels: Volume, centre: list) -> int:
    """The code of the voxel that a place lies in, 0 outside and in fluid."""
    at = np.clip(np.rint(labels.index(np.array(centre))).astype(int), 0, np.array(labels.shape) - 1)
    code = int(labels.data[tuple(at)])
    return 0 if code in FLUID else code


def structures(found: Anatomy, truth: Volume, models: Models) -> dict[str, float]:
    """Dice of each structure, and the share of brain on its right side, on the truth's grid."""
    codes = truth.data
    known = card("anatomy", models.folder)["classes"]
    classes, sides = atlas(known).classes, atlas(known).sides
    seen = resample(found.structures, truth.affine, truth.shape, order=0)
    there = np.rint(seen.data).astype(np.uint16)
    keys = [(classes[data].astype(int), sides[data]) for data in (codes, there)]
    figures = {}
    for index, one in enumerate(known):
        for side, word in ((1.0, "left"), (0.0, "right"), (0.5, "")):
            a, b = ((cls == index) & (turn == side) for cls, turn in keys)
            if a.sum() > 100 and index:
                figures[f"{word} {one['name']}".strip()] = dice(a, b)
    sided = (keys[0][1] != 0.5) & (keys[1][1] != 0.5)
    figures["side"] = float((keys[0][1] == keys[1][1])[sided].mean())
    return figures


def thick(image: np.ndarray, thickness: int) -> Volume:
    """The mean over so many slices, as a scan of that slice thickness."""
    count = image.shape[2] // thickness
    data = image[..., : count * thickness].reshape(*image.shape[:2], count, thickness).mean(-1)
    affine = np.diag([1.0, 1, thickness, 1])
    affine[2, 3] = (thickness - 1) / 2
    return Volume(data, affine)


def whole(codes: np.ndarray) -> np.ndarray:
    """Brain, ventricles and narrow sulci."""
    inside = ((codes > 0) & (codes < 500) & (codes != 24)).view(np.uint8)
    wide = int(2 * CLEFT_MM + 1)
    return ndimage.minimum_filter(ndimage.maximum_filter(inside, wide), wide) > 0


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Twice the common part over the sum."""
    return float(2 * (one & other).sum() / max(one.sum() + other.sum(), 1))


def averaged(rows: list[dict]) -> dict[str, float]:
    """Mean of each figure over the heads that have it."""
    keys = sorted({key for row in rows for key in row})
    return {key: round(float(np.mean([row[key] for row in rows if key in row])), 3) for key in keys}


if __name__ == "__main__":
    main()
