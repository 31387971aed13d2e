"""The anatomy network: structures, left and right, brain mask, territories, and the way to MNI.

One network looks at the whole head, whatever its contrast and resolution. All that follows from its
answer is decided here by rules in mm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.labels import SULCUS_HALF_WIDTH_MM
from bids_cmb.imaging.preprocessing import Grid, preprocess
from bids_cmb.imaging.volume import Volume, resample
from bids_cmb.networks.inference import PROBABILITY_STEPS, ModelOptions, load_network, predict
from bids_cmb.networks.model_cards import ANATOMY, load_card, locate_weights, select_members

FLUID_OUTSIDE, OUTSIDE = "fluid outside the brain", "outside"  # classes that are no brain
NEAR_MIDLINE_MM = 30.0  # from where on voxels say nothing about where the midline is
MIDLINE_MM = 1.5  # a lesion is neither left nor right this close to the midline
NO_TISSUE_MM = 12.0  # a lesion farther from any tissue than this has no structure
DEEP_WHITE_MM = 10.0  # white matter this close to a lateral ventricle is periventricular or deep
CAPSULE_MM = 4.0  # white matter this close to a deep nucleus is a capsule
FEWEST_ML = 0.05  # of a structure whose centroid is believed
POOR_FIT_MM = 6.0  # beyond it, MNI positions are a guess
DEEP = (10, 49, 11, 50, 12, 51, 13, 52, 26, 58, 28, 60)
WHITE, VENTRICLES = (2, 41), (4, 43)
FLUID = (0, 24, 4, 43, 14, 15)
SIDES = ("left", "right")


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What lies where in a head, on the grid of the network but for what is said otherwise.

    Attributes:
        structures: FreeSurfer codes, left and right, uint16; 0 outside, 24 fluid around the brain.
            On finer voxels than the rest where `anatomy.refinement.finer` has looked.
        brain: Brain, ventricles and narrow sulci, bool.
        midline: Normal towards the left (3,) and offset: a position in world mm lies
            ``normal @ position + offset`` mm left of the midline.
        to_mni: World mm of the scan to mm of MNI152NLin2009cAsym, (4, 4); None without enough
            structures.
        fit_mm: Root mean square distance of the centroids after the fit; None without.
        chances: Of the classes in 255ths, uint8 (X, Y, Z, classes); None if no network said it, or
            a finer one has had its say since.
    """

    structures: Volume
    brain: Volume
    midline: tuple[np.ndarray, float]
    to_mni: np.ndarray | None
    fit_mm: float | None
    chances: np.ndarray | None = None


@dataclass(frozen=True)
class Place:
    """Where a lesion lies.

    Attributes:
        structure: Name, without side; None where there is no tissue near.
        side: ``left``, ``right`` or ``midline``.
        mni: mm in MNI152NLin2009cAsym; None without a fit.
    """

    structure: str | None
    side: str
    mni: tuple[float, float, float] | None


def find_anatomy(image: Volume, models: ModelOptions | None = None) -> Anatomy:
    """Ask the network what lies where.

    Args:
        image: T2*-weighted, susceptibility-weighted or T1-weighted, as it came.
        models: Where the network lies, and how exact it shall be.

    Raises:
        ValueError: If the network cannot be loaded, or it finds no brain.
    """
    models = models or ModelOptions()
    said = load_card(ANATOMY, models.folder)
    member = select_members(said)[0]
    grid = Grid.from_card(member["grid"])
    whole = Volume(np.ones(image.shape, bool), image.affine)
    fed = preprocess(image, whole, grid).image
    path = locate_weights(ANATOMY, member, models.folder)
    network = load_network(member, path, precision=models.precision)
    found = predict(network, fed.data)
    return read_structures(found, fed.affine, said["classes"], said.get("mni_centroids", {}))


def read_structures(
    found: np.ndarray, affine: np.ndarray, classes: Sequence[dict], centroids: Mapping
) -> Anatomy:
    """Decide from chances what lies where.

    Args:
        found: Chances of the classes and of the left side in 255ths, uint8 (X, Y, Z, classes + 1).
        affine: Of that grid, (4, 4).
        classes: The network's, each with ``name``, ``left`` and ``right`` code.
        centroids: Code of a structure → its centroid in MNI space, mm.

    Raises:
        ValueError: If no voxel is brain.
    """
    names = [one["name"] for one in classes]
    best = np.argmax(found[..., : len(classes)], axis=-1).astype(np.uint8)
    outer = [names.index(OUTSIDE), names.index(FLUID_OUTSIDE)]
    tissue = _largest(~np.isin(best, outer))
    best[~tissue & ~np.isin(best, outer)] = outer[0]
    midline = _midline(tissue, found[..., -1], affine)
    structures = Volume(sided(best, affine, midline, classes), affine)
    to_mni, fit = fit_to_mni(structures, centroids)
    brain = Volume(_closed(tissue, affine), affine)
    return Anatomy(structures, brain, midline, to_mni, fit, found[..., :-1])


def brain_of(anatomy: Anatomy, image: Volume) -> Volume:
    """The brain mask on the grid of a scan, bool; its steps are smoothed away."""
    soft = ndimage.gaussian_filter(anatomy.brain.data.astype(np.float32), 0.7)
    moved = resample(Volume(soft, anatomy.brain.affine), image.affine, image.shape)
    return Volume(moved.data > 0.5, image.affine)


def _largest(mask: np.ndarray) -> np.ndarray:
    pieces, count = ndimage.label(mask)
    if not count:
        raise ValueError("No brain was found: the anatomy network saw none.")
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])


def _closed(tissue: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Tissue with the narrow sulci and all holes."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    wide = tuple(int(2 * round(SULCUS_HALF_WIDTH_MM / step) + 1) for step in spacing)
    closed = ndimage.minimum_filter(ndimage.maximum_filter(tissue.view(np.uint8), wide), wide)
    return ndimage.binary_fill_holes(closed.astype(bool) | tissue)


# --- Sides ----------------------------------------------------------------------------------------


def _midline(tissue: np.ndarray, left: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, float]:
    """The plane that parts left from right best, by least squares over the brain near it."""
    decided = (
        np.abs(2 * left.astype(np.int16) - PROBABILITY_STEPS) > 1
    )  # what lies astride has no side
    voxels = np.argwhere(tissue & decided)[::7]
    world = Volume(tissue, affine).world(voxels)
    turned = np.where(left[tuple(voxels.T)] > PROBABILITY_STEPS / 2, 1.0, -1.0)
    normal, offset = np.array([-1.0, 0, 0]), float(world[:, 0].mean())
    for _ in range(3):
        near = np.abs(world @ normal + offset) < NEAR_MIDLINE_MM
        if near.sum() < 100 or abs(turned[near].mean()) > 0.9:
            break
        terms = np.column_stack([world[near], np.ones(near.sum())])
        fitted = np.linalg.lstsq(terms, turned[near], rcond=None)[0]
        length = np.linalg.norm(fitted[:3])
        if fitted[0] > -0.5 * length:  # sides that make no sense: left is left in any head
            break
        normal, offset = fitted[:3] / length, float(fitted[3] / length)
    return normal, offset


def leftness(
    midline: tuple[np.ndarray, float], affine: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Mm left of the midline, float32, on a grid."""
    normal, offset = midline
    along = normal @ affine[:3, :3]
    start = normal @ affine[:3, 3] + offset
    x, y, z = (np.arange(n, dtype=np.float32) * step for n, step in zip(shape, along, strict=True))
    return np.float32(start) + x[:, None, None] + y[:, None] + z


def sided(
    best: np.ndarray, affine: np.ndarray, midline: tuple[np.ndarray, float], classes: Sequence[dict]
) -> np.ndarray:
    """FreeSurfer's codes, left and right, uint16 (X, Y, Z), of classes, uint8 likewise."""
    left, right = (np.array([one[side] for one in classes], np.uint16) for side in SIDES)
    return np.where(leftness(midline, affine, best.shape) > 0, left[best], right[best])


# --- MNI ------------------------------------------------------------------------------------------


def structure_centroids(structures: Volume) -> dict[int, np.ndarray]:
    """Centre of mass of every structure that is large enough, world mm, by code."""
    data = structures.data
    counts = np.bincount(data.ravel())
    enough = FEWEST_ML * 1000 / structures.voxel_volume
    codes = [code for code in np.flatnonzero(counts >= enough) if code not in (0, 24)]
    centres = ndimage.center_of_mass(np.ones(data.shape, bool), data, codes)
    return {
        int(code): structures.world(np.array(centre))
        for code, centre in zip(codes, centres, strict=True)
    }


def fit_to_mni(
    structures: Volume, centroids: Mapping
) -> tuple[np.ndarray, float] | tuple[None, None]:
    """The affine that brings the structures' centroids nearest to those of the template.

    Least squares, refitted with less weight for what lies far off, so that one structure that was
    missed does not turn the head.

    Args:
        structures: FreeSurfer codes.
        centroids: Code → mm in MNI152NLin2009cAsym.

    Returns:
        World mm to MNI mm, (4, 4), and the weighted root mean square distance, mm; None, None with
        fewer than eight structures.
    """
    here = structure_centroids(structures)
    shared = sorted(code for code in here if str(code) in centroids)
    if len(shared) < 8:
        return None, None
    source = np.column_stack([np.array([here[code] for code in shared]), np.ones(len(shared))])
    target = np.array([centroids[str(code)] for code in shared])
    weight = np.ones(len(shared))
    for _ in range(5):
        root = np.sqrt(weight)[:, None]
        matrix = np.linalg.lstsq(source * root, target * root, rcond=None)[0]
        apart = np.linalg.norm(source @ matrix - target, axis=1)
        weight = 1 / np.maximum(apart / max(float(np.median(apart)), 0.5), 1.0)
    fit = float(np.sqrt(np.average(apart**2, weights=weight)))
    return np.vstack([matrix.T, [0, 0, 0, 1]]), fit


def itk_affine(to_mni: np.ndarray) -> str:
    """A transform as ITK, ANTs and nitransforms read it, to bring the scan onto the template.

    ITK maps places of the template to places of the scan, both with x to the left and y to the
    back, so this is the inverse of ``to_mni`` between two changes of sign.

    Args:
        to_mni: World mm of the scan to mm of the template, RAS+, (4, 4).
    """
    signs = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix = signs @ np.linalg.inv(to_mni) @ signs
    numbers = " ".join(f"{x:.9g}" for x in [*matrix[:3, :3].ravel(), *matrix[:3, 3]])
    return "\n".join([
        "#Insight Transform File V1.0", "#Transform 0", "Transform: AffineTransform_double_3_3",
        f"Parameters: {numbers}", "FixedParameters: 0 0 0", "",
    ])  # fmt: skip


# --- Lesions --------------------------------------------------------------------------------------


def places(
    anatomy: Anatomy, centres: Sequence[Sequence[float]], classes: Sequence[dict]
) -> list[Place]:
    """Where lesions lie.

    A lesion belongs to the tissue at its centre, or to the nearest if there is fluid.

    Args:
        anatomy: Of the scan.
        centres: World mm, (N, 3).
        classes: The network's, for their names.
    """
    names = {one[side]: one["name"] for one in classes for side in SIDES}
    return [_place(anatomy, np.array(centre), names) for centre in centres]


def _place(anatomy: Anatomy, centre: np.ndarray, names: Mapping[int, str]) -> Place:
    normal, offset = anatomy.midline
    left = float(normal @ centre + offset)
    side = "midline" if abs(left) < MIDLINE_MM else "left" if left > 0 else "right"
    mni = None
    if anatomy.to_mni is not None:
        mni = tuple(float(x) for x in (anatomy.to_mni @ [*centre, 1])[:3])
    codes, _ = around(anatomy.structures, centre, but=FLUID)
    return Place(names[int(codes[0])] if len(codes) else None, side, mni)


def around(
    labels: Volume, centre: np.ndarray, *, but: Sequence[int] = (0,)
) -> tuple[np.ndarray, np.ndarray]:
    """The labels within `NO_TISSUE_MM` of a place, voxel by voxel, the nearest first.

    Args:
        labels: A label map.
        centre: World mm.
        but: Labels that are passed by.

    Returns:
        codes: (N,), of equally near ones the lowest first.
        away: How far each voxel's centre is, mm, (N,).
    """
    at = labels.index(centre)
    reach = NO_TISSUE_MM / labels.spacing
    low = np.clip(np.floor(at - reach).astype(int), 0, labels.shape)
    high = np.clip(np.ceil(at + reach).astype(int) + 1, low, labels.shape)
    codes = labels.data[tuple(map(slice, low, high))]
    wanted = ~np.isin(codes, but)
    away = np.linalg.norm(labels.world(np.argwhere(wanted) + low) - centre, axis=1)
    codes = codes[wanted]
    near = away <= NO_TISSUE_MM
    order = np.lexsort((codes[near], np.round(away[near], 3)))
    return codes[near][order], away[near][order]
