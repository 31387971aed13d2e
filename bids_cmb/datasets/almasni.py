"""Al-masni 2020: scans in ``Data/``, and for each a table of the same name in ``Label/``.

A row for each lesion: slice, x (column), y (row). Whether from 0 or 1, which way the slices go and
whether a lesion has a row for every slice it shows on is not documented.
Source: Al-masni et al., NeuroImage: Clinical 2020;28:102464, doi:10.1016/j.nicl.2020.102464.
"""

from pathlib import Path

from bids_cmb.bids.spreadsheets import TABLE_EXTENSIONS, read_sheet
from bids_cmb.datasets.base import (
    ALL_FLIPS,
    LabelledDataset,
    Point,
    UnknownConventions,
    find_folder,
    find_images,
    index_by_stem,
    pair_with_images,
)


def read(folder: Path) -> LabelledDataset:
    """Read every table and the scan of the same name.

    Raises:
        ValueError: If there are none, one lacks its scan, or one cannot be understood.
        OSError: If a file cannot be read at all.
    """
    data = find_folder(folder, ("Data",), "scans")
    label = find_folder(folder, ("Label", "Labels"), "a table for each")
    tables = index_by_stem(
        sorted(
            path
            for path in label.rglob("*")
            if path.suffix.lower() in (*TABLE_EXTENSIONS, ".xls")
            and not path.name.startswith(("~", "."))
        ),
        label,
    )
    if not tables:
        raise ValueError(f"{label}: a table for each scan is needed; found none.")
    images = _index_images(find_images(data), data)
    scans, notes = pair_with_images(tables, images, data, _read_points, "a table")
    return LabelledDataset(
        title="Cerebral microbleeds on SWI (Al-masni et al. 2020)",
        licence="As agreed with the authors; their page no longer gives the data out.",
        scans=scans,
        links=("doi:10.1016/j.nicl.2020.102464",),
        suffix="swi",
        conventions=UnknownConventions(bases=(0, 1), flips=ALL_FLIPS, orders=("xyz", "yxz")),
        merged=True,
        notes=notes,
    )


def _index_images(images: list[Path], data: Path) -> dict[str, Path]:
    """Map images by name; only those of a folder SWI, where there are phase and magnitude too."""
    swi = [path for path in images if "swi" in [part.casefold() for part in path.parent.parts[-2:]]]
    return index_by_stem(swi or images, data)


def _read_points(path: Path) -> tuple[Point, ...]:
    points = []
    for number, row in enumerate(read_sheet(path), start=1):
        if number == 1 and not any(isinstance(value, float) for value in row):
            continue  # words over the columns
        if len(row) < 3 or not all(isinstance(value, float) for value in row[:3]):
            raise ValueError(
                f"{path}: row {number}: slice, x and y are needed, three numbers; found {row[:3]}."
            )
        slice_index, column, line = row[:3]
        points.append(Point((column, line, slice_index), origin=f"{path}: row {number}"))
    return tuple(points)
