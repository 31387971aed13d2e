"""Anatomical segmentation: structures, sides, brain mask, and the affine to MNI space.

One network segments the whole head, whatever its contrast and resolution. All that follows from its
probabilities is decided here by rules in mm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.labels import SULCUS_HALF_WIDTH_MM
from bids_cmb.anatomy.mni_fit import estimate_mni_uncertainty, find_field_of_view, fit_to_mni
from bids_cmb.anatomy.mni_template import MniTemplate, load_template
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume, map_points
from bids_cmb.networks.inference import PROBABILITY_STEPS, predict
from bids_cmb.networks.loading import ModelOptions, load_network
from bids_cmb.networks.model_cards import ANATOMY, load_card, locate_weights, select_members

FLUID_OUTSIDE, OUTSIDE = "fluid outside the brain", "outside"  # classes that are no brain
MIN_TISSUE_PROBABILITY = 26  # 255ths, of all tissue and ventricles, of the brain mask
MIDLINE_FIT_MM = 30.0  # from where on voxels say nothing about where the midline is
MIDLINE_HALF_WIDTH_MM = 1.5  # a lesion is neither left nor right this close to the midline
MAX_TISSUE_DISTANCE_MM = 12.0  # a lesion farther from any tissue than this has no structure
DEEP_WHITE_MM = 10.0  # white matter this close to a lateral ventricle is periventricular or deep
CAPSULE_MM = 4.0  # white matter this close to a deep nucleus is a capsule
DEEP_NUCLEI = (10, 49, 11, 50, 12, 51, 13, 52, 26, 58, 28, 60)
WHITE_MATTER, LATERAL_VENTRICLES = (2, 41), (4, 43)
FLUID_AROUND = (0, 24)  # outside, and fluid around the brain
FLUID_CODES = (*FLUID_AROUND, 4, 43, 14, 15)
SIDE_NAMES = ("left", "right")


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Anatomical segmentation of a scan, on the grid of the network unless noted.

    Attributes:
        structures: FreeSurfer codes, left and right, uint16; 0 outside, 24 fluid around the brain.
            On finer voxels than the rest after `anatomy.refinement.refine_structures`.
        brain: Brain, ventricles and narrow sulci, bool; where in doubt, brain: its surface may lie
            in the fluid around it.
        midline: Normal towards the left (3,) and offset: a position in world mm lies
            ``normal @ position + offset`` mm left of the midline.
        to_mni: World mm of the scan to mm of MNI152NLin2009cAsym, (4, 4); None without enough
            structures.
        fit_mm: As `mni_fit.MniFit.fit_mm`; None without.
        mni_covariance: As `mni_fit.MniFit.covariance`; None without.
        probabilities: Of the classes in 255ths, uint8 (X, Y, Z, classes); None without a network,
            or after refinement.
    """

    structures: Volume
    brain: Volume
    midline: tuple[np.ndarray, float]
    to_mni: np.ndarray | None
    fit_mm: float | None
    mni_covariance: np.ndarray | None = None
    probabilities: np.ndarray | None = None


@dataclass(frozen=True)
class AnatomicalLocation:
    """Anatomical location of a lesion.

    Attributes:
        structure: Name, without side; None where there is no tissue near.
        side: ``left``, ``right`` or ``midline``.
        mni: mm in MNI152NLin2009cAsym; None without a fit.
        mni_uncertainty_mm: Root mean square error to be expected of it; None without a fit.
    """

    structure: str | None
    side: str
    mni: tuple[float, float, float] | None
    mni_uncertainty_mm: float | None = None


def predict_anatomy(image: Volume, models: ModelOptions | None = None) -> Anatomy:
    """Segment a scan with the anatomy network.

    Args:
        image: T2*-weighted, susceptibility-weighted or T1-weighted, as it came.
        models: Where the network lies, and its precision.

    Raises:
        ValueError: If the network cannot be loaded, or it finds no brain.
    """
    models = models or ModelOptions()
    anatomy_card = load_card(ANATOMY, models.folder)
    member = select_members(anatomy_card)[0]
    grid = Grid.from_card(member["grid"])
    whole = Volume(np.ones(image.shape, bool), image.affine)
    fed = preprocess(image, whole, grid).image
    path = locate_weights(ANATOMY, member, models.folder)
    network = load_network(member, path, precision=models.precision)
    probabilities = predict(network, fed.data)
    return decode_anatomy(
        probabilities,
        fed.affine,
        anatomy_card["classes"],
        load_template(),
        find_field_of_view(fed),
    )


def decode_anatomy(
    probabilities: np.ndarray,
    affine: np.ndarray,
    classes: Sequence[dict],
    template: MniTemplate | None = None,
    field_of_view: tuple[np.ndarray, np.ndarray] | None = None,
) -> Anatomy:
    """Decode the network's probabilities into structures, sides, brain and affine to MNI.

    Args:
        probabilities: Of the classes and of the left side in 255ths, uint8 (X, Y, Z, classes + 1).
        affine: Of that grid, (4, 4).
        classes: The network's, each with ``name``, ``left`` and ``right`` code.
        template: Of MNI space; without, there is no affine to it.
        field_of_view: From `mni_fit.find_field_of_view`; that of the grid without.

    Raises:
        ValueError: If no voxel is brain.
    """
    names = [entry["name"] for entry in classes]
    classes_map = np.argmax(probabilities[..., : len(classes)], axis=-1).astype(np.uint8)
    outer = [names.index(OUTSIDE), names.index(FLUID_OUTSIDE)]
    tissue = _keep_largest(~np.isin(classes_map, outer))
    classes_map[~tissue & ~np.isin(classes_map, outer)] = outer[0]
    midline = _fit_midline(tissue, probabilities[..., -1], affine)
    structures = Volume(assign_sides(classes_map, affine, midline, classes), affine)
    fit = None
    if template is not None:
        filled = fill_structures(structures, probabilities[..., :-1], midline, classes)
        fit = fit_to_mni(filled, template, field_of_view)
    brain = _close_sulci(_keep_largest(_find_brain(probabilities[..., :-1], outer)), affine)
    to_mni, fit_mm, covariance = (
        (fit.to_mni, fit.fit_mm, fit.covariance) if fit else (None, None, None)
    )
    return Anatomy(
        structures, Volume(brain, affine), midline, to_mni, fit_mm, covariance,
        probabilities[..., :-1],
    )  # fmt: skip


def fill_structures(
    structures: Volume,
    probabilities: np.ndarray,
    midline: tuple[np.ndarray, float],
    classes: Sequence[dict],
) -> Volume:
    """Fill structures up to where all tissue together is as likely as all else.

    The likeliest class alone leaves out cortex that shares its voxels with fluid: the brain looks
    smaller than it is, and where only its top is seen, turned in MNI space by up to 10 degrees.

    Args:
        structures: As `Anatomy.structures`, on the grid of the network.
        probabilities: As `Anatomy.probabilities`.
        midline: As `Anatomy.midline`.
        classes: As for `decode_anatomy`.
    """
    outer = [entry["name"] in (OUTSIDE, FLUID_OUTSIDE) for entry in classes]
    inner = np.flatnonzero(~np.array(outer))
    total = probabilities[..., inner].sum(axis=-1, dtype=np.uint16)
    outside = np.isin(structures.data, FLUID_AROUND)
    filled = outside & _keep_largest(~outside | (2 * total > PROBABILITY_STEPS))
    likeliest = np.zeros(structures.shape, np.uint8)
    likeliest[filled] = inner[probabilities[filled][:, inner].argmax(axis=-1)]
    codes = assign_sides(likeliest, structures.affine, midline, classes)
    return Volume(np.where(filled, codes, structures.data), structures.affine)


def resample_brain(anatomy: Anatomy, image: Volume) -> Volume:
    """Resample the brain mask to the grid of a scan, bool, its steps smoothed."""
    soft = ndimage.gaussian_filter(anatomy.brain.data.astype(np.float32), 0.7)
    moved = resample(Volume(soft, anatomy.brain.affine), image.affine, image.shape)
    return Volume(moved.data > 0.5, image.affine)


def _keep_largest(mask: np.ndarray) -> np.ndarray:
    components, count = ndimage.label(mask)
    if not count:
        raise ValueError("No brain was found: the anatomy network saw none.")
    return components == 1 + np.argmax(np.bincount(components.ravel())[1:])


def _find_brain(probabilities: np.ndarray, outer: Sequence[int]) -> np.ndarray:
    """Find the voxels of the brain mask, bool (X, Y, Z).

    The likeliest class would leave out a sixth of the cortex, which the 2 mm network takes for the
    fluid beside it. Doubt between brain and fluid is brain; doubt between brain and what else is in
    a head is not, or the mask would leak into the nose. Chosen on simulated scans of heads that no
    network learnt from (`benchmarks/accuracy/anatomy.py`).

    Args:
        probabilities: Of the classes in 255ths, uint8 (X, Y, Z, classes).
        outer: Indices of the classes `OUTSIDE` and `FLUID_OUTSIDE`.
    """
    total = probabilities.sum(axis=-1, dtype=np.uint16)
    tissue = total - probabilities[..., list(outer)].sum(axis=-1, dtype=np.uint16)
    return (tissue >= MIN_TISSUE_PROBABILITY) & (tissue > probabilities[..., outer[0]])


def _close_sulci(tissue: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Close the narrow sulci and all holes."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    wide = tuple(int(2 * round(SULCUS_HALF_WIDTH_MM / step) + 1) for step in spacing)
    closed = ndimage.minimum_filter(ndimage.maximum_filter(tissue.view(np.uint8), wide), wide)
    return ndimage.binary_fill_holes(closed.astype(bool) | tissue)


# --- Sides ----------------------------------------------------------------------------------------


def _fit_midline(
    tissue: np.ndarray, left: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, float]:
    """Fit the plane between left and right by least squares over the brain near it."""
    decided = (
        np.abs(2 * left.astype(np.int16) - PROBABILITY_STEPS) > 1
    )  # what lies astride has no side
    voxels = np.argwhere(tissue & decided)[::7]
    world = Volume(tissue, affine).world(voxels)
    sides = np.where(left[tuple(voxels.T)] > PROBABILITY_STEPS / 2, 1.0, -1.0)
    normal, offset = np.array([-1.0, 0, 0]), float(world[:, 0].mean())
    for _ in range(3):
        near = np.abs(world @ normal + offset) < MIDLINE_FIT_MM
        if near.sum() < 100 or abs(sides[near].mean()) > 0.9:
            break
        terms = np.column_stack([world[near], np.ones(near.sum())])
        fitted = np.linalg.lstsq(terms, sides[near], rcond=None)[0]
        length = np.linalg.norm(fitted[:3])
        if fitted[0] > -0.5 * length:  # sides that make no sense: left is left in any head
            break
        normal, offset = fitted[:3] / length, float(fitted[3] / length)
    return normal, offset


def compute_leftness(
    midline: tuple[np.ndarray, float], affine: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Compute the mm left of the midline, float32, on a grid."""
    normal, offset = midline
    along = normal @ affine[:3, :3]
    start = normal @ affine[:3, 3] + offset
    x, y, z = (np.arange(n, dtype=np.float32) * step for n, step in zip(shape, along, strict=True))
    return np.float32(start) + x[:, None, None] + y[:, None] + z


def assign_sides(
    best: np.ndarray, affine: np.ndarray, midline: tuple[np.ndarray, float], classes: Sequence[dict]
) -> np.ndarray:
    """Assign sides to classes (uint8): FreeSurfer codes, left and right, uint16 (X, Y, Z)."""
    left, right = (np.array([entry[side] for entry in classes], np.uint16) for side in SIDE_NAMES)
    return np.where(compute_leftness(midline, affine, best.shape) > 0, left[best], right[best])


# --- Lesions --------------------------------------------------------------------------------------


def locate_structures(
    anatomy: Anatomy, centres: Sequence[Sequence[float]], classes: Sequence[dict]
) -> list[AnatomicalLocation]:
    """Locate lesions in the structures.

    A lesion belongs to the tissue at its centre, or to the nearest if there is fluid.

    Args:
        anatomy: Of the scan.
        centres: World mm, (N, 3).
        classes: The network's, for their names.
    """
    names = {entry[side]: entry["name"] for entry in classes for side in SIDE_NAMES}
    return [_locate(anatomy, np.array(centre), names) for centre in centres]


def _locate(anatomy: Anatomy, centre: np.ndarray, names: Mapping[int, str]) -> AnatomicalLocation:
    normal, offset = anatomy.midline
    left = float(normal @ centre + offset)
    side = "midline" if abs(left) < MIDLINE_HALF_WIDTH_MM else "left" if left > 0 else "right"
    mni = uncertainty = None
    if anatomy.to_mni is not None:
        mni = tuple(map_points(anatomy.to_mni, centre).tolist())
    if anatomy.mni_covariance is not None:
        uncertainty = estimate_mni_uncertainty(anatomy.mni_covariance, anatomy.fit_mm, centre)
    codes, _ = find_labels_near(anatomy.structures, centre, exclude=FLUID_CODES)
    name = names[int(codes[0])] if len(codes) else None
    return AnatomicalLocation(name, side, mni, uncertainty)


def find_labels_near(
    labels: Volume, centre: np.ndarray, *, exclude: Sequence[int] = (0,)
) -> tuple[np.ndarray, np.ndarray]:
    """Find the labels within `MAX_TISSUE_DISTANCE_MM` of a point, voxel by voxel, nearest first.

    Args:
        labels: A label map.
        centre: World mm.
        exclude: Labels that are skipped.

    Returns:
        codes: (N,), of equally near ones the lowest first.
        distance: Of each voxel's centre, mm, (N,).
    """
    index = labels.index(centre)
    reach = MAX_TISSUE_DISTANCE_MM / labels.spacing
    low = np.clip(np.floor(index - reach).astype(int), 0, labels.shape)
    high = np.clip(np.ceil(index + reach).astype(int) + 1, low, labels.shape)
    codes = labels.data[tuple(map(slice, low, high))]
    wanted = ~np.isin(codes, exclude)
    distance = np.linalg.norm(labels.world(np.argwhere(wanted) + low) - centre, axis=1)
    codes = codes[wanted]
    near = distance <= MAX_TISSUE_DISTANCE_MM
    order = np.lexsort((codes[near], np.round(distance[near], 3)))
    return codes[near][order], distance[near][order]
