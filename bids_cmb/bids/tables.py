"""Write and read the tables of the derivatives."""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path

from bids_cmb.bids.attempts import describe_open_attempt
from bids_cmb.bids.markers import read_marker
from bids_cmb.bids.paths import Output, locate_scans_table
from bids_cmb.bids.spreadsheets import split_tab_separated
from bids_cmb.files import write_text
from bids_cmb.resource_files import load_resource

LESION_INDEX = 7  # BIDS' standard label for a lesion
POSITION_COLUMNS = ("x_mm", "y_mm", "z_mm")
# Diameter of the ball with a lesion's volume: ours, and as tables of others call it.
DIAMETER_COLUMNS = ("equivalent_diameter_mm", "diameter_mm", "equiv_diameter_mm")


def read_columns(table: str) -> dict[str, dict]:
    """Read the columns of a table (``lesion``, ``scan`` …), in order, as BIDS describes them.

    They are in ``resources/tables/<table>.json``, which becomes the sidecar of the table.
    """
    return dict(_load_columns(table))


@cache
def _load_columns(table: str) -> dict[str, dict]:
    return load_resource(f"tables/{table}.json")


def write_table(path: Path, names: Iterable[str], rows: Iterable[dict]) -> None:
    """Write a BIDS table: tab-separated, ``n/a`` for None, the columns ``names`` in their order.

    A row is a line: line ends within a cell become blanks.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _format_cell(value) for key, value in row.items()})
    write_text(path, text.getvalue())


def _format_cell(value: object) -> object:
    if isinstance(value, str):
        return re.sub(r"[\r\n]+", " ", value)
    return "n/a" if value is None else value


def read_table(path: Path) -> list[dict[str, str | None]]:
    """Read the rows of any BIDS table; ``n/a`` and missing cells are None.

    Raises:
        ValueError: If it is not text in UTF-8; the sentence names the file.
        OSError: If it cannot be read.
    """
    names, rows = read_cells(path)
    return [dict(zip_longest(names, row[: len(names)])) for row in rows]


def read_cells(path: Path) -> tuple[list[str], list[list[str | None]]]:
    """Read the column names of a BIDS table, and the cells of each row as they are.

    Returns:
        names: Of the columns, none of an empty file.
        rows: Cells of each line that is not empty, as many as there are; ``n/a`` is None.

    Raises:
        ValueError: If it is not text in UTF-8; the sentence names the file.
        OSError: If it cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"{path}: a table must be text in UTF-8; found the byte 0x{byte:02x} at position "
            f"{error.start}."
        ) from error
    names, *rows = split_tab_separated(text) or [[]]
    return names, [[None if cell == "n/a" else cell for cell in row] for row in rows]


def refresh_scans_table(home: Path) -> None:
    """Write the ``_scans.tsv`` of a participant's (and session's) folder from its sidecars.

    Results that are not current (`bids.attempts`) are not in it; without any there is no table.
    Several processes may finish scans of one session at the same time. Each checks after writing,
    and writes again if there is a new result: so the last table is complete.
    """
    table, written = locate_scans_table(home), None
    while written != (rows := _list_current_rows(home)):
        if rows:
            write_table(table, read_columns("scan"), rows)
        else:
            table.unlink(missing_ok=True)
        written = rows


def _list_current_rows(home: Path) -> list[dict]:
    folder = home.parent.parent if home.name.startswith("ses-") else home.parent
    return [
        row
        for sidecar, row in read_results(home)
        if not describe_open_attempt(folder, get_source(sidecar))
    ]


def has_row(output: Output) -> bool:
    """Check whether the table of a scan's session has its row, as in its marker."""
    mask = output.mask()
    wanted = next(
        (
            row
            for _, row in _read_results(output.participant_dir, mask.name.removesuffix(".nii.gz"))
        ),
        None,
    )
    try:
        rows = read_table(locate_scans_table(output.participant_dir))
    except (OSError, ValueError, csv.Error):
        return False
    return wanted is not None and any(
        all(
            row.get(key) == (None if value is None else str(value)) for key, value in wanted.items()
        )
        for row in rows
        if row.get("filename") == wanted["filename"]
    )


def read_results(home: Path) -> Iterator[tuple[dict, dict]]:
    """Read the results in a participant's (and session's) folder, by name: (sidecar, scan row)."""
    yield from _read_results(home, "*_label-CMB_*_mask")


def _read_results(home: Path, mask: str) -> Iterator[tuple[dict, dict]]:
    for sidecar in sorted((home / "anat").glob(f"{mask}.json")):
        content = read_marker(sidecar)
        if content:
            name = f"anat/{sidecar.name.removesuffix('.json')}.nii.gz"
            known = {key: content["Microbleeds"].get(key) for key in read_columns("scan")}
            yield content, {**known, "filename": name}


def get_source(sidecar: dict) -> str:
    """Get the scan that a result was made from, relative to the raw dataset."""
    sources = sidecar.get("Sources") or [""]
    return str(sources[0]).removeprefix("bids:raw:")


def round_or_none(value: float | None, digits: int) -> float | None:
    """Round a number, without the minus of -0.0; None if it is not finite, or not known."""
    return None if value is None or not math.isfinite(value) else round(value, digits) + 0.0
