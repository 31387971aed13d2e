"""Counts and locations of a scan's lesions after its review, from its derivatives.

Detected lesions and candidates have their location in their tables. One that a reader added gets
its MNI position by the scan's affine, and its region by the scan's region map, if these were
written (``--output-level full`` for the map); without them it has none, and there are no counts by
region.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.region_map import classify_location
from bids_cmb.bids.markers import list_file_names
from bids_cmb.bids.tables import POSITION_COLUMNS, round_or_none
from bids_cmb.files import read_json
from bids_cmb.imaging.nifti import load_labels
from bids_cmb.imaging.registration import load_transform
from bids_cmb.imaging.volume import map_points
from bids_cmb.lesions.table import MNI_COLUMNS, count_by_region, read_listed
from bids_cmb.review.reviews import Review, merge_reviews, select_accepted


@dataclass(frozen=True)
class LesionLocation:
    """Location of a lesion, as `count_by_region` takes it; None for what is not known."""

    side: str | None
    left: bool | None
    territory: str | None
    mars: str | None


@dataclass(frozen=True, eq=False)
class ReviewedCounts:
    """Lesions of a scan after its review.

    Attributes:
        counts: In total and by region, as columns of the scan table.
        mni: Positions of those that have one, mm.
    """

    counts: dict[str, object]
    mni: list[tuple[float, ...]]


def count_reviewed(
    derivatives: Path, reviews: Mapping[str, Sequence[Review]]
) -> dict[str, ReviewedCounts]:
    """Count the accepted lesions of every reviewed scan, by lesion mask.

    Args:
        derivatives: The dataset that was reviewed.
        reviews: Of each scan, as `read_reviews` gives them.

    Raises:
        ValueError: If a region map or an affine cannot be used.
        OSError: If a file cannot be read.
    """
    return {
        mask: _count_reviewed_scan(derivatives / mask, scan_reviews)
        for mask, scan_reviews in reviews.items()
    }


def _count_reviewed_scan(mask: Path, reviews: Sequence[Review]) -> ReviewedCounts:
    rows = read_listed(mask)
    consensus = merge_reviews([int(row["index"]) for row in rows], reviews)
    accepted = select_accepted(rows, consensus)
    locations = [get_location(row) for row in accepted] + _locate_added(mask, consensus.added)
    positions = [
        tuple(float(row[axis]) for axis in MNI_COLUMNS) for row in accepted if has_mni_position(row)
    ]
    counts = {"n_cmb": len(locations), **count_by_region(locations, located=_has_anatomy(mask))}
    return ReviewedCounts(counts, positions + _map_to_mni(mask, consensus.added))


def _has_anatomy(mask: Path) -> bool:
    """Check whether the lesions of a scan were located, by the sidecar of its mask."""
    sidecar = read_json(mask.with_name(f"{mask.name[:-7]}.json")) or {}
    return sidecar.get("Provenance", {}).get("Anatomy", "unknown") is not None


def has_mni_position(row: Mapping) -> bool:
    """Check whether a row of the lesion table has an MNI position."""
    return None not in [row.get(axis) for axis in MNI_COLUMNS]


def get_location(row: Mapping) -> LesionLocation:
    """Get the location of a row of the lesion table."""
    side = row.get("mars_side")
    left = None if side is None else side == "left"
    return LesionLocation(row.get("side"), left, row.get("territory"), row.get("mars_region"))


def _locate_added(mask: Path, points: np.ndarray) -> list[LesionLocation]:
    """Locate the lesions that readers added."""
    map_path = _find_written_file(mask, "_seg-regions_", ".nii.gz") if len(points) else None
    if map_path is None:
        return [LesionLocation(None, None, None, None) for _ in points]
    regions = load_labels(map_path)
    locations = []
    for point in points:
        left, territory, name = classify_location(regions, point)
        locations.append(LesionLocation("left" if left else "right", left, territory, name))
    return locations


def make_added_rows(mask: Path, points: np.ndarray) -> list[dict[str, object]]:
    """Make rows of the lesions that readers added, in those columns of lesions that are known.

    Args:
        mask: Lesion mask of the scan.
        points: World mm, (N, 3).
    """
    positions = _map_to_mni(mask, points) or [(None,) * 3] * len(points)
    return [
        {
            **{
                axis: round_or_none(float(x), 2)
                for axis, x in zip(POSITION_COLUMNS, point, strict=True)
            },
            "territory": location.territory,
            "side": location.side,
            "mars_region": location.mars,
            "mars_side": location.side,
            **{axis: round_or_none(x, 1) for axis, x in zip(MNI_COLUMNS, mni, strict=True)},
        }
        for point, location, mni in zip(points, _locate_added(mask, points), positions, strict=True)
    ]


def _map_to_mni(mask: Path, points: np.ndarray) -> list[tuple[float, ...]]:
    """Map points to MNI space, mm; none without the scan's affine."""
    file = _find_written_file(mask, "_to-MNI", "_xfm.txt") if len(points) else None
    if file is None:
        return []
    to_mni = load_transform(file)
    return [tuple(place) for place in map_points(to_mni, points).tolist()]


def _find_written_file(mask: Path, part: str, end: str) -> Path | None:
    """Find a file that was written with a lesion mask, if it is still there."""
    for name in list_file_names(read_json(mask.with_name(f"{mask.name[:-7]}.json"))):
        path = mask.with_name(name)
        if part in path.name and path.name.endswith(end) and path.is_file():
            return path
    return None
