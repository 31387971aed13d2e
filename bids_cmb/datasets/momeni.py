"""Momeni 2021 (CSIRO, AIBL): skull-stripped SWI, real and synthetic microbleeds, Excel lists.

A list has a row for each scan: its file name, then x, y, z of every microbleed, from voxel 1.
Source: doi:10.25919/aegy-ny12; Momeni et al., Comput Methods Programs Biomed 2021;207:106127.
"""

import re
from pathlib import Path

from bids_cmb.bids.spreadsheets import WORKBOOK_EXTENSIONS, Cell, read_sheet
from bids_cmb.datasets.base import (
    LabelledDataset,
    LabelledScan,
    Point,
    UnknownConventions,
    find_images,
    get_stem,
    index_by_stem,
)

FOLDERS_WITH_LESIONS = ("rCMB_DefiniteSubject", "sCMB_DefiniteSubject", "sCMB_NoCMBSubject")
FOLDER_WITHOUT_LESIONS = "NoCMBSubject"
SYNTHETIC_COPY = re.compile(
    r"_(r|s|rs)CMB(_.*)?$"
)  # synthetic copies of one scan stay with its subject


def read(folder: Path) -> LabelledDataset:
    """Read the scans of those of the four folders that are there.

    Raises:
        ValueError: If there is no scan or no list, a list cannot be understood, or scan and row
            lack each other.
        OSError: If a list cannot be read.
    """
    images = [
        path
        for path in find_images(folder)
        if path.parent.name in (*FOLDERS_WITH_LESIONS, FOLDER_WITHOUT_LESIONS)
    ]
    if not images:
        raise ValueError(
            f"{folder}: folders {', '.join((*FOLDERS_WITH_LESIONS, FOLDER_WITHOUT_LESIONS))} with "
            "scans are needed, one at least; found none."
        )
    named = index_by_stem(images, folder)
    marked = _read_lists(folder)
    for name, points in marked.items():
        if name not in named:
            raise ValueError(f"{points[0].origin}: the scan {name} is missing below {folder}.")
    lacking = [
        n
        for n, path in named.items()
        if path.parent.name in FOLDERS_WITH_LESIONS and n not in marked
    ]
    if lacking:
        raise ValueError(
            f"{named[lacking[0]]}: a scan of {named[lacking[0]].parent.name} needs a row with "
            f"positions in a list; found none ({len(lacking)} such scans)."
        )
    scans = tuple(
        LabelledScan(
            name,
            SYNTHETIC_COPY.sub("", name) or name,
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
        metadata={
            "MagneticFieldStrength": 3,
            "EchoTime": 0.02,
            "RepetitionTime": 0.027,
            "FlipAngle": 20,
            "SkullStripped": True,
        },
        conventions=UnknownConventions(bases=(1,)),
    )


def _read_lists(folder: Path) -> dict[str, list[Point]]:
    """Read the points of every scan in the workbooks; repeated rows count once."""
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
            points = marked.setdefault(get_stem(name), [])
            points += [
                point
                for point in _parse_points(numbers, where)
                if point.coordinates not in _list_coordinates(points)
            ]
    return marked


def _is_header(name: Cell, numbers: list[Cell]) -> bool:
    return not any(isinstance(value, float) for value in numbers) and "nii" not in str(name)


def _parse_points(numbers: list[Cell], where: str) -> list[Point]:
    while numbers and numbers[-1] is None:
        numbers = numbers[:-1]
    triples = [numbers[start : start + 3] for start in range(0, len(numbers), 3)]
    triples = [triple for triple in triples if any(value is not None for value in triple)]
    for triple in triples:
        if len(triple) < 3 or not all(isinstance(value, float) for value in triple):
            raise ValueError(
                f"{where}: positions come as x, y, z, three numbers each; found {triple}."
            )
    return [Point(tuple(triple), origin=where) for triple in triples]


def _list_coordinates(points: list[Point]) -> set[tuple]:
    return {point.coordinates for point in points}
