"""Evidence for a lesion of one scan at the same place of another.

Two thresholds do not make a new lesion: a detector that is just above its threshold at one session
and just below it at the other has seen the same thing twice. So the probability map of the other
scan is read at the same place, and the darkness of the place in both images is compared: what was
as dark before is not new, whatever the detector thought of it.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.volume import Volume, map_points
from bids_cmb.lesions.measure import CONTRAST_SHELL_MM
from bids_cmb.lesions.table import get_position, get_size
from bids_cmb.longitudinal.visits import Visit, VisitImages

SEEN, FAINT, UNCERTAIN, ABSENT, NOT_COMPARABLE = (
    "seen", "faint", "uncertain", "absent", "not comparable",
)  # fmt: skip
PERSISTENT, NEW, LOST = "persistent", "new", "not seen again"
SEARCH_MM = 1.0  # along each axis that registration may be off, when contrasts are compared
MARGIN_MM = 3.0  # outside the brain mask that detectors still look at


@dataclass(frozen=True)
class EvidenceRule:
    """Numbers of the rule (docs/methods/longitudinal.md); not fitted to data.

    Attributes:
        absent_probability: Share of the threshold below which the probability speaks for absence.
        absent_contrast: Share of the lesion's contrast up to which the place is not dark.
        faint_contrast: Share from which on the place is as dark as the lesion.
        coarse_ratio: Slices this many times as far apart are much coarser.
        weak_ratio: Field strength times echo time, as a share, below which lesions bloom too little
            to be compared.
        position_mm: By which positions of one lesion in two scans differ, besides their slices:
            registration (95 % within 1.5 mm) and the lesion's outline.
    """

    absent_probability: float = 0.25
    absent_contrast: float = 0.5
    faint_contrast: float = 0.7
    coarse_ratio: float = 2.0
    weak_ratio: float = 0.5
    position_mm: float = 2.5


@dataclass(frozen=True)
class Reading:
    """Evidence for a lesion in a scan.

    Attributes:
        state: `SEEN` if it was found there, `FAINT` if it shows below the threshold, `ABSENT` if it
            clearly does not, `UNCERTAIN` between, or `NOT_COMPARABLE`.
        probability: The highest at its place; None where not comparable.
        contrast: 1 - mean intensity at its place / median around; None likewise.
        contrast_share: Of the lesion's contrast where it was found; None likewise.
        reason: Why it is not comparable; empty else.
    """

    state: str
    probability: float | None = None
    contrast: float | None = None
    contrast_share: float | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Place:
    """Where a lesion lies in the scan that it was found in.

    Attributes:
        centre: World mm, (3,).
        core: Centres of its voxels, world mm, (N, 3).
        shell: Of the voxels around it, (M, 3).
        contrast: 1 - mean intensity of the core / median of the shell.
        diameter: mm.
    """

    centre: np.ndarray
    core: np.ndarray
    shell: np.ndarray
    contrast: float
    diameter: float


def tolerance_mm(first: Visit, second: Visit, rule: EvidenceRule) -> float:
    """Compute how far apart one lesion may lie in two scans: `position_mm` and half a slice."""
    slices = [float(visit.row.get("slice_spacing_mm") or 1.0) for visit in (first, second)]
    return rule.position_mm + max(slices) / 2


def locate_place(images: VisitImages, row: dict) -> Place:
    """Locate a lesion in its scan.

    Args:
        images: Of the scan.
        row: Of its table of lesions.
    """
    labels = images.labels
    box, start = _cut_around(images, int(row["index"]))
    inside = labels.data[box] == int(row["index"])
    distance = ndimage.distance_transform_edt(~inside, sampling=labels.spacing)
    free = (labels.data[box] == 0) & images.brain.data[box]
    shell = free & (distance > 0) & (distance <= CONTRAST_SHELL_MM)
    core, around = (
        labels.world(np.argwhere(part) + start) for part in (inside, shell if shell.any() else free)
    )
    centre = np.array(get_position(row))
    contrast = _measure_contrast(images.image, core, around)
    return Place(centre, core, around, contrast, get_size(row))


def _cut_around(images: VisitImages, index: int) -> tuple[tuple[slice, ...], np.ndarray]:
    """Cut the box around a lesion and its shell."""
    box, labels = images.boxes[index - 1], images.labels
    margin = np.ceil((CONTRAST_SHELL_MM + 1) / labels.spacing).astype(int)
    start = np.maximum([side.start for side in box] - margin, 0)
    end = np.minimum([side.stop for side in box] + margin, labels.shape)
    return tuple(map(slice, start, end)), start


def _measure_contrast(image: Volume, core: np.ndarray, shell: np.ndarray) -> float:
    level = float(np.median(_sample(image, shell))) if len(shell) else 0.0
    return 1 - float(_sample(image, core).mean()) / level if level > 0 else 0.0


def _sample(image: Volume, points: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(image.data, image.index(points).T, order=1, mode="nearest")


def read_evidence(
    place: Place,
    to_other: np.ndarray,
    other: VisitImages,
    visits: tuple[Visit, Visit],
    rule: EvidenceRule,
    taken: Collection[int] = (),
) -> Reading:
    """Read the evidence for a lesion in a scan that it was not found in.

    Args:
        place: Of the lesion in the scan that it was found in.
        to_other: World mm of that scan to world mm of the other, (4, 4).
        other: The other scan.
        visits: The scan that it was found in, and the other.
        rule: Numbers of the rule.
        taken: Lesions of the other scan that are other ones, by index: what they show does not
            count for this one.
    """
    reason = _find_obstacle(place, to_other, other)
    probability = _read_probability(place, to_other, other, tolerance_mm(*visits, rule), taken)
    if reason:
        return Reading(NOT_COMPARABLE, reason=reason)
    contrast = _search_contrast(place, to_other, other.image)
    share = contrast / place.contrast if place.contrast > 0 else 1.0
    state = judge(probability / visits[1].threshold, share, rule)
    reason = "" if state == FAINT else _find_disadvantage(place, *visits, rule)
    if reason:
        state = NOT_COMPARABLE
    return Reading(state, probability, contrast, share, reason)


def judge(probability_share: float, contrast_share: float, rule: EvidenceRule) -> str:
    """Judge by the probability, as a share of the threshold, and by the share of the contrast."""
    if probability_share >= 1 or (
        probability_share >= rule.absent_probability and contrast_share >= rule.faint_contrast
    ):
        return FAINT
    if probability_share < rule.absent_probability and contrast_share <= rule.absent_contrast:
        return ABSENT
    return UNCERTAIN


def _find_obstacle(place: Place, to_other: np.ndarray, other: VisitImages) -> str:
    """Find why a place cannot be seen in a scan at all."""
    index = other.image.index(map_points(to_other, place.core))
    inside = ((index >= -0.5) & (index <= np.array(other.image.shape) - 0.5)).all(axis=1)
    if inside.mean() < 0.9:
        return "outside the field of view"
    reach = np.ceil(MARGIN_MM / other.brain.spacing).astype(int)
    middle = np.clip(np.rint(index.mean(axis=0)).astype(int), 0, np.array(other.brain.shape) - 1)
    around = tuple(map(slice, np.maximum(middle - reach, 0), middle + reach + 1))
    if not other.brain.data[around].any() or (other.image.data[around] == 0).mean() > 0.5:
        return "outside the brain mask"
    return ""


def _find_disadvantage(place: Place, visit: Visit, other: Visit, rule: EvidenceRule) -> str:
    """Find why a lesion that is there might not show in the other scan."""
    if visit.contrast != other.contrast:
        return "other contrast"
    slices = [float(each.row.get("slice_spacing_mm") or 1.0) for each in (visit, other)]
    if slices[1] >= rule.coarse_ratio * slices[0] and place.diameter < slices[1]:
        return "much coarser slices"
    if visit.weighting and other.weighting and other.weighting < rule.weak_ratio * visit.weighting:
        return "much weaker T2* weighting"
    return ""


def _read_probability(
    place: Place, to_other: np.ndarray, other: VisitImages, reach_mm: float, taken: Collection[int]
) -> float:
    """Read the highest probability within a distance of a place, of other lesions not."""
    centre = map_points(to_other, place.centre)
    box, near = other.probability.find_ball(centre, reach_mm)
    counts = near & ~np.isin(other.labels.data[box], list(taken))
    return float(other.probability.data[box][counts].max(initial=0.0))


def _search_contrast(place: Place, to_other: np.ndarray, image: Volume) -> float:
    """Search the highest contrast within `SEARCH_MM` of a place."""
    steps = np.array([-SEARCH_MM, 0, SEARCH_MM])
    core, shell = (map_points(to_other, points) for points in (place.core, place.shell))
    shifts = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    return max(_measure_contrast(image, core + shift, shell + shift) for shift in shifts)
