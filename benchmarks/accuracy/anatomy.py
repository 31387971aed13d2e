"""How well the anatomy network sees heads that it never learnt from, at any contrast.

    python benchmarks/anatomy.py ANATOMY RESULT.json [--scans DATA ...] [--places N]
        [--model-dir DIR] [--brain-only]

Heads of ANATOMY that the simulated benchmark names are painted with random contrasts and looked at
in slices of 1, 3, 4 and 5 mm; DATA are simulated T2* and SWI datasets with their truth, thin (below
2.5 mm) and thick slices apart. Dice of each structure (left and right apart) and of the brain mask
(for DATA also that of `segment_brain`, which needs no network), the share of brain voxels on their
right side, and that of true lesions whose territory, region, structure and side are those that the
same rules give on the true structures, and how far off their MNI position is; the same of N random
places of each scan's cerebral cortex and white matter: there are more of them than of lesions.

Of the brain mask of DATA, as the app has it (``brain``), of the likeliest class alone and of
`segment_brain`: Dice, the shares of cortex outside it, of the whole and of its topmost 15 mm, and
ml of it in skull, scalp, muscle, nose and orbits, more than 3 mm from the brain. ``--brain-only``
measures nothing else.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.brain_extraction import segment_brain
from bids_cmb.anatomy.labels import SULCUS_HALF_WIDTH_MM, build_class_table
from bids_cmb.anatomy.refinement import refine_structures
from bids_cmb.anatomy.region_map import CORTEX, MarsRegion, build_region_map, locate_region
from bids_cmb.anatomy.scan_anatomy import segment_with_network
from bids_cmb.anatomy.segmentation import (
    WHITE_MATTER,
    Anatomy,
    locate_structures,
    predict_anatomy,
    resample_brain,
)
from bids_cmb.anatomy.user_segmentation import load_segmentation
from bids_cmb.bids.tables import read_table
from bids_cmb.imaging.volume import Volume, load, load_labels, resample
from bids_cmb.networks.inference import ModelOptions, set_threads
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.data import ScanFiles, find_training_scans
from bids_cmb.training.synthetic_contrast import degrade, paint_labels, sample_subject

SLICES_MM = (1, 3, 4, 5)
THICK_MM = 2.5
SEED = 5
TOP_MM = 15.0  # below the highest cortex
LEAK_MM = 3.0  # beyond the true brain
FIRST_OUTER_CODE, FLUID = 500, 24  # of skull, scalp, muscle …; around the brain
MNI_APART = "MNI, mm apart"
DEFINITION = Path(__file__).with_name("simulated.json")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("anatomy", type=Path, help="folder of label maps")
    parser.add_argument("result", type=Path, help="where to")
    parser.add_argument("--scans", type=Path, nargs="*", default=[], help="simulated datasets")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    parser.add_argument("--model-dir", type=Path, help="folder of cards and weights")
    parser.add_argument("--places", type=int, default=0, help="of each scan (default: 0)")
    parser.add_argument("--brain-only", action="store_true", help="measure masks of DATA alone")
    parser.add_argument("--contrasts", type=int, default=2, help="for each head (default: 2)")
    asked = parser.parse_args()
    set_threads(asked.threads)
    models = ModelOptions(folder=asked.model_dir)
    if asked.brain_only:
        rows = [
            masks(paths, load(paths.image)[0], models)
            for data in asked.scans
            for paths in find_training_scans(data)
        ]
        masks_of = {"brain masks": averaged(rows)}
        asked.result.write_text(json.dumps(masks_of, indent=2) + "\n", encoding="utf-8")
        return
    names = json.loads(DEFINITION.read_text(encoding="utf-8"))["anatomy"]
    found = {
        f"{thickness} mm": [
            measured(asked.anatomy / name, thickness, seed, models)
            for name in names
            for seed in range(asked.contrasts)
        ]
        for thickness in SLICES_MM
    }
    for paths in [one for data in asked.scans for one in find_training_scans(data)]:
        image, _ = load(paths.image)
        slices = "thin slices" if max(image.spacing) < THICK_MM else "thick slices"
        figures, of_lesions, of_places = scanned(paths, image, models, asked.places)
        found.setdefault(f"scans of {slices}", []).append(figures)
        for several in ("", f" of {slices}"):
            found.setdefault(f"lesions{several}", []).extend(of_lesions)
            found.setdefault(f"places{several}", []).extend(of_places)
    means = {several: averaged(rows) for several, rows in found.items() if rows}
    asked.result.write_text(json.dumps(means, indent=2) + "\n", encoding="utf-8")


def measured(path: Path, thickness: float, seed: int, models: ModelOptions) -> dict[str, float]:
    """The figures of one head in one contrast."""
    rng = np.random.default_rng([seed, 7])
    codes = sample_subject(path, rng).codes
    seen = thick(degrade(paint_labels(codes, rng), rng, thick=False), thickness)
    found, truth = predict_anatomy(seen, models), Volume(codes, np.eye(4))
    figures = structures(found, truth, models)
    figures["brain"] = dice(whole(codes), resample_brain(found, truth).data)
    return figures


def scanned(
    paths: ScanFiles, image: Volume, models: ModelOptions, count: int
) -> tuple[dict[str, float], list[dict[str, float]], list[dict[str, float]]]:
    """The figures of one simulated scan, on its own grid, of its lesions and of so many places."""
    found = predict_anatomy(image, models)
    looks = {"": refine_structures(image, found, models)[0], " without the finer network": found}
    stored = load_labels(paths.structures)
    truth = Volume(np.rint(stored.data).astype(np.uint16), stored.affine)
    figures = {
        f"{name}{how}": figure
        for how, anatomy in looks.items()
        for name, figure in structures(anatomy, truth, models).items()
    }
    figures |= masks(paths, image, models)
    rows = read_table(paths.lesions.with_name(paths.lesions.name.replace(".nii.gz", ".tsv")))
    centres = [[float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")] for row in rows]
    rng = np.random.default_rng(SEED)
    tissue = np.argwhere(np.isin(truth.data, [*CORTEX, *WHITE_MATTER]))
    chosen = tissue[rng.integers(len(tissue), size=count)] + rng.uniform(-0.5, 0.5, (count, 3))
    every = [*centres, *truth.world(chosen)]
    judged = located(looks, paths.structures, every, models) if every else []
    return figures, judged[: len(centres)], judged[len(centres) :]


def masks(paths: ScanFiles, image: Volume, models: ModelOptions) -> dict[str, float]:
    """The brain masks of a simulated scan: the app's, likeliest class, `segment_brain`."""
    codes = np.rint(load_labels(paths.structures).data)
    truth = load_labels(paths.brain).data > 0
    cortex = np.isin(codes, CORTEX)
    height = image.world(np.argwhere(cortex))[:, 2]
    top = np.zeros_like(cortex)
    top[tuple(np.argwhere(cortex)[height > height.max() - TOP_MM].T)] = True
    far = ndimage.distance_transform_edt(~truth, image.spacing) > LEAK_MM
    leaks = far & ((codes >= FIRST_OUTER_CODE) | (codes == 0))
    head = segment_with_network(image, models).head
    likeliest = Volume(close_sulci(head), head.brain.affine)
    figures = {}
    for how, mask in (
        ("", resample_brain(head, image)),
        (" by the likeliest class", resample_brain(replace(head, brain=likeliest), image)),
        (" by find_brain", segment_brain(image)),
    ):
        inside = mask.data
        figures |= {
            f"brain{how}": dice(truth, inside),
            f"brain{how}, cortex outside": float((cortex & ~inside).sum() / cortex.sum()),
            f"brain{how}, topmost cortex outside": float((top & ~inside).sum() / top.sum()),
            f"brain{how}, ml leaked": float((leaks & inside).sum() * image.voxel_volume / 1000),
        }
    return figures


def close_sulci(head: Anatomy) -> np.ndarray:
    """Close sulci and holes of what is brain by the likeliest class, on 2 mm voxels, bool."""
    codes = head.structures.data
    inside = ((codes > 0) & (codes != FLUID)).view(np.uint8)
    return ndimage.binary_fill_holes(
        ndimage.minimum_filter(ndimage.maximum_filter(inside, 3), 3) > 0
    )


def located(
    looks: dict[str, Anatomy], structures_path: Path, centres: list, models: ModelOptions
) -> list[dict[str, float]]:
    """Of each place whether it lies where the rules put it if the structures are known; MNI, mm.

    By each of several looks at the head; that of the app has no name. The truth is the same rules
    on the scan's true structures, so it is the networks that are judged. What does not apply to a
    place is left out.
    """
    said = load_card("anatomy", models.folder)
    classes = said["classes"]
    truth, _ = load_segmentation(structures_path, classes, said["mni_centroids"])
    found, (regions, names) = looks[""], seen(truth, centres, classes)
    views = {how: seen(anatomy, centres, classes) for how, anatomy in looks.items()}
    rows = []
    for at, (centre, there, name) in enumerate(zip(centres, regions, names, strict=True)):
        row = {}
        for how, (whereabouts, structure) in views.items():
            row |= {
                f"territory{how}": there.territory == whereabouts[at].territory,
                f"region{how}": there.name == whereabouts[at].name,
                f"structure{how}": name == structure[at],
            }
        if abs(truth.midline[0] @ np.array(centre) + truth.midline[1]) > 3:
            row["side beyond 3 mm"] = there.left == views[""][0][at].left
        if truth.to_mni is not None and found.to_mni is not None:
            apart = ((truth.to_mni - found.to_mni) @ [*centre, 1])[:3]
            row[MNI_APART] = float(np.linalg.norm(apart))
        rows.append(row)
    return rows


def seen(
    anatomy: Anatomy, centres: list, classes: list
) -> tuple[list[MarsRegion], list[str | None]]:
    """The region and the structure of each place, in a head."""
    regions = build_region_map(anatomy)
    return (
        [locate_region(regions, centre, anatomy.midline) for centre in centres],
        [one.structure for one in locate_structures(anatomy, centres, classes)],
    )


def structures(found: Anatomy, truth: Volume, models: ModelOptions) -> dict[str, float]:
    """Dice of each structure, and the share of brain on its right side, on the truth's grid."""
    codes = truth.data
    known = load_card("anatomy", models.folder)["classes"]
    classes, sides = build_class_table(known).classes, build_class_table(known).sides
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
    wide = int(2 * SULCUS_HALF_WIDTH_MM + 1)
    return ndimage.minimum_filter(ndimage.maximum_filter(inside, wide), wide) > 0


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Twice the common part over the sum."""
    return float(2 * (one & other).sum() / max(one.sum() + other.sum(), 1))


def averaged(rows: list[dict]) -> dict[str, float]:
    """How many there are, and the mean of each figure over those that have it; of mm the median."""
    keys = sorted({key for row in rows for key in row})
    means = {
        key: (np.median if key == MNI_APART else np.mean)([row[key] for row in rows if key in row])
        for key in keys
    }
    return {"of": len(rows)} | {key: round(float(mean), 3) for key, mean in means.items()}


if __name__ == "__main__":
    main()
