"""Where structures lie in MNI space: centroids of the anatomy network's card, and a mean head.

    python benchmarks/mni.py TEMPLATE.nii.gz [--model-dir DIR]
    python benchmarks/mni.py --heads HEAD.nii.gz ... --write structures.npz

TEMPLATE is the T1w image of MNI152NLin2009cAsym, or one in the same space. Prints JSON: the centre
of mass of each structure in mm, the mean of what is seen in the template and in its mirror image
(turned back), so that neither side is favoured. With ``--heads`` it writes instead the
structures of a mean head, from label maps of whole heads, left and right as one: the package's ``resources/atlases/structures.npz``.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.labels import make_mirror_table
from bids_cmb.anatomy.mni_fit import compute_centroids, fit_to_mni
from bids_cmb.anatomy.segmentation import predict_anatomy
from bids_cmb.anatomy.template import build_template
from bids_cmb.imaging.volume import Volume, load, load_labels
from bids_cmb.networks.inference import ModelOptions
from bids_cmb.networks.model_cards import load_card

MIRROR = np.array([-1, 1, 1])
STEP = 2  # voxels of 1 mm


def main() -> None:
    """Look twice and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("template", type=Path, nargs="?", help="NIfTI in MNI space")
    parser.add_argument("--model-dir", type=Path, help="folder of cards and weights")
    parser.add_argument("--heads", type=Path, nargs="*", default=[], help="label maps")
    parser.add_argument("--write", type=Path, help="the mean head")
    asked = parser.parse_args()
    if asked.heads:
        known = load_card("anatomy", asked.model_dir)
        targets = known["mni_centroids"]
        heads = [load_head(path, known["classes"]) for path in asked.heads]
        fitted = [(head, fit_to_mni(head, targets).to_mni) for head in heads]
        np.savez_compressed(asked.write, **build_template(fitted, targets))
        return
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


def load_head(path: Path, classes: list[dict]) -> Volume:
    """A label map in the classes' codes, every second voxel."""
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


def centroids(image: Volume, models: ModelOptions) -> dict[int, np.ndarray]:
    """Of the structures that the network sees."""
    return compute_centroids(predict_anatomy(image, models).structures)


if __name__ == "__main__":
    main()
