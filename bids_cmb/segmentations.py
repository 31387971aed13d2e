"""The user's own segmentation in place of the anatomy network: FreeSurfer's codes, SynthSeg's too.

It must lie in the scan's own space. One with parcels of the cortex (aparc+aseg, SynthSeg --parc)
tells lobes apart without an atlas.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy import FLUID, Anatomy, read_structures
from bids_cmb.contrasts import atlas
from bids_cmb.mars import label_of, table
from bids_cmb.regions import CORTEX, WHITE
from bids_cmb.volume import load_labels

SPACING_MM = 1.5  # no finer than this are regions looked at
FEWEST_CODES = 8  # structures of a brain; a mask has one, and lesions have none of these
PARCELS = (
    1000  # left parcels of the cortex are 1000 and more, right ones 2000; white ones 3000, 4000
)


def read_segmentation(
    path: Path, classes: Sequence[dict], centroids: Mapping
) -> tuple[Anatomy, np.ndarray | None]:
    """What lies where in a head, by the user's word.

    Args:
        path: A label map in FreeSurfer's codes.
        classes: Of the anatomy network, each with its ``codes``.
        centroids: Code of a structure → its centroid in MNI space, mm.

    Returns:
        The anatomy, and the lobe of every voxel of cortex and white matter on its grid (labels of
        ``data/regions.json``) if the cortex has parcels.

    Raises:
        ValueError: If it is no such label map; the file is named.
    """
    stored = load_labels(path)
    steps = np.maximum(1, np.floor(SPACING_MM / stored.spacing + 0.01)).astype(int)
    codes = np.rint(stored.data[:: steps[0], :: steps[1], :: steps[2]]).astype(np.int64)
    affine = stored.affine @ np.diag([*steps, 1.0])
    parcels = np.where((codes >= PARCELS) & (codes < 3 * PARCELS), codes % PARCELS, 0)
    plain = _plain(codes)
    known = {code for one in classes for code in one["codes"] if code not in FLUID}
    found = known & set(np.unique(plain).tolist())
    if len(found) < FEWEST_CODES:
        raise ValueError(
            f"{path}: a segmentation must have structures of the brain in FreeSurfer's codes; "
            f"found {len(found)} of them."
        )
    lookup = atlas(classes)
    chances = 255 * np.eye(len(classes) + 1, dtype=np.uint8)[lookup.classes[plain]]
    chances[..., -1] = np.rint(255 * lookup.sides[plain])
    anatomy = read_structures(chances, affine, classes, centroids)
    return anatomy, _lobes(anatomy, parcels) if parcels.any() else None


def _plain(codes: np.ndarray) -> np.ndarray:
    """Parcels of cortex and of white matter as cortex and white matter, left and right."""
    kinds = {1: CORTEX[0], 2: CORTEX[1], 3: WHITE[0], 4: WHITE[1]}
    plain = np.where((codes < 0) | (codes >= 5 * PARCELS), 0, codes)
    for thousands, code in kinds.items():
        plain = np.where(plain // PARCELS == thousands, code, plain)
    return plain


def _lobes(anatomy: Anatomy, parcels: np.ndarray) -> np.ndarray:
    """Every voxel of cortex and white matter with the lobe of the nearest parcel."""
    lobe = np.zeros(PARCELS, np.uint8)
    for name, members in table()["parcels"].items():
        lobe[members] = label_of(name)
    lobe[table()["parcels"]["corpus callosum"]] = 0
    seeds = lobe[parcels]
    nearest = ndimage.distance_transform_edt(
        seeds == 0, anatomy.structures.spacing, return_distances=False, return_indices=True
    )
    tissue = np.isin(anatomy.structures.data, [*CORTEX, *WHITE])
    return np.where(tissue, seeds[tuple(nearest)], 0).astype(np.uint8)
