"""Lesions as rows of tables: each lesion, and the counts of a scan by region."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bids_cmb.anatomy.mars import classify_pattern, list_regions
from bids_cmb.bids.paths import locate_candidate_table, locate_lesion_table
from bids_cmb.bids.tables import LESION_INDEX, POSITION_COLUMNS, read_table, round_or_none
from bids_cmb.lesions.candidates import CANDIDATE
from bids_cmb.lesions.measure import Lesion

MNI_COLUMNS = ("mni_x_mm", "mni_y_mm", "mni_z_mm")
SMALL_MM = 5.0  # bound of the size classes of BOMBS, Cordonnier et al. 2009
TERRITORIES = ("lobar", "deep", "infratentorial")


def make_lesion_row(lesion: Lesion) -> dict[str, object]:
    """Make the row of a lesion or a candidate in its table."""
    prefix = CANDIDATE if lesion.certainty == CANDIDATE else "CMB"
    x, y, z = lesion.centre
    i, j, k = lesion.voxel
    return {
        "index": lesion.index,
        "name": f"{prefix}{lesion.index:03d}",
        "mapping": LESION_INDEX,
        "x_mm": round_or_none(x, 2),
        "y_mm": round_or_none(y, 2),
        "z_mm": round_or_none(z, 2),
        "i": round_or_none(i, 2),
        "j": round_or_none(j, 2),
        "k": round_or_none(k, 2),
        "volume_mm3": round_or_none(lesion.volume, 3),
        "equivalent_diameter_mm": round_or_none(lesion.equivalent_diameter, 2),
        "in_plane_diameter_mm": round_or_none(lesion.in_plane_diameter, 2),
        "half_depth_diameter_mm": round_or_none(lesion.half_depth_diameter, 2),
        "half_depth_in_plane_mm": round_or_none(lesion.half_depth_in_plane, 2),
        "slices": lesion.slices,
        "elongation": round_or_none(lesion.elongation, 2),
        "contrast": round_or_none(lesion.contrast, 3),
        "distance_to_brain_surface_mm": round_or_none(lesion.distance_to_surface, 2),
        "probability_mean": round_or_none(lesion.probability_mean, 4),
        "probability_max": round_or_none(lesion.probability_max, 4),
        "probability_sd": round_or_none(lesion.probability_sd, 4),
        "certainty": lesion.certainty,
        "flags": ",".join(lesion.flags) or None,
        "included": "yes" if lesion.included else "no",
        "region": lesion.region,
        "territory": lesion.territory,
        "side": lesion.side,
        "mars_region": lesion.mars,
        "mars_side": None if lesion.left is None else "left" if lesion.left else "right",
        "nearest_other_region": lesion.nearest_other_mars,
        "nearest_other_region_mm": round_or_none(lesion.nearest_other_mars_mm, 1),
        "nearest_other_territory": lesion.nearest_other_territory,
        "nearest_other_territory_mm": round_or_none(lesion.nearest_other_territory_mm, 1),
        "atlas_region": lesion.parcel,
        **{
            name: round_or_none(position, 1)
            for name, position in zip(MNI_COLUMNS, lesion.mni or (None,) * 3, strict=True)
        },
        "mni_uncertainty_mm": round_or_none(lesion.mni_uncertainty_mm, 1),
    }


def read_listed(mask: Path) -> list[dict[str, str | None]]:
    """Read the rows of all that a page lists of a scan: its lesions, then its candidates, if any.

    Args:
        mask: Lesion mask of the scan.

    Raises:
        ValueError: If a table is not text in UTF-8.
        OSError: If one cannot be read.
    """
    candidates = locate_candidate_table(mask)
    return [
        *read_table(locate_lesion_table(mask)),
        *(read_table(candidates) if candidates.is_file() else ()),
    ]


def is_candidate(row: Mapping) -> bool:
    """Check whether a row is that of a candidate, not of a lesion."""
    return row.get("certainty") == CANDIDATE


def count_lesions(lesions: Iterable[Lesion], *, located: bool = True) -> dict[str, object]:
    """Count the lesions of a scan, in columns of the scan table; see `count_by_region`."""
    lesions = list(lesions)
    counted = [lesion for lesion in lesions if lesion.included]
    definite = sum(lesion.certainty == "definite" for lesion in counted)
    small = sum(lesion.size < SMALL_MM for lesion in counted)
    return {
        "n_cmb": len(counted),
        "n_definite": definite,
        "n_possible": len(counted) - definite,
        "n_excluded": len(lesions) - len(counted),
        "cmb_volume_mm3": round_or_none(sum(lesion.volume for lesion in counted), 3),
        "n_under_5mm": small,
        "n_5mm_or_more": len(counted) - small,
        "burden": classify_burden(len(counted)),
        **count_by_region(counted, located=located),
    }


def count_by_region(counted: Sequence[Lesion], *, located: bool = True) -> dict[str, object]:
    """Count lesions by territory and region of MARS, in columns of the scan table.

    Args:
        counted: Lesions, or objects with their ``side``, ``left``, ``territory`` and ``mars``.
        located: Whether the scan has an anatomy. Without, nothing is known of its regions, not
            even that they hold none: every column is None.
    """
    columns = {
        **{f"n_{name}": _count_in_territory(counted, name) for name in TERRITORIES},
        "lobar_class": _classify_lobar(_count_in_territory(counted, "lobar")),
        "pattern": _classify_pattern(counted),
        **{
            column: _count_in_region(counted, name, left=left)
            for column, name, left in list_mars_columns()
        },
    }
    return columns if located else dict.fromkeys(columns)


def list_mars_columns() -> list[tuple[str, str, bool]]:
    """List the columns that count by region and side: (column, region, whether left)."""
    return [
        (f"n_{name.replace(' ', '_')}_{side}", name, side == "left")
        for name in list_regions()
        for side in ("left", "right")
    ]


def _count_in_region(counted: Sequence[Lesion], region: str, *, left: bool) -> int | None:
    """Count the lesions in a region; None without an anatomy, or if a lesion's lobe is unknown."""
    lobar = region in list_regions("lobar")
    unknown = any(
        lesion.left is None or (lobar and lesion.territory == "lobar" and lesion.mars is None)
        for lesion in counted
    )
    if unknown:
        return None
    return sum(lesion.mars == region and lesion.left == left for lesion in counted)


def _classify_pattern(counted: Sequence[Lesion]) -> str | None:
    territories = {name: _count_in_territory(counted, name) for name in TERRITORIES}
    if None in territories.values():
        return None
    return classify_pattern(territories, sum(lesion.mars == "cerebellum" for lesion in counted))


def _classify_lobar(count: int | None) -> str | None:
    return None if count is None else str(count) if count < 2 else ">=2"


def _count_in_territory(counted: Sequence[Lesion], territory: str) -> int | None:
    """Count the lesions in a territory; None without an anatomy."""
    if any(lesion.side is None for lesion in counted):
        return None
    return sum(lesion.territory == territory for lesion in counted)


def classify_burden(count: int) -> str:
    """Classify a number of microbleeds, in words that no spreadsheet takes for a date."""
    if count < 2:
        return str(count)
    return "2 to 4" if count <= 4 else "5 to 10" if count <= 10 else "over 10"


def get_position(row: Mapping) -> tuple[float, ...]:
    """Get the position of a row of the lesion table, world mm."""
    return tuple(float(row[axis]) for axis in POSITION_COLUMNS)


def get_size(row: Mapping) -> float:
    """Get the diameter that size classes go by of a row of the lesion table, mm."""
    return float(row.get("half_depth_diameter_mm") or row["equivalent_diameter_mm"])
