"""Lesions: a probability map split into separate microbleeds, each measured in millimetres."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.profile import measure_size, widen_box

CONNECTIVITY_26 = ndimage.generate_binary_structure(3, 3)  # by face, edge or corner: 26 neighbours

# A microbleed is no wider; Wardlaw et al. 2013 and STRIVE-2, Duering et al. 2023
MAX_DIAMETER_MM = 10.0
MIN_DIAMETER_MM = 2.0  # the lower end of the same definitions
# Nearer to the brain's edge a dot is as likely a vessel on the surface
MIN_SURFACE_DISTANCE_MM = 2.0
MAX_ELONGATION = 2.2  # in-plane long to short axis; above it a dark spot is as likely a vessel
CONTRAST_SHELL_MM = 3.0  # width of the shell a lesion is compared with
FLAGS = ("large", "small", "edge", "vessel", "csf")


@dataclass(frozen=True)
class Lesion:
    """One microbleed.

    Attributes:
        index: Its value in the label map, from 1; the surest lesion is 1.
        centre: Centre of mass of the probability, world mm, RAS+.
        voxel: The same in voxels of the scan, from 0, not rounded.
        volume: mm³.
        equivalent_diameter: mm, of the ball that has the lesion's volume.
        in_plane_diameter: mm, the widest extent within one slice.
        half_depth_in_plane: mm, of the disc that is as large as the lesion at half its depth, in
            the slice where it is widest; None if the dark has no end (`lesions.profile`).
        half_depth_diameter: mm, of the ball that has the volume at half depth; None likewise.
        slices: Number of slices it is visible on.
        elongation: In-plane long axis to short axis, 1 for a disc.
        contrast: 1 - its mean intensity / the median of the shell around it: 0 not darker, 1 black.
        distance_to_surface: mm from its centre to the surface of the brain mask; 0 outside.
        probability_mean: Over its voxels, 0 to 1.
        probability_max: Over its voxels, 0 to 1.
        probability_sd: Mean standard deviation over the members of an ensemble; None with one.
        certainty: ``definite`` or ``possible``; ``candidate`` below the threshold of lesions.
        flags: What a reader should know, of ``FLAGS``.
        included: Whether it is counted: it has no flag that excludes lesions.
        region: Structure it lies in, without side; None without an anatomy, or if none is near.
        territory: ``lobar``, ``deep`` or ``infratentorial``; None like ``region``.
        side: ``left``, ``right`` or ``midline``; None without an anatomy.
        mni: Centre in MNI152NLin2009cAsym, mm; None without a fit to it.
        mni_uncertainty_mm: Root mean square error to be expected of ``mni``; None without a fit.
        mars: Region of MARS it lies in or nearest to; None like ``region``, and in the cerebrum
            without an atlas of lobes.
        nearest_other_mars: The nearest region but ``mars``; None if none is within reach.
        nearest_other_mars_mm: mm from the centre to that.
        nearest_other_territory: The nearest territory but ``territory``; None if none is within
            reach.
        nearest_other_territory_mm: mm from the centre to that.
        left: Whether it lies left of the midline; None without an anatomy.
        parcel: Its name in an atlas at its MNI position; None without the atlas.
    """

    index: int
    centre: tuple[float, float, float]
    voxel: tuple[float, float, float]
    volume: float
    equivalent_diameter: float
    in_plane_diameter: float
    slices: int
    elongation: float
    contrast: float
    distance_to_surface: float
    probability_mean: float
    probability_max: float
    probability_sd: float | None
    certainty: str
    flags: tuple[str, ...] = ()
    included: bool = True
    region: str | None = None
    territory: str | None = None
    side: str | None = None
    mni: tuple[float, float, float] | None = None
    mars: str | None = None
    nearest_other_mars: str | None = None
    nearest_other_mars_mm: float | None = None
    nearest_other_territory: str | None = None
    nearest_other_territory_mm: float | None = None
    left: bool | None = None
    parcel: str | None = None
    mni_uncertainty_mm: float | None = None
    half_depth_in_plane: float | None = None
    half_depth_diameter: float | None = None

    @property
    def size(self) -> float:
        """Diameter that size classes go by, mm: at half depth, or of the outline without that."""
        return self.half_depth_diameter or self.equivalent_diameter


@dataclass(frozen=True, eq=False)
class DetectionMap:
    """What detectors say of each voxel of a scan, on its grid.

    Attributes:
        probability: Of a microbleed, 0 to 1.
        spread: Standard deviation over the members, where there are several.
        instances: Candidate that each voxel belongs to, from 1, 0 elsewhere, if the detector has
            candidates: each is a lesion of its own, whatever it touches.
    """

    probability: Volume
    spread: Volume | None = None
    instances: Volume | None = None


@dataclass(frozen=True)
class Thresholds:
    """Thresholds that split a probability map into lesions.

    Attributes:
        threshold: Lowest probability of a lesion's voxels; those that touch (26 neighbours) are
            one lesion.
        definite: Lowest maximum of a definite lesion; others are possible ones.
        min_volume: mm³ of the smallest lesion.
    """

    threshold: float
    definite: float
    min_volume: float = 0.0


def find_lesions(
    detected: DetectionMap,
    image: Volume,
    brain: Volume,
    thresholds: Thresholds,
    exclude_flags: tuple[str, ...] = ("large",),
) -> tuple[Volume, list[Lesion]]:
    """Split a probability map into lesions and measure each.

    Args:
        detected: By the detectors, on the grid of the scan.
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        thresholds: Of probability and volume.
        exclude_flags: Flags that exclude a lesion from the counts. It stays in map and table.

    Returns:
        labels: uint16, on the grid of the scan; 0 is background, ``lesion.index`` the rest.
        lesions: By falling probability; equals by position, from the top of the head down.

    Raises:
        ValueError: If the probability leaves 0 to 1 (logits?) or has a NaN, or if the lesions
            are more than a label map can number.
    """
    probability, spread = detected.probability, detected.spread
    data, threshold = probability.data, thresholds.threshold
    if not (data.min() >= 0 and data.max() <= 1):  # also true of NaN
        raise ValueError(
            "A probability map must lie between 0 and 1 in every voxel; found "
            f"{data.min():.3g} to {data.max():.3g}."
        )
    pieces, count = label_pieces(data >= threshold, detected.instances)
    numbered = pieces > 0
    volumes = np.bincount(pieces[numbered], minlength=count + 1) * probability.voxel_volume
    kept = [piece for piece in range(1, count + 1) if volumes[piece] >= thresholds.min_volume]
    if len(kept) > np.iinfo(np.uint16).max:
        raise ValueError(
            f"`threshold` must leave at most 65535 lesions; {threshold:g} left {len(kept)}."
        )

    boxes = ndimage.find_objects(pieces)
    surface = _build_surface_tree(brain) if kept else None
    measured: dict[int, Lesion] = {}
    for piece in kept:
        box = widen_box(boxes[piece - 1], probability, CONTRAST_SHELL_MM)
        inside = pieces[box] == piece
        probabilities = data[box][inside]
        position = _locate_centre(inside, data[box], box, probability)
        lesion = Lesion(
            index=piece,
            **position,
            volume=float(volumes[piece]),
            equivalent_diameter=float(np.cbrt(6 * volumes[piece] / np.pi)),
            **_measure_shape(inside, probability),
            contrast=_measure_contrast(
                inside, image.data[box], brain.data[box] & (pieces[box] == 0), image
            ),
            distance_to_surface=_measure_surface_distance(position, brain, surface),
            probability_mean=float(probabilities.mean(dtype=float)),
            probability_max=float(probabilities.max()),
            probability_sd=float(spread.data[box][inside].mean(dtype=float)) if spread else None,
            certainty="definite" if probabilities.max() >= thresholds.definite else "possible",
            **measure_size(pieces, piece, boxes[piece - 1], image, brain),
        )
        flags = _flag_lesion(lesion)
        measured[piece] = replace(lesion, flags=flags, included=not set(flags) & set(exclude_flags))

    order = sorted(measured.values(), key=_rank)
    numbers = np.zeros(count + 1, np.uint16)
    numbers[[lesion.index for lesion in order]] = np.arange(1, len(order) + 1)
    lesions = [replace(lesion, index=index) for index, lesion in enumerate(order, start=1)]
    labels = np.zeros(pieces.shape, np.uint16)
    labels[numbered] = numbers[pieces[numbered]]
    return Volume(labels, probability.affine), lesions


def label_pieces(inside: np.ndarray, instances: Volume | None) -> tuple[np.ndarray, int]:
    """Number the pieces of a mask: the instances in it, then the components outside them.

    Args:
        inside: bool, (X, Y, Z).
        instances: Candidate that each voxel belongs to, from 1, 0 elsewhere, on the same grid; None
            of detectors without candidates.

    Returns:
        Number of its piece in each voxel, 0 outside, and the number of pieces.
    """
    if instances is None:
        return ndimage.label(inside, structure=CONNECTIVITY_26)
    given = instances.data[inside]
    present = np.unique(given[given > 0])
    numbers = np.zeros(int(given.max(initial=0)) + 1, np.int32)
    numbers[present] = np.arange(1, len(present) + 1)
    pieces = np.zeros(inside.shape, np.int32)
    pieces[inside] = numbers[given]
    outside = inside & (pieces == 0)
    others, further = ndimage.label(outside, structure=CONNECTIVITY_26)
    pieces[outside] = others[outside] + len(present)
    return pieces, len(present) + further


def _rank(lesion: Lesion) -> tuple[float, ...]:
    """Rank by probability, then from the top of the head down."""
    return (-lesion.probability_max, *(-position for position in reversed(lesion.centre)))


def _locate_centre(inside: np.ndarray, probability: np.ndarray, box: tuple, grid: Volume) -> dict:
    """Compute the centre of mass of the probability, in voxels and in world mm."""
    voxel = np.average(np.argwhere(inside), axis=0, weights=probability[inside].astype(float))
    voxel += [side.start for side in box]
    return {"voxel": tuple(voxel.tolist()), "centre": tuple(grid.world(voxel).tolist())}


def keep_connected(mask: np.ndarray, voxel: Sequence[int]) -> np.ndarray:
    """Keep what is connected to a voxel by face, edge or corner.

    Args:
        mask: bool, (X, Y) or (X, Y, Z).
        voxel: Index of a True voxel.

    Returns:
        bool, of the same shape.
    """
    neighbours = ndimage.generate_binary_structure(mask.ndim, mask.ndim)
    pieces, _ = ndimage.label(mask, structure=neighbours)
    return pieces == pieces[tuple(voxel)]


def measure_elongation(pixels: np.ndarray, spacing: np.ndarray) -> float:
    """Measure long over short axis of a shape in a slice, 1 for a disc.

    Args:
        pixels: Of the shape, indices, (N, 2).
        spacing: mm of a pixel, (2,).
    """
    # A pixel is a square, not a point: its own variance keeps a shape of one pixel round.
    covariance = np.cov((pixels * spacing).T, bias=True) if len(pixels) > 1 else np.zeros((2, 2))
    short, long = np.linalg.eigvalsh(covariance + np.diag(spacing**2) / 12)
    return float(np.sqrt(long / short))


def _measure_shape(inside: np.ndarray, grid: Volume) -> dict:
    """Measure extent and elongation within the slice, which scans with thick slices resolve."""
    axis = grid.slice_axis
    in_plane = np.delete(grid.spacing, axis)
    slices = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
    widest = max(
        _measure_width(np.argwhere(inside.take(index, axis)) * in_plane) for index in slices
    )
    return {
        "in_plane_diameter": float(widest + in_plane.mean()),
        "slices": len(slices),
        "elongation": measure_elongation(np.argwhere(inside.any(axis)), in_plane),
    }


def _measure_width(points: np.ndarray) -> float:
    """Measure the largest extent of points (N, 2) over all directions, to 0.1 %."""
    angles = np.radians(np.arange(0, 180, 5))
    along = points @ np.stack([np.cos(angles), np.sin(angles)])
    return float(np.ptp(along, axis=0).max())


def _measure_contrast(
    inside: np.ndarray, image: np.ndarray, free: np.ndarray, grid: Volume
) -> float:
    """Compute 1 - mean inside / median of the free brain within ``CONTRAST_SHELL_MM``."""
    distance = ndimage.distance_transform_edt(~inside, sampling=grid.spacing)
    shell = image[free & (distance > 0) & (distance <= CONTRAST_SHELL_MM)]
    level = float(np.median(shell)) if shell.size else 0.0
    return 1 - float(image[inside].mean(dtype=float)) / level if level > 0 else 0.0


def _build_surface_tree(brain: Volume) -> cKDTree:
    """Build a search tree of the brain's outermost voxels, world mm."""
    shell = brain.data & ~ndimage.binary_erosion(brain.data)
    return cKDTree(brain.world(np.argwhere(shell)))


def _measure_surface_distance(position: dict, brain: Volume, surface: cKDTree) -> float:
    """Measure the distance to the brain's surface in mm, 0 for a centre outside the brain."""
    voxel = tuple(np.round(position["voxel"]).astype(int))
    return float(surface.query(position["centre"])[0]) if brain.data[voxel] else 0.0


def _flag_lesion(lesion: Lesion) -> tuple[str, ...]:
    """List the flags that follow from the measures; the others need the anatomy."""
    criteria = {
        "large": lesion.in_plane_diameter > MAX_DIAMETER_MM,
        "small": lesion.equivalent_diameter < MIN_DIAMETER_MM,
        "edge": lesion.distance_to_surface < MIN_SURFACE_DISTANCE_MM,
        "vessel": lesion.elongation > MAX_ELONGATION,
    }
    return tuple(flag for flag in FLAGS if criteria.get(flag))
