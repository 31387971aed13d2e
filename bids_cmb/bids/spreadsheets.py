"""Read tables of cells: Excel workbooks, and comma-, semicolon- or tab-separated text.

Nothing in a workbook is run or computed: of a formula, the value is read that Excel last stored.
"""

import csv
import io
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import ParseError

Cell = str | float | None
TEXT_EXTENSIONS = (".csv", ".tsv", ".txt")
WORKBOOK_EXTENSIONS = (".xlsx", ".xlsm")
TABLE_EXTENSIONS = (*WORKBOOK_EXTENSIONS, *TEXT_EXTENSIONS)
MAX_SIZE_MB = 50  # unpacked; 37 000 points take 2 MB
EMPTY_WORDS = {"", "n/a", "na", "nan", "none", "-"}
_LINE_END = re.compile(r"\r\n?|\n")
_CELL = re.compile(r'"((?:[^"]|"")*)"(?=\t|$)|([^\t]*)')


def read_sheet(path: Path) -> list[list[Cell]]:
    """Read the rows of a table, without those that are empty; numbers as numbers.

    Args:
        path: ``.xlsx``, ``.xlsm``, ``.csv``, ``.tsv`` or ``.txt``.

    Returns:
        A list of cells for each row: text without blanks at its ends, a number, or None.

    Raises:
        ValueError: If the file cannot be read as a table, is empty, is too large, or is a workbook
            in which several sheets are filled.
        OSError: If it cannot be read at all.
    """
    kind = path.suffix.lower()
    if kind not in TABLE_EXTENSIONS:
        hint = " Save it as .xlsx or .csv." if kind in (".xls", ".ods", ".numbers") else ""
        raise ValueError(
            f"{path}: a table is expected ({', '.join(TABLE_EXTENSIONS)}); found "
            f"{kind or 'no ending'}.{hint}"
        )
    rows = _read_workbook(path) if kind in WORKBOOK_EXTENSIONS else _read_text(path)
    rows = [[_parse_cell(value) for value in row] for row in rows]
    rows = [row for row in rows if any(cell is not None for cell in row)]
    if not rows:
        raise ValueError(f"{path}: a table with at least one row is expected; found none.")
    return rows


def read_named_rows(path: Path, needed: Sequence[str]) -> list[dict[str, Cell]]:
    """Read the rows of a table whose first row names its columns, as dicts by lower-case name.

    Raises:
        ValueError: If a column is missing or named twice, or as `read_sheet`.
        OSError: If it cannot be read.
    """
    first, *rows = read_sheet(path)
    names = [str(cell).lower() if cell is not None else "" for cell in first]
    lacking = [name for name in needed if name not in names]
    if lacking:
        raise ValueError(
            f"{path}: the columns {', '.join(needed)} are needed; {', '.join(lacking)} not among "
            f"{', '.join(name for name in names if name)[:200] or 'none'}."
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: every column needs a name of its own; found {twice[0]} twice.")
    return [
        {
            name: cell
            for name, cell in zip(names, [*row, *[None] * len(names)], strict=False)
            if name
        }
        for row in rows
    ]


def split_tab_separated(text: str) -> list[list[str]]:
    """Split tab-separated text into cells, without its empty lines.

    A line is a row, since BIDS quotes only cells that hold tabs: a quotation mark that is not
    closed at the end of a cell of its line is a character like any other. Quotation marks that
    spreadsheets put around other cells are removed.
    """
    lines = [line for line in _LINE_END.split(text) if line]
    width = len(_split_line(lines[0])) if lines else 0
    return [_split_line(line, width) for line in lines]


def _split_line(line: str, width: int = 0) -> list[str]:
    """Split a line, at every tab if only that gives the width of the table."""
    plain = line.split("\t")
    if '"' not in line:
        return plain
    cells, start = [], 0
    while start <= len(line):
        match = _CELL.match(line, start)
        quoted, bare = match.groups()
        cells.append(bare if quoted is None else quoted.replace('""', '"'))
        start = match.end() + 1
    return plain if len(plain) == width != len(cells) else cells


def _read_workbook(path: Path) -> list[Sequence[object]]:
    # Imported here, because --help needs no Excel.
    from openpyxl import load_workbook  # noqa: PLC0415
    from openpyxl.utils.exceptions import InvalidFileException  # noqa: PLC0415

    try:
        _refuse_large(path, sum(part.file_size for part in zipfile.ZipFile(path).infolist()))
        book = load_workbook(path, read_only=True, data_only=True, keep_links=False)
        try:
            sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book}
        finally:
            book.close()
    except PermissionError:
        raise
    except (InvalidFileException, zipfile.BadZipFile, ParseError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: an Excel workbook is expected; it cannot be read ({summarize_error(error)})."
        ) from error
    filled = {
        title: rows
        for title, rows in sheets.items()
        if any(_parse_cell(value) is not None for row in rows for value in row)
    }
    if len(filled) > 1:
        raise ValueError(
            f"{path}: one filled sheet is expected; found {len(filled)}: {', '.join(filled)[:200]}."
        )
    return next(iter(filled.values()), [])


def _read_text(path: Path) -> list[Sequence[object]]:
    _refuse_large(path, path.stat().st_size)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: text in UTF-8 is expected; {summarize_error(error)}.") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    comma = max("\t;,", key=first.count)
    if comma == "\t":
        return split_tab_separated(text)
    try:
        return list(csv.reader(io.StringIO(text), delimiter=comma))
    except csv.Error as error:  # a cell of more than 128 kB: a quotation mark was not closed
        raise ValueError(f"{path}: a table is expected; it cannot be read ({error}).") from error


def _refuse_large(path: Path, size: int) -> None:
    if size > MAX_SIZE_MB * 2**20:
        raise ValueError(
            f"{path}: a table of at most {MAX_SIZE_MB} MB is expected; found {size / 2**20:.0f} MB."
        )


def _parse_cell(value: object) -> Cell:
    """Convert a cell to a number, else to text without blanks at its ends; None if it is empty."""
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    text = "" if value is None else str(value).strip()
    if text.lower() in EMPTY_WORDS:
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    # 007 is a name, not the number 7; so is what only Python takes for a number, such as 1_000.
    plain = text.lstrip("+-")
    named = (plain.startswith("0") and plain[1:2].isdigit()) or "_" in plain
    return text if named or not math.isfinite(number) else number


def summarize_error(error: Exception) -> str:
    """Return the first line of an error's message, shortened; its type if there is none."""
    message = str(error).strip().split("\n")[0].rstrip(".")
    return message[:120] or type(error).__name__
