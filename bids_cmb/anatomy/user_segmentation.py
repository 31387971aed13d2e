"""The user's own segmentation in place of the anatomy network: FreeSurfer's codes, SynthSeg's too.

Parcels of the cortex are those of Desikan-Killiany, DKT and Destrieux (a2009s), or white matter
below them. One that lies on a T1w image is brought to the scan, by the user's transform or by
registering that image, and used only where its brain agrees with that of the scan. One with
parcels of the cortex (aparc+aseg, SynthSeg --parc) has lobes without an atlas.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.labels import LEFT, RIGHT, ClassTable, build_class_table
from bids_cmb.anatomy.mars import find_label, load_mars_table
from bids_cmb.anatomy.mni_template import MniTemplate
from bids_cmb.anatomy.region_map import CORTEX
from bids_cmb.anatomy.segmentation import (
    FLUID_CODES,
    SIDE_NAMES,
    WHITE_MATTER,
    Anatomy,
    assign_sides,
    decode_anatomy,
    resample_brain,
)
from bids_cmb.imaging.nifti import load_labels
from bids_cmb.imaging.registration import load_transform, measure_rotation_deg, register
from bids_cmb.imaging.volume import Volume

MIN_SPACING_MM = 1.5  # no finer than this are regions looked at
MIN_STRUCTURES = 8  # structures of a brain; a mask has one, and lesions have none of these
PARCEL_OFFSET = (
    1000  # left parcels of the cortex are 1000 and more, right ones 2000; white ones 3000, 4000
)
A2009S_OFFSET = 100  # parcels of a2009s are 11100 and more, 12100 …, white ones 13100, 14100
# Codes that stand for those of a whole: wmparc's unsegmented white matter, FreeSurfer's older names
# of the thalamus, the substantia nigra, the callosum, and the parts of the brainstem.
MERGED_CODES = {
    5001: 2,
    5002: 41,
    9: 10,
    48: 49,
    27: 28,
    59: 60,
    192: 251,
    **dict.fromkeys((170, 171, 172, 173, 174, 175, 178), 16),
}
# Codes that are known, and no part of a brain mask: fluid, vessels, chiasm, skull, head.
OUTER_CODES = (0, 24, 30, 62, 72, 80, 85, 130, 165, *range(256, 262), *range(500, 600))
MIN_DICE = 0.7  # of the segmentation's brain and the scan's, where a transform is believed
MAX_ROTATION_DEG = 30.0  # between a T1w image and the scan by their headers


@dataclass(frozen=True, eq=False)
class RegisteredSegmentation:
    """A segmentation that was registered from a T1w image to the scan.

    Attributes:
        anatomy: In the scan's world; the grid is the segmentation's own, moved.
        lobes: As `load_segmentation` gives them.
        to_scan: World mm of the T1w image to world mm of the scan, (4, 4).
        figures: Measures of the fit, for the sidecar.
    """

    anatomy: Anatomy
    lobes: np.ndarray | None
    to_scan: np.ndarray
    figures: dict[str, object]


def load_segmentation(
    path: Path, classes: Sequence[dict], template: MniTemplate | None = None
) -> tuple[Anatomy, np.ndarray | None]:
    """Load the anatomy from the user's own label map, which is used as it is.

    Args:
        path: A label map in FreeSurfer's codes.
        classes: Of the anatomy network, each with its ``codes``.
        template: Of MNI space; without, there is no affine to it.

    Returns:
        The anatomy, without ``probabilities`` since no network gave any, and the lobe of every
        voxel of cortex and white matter on its grid (labels of ``resources/atlases/mars.json``) if
        the cortex has parcels.

    Raises:
        ValueError: If it is no such label map; the file is named.
    """
    return interpret_segmentation(load_labels(path), path, classes, template)


def interpret_segmentation(
    stored: Volume, path: Path, classes: Sequence[dict], template: MniTemplate | None = None
) -> tuple[Anatomy, np.ndarray | None]:
    """Interpret a label map that is loaded already; as `load_segmentation` of its ``path``."""
    steps = np.maximum(1, np.floor(MIN_SPACING_MM / stored.spacing + 0.01)).astype(int)
    codes = np.rint(stored.data[:: steps[0], :: steps[1], :: steps[2]]).astype(np.int64)
    affine = stored.affine @ np.diag([*steps, 1.0])
    family, parcels = _split_parcels(codes)
    plain = _merge_parcels(codes, family)
    parcels = np.where((family == 1) | (family == 2), parcels, 0)
    known = {code for entry in classes for code in entry["codes"] if code not in FLUID_CODES}
    present = known & set(np.unique(plain).tolist())
    if len(present) < MIN_STRUCTURES:
        raise ValueError(
            f"{path}: a segmentation must have structures of the brain in FreeSurfer's codes; "
            f"found {len(present)} of them."
        )
    lookup = build_class_table(classes)
    probabilities = 255 * np.eye(len(classes) + 1, dtype=np.uint8)[lookup.classes[plain]]
    probabilities[..., -1] = np.rint(255 * lookup.sides[plain])
    anatomy = decode_anatomy(probabilities, affine, classes, template)
    structures = Volume(_encode(plain, lookup, anatomy.midline, affine, classes), affine)
    anatomy = replace(anatomy, structures=structures, probabilities=None)
    return anatomy, _grow_lobes(anatomy, parcels) if parcels.any() else None


def describe_unknown_codes(stored: Volume, path: Path, classes: Sequence[dict]) -> str | None:
    """Describe in a sentence which codes of a label map are unknown; None if all are known.

    Args:
        stored: A label map, as for `load_segmentation`.
        path: Its file, named in the sentence.
        classes: Of the anatomy network, each with its ``codes``.
    """
    codes, counts = np.unique(np.rint(stored.data).astype(np.int64), return_counts=True)
    of_classes = (code for entry in classes for code in entry["codes"])
    known = [*OUTER_CODES, *MERGED_CODES, *of_classes]
    unknown = ~np.isin(codes, known) & (_split_parcels(codes)[0] == 0)
    if not unknown.any():
        return None
    listed = ", ".join(map(str, codes[unknown][:5].tolist())) + (" …" if unknown.sum() > 5 else "")
    share = 100 * counts[unknown].sum() / max(counts[codes != 0].sum(), 1)
    return (
        f"{path}: {unknown.sum()} of its {len(codes)} codes are not FreeSurfer's that are known "
        f"here ({listed}; {share:.1f} % of the labelled voxels); they count as outside the brain."
    )


def register_segmentation(
    anatomy: Anatomy,
    lobes: np.ndarray | None,
    scan: Volume,
    brain: Volume,
    *,
    t1w: Path | None,
    transform: Path | None = None,
) -> RegisteredSegmentation:
    """Register a segmentation from the space of a T1w image to the scan.

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
        registration = register(image, resample_brain(anatomy, image), scan, brain)
        to_scan = registration.to_scan
        figures |= {
            "T1w": t1w.name,
            "MutualInformationBefore": round(registration.before, 4),
            "MutualInformationAfter": round(registration.after, 4),
        }
    else:
        raise ValueError("it lies on a T1w image, and none of the participant was found")
    registered = transform_anatomy(anatomy, to_scan)
    moved_brain = resample_brain(registered, scan).data
    dice = (
        2
        * float((moved_brain & brain.data).sum())
        / max(int(moved_brain.sum() + brain.data.sum()), 1)
    )
    turn, middle = measure_rotation_deg(to_scan), np.argwhere(anatomy.brain.data).mean(axis=0)
    shift = np.linalg.norm(registered.brain.world(middle) - anatomy.brain.world(middle))
    if dice < MIN_DICE or (transform is None and turn > MAX_ROTATION_DEG):
        raise ValueError(
            f"brought to the scan its brain must have a Dice of {MIN_DICE:g} with the scan's, "
            f"turned by at most {MAX_ROTATION_DEG:g} degrees; found {dice:.2f} and {turn:.0f}"
        )
    figures |= {
        "ShiftMillimetres": round(float(shift), 2),
        "TurnDegrees": round(turn, 2),
        "BrainDice": round(dice, 3),
    }
    return RegisteredSegmentation(registered, lobes, to_scan, figures)


def transform_anatomy(anatomy: Anatomy, to_scan: np.ndarray) -> Anatomy:
    """Transform an anatomy to another space.

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
        None if anatomy.mni_covariance is None else back.T @ anatomy.mni_covariance @ back,
    )


def _encode(
    plain: np.ndarray,
    lookup: ClassTable,
    midline: tuple[np.ndarray, float],
    affine: np.ndarray,
    classes: Sequence[dict],
) -> np.ndarray:
    """Encode the user's codes as those of the classes, uint16; the midline divides unsided ones."""
    kinds, sides = lookup.classes[plain], lookup.sides[plain]
    left, right = (np.array([entry[side] for entry in classes], np.uint16) for side in SIDE_NAMES)
    by_plane = assign_sides(kinds, affine, midline, classes)
    return np.select([sides == LEFT, sides == RIGHT], [left[kinds], right[kinds]], by_plane)


def _split_parcels(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split codes of parcels into family and parcel, both 0 for all other codes.

    Returns:
        family: 1 left cortex, 2 right cortex, 3 left white matter, 4 right white matter.
        parcel: Of Desikan-Killiany and DKT its number, of a2009s `PARCEL_OFFSET` more.
    """
    first = codes // PARCEL_OFFSET
    destrieux = (first >= 11) & (first <= 14)
    number = codes % PARCEL_OFFSET - np.where(destrieux, A2009S_OFFSET, 0)
    plain = (first >= 1) & (first <= 4)
    is_parcel = plain | (destrieux & (number >= 0) & (number < A2009S_OFFSET))
    family = np.where(is_parcel, np.where(destrieux, first - 10, first), 0)
    return family, np.where(is_parcel, number + np.where(destrieux, PARCEL_OFFSET, 0), 0)


def _merge_parcels(codes: np.ndarray, family: np.ndarray) -> np.ndarray:
    """Merge parcels into cortex and white matter, left and right, and `MERGED_CODES`."""
    kinds = {1: CORTEX[0], 2: CORTEX[1], 3: WHITE_MATTER[0], 4: WHITE_MATTER[1]}
    plain = np.where((codes < 0) | (codes >= PARCEL_OFFSET), 0, codes)
    for code, kind in MERGED_CODES.items():
        plain = np.where(codes == code, kind, plain)
    for member, code in kinds.items():
        plain = np.where(family == member, code, plain)
    return plain


def _grow_lobes(anatomy: Anatomy, parcels: np.ndarray) -> np.ndarray:
    """Grow lobes: every voxel of cortex and white matter has the lobe of the nearest parcel."""
    lobe = np.zeros(2 * PARCEL_OFFSET, np.uint8)
    for table, offset in (("parcels", 0), ("parcels_a2009s", PARCEL_OFFSET)):
        for name, members in load_mars_table()[table].items():
            if name != "corpus callosum":  # and the medial wall: no lobe
                lobe[np.add(members, offset)] = find_label(name)
    seeds = lobe[parcels]
    nearest = ndimage.distance_transform_edt(
        seeds == 0, anatomy.structures.spacing, return_distances=False, return_indices=True
    )
    tissue = np.isin(anatomy.structures.data, [*CORTEX, *WHITE_MATTER])
    return np.where(tissue, seeds[tuple(nearest)], 0).astype(np.uint8)
