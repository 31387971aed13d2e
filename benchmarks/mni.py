"""Compute the centroids of the structures in MNI space, for the anatomy network's model card.

    python -m benchmarks.mni TEMPLATE.nii.gz [--model-dir DIR]

TEMPLATE is the T1w image of MNI152NLin2009cAsym, or one in the same space. Prints JSON: the centre
of mass of each structure in mm, the mean of what the network segments in the template and in its
mirror image (turned back), so that neither side is favoured.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.labels import make_mirror_table
from bids_cmb.anatomy.segmentation import compute_centroids, predict_anatomy
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.loading import ModelOptions

MIRROR = np.array([-1, 1, 1])


def main() -> None:
    """Segment twice and print."""
    options = make_parser().parse_args()
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
    parser.add_argument("template", type=Path, help="NIfTI in MNI space")
    parser.add_argument("--model-dir", type=Path, help="folder of model cards and weights")
    return parser


def segment_centroids(image: Volume, models: ModelOptions) -> dict[int, np.ndarray]:
    """Compute the centroids of the structures that the network segments, mm, by code."""
    return compute_centroids(predict_anatomy(image, models).structures)


if __name__ == "__main__":
    main()
