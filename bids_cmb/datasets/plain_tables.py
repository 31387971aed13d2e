"""A plain table of positions: ``file, x, y, z, space`` and, if known, how they are counted.

Columns: ``file`` (below the table's folder); ``x, y, z``, all three empty for a scan without
lesions; ``space``, ``voxel`` or ``world`` (mm, RAS+), the same in every row. Optional:
``index_base`` (0 or 1, the same in every row), ``diameter_mm``, ``certainty`` (``definite`` or
``possible``), ``subject``.
"""

from pathlib import Path

from bids_cmb.bids.spreadsheets import TABLE_EXTENSIONS, Cell, read_named_rows
from bids_cmb.datasets.base import (
    ALL_FLIPS,
    Labelled,
    LabelledDataset,
    Point,
    UnknownConventions,
    find_images,
    stem,
    subject_of,
)

NEEDED = ("file", "x", "y", "z", "space")
SURE = ("definite", "possible")


def read(folder: Path) -> LabelledDataset:
    """The scans that the one table of a folder names; the table itself may be given as well.

    Raises:
        ValueError: If there is not one table, a column is missing, a row cannot be understood, or
            a scan is missing.
        OSError: If a file cannot be read.
    """
    table = the_table(folder)
    rows = read_named_rows(table, NEEDED)
    world = _one_of(table, rows, "space", ("voxel", "world")) == "world"
    base = _one_of(table, rows, "index_base", (0.0, 1.0, None))
    scans = []
    for image, own in by_scan(table, rows).items():
        points = [point for number, row in own if (point := _point(row, f"{table}: row {number}"))]
        first = own[0][1]
        name = stem(image)
        scans.append(
            Labelled(name, name_of(first.get("subject")) or subject_of(name), image, tuple(points))
        )
    bases = (0, 1) if base is None else (int(base),)
    return LabelledDataset(
        title=f"Microbleeds by {table.name}",
        licence="As the source's; bids_cmb does not know it.",
        scans=tuple(scans),
        world=world,
        open=UnknownConventions(bases=bases, flips=ALL_FLIPS, orders=("xyz", "yxz")),
    )


def the_table(folder: Path) -> Path:
    """The one table in a folder, or the file itself.

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


def by_scan(
    table: Path, rows: list[dict[str, Cell]]
) -> dict[Path, list[tuple[int, dict[str, Cell]]]]:
    """The rows of each scan with their numbers in the table, by the scan's file.

    Raises:
        ValueError: If a row names no file, or one that is not there or is several.
    """
    images = find_images(table.parent)
    named: dict[str, list[Path]] = {}
    for path in images:
        names = {path.name, stem(path), path.relative_to(table.parent).as_posix()}
        for name in names:
            named.setdefault(name, []).append(path)
    scans: dict[Path, list] = {}
    for number, row in enumerate(rows, start=2):
        name = name_of(row["file"])
        found = named.get(name, [])
        if len(found) != 1:
            said = "missing" if not found else f"not the only one of this name ({len(found)})"
            raise ValueError(
                f"{table}: row {number}: the scan {name or '(no name)'} is {said} below "
                f"{table.parent}."
            )
        scans.setdefault(found[0], []).append((number, row))
    return scans


def name_of(cell: Cell) -> str:
    """A cell as a name: the number 7 is called 7."""
    return f"{cell:g}" if isinstance(cell, float) else cell or ""


def _point(row: dict[str, Cell], where: str) -> Point | None:
    """The lesion of a row; None for a scan without any."""
    at = [row[axis] for axis in "xyz"]
    if at == [None] * 3:
        return None
    if not all(isinstance(value, float) for value in at):
        raise ValueError(f"{where}: x, y and z must be numbers, or all three empty; found {at}.")
    diameter, certainty = row.get("diameter_mm"), row.get("certainty") or SURE[0]
    if diameter is not None and not (isinstance(diameter, float) and diameter > 0):
        raise ValueError(f"{where}: diameter_mm must be a number above 0; found {diameter!r}.")
    if str(certainty).lower() not in SURE:
        raise ValueError(f"{where}: certainty must be {' or '.join(SURE)}; found {certainty!r}.")
    return Point(tuple(at), str(certainty).lower(), diameter, where)


def _one_of(table: Path, rows: list[dict[str, Cell]], column: str, allowed: tuple) -> Cell:
    """The one value of a column."""
    values = {v.lower() if isinstance(v, str) else v for v in (row.get(column) for row in rows)}
    if len(values) != 1 or not values <= set(allowed):
        words = " or ".join(
            f"{v:g}" if isinstance(v, float) else str(v) for v in allowed if v is not None
        )
        found = ", ".join(sorted(map(str, values))) or "no row"
        raise ValueError(
            f"{table}: `{column}` must be {words}, the same in every row; found {found}."
        )
    return values.pop()
