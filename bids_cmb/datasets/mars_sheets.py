"""Rating sheets of MARS: how many microbleeds each scan has in each region, left and right.

Either one row for each scan, ``file`` and a column for each region and side (``frontal_left``,
``basal ganglia right``, and ``frontal_left_possible`` where possible ones are rated apart); or a
row for each count: ``file, region, side, count`` and, if rated, ``certainty``. Empty cells are 0.
"""

from pathlib import Path

from bids_cmb.anatomy.mars import list_regions
from bids_cmb.bids.spreadsheets import Cell, read_named_rows
from bids_cmb.datasets.base import Labelled, LabelledDataset, stem, subject_of
from bids_cmb.datasets.plain_tables import SURE, by_scan, name_of, the_table

SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}
SYNONYMS = {
    "brain stem": "brainstem",
    "cerebellar": "cerebellum",
    "deep and periventricular white matter": "deep white matter",
    "deep and periventricular wm": "deep white matter",
    "dpwm": "deep white matter",
    "insular": "insula",
}
LONG = ("file", "region", "side", "count")


def read(folder: Path) -> LabelledDataset:
    """The counts of every scan that the one sheet of a folder names.

    Raises:
        ValueError: If there is not one sheet, its layout is not one of the two, a count is no
            whole number, or a scan is missing.
        OSError: If it cannot be read.
    """
    table = the_table(folder)
    rows = read_named_rows(table, ("file",))
    long = set(LONG) <= rows[0].keys() if rows else False
    scans = []
    for image, own in by_scan(table, rows).items():
        counts = _long(table, own) if long else _wide(table, own)
        name, first = stem(image), own[0][1]
        scans.append(
            Labelled(name, name_of(first.get("subject")) or subject_of(name), image, counts=counts)
        )
    return LabelledDataset(
        title=f"Microbleeds rated by MARS, {table.name}",
        licence="As the source's; bids_cmb does not know it.",
        scans=tuple(scans),
        notes=("A rating sheet has no positions: the truth is a table of counts.",),
    )


def column(region: str, side: str, certainty: str) -> str:
    """What a count is called: ``n_frontal_left`` of the definite, ``…_possible`` of the others."""
    end = "" if certainty == SURE[0] else f"_{certainty}"
    return f"n_{region.replace(' ', '_')}_{side}{end}"


def _wide(table: Path, own: list[tuple[int, dict[str, Cell]]]) -> dict[str, int]:
    if len(own) > 1:
        raise ValueError(
            f"{table}: a scan needs one row; {name_of(own[0][1]['file'])} has {len(own)}."
        )
    number, row = own[0]
    counts: dict[str, int] = {}
    for title, cell in row.items():
        meant = _meant(title)
        if meant:
            counts[column(*meant)] = _count(cell, f"{table}: row {number}: {title}")
    if not counts:
        raise ValueError(
            f"{table}: columns of MARS are needed: {', '.join(LONG)}, or file and a column for "
            f"each region and side (frontal_left …); found {', '.join(row)[:200]}."
        )
    return counts


def _long(table: Path, own: list[tuple[int, dict[str, Cell]]]) -> dict[str, int]:
    counts = {
        column(region, side, SURE[0]): 0 for region in list_regions() for side in ("left", "right")
    }
    for number, row in own:
        region, side = name_of(row["region"]), name_of(row["side"])
        certainty = name_of(row.get("certainty")).lower() or SURE[0]
        meant = _meant(f"{region} {side}")
        if not meant or certainty not in SURE:
            raise ValueError(
                f"{table}: row {number}: a region of MARS ({', '.join(list_regions())}), left or "
                f"right, {' or '.join(SURE)} are needed; found {region!r}, {side!r}, {certainty!r}."
            )
        name = column(*meant[:2], certainty)
        counts[name] = counts.get(name, 0) + _count(row["count"], f"{table}: row {number}: count")
    return counts


def _meant(title: str) -> tuple[str, str, str] | None:
    """Region, side and certainty that a column's title names; None if it names none."""
    words = title.lower().replace("_", " ").replace("-", " ").split()
    certainty = next((word for word in words if word in SURE), SURE[0])
    words = [word for word in words if word not in (*SURE, "n", "lobe")]
    side = next((SIDES[word] for word in words if word in SIDES), None)
    region = " ".join(word for word in words if word not in SIDES)
    region = SYNONYMS.get(region, region)
    return (region, side, certainty) if side and region in list_regions() else None


def _count(cell: Cell, where: str) -> int:
    if cell is None:
        return 0
    if not isinstance(cell, float) or cell < 0 or not cell.is_integer():
        raise ValueError(f"{where} must be a whole number from 0; found {cell!r}.")
    return int(cell)
