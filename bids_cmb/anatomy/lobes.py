"""Lobes by rules of our own: planes in MNI space, and the insula by its distance from the putamen.

Where TemplateFlow's atlas is present, that comes first (`anatomy.atlases`). The planes are set by
hand along the central sulcus, the Sylvian fissure, and the line from the parieto-occipital sulcus
to the preoccipital notch, in mm of MNI152NLin2009cAsym, with centres of gyri that an atlas
publishes (Tzourio-Mazoyer et al. 2002) in view; no atlas itself went into them. Within about a
centimetre of a border the lobe is a guess: gyri differ between heads, and the affine by some mm.
"""

import numpy as np

from bids_cmb.anatomy.mars import find_label
from bids_cmb.anatomy.region_map import CORTEX, PUTAMEN
from bids_cmb.anatomy.segmentation import WHITE_MATTER, Anatomy
from bids_cmb.imaging.dilation import dilate
from bids_cmb.imaging.volume import Volume

# Of the central sulcus: it runs backwards from the fissure (y -5, z 18) to the vertex (-34, 72).
CENTRAL_Y, CENTRAL_PER_X, CENTRAL_PER_Z, CENTRAL_LEAST_Z = 2.5, 0.03, -0.51, 10.0
# Of the Sylvian fissure: it rises backwards, from z -6 at y 10 to 13 at -20 and its end at 20.
SYLVIAN_Z, SYLVIAN_PER_Y, SYLVIAN_MOST_Z = 0.4, -0.63, 20.0
TEMPORAL_MOST_Y = 22.0  # of the temporal pole
TEMPORAL_LEAST_X = 22.0  # of it, in front of y 0; more medial is the base of the frontal lobe
MEDIAL_X, MEDIAL_MOST_Z = 18.0, -3.0  # nearer to the midline only what lies so low is temporal
# Of the occipital lobe: farther back laterally (from x 15 to 30), and higher up.
OCCIPITAL_Y, OCCIPITAL_LATERAL_MM, OCCIPITAL_PER_Z = -52.0, -14.0, -0.4
OCCIPITAL_FROM_X, OCCIPITAL_TO_X = 15.0, 30.0
INSULA_MM = 11.0  # from the putamen: beyond claustrum and extreme capsule, within the opercula
INSULA_LEAST_X, INSULA_Z = 25.0, (-14.0, 20.0)


def name_lobes(mni: np.ndarray) -> np.ndarray:
    """Name the lobe of places in the cerebrum, leaving out the insula.

    Args:
        mni: mm in MNI152NLin2009cAsym, (N, 3).

    Returns:
        Labels of ``resources/atlases/mars.json``, uint8 (N,).
    """
    x, y, z = np.abs(mni[:, 0]), mni[:, 1], mni[:, 2]
    lateral = np.clip((x - OCCIPITAL_FROM_X) / (OCCIPITAL_TO_X - OCCIPITAL_FROM_X), 0, 1)
    occipital = y < (
        OCCIPITAL_Y + OCCIPITAL_LATERAL_MM * lateral + OCCIPITAL_PER_Z * np.maximum(z, 0)
    )
    fissure = np.minimum(SYLVIAN_Z + SYLVIAN_PER_Y * y, SYLVIAN_MOST_Z)
    fissure = np.where(x < MEDIAL_X, np.minimum(fissure, MEDIAL_MOST_Z), fissure)
    pole = (y < TEMPORAL_MOST_Y) & ((x > TEMPORAL_LEAST_X) | (y < 0))
    sulcus = CENTRAL_Y + CENTRAL_PER_X * x + CENTRAL_PER_Z * np.maximum(z, CENTRAL_LEAST_Z)
    names = ("occipital", "temporal", "frontal")
    chosen = [occipital, pole & (z < fissure), y > sulcus]
    labels = np.select(chosen, [find_label(name) for name in names], find_label("parietal"))
    return labels.astype(np.uint8)


def draw_lobes(anatomy: Anatomy) -> np.ndarray | None:
    """Draw the lobe of every voxel of cerebral cortex and white matter, on the anatomy's grid.

    Args:
        anatomy: Of the scan.

    Returns:
        Labels of ``resources/atlases/mars.json``, uint8, 0 elsewhere; None without an affine to MNI
        space.
    """
    if anatomy.to_mni is None:
        return None
    codes = anatomy.structures.data
    voxels = np.argwhere(np.isin(codes, [*CORTEX, *WHITE_MATTER]))
    mni = Volume(codes, anatomy.to_mni @ anatomy.structures.affine).world(voxels)
    labels = name_lobes(mni)
    low, high = INSULA_Z
    insula = (np.abs(mni[:, 0]) > INSULA_LEAST_X) & (mni[:, 2] > low) & (mni[:, 2] < high)
    insula &= _is_near_putamen(anatomy)[tuple(voxels.T)]
    labels[insula] = find_label("insula")
    lobes = np.zeros(codes.shape, np.uint8)
    lobes[tuple(voxels.T)] = labels
    return lobes


def _is_near_putamen(anatomy: Anatomy) -> np.ndarray:
    """Tell which voxels lie within `INSULA_MM` of a putamen, bool (X, Y, Z)."""
    putamen = np.isin(anatomy.structures.data, PUTAMEN)
    return dilate(putamen, INSULA_MM, anatomy.structures.spacing)
