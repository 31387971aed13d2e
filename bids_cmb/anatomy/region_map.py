"""MARS regions of lesions: thirteen regions, left and right, over the whole brain.

Every voxel of tissue gets one region, by rules in mm from the structures (of the anatomy network,
or of the user's own segmentation), and the lobes from an atlas in MNI space where there is one. The
lesion's region is that of its centre, or the nearest; the second nearest and its distance measure
how sure that is. MARS: Gregoire et al., Neurology 2009;73:1759-1766.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.mars import (
    LOBAR_LABEL,
    RIGHT_OFFSET,
    find_label,
    index_regions,
    load_mars_table,
)
from bids_cmb.anatomy.segmentation import (
    CAPSULE_MM,
    DEEP_NUCLEI,
    DEEP_WHITE_MM,
    LATERAL_VENTRICLES,
    WHITE_MATTER,
    Anatomy,
    compute_leftness,
    find_labels_near,
)
from bids_cmb.imaging.cropping import find_box
from bids_cmb.imaging.volume import Volume

CALLOSUM_MM = 6.0  # white matter this close to the midline is corpus callosum (and fornix)
INTERNAL_CAPSULE_MM = 6.0  # white matter this close to both lentiform and thalamus or caudate
CORTEX = (3, 42)
LENTIFORM, MEDIAL = (12, 51, 13, 52), (10, 49, 11, 50)
PUTAMEN = (12, 51)


@dataclass(frozen=True)
class MarsRegion:
    """The MARS region of a lesion.

    Attributes:
        name: One of the thirteen; None in a lobe that is not known, or with no tissue near.
        territory: ``lobar``, ``deep`` or ``infratentorial``; None with no tissue near.
        left: Whether it lies left of the midline, which counts by side need of every lesion.
        distance_mm: From the lesion's centre to that region; 0 within.
        next_name: The next nearest region; None if none is within reach.
        next_distance_mm: To that.
        next_territory: The nearest other territory; None if none is within reach.
        next_territory_mm: To that.
    """

    name: str | None
    territory: str | None
    left: bool
    distance_mm: float
    next_name: str | None = None
    next_distance_mm: float | None = None
    next_territory: str | None = None
    next_territory_mm: float | None = None


def build_region_map(
    anatomy: Anatomy,
    lobes: np.ndarray | None = None,
    capsule: np.ndarray | None = None,
    *,
    deep_wm_distance_mm: float = DEEP_WHITE_MM,
) -> Volume:
    """Build the map of regions of every voxel of tissue, on the grid of the anatomy.

    White matter is deep within ``deep_wm_distance_mm`` of a lateral ventricle, if cortex is
    farther (two rules that Chen et al., Acad Radiol 2021;28:1699-1708, compare), and within
    `CAPSULE_MM` of a deep nucleus. Of deep white matter, what lies `CALLOSUM_MM` about the midline
    is callosum, between lentiform and thalamus or caudate (or where an atlas has it) internal
    capsule, lateral to the putamen external capsule, and the rest deep white matter. All else is
    lobar.

    Args:
        anatomy: Of the scan.
        lobes: Labels of the lobes in that grid, 0 where none is known, as `anatomy.atlases` gives
            them.
        capsule: Where an atlas has the internal capsule, bool, in that grid.
        deep_wm_distance_mm: How far deep white matter reaches from the ventricles.

    Returns:
        Labels of ``resources/atlases/mars.json``, `RIGHT_OFFSET` more on the right, `LOBAR_LABEL`
        in a lobe that is not known, uint8; 0 in fluid and outside.
    """
    codes = anatomy.structures.data
    leftness = compute_leftness(anatomy.midline, anatomy.structures.affine, codes.shape)
    regions = np.zeros(codes.shape, np.uint8)
    regions[np.isin(codes, [*CORTEX, *WHITE_MATTER])] = LOBAR_LABEL
    if lobes is not None:
        regions = np.where((regions == LOBAR_LABEL) & (lobes > 0), lobes, regions).astype(np.uint8)
    depth = _bound_deep(anatomy.structures, deep_wm_distance_mm)
    inner = None if capsule is None else capsule[depth]
    _mark_deep_white_matter(
        regions[depth],
        codes[depth],
        anatomy.structures.spacing,
        leftness[depth],
        inner,
        deep_wm_distance_mm,
    )
    for name, members in load_mars_table()["structures"].items():
        regions[np.isin(codes, members)] = find_label(name)
    regions[(regions > 0) & (leftness <= 0)] += RIGHT_OFFSET
    return Volume(regions, anatomy.structures.affine)


def _bound_deep(structures: Volume, deep_wm_distance_mm: float) -> tuple[slice, ...]:
    """Find the box beyond which nothing is deep, nor matters for what is."""
    inmost = np.isin(structures.data, [*LATERAL_VENTRICLES, *DEEP_NUCLEI])
    if not inmost.any():
        return (slice(0),) * 3
    reach = np.ceil(2 * max(deep_wm_distance_mm, CAPSULE_MM) / structures.spacing).astype(int)
    return find_box(inmost, reach)


def _mark_deep_white_matter(
    regions: np.ndarray, codes: np.ndarray, spacing: np.ndarray, leftness: np.ndarray,
    capsule: np.ndarray | None, deep_wm_distance_mm: float,
) -> None:  # fmt: skip
    """Mark in a map of regions which white matter is deep, and of what kind."""

    def distance_to(wanted: Sequence[int]) -> np.ndarray:
        """How far the nearest voxel of these structures is, mm."""
        mask = np.isin(codes, wanted)
        if not mask.any():
            return np.full(codes.shape, np.inf, np.float32)
        return ndimage.distance_transform_edt(~mask, spacing)

    white = np.isin(codes, WHITE_MATTER)
    ventricle, cortex = distance_to(LATERAL_VENTRICLES), distance_to(CORTEX)
    deep = white & (
        (ventricle <= np.minimum(deep_wm_distance_mm, cortex))
        | (distance_to(DEEP_NUCLEI) <= CAPSULE_MM)
    )
    regions[deep] = find_label("deep white matter")
    regions[deep & (distance_to(PUTAMEN) <= CAPSULE_MM) & _is_lateral(codes, leftness)] = (
        find_label("external capsule")
    )
    between = (distance_to(LENTIFORM) <= INTERNAL_CAPSULE_MM) & (
        distance_to(MEDIAL) <= INTERNAL_CAPSULE_MM
    )
    inner = between if capsule is None else between | capsule
    regions[deep & inner] = find_label("internal capsule")
    regions[white & (np.abs(leftness) <= CALLOSUM_MM) & (ventricle <= deep_wm_distance_mm)] = (
        find_label("corpus callosum")
    )


def _is_lateral(codes: np.ndarray, leftness: np.ndarray) -> np.ndarray:
    """Tell whether a voxel lies farther from the midline than the nearest putamen voxel."""
    putamen = np.isin(codes, PUTAMEN)
    if not putamen.any():
        return np.zeros(codes.shape, bool)
    nearest = ndimage.distance_transform_edt(~putamen, return_distances=False, return_indices=True)
    return np.abs(leftness) > np.abs(leftness[tuple(nearest)])


def locate_region(regions: Volume, centre: Sequence[float], midline: tuple) -> MarsRegion:
    """Locate a point in a map of regions, with the nearest other region and territory.

    Args:
        regions: From `build_region_map`.
        centre: World mm.
        midline: Of the anatomy.
    """
    centre = np.asarray(centre, float)
    left = bool(midline[0] @ centre + midline[1] > 0)
    labels, distances = find_labels_near(regions, centre)
    if not len(labels):
        return MarsRegion(None, None, left, np.inf)
    known = [index_regions()[int(label)] for label in labels % RIGHT_OFFSET]
    name, territory = known[0]
    located = MarsRegion(name, territory, left, _snap_distance(regions, distances[0]))
    for index in _find_first([region != known[0] for region in known]):
        located = replace(
            located,
            next_name=known[index][0] or "another lobe",
            next_distance_mm=float(distances[index]),
        )
    for index in _find_first([region[1] != territory for region in known]):
        located = replace(
            located, next_territory=known[index][1], next_territory_mm=float(distances[index])
        )
    return located


def _find_first(wanted: Sequence[bool]) -> list[int]:
    """Find the first that is wanted: its index, or nothing."""
    return np.flatnonzero(wanted)[:1].tolist()


def classify_location(
    regions: Volume, centre: Sequence[float]
) -> tuple[bool, str | None, str | None]:
    """Classify a point by a map of regions alone: whether it is left, its territory, its region.

    Args:
        regions: From `build_region_map`, on any grid.
        centre: World mm.
    """
    labels, _ = find_labels_near(regions, np.asarray(centre, float))
    if not len(labels):
        return False, None, None
    name, territory = index_regions()[int(labels[0]) % RIGHT_OFFSET]
    return bool(labels[0] < RIGHT_OFFSET), territory, name


def _snap_distance(regions: Volume, distance: float) -> float:
    """Snap the distance to 0 within a voxel: its centre is at most half a diagonal off."""
    return 0.0 if distance <= np.linalg.norm(regions.spacing) / 2 else float(distance)
