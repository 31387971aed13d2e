"""The user's own segmentation in place of the anatomy network: FreeSurfer's codes, SynthSeg's too.

One that lies on a T1w image is carried to the scan, by the user's transform or by registering that
image, and believed only where its brain is that of the scan. One with parcels of the cortex
(aparc+aseg, SynthSeg --parc) tells lobes apart without an atlas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.labels import LEFT, RIGHT, Atlas, atlas
from bids_cmb.anatomy.mars import label_of, table
from bids_cmb.anatomy.region_map import CORTEX, WHITE
from bids_cmb.anatomy.segmentation import FLUID, SIDES, Anatomy, brain_of, read_structures, sided
from bids_cmb.imaging.registration import load_transform, measure_rotation_deg, register
from bids_cmb.imaging.volume import Volume, load_labels

SPACING_MM = 1.5  # no finer than this are regions looked at
FEWEST_CODES = 8  # structures of a brain; a mask has one, and lesions have none of these
PARCELS = (
    1000  # left parcels of the cortex are 1000 and more, right ones 2000; white ones 3000, 4000
)
LEAST_DICE = 0.7  # of the segmentation's brain and the scan's, where a transform is believed
MOST_DEGREES = 30.0  # between a T1w image and the scan by their headers


@dataclass(frozen=True, eq=False)
class Carried:
    """A segmentation that was brought from a T1w image to the scan.

    Attributes:
        anatomy: In the scan's world; the grid is the segmentation's own, moved.
        lobes: As `read_segmentation` gives them.
        to_scan: World mm of the T1w image to world mm of the scan, (4, 4).
        figures: How well, for the sidecar.
    """

    anatomy: Anatomy
    lobes: np.ndarray | None
    to_scan: np.ndarray
    figures: dict[str, object]


def read_segmentation(
    path: Path, classes: Sequence[dict], centroids: Mapping
) -> tuple[Anatomy, np.ndarray | None]:
    """Read what lies where in a head by the user's own label map, which is used as it is.

    Args:
        path: A label map in FreeSurfer's codes.
        classes: Of the anatomy network, each with its ``codes``.
        centroids: Code of a structure → its centroid in MNI space, mm.

    Returns:
        The anatomy, without ``chances`` since no network gave any, and the lobe of every voxel of
        cortex and white matter on its grid (labels of ``resources/atlases/mars.json``) if the
        cortex has parcels.

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
    structures = Volume(_as_coded(plain, lookup, anatomy.midline, affine, classes), affine)
    anatomy = replace(anatomy, structures=structures, chances=None)
    return anatomy, _lobes(anatomy, parcels) if parcels.any() else None


def carry(
    anatomy: Anatomy,
    lobes: np.ndarray | None,
    scan: Volume,
    brain: Volume,
    *,
    t1w: Path | None,
    transform: Path | None = None,
) -> Carried:
    """Bring a segmentation from the space of a T1w image to the scan.

    Args:
        anatomy: Of the segmentation, as it lies.
        lobes: On its grid.
        scan: The image.
        brain: Of the scan, bool, on its grid.
        t1w: The image that the segmentation lies on; is registered if there is no transform.
        transform: From it to the scan, in ITK's format.

    Raises:
        ValueError: If there is neither, a file cannot be used, or the brains do not agree then.
    """
    figures: dict[str, object] = {}
    if transform:
        to_scan = load_transform(transform)
        figures["Transform"] = transform.name
    elif t1w:
        image = load_labels(t1w)
        found = register(image, brain_of(anatomy, image), scan, brain)
        to_scan = found.to_scan
        figures |= {
            "T1w": t1w.name,
            "MutualInformationBefore": round(found.before, 4),
            "MutualInformationAfter": round(found.after, 4),
        }
    else:
        raise ValueError("it lies on a T1w image, and none of the participant was found")
    there = moved(anatomy, to_scan)
    both = brain_of(there, scan).data
    dice = 2 * float((both & brain.data).sum()) / max(int(both.sum() + brain.data.sum()), 1)
    turn, middle = measure_rotation_deg(to_scan), np.argwhere(anatomy.brain.data).mean(axis=0)
    shift = np.linalg.norm(there.brain.world(middle) - anatomy.brain.world(middle))
    if dice < LEAST_DICE or (transform is None and turn > MOST_DEGREES):
        raise ValueError(
            f"brought to the scan its brain must have a Dice of {LEAST_DICE:g} with the scan's, "
            f"turned by at most {MOST_DEGREES:g} degrees; found {dice:.2f} and {turn:.0f}"
        )
    figures |= {
        "ShiftMillimetres": round(float(shift), 2),
        "TurnDegrees": round(turn, 2),
        "BrainDice": round(dice, 3),
    }
    return Carried(there, lobes, to_scan, figures)


def moved(anatomy: Anatomy, to_scan: np.ndarray) -> Anatomy:
    """The same head elsewhere.

    Args:
        anatomy: As it lies.
        to_scan: World mm to world mm, (4, 4).
    """
    back = np.linalg.inv(to_scan)
    normal, offset = anatomy.midline
    length = np.linalg.norm(normal @ back[:3, :3])
    turned = normal @ back[:3, :3] / length
    return Anatomy(
        Volume(anatomy.structures.data, to_scan @ anatomy.structures.affine),
        Volume(anatomy.brain.data, to_scan @ anatomy.brain.affine),
        (turned, float((normal @ back[:3, 3] + offset) / length)),
        None if anatomy.to_mni is None else anatomy.to_mni @ back,
        anatomy.fit_mm,
    )


def _as_coded(
    plain: np.ndarray,
    lookup: Atlas,
    midline: tuple[np.ndarray, float],
    affine: np.ndarray,
    classes: Sequence[dict],
) -> np.ndarray:
    """The user's codes as those of the classes, uint16; the plane parts what has no side only."""
    kinds, sides = lookup.classes[plain], lookup.sides[plain]
    left, right = (np.array([one[side] for one in classes], np.uint16) for side in SIDES)
    by_plane = sided(kinds, affine, midline, classes)
    return np.select([sides == LEFT, sides == RIGHT], [left[kinds], right[kinds]], by_plane)


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
