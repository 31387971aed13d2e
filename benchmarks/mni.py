"""Compute the structures' centroids in MNI space, and from them the mean head of the MNI fit.

    python -m benchmarks.mni centroids TEMPLATE.nii.gz [--model-dir DIR]
    python -m benchmarks.mni heads HEAD.nii.gz ...

``centroids``: TEMPLATE is the T1w image of MNI152NLin2009cAsym, or one in the same space. Prints
JSON: the centre of mass of each structure in mm, the mean of what the network segments in the
template and in its mirror image (turned back), so that neither side is favoured. They stand on the
anatomy network's model card.

``heads``: label maps of whole heads, each brought to MNI space by the affine that brings its
centroids nearest to those of the card. Writes ``resources/atlases/structures.npz`` of the package:
what the structures of these heads fill, and their mean form and its spread. The one that comes with
the package is of heads 2 to 13 of SynthSeg's label maps (head 1 is cut at a side; the others are
kept aside).
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.measurements import ROOT
from bids_cmb.anatomy.labels import make_mirror_table
from bids_cmb.anatomy.mni_template import (
    CELLS,
    MIRROR,
    STORED_STEPS,
    build_template,
)
from bids_cmb.anatomy.segmentation import predict_anatomy
from bids_cmb.imaging.nifti import load, load_labels
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import load_card

MIN_STRUCTURE_ML = 0.05  # of a structure whose centroid is believed
SPACING_MM = 2.0  # no finer are label maps read
NO_STRUCTURE = (0, 24)  # outside, and fluid around the brain


def main() -> None:
    """Segment a template and print, or average heads and write."""
    options = make_parser().parse_args()
    if options.command == "centroids":
        print_centroids(options.template, ModelOptions(options.model_dir))
    else:
        write_mean_head(options.heads)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    centroids = commands.add_parser("centroids", help="print the centroids of a template")
    centroids.add_argument("template", type=Path, help="NIfTI in MNI space")
    centroids.add_argument("--model-dir", type=Path, help="folder of model cards and weights")
    heads = commands.add_parser("heads", help="write the mean head")
    heads.add_argument("heads", type=Path, nargs="+", help="label maps of whole heads")
    return parser


def print_centroids(template: Path, models: ModelOptions) -> None:
    """Print the centroids of the structures of a template as JSON."""
    image, _ = load(template)
    here = segment_centroids(image, models)
    mirrored = np.diag([-1.0, 1, 1, 1]) @ image.affine
    there = segment_centroids(Volume(image.data, mirrored), models)
    twin = make_mirror_table()
    both = {
        code: (here[code] + there[int(twin[code])] * MIRROR) / 2
        for code in here
        if int(twin[code]) in there
    }
    print(json.dumps({str(code): place.round(1).tolist() for code, place in both.items()}))


def segment_centroids(image: Volume, models: ModelOptions) -> dict[int, np.ndarray]:
    """Compute the centroids of the structures that the network segments, mm, by code."""
    return compute_centroids(predict_anatomy(image, models).structures)


def compute_centroids(structures: Volume) -> dict[int, np.ndarray]:
    """Compute the centroid of every structure that is large enough, world mm, by code."""
    places = np.nonzero(~np.isin(structures.data, NO_STRUCTURE))
    codes = structures.data[places].astype(int)
    counts = np.bincount(codes)
    sums = np.stack([np.bincount(codes, axis) for axis in places], axis=1)
    enough = max(MIN_STRUCTURE_ML * 1000 / structures.voxel_volume, 1)
    return {
        int(code): structures.world(sums[code] / counts[code])
        for code in np.flatnonzero(counts >= enough)
    }


def write_mean_head(paths: Sequence[Path]) -> None:
    """Write the template of the MNI fit from label maps of whole heads."""
    card = load_card("anatomy")
    heads = [load_head(path, card["classes"]) for path in paths]
    template = build_template(
        [(head, fit_centroids(head, card["mni_centroids"])) for head in heads]
    )
    left = np.rint(STORED_STEPS * template.shares[:-1, : CELLS[0] // 2]).astype(np.uint8)
    np.savez_compressed(
        ROOT / "bids_cmb" / "resources" / "atlases" / "structures.npz",
        left=left, form=template.form, form_sd=template.form_sd,
    )  # fmt: skip


def load_head(path: Path, classes: Sequence[dict]) -> Volume:
    """Load a label map in the codes of the network's classes, no finer than `SPACING_MM`."""
    stored = load_labels(path)
    steps = np.maximum(1, np.floor(SPACING_MM / stored.spacing + 0.01)).astype(int)
    codes = np.rint(stored.data[:: steps[0], :: steps[1], :: steps[2]]).astype(np.uint16)
    table, twin = np.zeros(2**16, np.uint16), make_mirror_table()
    for entry in classes:
        for code in entry["codes"]:
            table[code] = entry["right"] if twin[code] < code else entry["left"]
    return Volume(table[codes], stored.affine @ np.diag([*steps, 1.0]))


def fit_centroids(structures: Volume, centroids: Mapping) -> np.ndarray:
    """Fit the affine (4, 4) that brings centroids nearest to those of a template, mm by code."""
    here = compute_centroids(structures)
    shared = sorted(code for code in here if str(code) in centroids)
    source = np.array([[*here[code], 1.0] for code in shared])
    target = np.array([[*centroids[str(code)], 1.0] for code in shared])
    return np.linalg.lstsq(source, target, rcond=None)[0].T


if __name__ == "__main__":
    main()
