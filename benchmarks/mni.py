"""Where the anatomy network sees the structures of the MNI template: the centroids of its card.

    python benchmarks/mni.py TEMPLATE.nii.gz [--model-dir DIR]

TEMPLATE is the T1w image of MNI152NLin2009cAsym, or one in the same space. Prints JSON: the centre
of mass of each structure in mm, the mean of what is seen in the template and in its mirror image
(turned back), so that neither side is favoured.
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
    """Look twice and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("template", type=Path, help="NIfTI in MNI space")
    parser.add_argument("--model-dir", type=Path, help="folder of cards and weights")
    asked = parser.parse_args()
    image, _ = load(asked.template)
    models = ModelOptions(asked.model_dir)
    here = centroids(image, models)
    turned = np.diag([-1.0, 1, 1, 1]) @ image.affine
    there = centroids(Volume(image.data, turned), models)
    twin = make_mirror_table()
    both = {
        code: (here[code] + there[int(twin[code])] * MIRROR) / 2
        for code in here
        if int(twin[code]) in there
    }
    print(json.dumps({str(code): at.round(1).tolist() for code, at in both.items()}))


def centroids(image: Volume, models: ModelOptions) -> dict[int, np.ndarray]:
    """Of the structures that the network sees."""
    return compute_centroids(predict_anatomy(image, models).structures)


if __name__ == "__main__":
    main()
