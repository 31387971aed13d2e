"""Lesions: a probability map cut into separate microbleeds, each measured in millimetres."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from bids_cmb.imaging.volume import Volume

TOUCHING = ndimage.generate_binary_structure(3, 3)  # by face, edge or corner: 26 neighbours

LARGEST_MM = 10.0  # a microbleed is no wider; Wardlaw et al. 2013 and STRIVE-2, Duering et al. 2023
SMALLEST_MM = 2.0  # the lower end of the same definitions
EDGE_MM = 2.0  # nearer to the brain's edge a dot is as likely a vessel on the surface
ELONGATED = 2.2  # in-plane long to short axis; above it a dark spot is as likely a vessel
SURROUND_MM = 3.0  # width of the shell a lesion is compared with
FLAGS = ("large", "small", "edge", "vessel", "csf")


@dataclass(frozen=True)
class Lesion:
    """One microbleed.

    Attributes:
        index: Its value in the label map, from 1; the surest lesion is 1.
        centre: Centre of mass of the probability, world mm, RAS+.
        voxel: The same in voxels of the scan, from 0, not rounded.
        volume: mm³.
        diameter: mm, of the ball that has the lesion's volume.
        largest_diameter: mm, the widest extent within one slice.
        slices: Slices it is seen on.
        elongation: In-plane long axis to short axis, 1 for a disc.
        contrast: 1 - its mean intensity / the median of the shell around it; 0 not darker, 1 black.
        distance_to_surface: mm from its centre to the surface of the brain mask; 0 outside.
        probability_mean: Over its voxels, 0 to 1.
        probability_max: Over its voxels, 0 to 1.
        probability_sd: Mean standard deviation over the members of an ensemble; None with one.
        certainty: ``definite`` or ``possible``.
        flags: What a reader should know, of ``FLAGS``.
        included: Whether it is counted: it has no flag that excludes lesions.
        region: Structure it lies in, without side; None where nobody looked, or none is near.
        territory: ``lobar``, ``deep`` or ``infratentorial``; None like ``region``.
        side: ``left``, ``right`` or ``midline``; None where nobody looked.
        mni: Centre in MNI152NLin2009cAsym, mm; None without a fit to it.
        mars: Region of MARS it lies in or nearest to; None like ``region``, and in a lobe where no
            atlas tells lobes apart.
        nearest_other_mars: The region that is nearest but for it; None if none is within reach.
        nearest_other_mars_mm: mm from the centre to that.
        left: Whether it lies left of the midline; None where nobody looked.
        parcel: Its name in an atlas at its MNI position; None without the atlas.
    """

    index: int
    centre: tuple[float, float, float]
    voxel: tuple[float, float, float]
    volume: float
    diameter: float
    largest_diameter: float
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
    left: bool | None = None
    parcel: str | None = None


def find_lesions(  # noqa: PLR0913
    probability: Volume,
    image: Volume,
    brain: Volume,
    *,
    threshold: float,
    definite: float,
    min_volume: float = 0.0,
    exclude_flags: tuple[str, ...] = ("large",),
    spread: Volume | None = None,
    instances: Volume | None = None,
) -> tuple[Volume, list[Lesion]]:
    """Cut a probability map into lesions and measure each one.

    Args:
        probability: Chance that a voxel is microbleed, 0 to 1, on the grid of the scan.
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        threshold: Voxels at or above it count; those that touch (26 neighbours) are one lesion.
        definite: A lesion whose highest probability reaches it is definite, else possible.
        min_volume: mm³; what is smaller is no lesion.
        exclude_flags: Flags that exclude a lesion from the counts. It stays in map and table.
        spread: Standard deviation over the members, on the same grid, where there are several.
        instances: Which candidate a voxel belongs to, from 1, 0 elsewhere, on the same grid, where
            the detector tells: those of one candidate are one lesion, whatever it touches.

    Returns:
        labels: uint16, on the grid of the scan; 0 is background, ``lesion.index`` the rest.
        lesions: The surest first; equals by place, from the top of the head down.

    Raises:
        ValueError: If ``probability`` leaves 0 to 1 (logits?) or has a NaN, or if the lesions
            are more than a label map can number.
    """
    data = probability.data
    if not (data.min() >= 0 and data.max() <= 1):  # also true of NaN
        raise ValueError(
            "A probability map must lie between 0 and 1 in every voxel; found "
            f"{data.min():.3g} to {data.max():.3g}."
        )
    pieces, count = _pieces(data >= threshold, instances)
    volumes = np.bincount(pieces.ravel(), minlength=count + 1) * probability.voxel_volume
    kept = [piece for piece in range(1, count + 1) if volumes[piece] >= min_volume]
    if len(kept) > np.iinfo(np.uint16).max:
        raise ValueError(
            f"`threshold` must leave at most 65535 lesions; {threshold:g} left {len(kept)}."
        )

    boxes = ndimage.find_objects(pieces)
    surface = _surface(brain) if kept else None
    found = {}
    for piece in kept:
        box = _widened(boxes[piece - 1], probability)
        inside = pieces[box] == piece
        chances = data[box][inside]
        place = _place(inside, data[box], box, probability)
        measured = Lesion(
            index=piece,
            **place,
            volume=float(volumes[piece]),
            diameter=float(np.cbrt(6 * volumes[piece] / np.pi)),
            **_shape(inside, probability),
            contrast=_contrast(
                inside, image.data[box], brain.data[box] & (pieces[box] == 0), image
            ),
            distance_to_surface=_distance_to_surface(place, brain, surface),
            probability_mean=float(chances.mean(dtype=float)),
            probability_max=float(chances.max()),
            probability_sd=float(spread.data[box][inside].mean(dtype=float)) if spread else None,
            certainty="definite" if chances.max() >= definite else "possible",
        )
        flags = _flags(measured)
        found[piece] = replace(measured, flags=flags, included=not set(flags) & set(exclude_flags))

    order = sorted(found.values(), key=_surest_then_highest)
    numbers = np.zeros(count + 1, np.uint16)
    numbers[[lesion.index for lesion in order]] = np.arange(1, len(order) + 1)
    lesions = [replace(lesion, index=index) for index, lesion in enumerate(order, start=1)]
    return Volume(numbers[pieces], probability.affine), lesions


def _pieces(inside: np.ndarray, instances: Volume | None) -> tuple[np.ndarray, int]:
    """Number the candidates, then what hangs together without being one."""
    if instances is None:
        return ndimage.label(inside, structure=TOUCHING)
    numbers, places = np.unique(np.where(inside, instances.data, 0), return_inverse=True)
    candidates = places.reshape(inside.shape) + (0 if numbers[0] == 0 else 1)
    count = int(np.count_nonzero(numbers))
    others, further = ndimage.label(inside & (candidates == 0), structure=TOUCHING)
    return np.where(others > 0, others + count, candidates), count + further


def _surest_then_highest(lesion: Lesion) -> tuple[float, ...]:
    return (-lesion.probability_max, *(-place for place in reversed(lesion.centre)))


def _widened(box: tuple[slice, ...], grid: Volume) -> tuple[slice, ...]:
    """The box with the surround on every side, within the grid."""
    margin = np.ceil(SURROUND_MM / grid.spacing).astype(int) + 1
    return tuple(
        slice(max(side.start - more, 0), min(side.stop + more, size))
        for side, more, size in zip(box, margin, grid.shape, strict=True)
    )


def _place(inside: np.ndarray, chances: np.ndarray, box: tuple, grid: Volume) -> dict:
    """Where the lesion lies, weighted by probability, in voxels and in the world."""
    voxel = np.average(np.argwhere(inside), axis=0, weights=chances[inside].astype(float))
    voxel += [side.start for side in box]
    return {"voxel": tuple(voxel.tolist()), "centre": tuple(grid.world(voxel).tolist())}


def _shape(inside: np.ndarray, grid: Volume) -> dict:
    """Extent and elongation within the slice, where a scan with thick slices resolves them."""
    axis = grid.slice_axis
    in_plane = np.delete(grid.spacing, axis)
    slices = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
    widest = max(_width(np.argwhere(inside.take(at, axis)) * in_plane) for at in slices)
    shadow = np.argwhere(inside.any(axis)) * in_plane
    # A pixel is a square, not a point: its own variance keeps a lesion of one pixel round.
    scatter = np.cov(shadow.T, bias=True) if len(shadow) > 1 else np.zeros((2, 2))
    short, long = np.linalg.eigvalsh(scatter + np.diag(in_plane**2) / 12)
    return {
        "largest_diameter": float(widest + in_plane.mean()),
        "slices": len(slices),
        "elongation": float(np.sqrt(long / short)),
    }


def _width(points: np.ndarray) -> float:
    """The largest extent of points (N, 2) over all directions, to 0.1 %."""
    angles = np.radians(np.arange(0, 180, 5))
    along = points @ np.stack([np.cos(angles), np.sin(angles)])
    return float(np.ptp(along, axis=0).max())


def _contrast(inside: np.ndarray, image: np.ndarray, free: np.ndarray, grid: Volume) -> float:
    """1 - mean inside / median of the brain within ``SURROUND_MM``, other lesions left out."""
    distance = ndimage.distance_transform_edt(~inside, sampling=grid.spacing)
    shell = image[free & (distance > 0) & (distance <= SURROUND_MM)]
    level = float(np.median(shell)) if shell.size else 0.0
    return 1 - float(image[inside].mean(dtype=float)) / level if level > 0 else 0.0


def _surface(brain: Volume) -> cKDTree:
    """World positions of the outermost voxels of the brain, for looking up the nearest."""
    shell = brain.data & ~ndimage.binary_erosion(brain.data)
    return cKDTree(brain.world(np.argwhere(shell)))


def _distance_to_surface(place: dict, brain: Volume, surface: cKDTree) -> float:
    """Distance to the brain's surface in mm, 0 for a centre outside the brain."""
    at = tuple(np.round(place["voxel"]).astype(int))
    return float(surface.query(place["centre"])[0]) if brain.data[at] else 0.0


def _flags(lesion: Lesion) -> tuple[str, ...]:
    said = {
        "large": lesion.largest_diameter > LARGEST_MM,
        "small": lesion.diameter < SMALLEST_MM,
        "edge": lesion.distance_to_surface < EDGE_MM,
        "vessel": lesion.elongation > ELONGATED,
    }
    return tuple(
        flag for flag in FLAGS if said.get(flag)
    )  # the others need to know what lies where
