"""Measure how well the anatomy network segments heads that it never learnt from, in any contrast.

    python -m benchmarks.accuracy.anatomy ANATOMY RESULT.json [--scans DATA ...] [--places N]
        [--model-dir DIR] [--brain-only] [--contrasts N]

Heads of ANATOMY that the simulated benchmark names are painted with random contrasts and seen in
slices of 1, 3, 4 and 5 mm; DATA are simulated T2* and SWI datasets with their truth, thin (below
2.5 mm) and thick slices apart. Measured are Dice of each structure (left and right apart) and of
the brain mask (for DATA also that of `segment_brain`, which needs no network); the share of brain
voxels on their right side; the share of true lesions whose territory, region, structure and side
are those that the same rules give on the true structures, and how far off their MNI position is;
and the same of N random places of each scan's cerebral cortex and white matter, since there are
more of them than of lesions.

Of the brain mask of DATA, as the app has it (``brain``), of the likeliest class alone and of
`segment_brain`: Dice, the shares of cortex outside it, of the whole and of its topmost 15 mm, and
ml of it in skull, scalp, muscle, nose and orbits, more than 3 mm from the brain. ``--brain-only``
measures nothing else.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.measurements import ROOT, show_progress
from bids_cmb.anatomy.brain_extraction import segment_brain
from bids_cmb.anatomy.labels import SULCUS_HALF_WIDTH_MM, build_class_table
from bids_cmb.anatomy.mni_template import load_template
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
from bids_cmb.bids.tables import POSITION_COLUMNS, read_table
from bids_cmb.files import load_json, write_json
from bids_cmb.imaging.nifti import load, load_labels
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.backend import set_threads
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.scan_files import ScanFiles, find_training_scans
from bids_cmb.training.synthetic_contrast import degrade, paint_labels, sample_subject

SLICES_MM = (1, 3, 4, 5)
THICK_MM = 2.5
SEED = 5
TOP_MM = 15.0  # below the highest cortex
LEAK_MM = 3.0  # beyond the true brain
MIDLINE_MM = 3.0  # nearer to the midline the side is not judged
MIN_VOXELS = 100  # of a structure whose Dice is computed
FIRST_OUTER_CODE, FLUID = 500, 24  # of skull, scalp, muscle …; around the brain
MNI_APART = "MNI, mm apart"
DEFINITION = ROOT / "benchmarks" / "simulated.json"
Figures = dict[str, float]


def main() -> None:
    """Measure and write."""
    options = make_parser().parse_args()
    set_threads(options.threads)
    models = ModelOptions(folder=options.model_dir)
    files = [paths for data in options.scans for paths in find_training_scans(data)]
    if options.brain_only:
        rows = [
            measure_masks(paths, load(paths.image)[0], models) for paths in show_progress(files)
        ]
        write_json(options.result, {"brain masks": average_figures(rows)})
        return
    names = load_json(DEFINITION)["anatomy"]
    groups: dict[str, list[Figures]] = {
        f"{thickness} mm": [
            measure_painted_head(options.anatomy / name, thickness, seed, models)
            for name in names
            for seed in range(options.contrasts)
        ]
        for thickness in SLICES_MM
    }
    for paths in show_progress(files):
        image, _ = load(paths.image)
        slices = "thin slices" if max(image.spacing) < THICK_MM else "thick slices"
        figures, of_lesions, of_places = measure_scan(paths, image, models, options.places)
        groups.setdefault(f"scans of {slices}", []).append(figures)
        for suffix in ("", f" of {slices}"):
            groups.setdefault(f"lesions{suffix}", []).extend(of_lesions)
            groups.setdefault(f"places{suffix}", []).extend(of_places)
    means = {group: average_figures(rows) for group, rows in groups.items() if rows}
    write_json(options.result, means)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("anatomy", type=Path, help="folder of label maps")
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("--scans", type=Path, nargs="*", default=[], help="simulated datasets")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: 1)")
    parser.add_argument("--model-dir", type=Path, help="folder of model cards and weights")
    parser.add_argument("--places", type=int, default=0, help="random ones per scan (default: 0)")
    parser.add_argument("--brain-only", action="store_true", help="measure masks of DATA alone")
    parser.add_argument("--contrasts", type=int, default=2, help="for each head (default: 2)")
    return parser


def measure_painted_head(path: Path, thickness: int, seed: int, models: ModelOptions) -> Figures:
    """Measure the anatomy network on one head in one random contrast."""
    rng = np.random.default_rng([seed, 7])
    codes = sample_subject(path, rng).codes
    painted = degrade(paint_labels(codes, rng), rng, thick=False)
    anatomy = predict_anatomy(thicken_slices(painted, thickness), models)
    truth = Volume(codes, np.eye(4))
    figures = measure_structures(anatomy, truth, models)
    brain = close_sulci(find_brain_codes(codes), int(2 * SULCUS_HALF_WIDTH_MM + 1))
    figures["brain"] = compute_dice(brain, resample_brain(anatomy, truth).data)
    return figures


def measure_scan(
    paths: ScanFiles, image: Volume, models: ModelOptions, n_places: int
) -> tuple[Figures, list[Figures], list[Figures]]:
    """Measure one simulated scan on its own grid: figures of the scan, its lesions and places."""
    coarse = predict_anatomy(image, models)
    anatomies = {
        "": refine_structures(image, coarse, models)[0],
        " without the finer network": coarse,
    }
    truth = load_codes(paths.structures)
    figures = {
        f"{name}{suffix}": figure
        for suffix, anatomy in anatomies.items()
        for name, figure in measure_structures(anatomy, truth, models).items()
    }
    figures |= measure_masks(paths, image, models)
    rows = read_table(paths.lesions.with_name(paths.lesions.name.replace(".nii.gz", ".tsv")))
    centres = [[float(row[axis]) for axis in POSITION_COLUMNS] for row in rows]
    places = [*centres, *draw_places(truth, n_places)]
    judged = list(judge_places(anatomies, paths.structures, places, models)) if places else []
    return figures, judged[: len(centres)], judged[len(centres) :]


def load_codes(path: Path) -> Volume:
    """Load the true structures of a scan, uint16."""
    labels = load_labels(path)
    return Volume(np.rint(labels.data).astype(np.uint16), labels.affine)


def draw_places(truth: Volume, count: int) -> np.ndarray:
    """Draw places in cerebral cortex and white matter, world mm, (N, 3)."""
    rng = np.random.default_rng(SEED)
    tissue = np.argwhere(np.isin(truth.data, [*CORTEX, *WHITE_MATTER]))
    chosen = tissue[rng.integers(len(tissue), size=count)]
    return truth.world(chosen + rng.uniform(-0.5, 0.5, (count, 3)))


def measure_masks(paths: ScanFiles, image: Volume, models: ModelOptions) -> Figures:
    """Measure three brain masks of a scan: the app's, the likeliest class's, `segment_brain`'s."""
    codes, truth = load_codes(paths.structures).data, load_labels(paths.brain).data > 0
    cortex = np.isin(codes, CORTEX)
    height = image.world(np.argwhere(cortex))[:, 2]
    top = np.zeros_like(cortex)
    top[tuple(np.argwhere(cortex)[height > height.max() - TOP_MM].T)] = True
    far = ndimage.distance_transform_edt(~truth, image.spacing) > LEAK_MM
    leaks = far & ((codes >= FIRST_OUTER_CODE) | (codes == 0))
    head = segment_with_network(image, models).head
    closed = close_sulci(find_brain_codes(head.structures.data), 3)
    likeliest = Volume(ndimage.binary_fill_holes(closed), head.brain.affine)
    figures = {}
    for suffix, mask in (
        ("", resample_brain(head, image)),
        (" by the likeliest class", resample_brain(replace(head, brain=likeliest), image)),
        (" by find_brain", segment_brain(image)),
    ):
        inside = mask.data
        figures |= {
            f"brain{suffix}": compute_dice(truth, inside),
            f"brain{suffix}, cortex outside": float((cortex & ~inside).sum() / cortex.sum()),
            f"brain{suffix}, topmost cortex outside": float((top & ~inside).sum() / top.sum()),
            f"brain{suffix}, ml leaked": float((leaks & inside).sum() * image.voxel_volume / 1000),
        }
    return figures


def find_brain_codes(codes: np.ndarray) -> np.ndarray:
    """Find brain and ventricles in a label map, bool."""
    return (codes > 0) & (codes < FIRST_OUTER_CODE) & (codes != FLUID)


def close_sulci(mask: np.ndarray, width: int) -> np.ndarray:
    """Close gaps of a mask that are narrower than so many voxels, bool."""
    wide = ndimage.maximum_filter(mask.view(np.uint8), width)
    return ndimage.minimum_filter(wide, width) > 0


def judge_places(
    anatomies: dict[str, Anatomy], structures_path: Path, places: list, models: ModelOptions
) -> Iterator[Figures]:
    """Judge where several anatomies put each place, and how far off its MNI position is, mm.

    The truth is the same rules on the scan's true structures, so it is the networks that are
    judged. What does not apply to a place is left out.

    Args:
        anatomies: By the suffix of their figures; that of the app has none.
        structures_path: Of the true structures.
        places: World mm, (N, 3).
        models: Where the model cards are.
    """
    card = load_card("anatomy", models.folder)
    classes = card["classes"]
    truth, _ = load_segmentation(structures_path, classes, load_template())
    true_regions, true_structures = locate_places(truth, places, classes)
    located = {suffix: locate_places(each, places, classes) for suffix, each in anatomies.items()}
    for number, place in enumerate(places):
        true_region, row = true_regions[number], {}
        for suffix, (regions, structures) in located.items():
            region = regions[number]
            row |= {
                f"territory{suffix}": true_region.territory == region.territory,
                f"region{suffix}": true_region.name == region.name,
                f"structure{suffix}": true_structures[number] == structures[number],
            }
        if abs(truth.midline[0] @ np.array(place) + truth.midline[1]) > MIDLINE_MM:
            row["side beyond 3 mm"] = true_region.left == located[""][0][number].left
        if truth.to_mni is not None and anatomies[""].to_mni is not None:
            apart = ((truth.to_mni - anatomies[""].to_mni) @ [*place, 1])[:3]
            row[MNI_APART] = float(np.linalg.norm(apart))
        yield row


def locate_places(
    anatomy: Anatomy, places: list, classes: list
) -> tuple[list[MarsRegion], list[str | None]]:
    """Locate the region and the structure of each place in a head."""
    regions = build_region_map(anatomy)
    return (
        [locate_region(regions, place, anatomy.midline) for place in places],
        [location.structure for location in locate_structures(anatomy, places, classes)],
    )


def measure_structures(anatomy: Anatomy, truth: Volume, models: ModelOptions) -> Figures:
    """Measure Dice of each structure and the share of brain on its right side, on truth's grid."""
    known = load_card("anatomy", models.folder)["classes"]
    table = build_class_table(known)
    predicted = resample(anatomy.structures, truth.affine, truth.shape, order=0)
    codes = (truth.data, np.rint(predicted.data).astype(np.uint16))
    classes = [table.classes[data].astype(int) for data in codes]
    sides = [table.sides[data] for data in codes]
    figures = {}
    for index, about in enumerate(known):
        for side, word in ((1.0, "left"), (0.0, "right"), (0.5, "")):
            true, other = (
                (of_class == index) & (of_side == side)
                for of_class, of_side in zip(classes, sides, strict=True)
            )
            if index and true.sum() > MIN_VOXELS:
                figures[f"{word} {about['name']}".strip()] = compute_dice(true, other)
    sided = (sides[0] != 0.5) & (sides[1] != 0.5)
    figures["side"] = float((sides[0] == sides[1])[sided].mean())
    return figures


def thicken_slices(image: np.ndarray, thickness: int) -> Volume:
    """Average voxels of 1 mm over so many slices, as a scan of that slice thickness."""
    count = image.shape[2] // thickness
    data = image[..., : count * thickness].reshape(*image.shape[:2], count, thickness).mean(-1)
    affine = np.diag([1.0, 1, thickness, 1])
    affine[2, 3] = (thickness - 1) / 2
    return Volume(data, affine)


def compute_dice(mask: np.ndarray, other: np.ndarray) -> float:
    """Compute the Dice coefficient of two masks."""
    return float(2 * (mask & other).sum() / max(mask.sum() + other.sum(), 1))


def average_figures(rows: Sequence[Figures]) -> Figures:
    """Average each figure over the rows that have it (mm: the median), and count the rows."""
    keys = sorted({key for row in rows for key in row})
    means = {
        key: (np.median if key == MNI_APART else np.mean)([row[key] for row in rows if key in row])
        for key in keys
    }
    return {"of": len(rows)} | {key: round(float(mean), 3) for key, mean in means.items()}


if __name__ == "__main__":
    main()
