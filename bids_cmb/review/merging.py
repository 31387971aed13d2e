"""What counts in a scan after its review, and where it lies, from what lies in the derivatives.

Lesions that were found have their place in the lesion table. One that a reader added has its MNI
position by the scan's affine, and its region by the scan's map of regions, where these were written
(``--output-level full`` for the map); else it has none, and neither have the counts by region.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.region_map import classify_location
from bids_cmb.bids.markers import list_file_names
from bids_cmb.bids.paths import locate_lesion_table
from bids_cmb.bids.tables import read_table
from bids_cmb.files import read_json
from bids_cmb.imaging.registration import load_transform
from bids_cmb.imaging.volume import load_labels
from bids_cmb.lesions.table import MNI, regional_counts
from bids_cmb.review.reviews import Review, accepted_lesions, merge_reviews


@dataclass(frozen=True)
class LesionLocation:
    """Where a lesion lies, as `regional_counts` counts it; None for what is not known."""

    side: str | None
    left: bool | None
    territory: str | None
    mars: str | None


@dataclass(frozen=True, eq=False)
class ReviewedCounts:
    """A scan after its review.

    Attributes:
        counts: As columns of the scan table: how many, and how many where.
        mni: Positions of those that have one, mm.
    """

    counts: dict[str, object]
    mni: list[tuple[float, ...]]


def reviewed_counts(
    found: Path, reviews: Mapping[str, Sequence[Review]]
) -> dict[str, ReviewedCounts]:
    """Count what is left of every reviewed scan, by lesion mask.

    Args:
        found: The derivative dataset that was reviewed.
        reviews: Of each scan, as `read_reviews` gives them.

    Raises:
        ValueError: If a map of regions or an affine is none.
        OSError: If a file cannot be read.
    """
    return {mask: _reviewed_counts(found / mask, own) for mask, own in reviews.items()}


def _reviewed_counts(mask: Path, reviews: Sequence[Review]) -> ReviewedCounts:
    rows = read_table(locate_lesion_table(mask))
    consensus = merge_reviews([int(row["index"]) for row in rows], reviews)
    left = accepted_lesions(rows, consensus)
    locations = [location_of(row) for row in left] + _added(mask, consensus.added)
    places = [tuple(float(row[axis]) for axis in MNI) for row in left if has_mni_position(row)]
    counts = {"n_cmb": len(locations), **regional_counts(locations)}
    return ReviewedCounts(counts, places + _in_mni(mask, consensus.added))


def has_mni_position(row: Mapping) -> bool:
    """Whether a row of the lesion table has an MNI position."""
    return None not in [row.get(axis) for axis in MNI]


def location_of(row: Mapping) -> LesionLocation:
    """Where a row of the lesion table lies."""
    leans = row.get("mars_side")
    left = None if leans is None else leans == "left"
    return LesionLocation(row.get("side"), left, row.get("territory"), row.get("mars_region"))


def _added(mask: Path, points: np.ndarray) -> list[LesionLocation]:
    """Where lesions lie that readers added."""
    file = _written(mask, "_seg-regions_", ".nii.gz") if len(points) else None
    if file is None:
        return [LesionLocation(None, None, None, None) for _ in points]
    regions = load_labels(file)
    found = []
    for point in points:
        left, territory, name = classify_location(regions, point)
        found.append(LesionLocation("left" if left else "right", left, territory, name))
    return found


def _in_mni(mask: Path, points: np.ndarray) -> list[tuple[float, ...]]:
    file = _written(mask, "_to-MNI", "_xfm.txt") if len(points) else None
    if file is None:
        return []
    to_mni = load_transform(file)
    return [tuple(float(x) for x in (to_mni @ [*point, 1])[:3]) for point in points]


def _written(mask: Path, part: str, end: str) -> Path | None:
    """A file that was written with a lesion mask, if it lies there still."""
    for name in list_file_names(read_json(mask.with_name(f"{mask.name[:-7]}.json"))):
        place = mask.with_name(name)
        if part in place.name and place.name.endswith(end) and place.is_file():
            return place
    return None
