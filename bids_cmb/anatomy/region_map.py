"""Where a lesion lies by MARS: thirteen regions, left and right, over the whole brain.

Every voxel of tissue gets one region, by rules in mm from the structures (of the anatomy network,
or of the user's own segmentation), and the lobes from an atlas in MNI space where there is one. The
lesion's region is that of its centre, or the nearest; the second nearest and how far it is say how
sure that is. MARS: Gregoire et al., Neurology 2009;73:1759-1766.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.mars import LOBAR_LABEL, RIGHT, by_label, label_of, table
from bids_cmb.anatomy.segmentation import (
    CAPSULE_MM,
    DEEP,
    DEEP_WHITE_MM,
    VENTRICLES,
    WHITE,
    Anatomy,
    around,
    leftness,
)
from bids_cmb.imaging.preprocessing import find_bounds
from bids_cmb.imaging.volume import Volume

CALLOSUM_MM = 6.0  # white matter this close to the midline is corpus callosum (and fornix)
INTERNAL_MM = 6.0  # white matter this close to both lentiform and thalamus or caudate
CORTEX = (3, 42)
LENTIFORM, MEDIAL = (12, 51, 13, 52), (10, 49, 11, 50)
PUTAMEN = (12, 51)


@dataclass(frozen=True)
class Region:
    """Where a lesion lies by MARS.

    Attributes:
        name: One of the thirteen; None in a lobe that is not known, or with no tissue near.
        territory: ``lobar``, ``deep`` or ``infratentorial``; None with no tissue near.
        left: Whether it lies left of the midline, which counts by side need of every lesion.
        away: mm from the lesion's centre to that region; 0 within.
        next_name: The region that is nearest but for it; None if none is within reach.
        next_away: mm to that.
    """

    name: str | None
    territory: str | None
    left: bool
    away: float
    next_name: str | None
    next_away: float | None


def region_map(
    anatomy: Anatomy,
    lobes: np.ndarray | None = None,
    capsule: np.ndarray | None = None,
    *,
    deep_wm_distance_mm: float = DEEP_WHITE_MM,
) -> Volume:
    """The region of every voxel of tissue, on the grid of the anatomy.

    White matter is deep within ``deep_wm_distance_mm`` of a lateral ventricle, if cortex is
    farther, and within `CAPSULE_MM` of a deep nucleus. Of deep white matter, what lies
    `CALLOSUM_MM` about the midline is callosum, between lentiform and thalamus or caudate (or
    where an atlas has it) internal capsule, lateral to the putamen external capsule, and the rest
    deep white matter. All else is lobar.

    Args:
        anatomy: Of the scan.
        lobes: Labels of the lobes in that grid, 0 where none is known, as `anatomy.atlases` gives
            them.
        capsule: Where an atlas has the internal capsule, bool, in that grid.
        deep_wm_distance_mm: How far deep white matter reaches from the ventricles.

    Returns:
        Labels of ``resources/atlases/mars.json``, `RIGHT` more on the right, `LOBAR_LABEL` in a
        lobe that is not known, uint8; 0 in fluid and outside.
    """
    codes = anatomy.structures.data
    beside = leftness(anatomy.midline, anatomy.structures.affine, codes.shape)
    found = np.zeros(codes.shape, np.uint8)
    found[np.isin(codes, [*CORTEX, *WHITE])] = LOBAR_LABEL
    if lobes is not None:
        found = np.where((found == LOBAR_LABEL) & (lobes > 0), lobes, found).astype(np.uint8)
    depth = _depth(anatomy.structures, deep_wm_distance_mm)
    inner = None if capsule is None else capsule[depth]
    _dig(
        found[depth],
        codes[depth],
        anatomy.structures.spacing,
        beside[depth],
        inner,
        deep_wm_distance_mm,
    )
    for name, members in table()["structures"].items():
        found[np.isin(codes, members)] = label_of(name)
    found[(found > 0) & (beside <= 0)] += RIGHT
    return Volume(found, anatomy.structures.affine)


def _depth(structures: Volume, deep_wm_distance_mm: float) -> tuple[slice, ...]:
    """The box beyond which nothing is deep, nor of any account for what is."""
    inmost = np.isin(structures.data, [*VENTRICLES, *DEEP])
    if not inmost.any():
        return (slice(0),) * 3
    reach = np.ceil(2 * max(deep_wm_distance_mm, CAPSULE_MM) / structures.spacing).astype(int)
    low, high = find_bounds(inmost)
    return tuple(slice(max(a, 0), b) for a, b in zip(low - reach, high + reach, strict=True))


def _dig(
    found: np.ndarray, codes: np.ndarray, spacing: np.ndarray, beside: np.ndarray,
    capsule: np.ndarray | None, deep_wm_distance_mm: float,
) -> None:  # fmt: skip
    """Write into a map of regions which white matter is deep, and of what kind."""

    def far(wanted: Sequence[int]) -> np.ndarray:
        """How far the nearest voxel of these structures is, mm."""
        there = np.isin(codes, wanted)
        if not there.any():
            return np.full(codes.shape, np.inf, np.float32)
        return ndimage.distance_transform_edt(~there, spacing)

    white = np.isin(codes, WHITE)
    ventricle, cortex = far(VENTRICLES), far(CORTEX)
    deep = white & (
        (ventricle <= np.minimum(deep_wm_distance_mm, cortex)) | (far(DEEP) <= CAPSULE_MM)
    )
    found[deep] = label_of("deep white matter")
    found[deep & (far(PUTAMEN) <= CAPSULE_MM) & _lateral(codes, beside)] = label_of(
        "external capsule"
    )
    between = (far(LENTIFORM) <= INTERNAL_MM) & (far(MEDIAL) <= INTERNAL_MM)
    inner = between if capsule is None else between | capsule
    found[deep & inner] = label_of("internal capsule")
    found[white & (np.abs(beside) <= CALLOSUM_MM) & (ventricle <= deep_wm_distance_mm)] = label_of(
        "corpus callosum"
    )


def _lateral(codes: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Whether a voxel lies farther from the midline than the putamen voxel nearest to it."""
    putamen = np.isin(codes, PUTAMEN)
    if not putamen.any():
        return np.zeros(codes.shape, bool)
    nearest = ndimage.distance_transform_edt(~putamen, return_distances=False, return_indices=True)
    return np.abs(beside) > np.abs(beside[tuple(nearest)])


def locate(regions: Volume, centre: Sequence[float], midline: tuple) -> Region:
    """The region of a place, and the next.

    Args:
        regions: As `region_map` gives them.
        centre: World mm.
        midline: Of the anatomy.
    """
    centre = np.asarray(centre, float)
    left = bool(midline[0] @ centre + midline[1] > 0)
    labels, away = around(regions, centre)
    if not len(labels):
        return Region(None, None, left, np.inf, None, None)
    plain = labels % RIGHT
    others = np.flatnonzero(plain != plain[0])
    known = by_label()
    name, territory = known[int(plain[0])]
    if not len(others):
        return Region(name, territory, left, _within(regions, away[0]), None, None)
    following = others[0]
    return Region(
        name,
        territory,
        left,
        _within(regions, away[0]),
        known[int(plain[following])][0] or "another lobe",
        float(away[following]),
    )


def spot_of(regions: Volume, centre: Sequence[float]) -> tuple[bool, str | None, str | None]:
    """Whether a place lies left, its territory and its region, by a map of regions alone.

    Args:
        regions: As `region_map` gives them, on any grid.
        centre: World mm.
    """
    labels, _ = around(regions, np.asarray(centre, float))
    if not len(labels):
        return False, None, None
    name, territory = by_label()[int(labels[0]) % RIGHT]
    return bool(labels[0] < RIGHT), territory, name


def _within(regions: Volume, away: float) -> float:
    """0 for a place within a voxel: its centre is at most half a diagonal off."""
    return 0.0 if away <= np.linalg.norm(regions.spacing) / 2 else float(away)
