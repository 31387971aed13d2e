"""Read rating sheets of MARS: how many microbleeds each scan has in each region, left and right.

Either one row for each scan, ``file`` and a column for each region and side (``frontal_left``,
``basal ganglia right``, and ``frontal_left_possible`` where possible ones are rated apart); or a
row for each count: ``file, region, side, count`` and, if rated, ``certainty``. Empty cells are 0.
"""

from collections.abc import Sequence
from pathlib import Path

from bids_cmb.anatomy.mars import list_regions
from bids_cmb.bids.spreadsheets import Cell, read_named_rows
from bids_cmb.datasets.base import LabelledDataset, LabelledScan, get_stem, get_subject
from bids_cmb.datasets.plain_tables import CERTAINTIES, find_table, format_name, group_by_scan

SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}
SYNONYMS = {
    "brain stem": "brainstem",
    "cerebellar": "cerebellum",
    "deep and periventricular white matter": "deep white matter",
    "deep and periventricular wm": "deep white matter",
    "dpwm": "deep white matter",
    "insular": "insula",
}
LONG_COLUMNS = ("file", "region", "side", "count")


def read(folder: Path) -> LabelledDataset:
    """Read the counts of every scan in the only sheet of a folder.

    Raises:
        ValueError: If there is not one sheet, its layout is not one of the two, a count is no
            whole number, or a scan is missing.
        OSError: If it cannot be read.
    """
    table = find_table(folder)
    rows = read_named_rows(table, ("file",))
    titles = list(rows[0]) if rows else []
    long = set(LONG_COLUMNS) <= set(titles)
    known = (*LONG_COLUMNS, "certainty", "subject") if long else ("file", "subject")
    unknown = [
        title for title in titles if title not in known and (long or not _parse_title(title))
    ]
    if not long:
        _check_no_region(table, unknown)
    scans = []
    for image, rows_of_scan in group_by_scan(table, rows).items():
        counts = _read_long(table, rows_of_scan) if long else _read_wide(table, rows_of_scan)
        name, first = get_stem(image), rows_of_scan[0][1]
        scans.append(
            LabelledScan(
                name, format_name(first.get("subject")) or get_subject(name), image, counts=counts
            )
        )
    return LabelledDataset(
        title=f"Microbleeds rated by MARS, {table.name}",
        licence="As the source's; bids_cmb does not know it.",
        scans=tuple(scans),
        notes=(
            "A rating sheet has no positions: the truth is a table of counts.",
            *([f"{table.name}: columns left out: {', '.join(unknown)}."] if unknown else ()),
        ),
    )


def make_column_name(region: str, side: str, certainty: str) -> str:
    """Make the name of a count: ``n_frontal_left`` if definite, ``…_possible`` if not."""
    end = "" if certainty == CERTAINTIES[0] else f"_{certainty}"
    return f"n_{region.replace(' ', '_')}_{side}{end}"


def _check_no_region(table: Path, titles: Sequence[str]) -> None:
    """Refuse columns that name a region and are no count: what they hold would be lost."""
    for title in titles:
        if any(region in _normalize(title) for region in (*list_regions(), *SYNONYMS)):
            raise ValueError(
                f"{table}: a column of a region must be named like frontal_left or "
                f"frontal_left_possible; found {title}."
            )


def _read_wide(table: Path, rows_of_scan: list[tuple[int, dict[str, Cell]]]) -> dict[str, int]:
    if len(rows_of_scan) > 1:
        raise ValueError(
            f"{table}: a scan needs one row; {format_name(rows_of_scan[0][1]['file'])} has "
            f"{len(rows_of_scan)}."
        )
    number, row = rows_of_scan[0]
    counts: dict[str, int] = {}
    for title, cell in row.items():
        meant = _parse_title(title)
        if meant:
            counts[make_column_name(*meant)] = _parse_count(cell, f"{table}: row {number}: {title}")
    if not counts:
        raise ValueError(
            f"{table}: columns of MARS are needed: {', '.join(LONG_COLUMNS)}, or file and a column "
            f"for each region and side (frontal_left …); found {', '.join(row)[:200]}."
        )
    return counts


def _read_long(table: Path, rows_of_scan: list[tuple[int, dict[str, Cell]]]) -> dict[str, int]:
    counts = {
        make_column_name(region, side, CERTAINTIES[0]): 0
        for region in list_regions()
        for side in ("left", "right")
    }
    for number, row in rows_of_scan:
        region, side = format_name(row["region"]), format_name(row["side"])
        certainty = format_name(row.get("certainty")).lower() or CERTAINTIES[0]
        meant = _parse_title(f"{region} {side}")
        if not meant or certainty not in CERTAINTIES:
            raise ValueError(
                f"{table}: row {number}: a region of MARS ({', '.join(list_regions())}), left or "
                f"right, {' or '.join(CERTAINTIES)} are needed; found {region!r}, {side!r}, "
                f"{certainty!r}."
            )
        name = make_column_name(*meant[:2], certainty)
        counts[name] = counts.get(name, 0) + _parse_count(
            row["count"], f"{table}: row {number}: count"
        )
    return counts


def _parse_title(title: str) -> tuple[str, str, str] | None:
    """Parse region, side and certainty from the title of a column; None if it has none."""
    words = _normalize(title).split()
    certainty = next((word for word in words if word in CERTAINTIES), CERTAINTIES[0])
    words = [word for word in words if word not in (*CERTAINTIES, "n", "lobe")]
    side = next((SIDES[word] for word in words if word in SIDES), None)
    region = " ".join(word for word in words if word not in SIDES)
    region = SYNONYMS.get(region, region)
    return (region, side, certainty) if side and region in list_regions() else None


def _normalize(title: str) -> str:
    """Write the title of a column in lower case, with spaces between its words."""
    return title.lower().replace("_", " ").replace("-", " ")


def _parse_count(cell: Cell, where: str) -> int:
    if cell is None:
        return 0
    if not isinstance(cell, float) or cell < 0 or not cell.is_integer():
        raise ValueError(f"{where} must be a whole number from 0; found {cell!r}.")
    return int(cell)
