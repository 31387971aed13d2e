"""Momeni 2021 (CSIRO, AIBL): skull-stripped SWI, real and synthetic microbleeds, Excel lists.

A list has a row for each scan: its file name, then x, y, z of every microbleed, from voxel 1.
Source: doi:10.25919/aegy-ny12; Momeni et al., Comput Methods Programs Biomed 2021;207:106127.
"""

import re
from pathlib import Path

from bids_cmb.bids.spreadsheets import WORKBOOK_EXTENSIONS, Cell, read_sheet
from bids_cmb.datasets.base import (
    Labelled,
    LabelledDataset,
    Point,
    UnknownConventions,
    by_stem,
    find_images,
    stem,
)

WITH = ("rCMB_DefiniteSubject", "sCMB_DefiniteSubject", "sCMB_NoCMBSubject")
WITHOUT = "NoCMBSubject"
COPY = re.compile(r"_(r|s|rs)CMB(_.*)?$")  # synthetic copies of one scan stay with its subject


def read(folder: Path) -> LabelledDataset:
    """Every scan of the four folders that are there.

    Raises:
        ValueError: If there is no scan or no list, a list cannot be understood, or scan and row
            lack each other.
        OSError: If a list cannot be read.
    """
    images = [path for path in find_images(folder) if path.parent.name in (*WITH, WITHOUT)]
    if not images:
        raise ValueError(
            f"{folder}: folders {', '.join((*WITH, WITHOUT))} with scans are needed, one at least; "
            "found none."
        )
    named = by_stem(images, folder)
    marked = _lists(folder)
    for name, points in marked.items():
        if name not in named:
            raise ValueError(f"{points[0].where}: the scan {name} is missing below {folder}.")
    lacking = [n for n, path in named.items() if path.parent.name in WITH and n not in marked]
    if lacking:
        raise ValueError(
            f"{named[lacking[0]]}: a scan of {named[lacking[0]].parent.name} needs a row with "
            f"positions in a list; found none ({len(lacking)} such scans)."
        )
    scans = tuple(
        Labelled(
            name,
            COPY.sub("", name) or name,
            path,
            tuple(marked.get(name, ())),
            kind=path.parent.name,
        )
        for name, path in sorted(named.items())
    )
    return LabelledDataset(
        title="Synthetic and real cerebral microbleeds on SWI (CSIRO, AIBL)",
        licence="CSIRO, non-commercial use, no redistribution (see the licence on the data's "
        "page). Networks trained on these scans inherit this.",
        scans=scans,
        links=("doi:10.25919/aegy-ny12", "doi:10.1016/j.cmpb.2021.106127"),
        suffix="swi",
        known={
            "MagneticFieldStrength": 3,
            "EchoTime": 0.02,
            "RepetitionTime": 0.027,
            "FlipAngle": 20,
            "SkullStripped": True,
        },
        open=UnknownConventions(bases=(1,)),
    )


def _lists(folder: Path) -> dict[str, list[Point]]:
    """The points of every scan that any workbook names; repeated rows count once."""
    books = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in WORKBOOK_EXTENSIONS and not path.name.startswith(("~", "."))
    )
    if not books:
        raise ValueError(
            f"{folder}: an Excel list of positions ({' or '.join(WORKBOOK_EXTENSIONS)}) is needed; "
            "found none."
        )
    marked: dict[str, list[Point]] = {}
    for book in books:
        for number, row in enumerate(read_sheet(book), start=1):
            name, *numbers = row
            where = f"{book}: row {number}"
            if _is_header(name, numbers) and number == 1:
                continue
            if not isinstance(name, str) or not any(value is not None for value in numbers):
                raise ValueError(
                    f"{where}: a file name and positions x, y, z are needed; found "
                    f"{name!r} and {sum(value is not None for value in numbers)} numbers."
                )
            points = marked.setdefault(stem(name), [])
            points += [one for one in _points(numbers, where) if one.at not in _places(points)]
    return marked


def _is_header(name: Cell, numbers: list[Cell]) -> bool:
    return not any(isinstance(value, float) for value in numbers) and "nii" not in str(name)


def _points(numbers: list[Cell], where: str) -> list[Point]:
    while numbers and numbers[-1] is None:
        numbers = numbers[:-1]
    triples = [numbers[at : at + 3] for at in range(0, len(numbers), 3)]
    triples = [triple for triple in triples if any(value is not None for value in triple)]
    for triple in triples:
        if len(triple) < 3 or not all(isinstance(value, float) for value in triple):
            raise ValueError(
                f"{where}: positions come as x, y, z, three numbers each; found {triple}."
            )
    return [Point(tuple(triple), where=where) for triple in triples]


def _places(points: list[Point]) -> set[tuple]:
    return {point.at for point in points}
