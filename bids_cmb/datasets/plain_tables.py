"""Read a plain table of positions: ``file, x, y, z, space`` and, if known, the index base.

Columns: ``file`` (below the table's folder); ``x, y, z``, all three empty for a scan without
lesions; ``space``, ``voxel`` or ``world`` (mm, RAS+), the same in every row. Optional:
``index_base`` (0 or 1, the same in every row), ``diameter_mm``, ``certainty`` (``definite`` or
``possible``), ``subject``.
"""

from pathlib import Path

from bids_cmb.bids.spreadsheets import TABLE_EXTENSIONS, Cell, read_named_rows
from bids_cmb.datasets.base import (
    ALL_FLIPS,
    LabelledDataset,
    LabelledScan,
    Point,
    UnknownConventions,
    find_images,
    get_stem,
    get_subject,
)

REQUIRED_COLUMNS = ("file", "x", "y", "z", "space")
CERTAINTIES = ("definite", "possible")


def read(folder: Path) -> LabelledDataset:
    """Read the scans in the only table of a folder; the table itself may be given as well.

    Raises:
        ValueError: If there is not one table, a column is missing, a row cannot be understood, or
            a scan is missing.
        OSError: If a file cannot be read.
    """
    table = find_table(folder)
    rows = read_named_rows(table, REQUIRED_COLUMNS)
    world = _get_single_value(table, rows, "space", ("voxel", "world")) == "world"
    base = _get_single_value(table, rows, "index_base", (0.0, 1.0, None))
    scans = []
    for image, rows_of_scan in group_by_scan(table, rows).items():
        points = [
            point
            for number, row in rows_of_scan
            if (point := _parse_point(row, f"{table}: row {number}"))
        ]
        first = rows_of_scan[0][1]
        name = get_stem(image)
        scans.append(
            LabelledScan(
                name, format_name(first.get("subject")) or get_subject(name), image, tuple(points)
            )
        )
    bases = (0, 1) if base is None else (int(base),)
    return LabelledDataset(
        title=f"Microbleeds by {table.name}",
        licence="As the source's; bids_cmb does not know it.",
        scans=tuple(scans),
        world=world,
        conventions=UnknownConventions(bases=bases, flips=ALL_FLIPS, orders=("xyz", "yxz")),
    )


def find_table(folder: Path) -> Path:
    """Find the only table in a folder; a file is returned as it is.

    Raises:
        ValueError: If there is none, or several.
    """
    if folder.is_file():
        return folder
    tables = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in TABLE_EXTENSIONS
        and not path.name.startswith(("~", "."))
        and path.name != "participants.tsv"
    )
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables[:4]) or "none"
        raise ValueError(
            f"{folder}: one table ({', '.join(TABLE_EXTENSIONS)}) is needed; found {names}."
        )
    return tables[0]


def group_by_scan(
    table: Path, rows: list[dict[str, Cell]]
) -> dict[Path, list[tuple[int, dict[str, Cell]]]]:
    """Group the rows of a table, with their numbers, by the file of the scan.

    Raises:
        ValueError: If a row names no file, or one that is not there or is several.
    """
    images = find_images(table.parent)
    named: dict[str, list[Path]] = {}
    for path in images:
        names = {path.name, get_stem(path), path.relative_to(table.parent).as_posix()}
        for name in names:
            named.setdefault(name, []).append(path)
    scans: dict[Path, list] = {}
    for number, row in enumerate(rows, start=2):
        name = format_name(row["file"])
        paths = named.get(name, [])
        if len(paths) != 1:
            fault = "missing" if not paths else f"not the only one of this name ({len(paths)})"
            raise ValueError(
                f"{table}: row {number}: the scan {name or '(no name)'} is {fault} below "
                f"{table.parent}."
            )
        scans.setdefault(paths[0], []).append((number, row))
    return scans


def format_name(cell: Cell) -> str:
    """Format a cell as a name: the number 7 as ``7``."""
    return f"{cell:g}" if isinstance(cell, float) else cell or ""


def _parse_point(row: dict[str, Cell], where: str) -> Point | None:
    """Parse the lesion of a row; None for a scan without lesions."""
    coordinates = [row[axis] for axis in "xyz"]
    if coordinates == [None] * 3:
        return None
    if not all(isinstance(value, float) for value in coordinates):
        raise ValueError(
            f"{where}: x, y and z must be numbers, or all three empty; found {coordinates}."
        )
    diameter, certainty = row.get("diameter_mm"), row.get("certainty") or CERTAINTIES[0]
    if diameter is not None and not (isinstance(diameter, float) and diameter > 0):
        raise ValueError(f"{where}: diameter_mm must be a number above 0; found {diameter!r}.")
    if str(certainty).lower() not in CERTAINTIES:
        raise ValueError(
            f"{where}: certainty must be {' or '.join(CERTAINTIES)}; found {certainty!r}."
        )
    return Point(tuple(coordinates), str(certainty).lower(), diameter, where)


def _get_single_value(
    table: Path, rows: list[dict[str, Cell]], column: str, allowed: tuple
) -> Cell:
    """Get the only value of a column."""
    values = {v.lower() if isinstance(v, str) else v for v in (row.get(column) for row in rows)}
    if len(values) != 1 or not values <= set(allowed):
        words = " or ".join(
            f"{v:g}" if isinstance(v, float) else str(v) for v in allowed if v is not None
        )
        values_found = ", ".join(sorted(map(str, values))) or "no row"
        raise ValueError(
            f"{table}: `{column}` must be {words}, the same in every row; found {values_found}."
        )
    return values.pop()
