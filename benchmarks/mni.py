"""Compute the centroids of the structures in MNI space, and the mean head of the MNI fit.

    python -m benchmarks.mni TEMPLATE.nii.gz [--model-dir DIR]
    python -m benchmarks.mni --heads HEAD.nii.gz ... --write structures.npz

TEMPLATE is the T1w image of MNI152NLin2009cAsym, or one in the same space. Prints JSON: the centre
of mass of each structure in mm, the mean of what the network segments in the template and in its
mirror image (turned back), so that neither side is favoured. They stand on the anatomy network's
model card. With ``--heads`` it writes the structures of a mean head instead, from label maps of
whole heads, left and right as one: ``resources/atlases/structures.npz`` of the package.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.labels import make_mirror_table
from bids_cmb.anatomy.mni_fit import compute_centroids, fit_to_mni
from bids_cmb.anatomy.segmentation import predict_anatomy
from bids_cmb.anatomy.template import build_template
from bids_cmb.imaging.nifti import load, load_labels
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import load_card

MIRROR = np.array([-1, 1, 1])
STEP = 2  # of the voxels of 1 mm of a label map, those that are read


def main() -> None:
    """Segment a template twice and print, or average heads and write."""
    options = make_parser().parse_args()
    if options.heads:
        write_mean_head(options.heads, options.write, options.model_dir)
        return
    image, _ = load(options.template)
    models = ModelOptions(options.model_dir)
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


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("template", type=Path, nargs="?", help="NIfTI in MNI space")
    parser.add_argument("--model-dir", type=Path, help="folder of model cards and weights")
    parser.add_argument("--heads", type=Path, nargs="+", help="label maps of whole heads")
    parser.add_argument("--write", type=Path, help="file for the mean head")
    return parser


def segment_centroids(image: Volume, models: ModelOptions) -> dict[int, np.ndarray]:
    """Compute the centroids of the structures that the network segments, mm, by code."""
    return compute_centroids(predict_anatomy(image, models).structures)


def write_mean_head(paths: list[Path], result: Path, models: Path | None) -> None:
    """Write the structures of a mean head, each label map brought to MNI space by its centroids."""
    card = load_card("anatomy", models)
    heads = [load_head(path, card["classes"]) for path in paths]
    fitted = [(head, fit_to_mni(head, card["mni_centroids"]).to_mni) for head in heads]
    np.savez_compressed(result, **build_template(fitted, card["mni_centroids"]))


def load_head(path: Path, classes: list[dict]) -> Volume:
    """Load a label map in the codes of the network's classes, every second voxel."""
    stored = load_labels(path)
    table = np.zeros(2**16, np.uint16)
    twin = make_mirror_table()
    for entry in classes:
        for code in entry["codes"]:
            table[code] = entry["left"]
            if twin[code] < code:
                table[code] = entry["right"]
    codes = table[np.rint(stored.data[::STEP, ::STEP, ::STEP]).astype(np.uint16)]
    return Volume(codes, stored.affine @ np.diag([STEP, STEP, STEP, 1.0]))


if __name__ == "__main__":
    main()
