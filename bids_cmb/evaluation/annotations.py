"""The lesions that somebody or something marked in each scan, from tables and label maps.

Found and true lesions come the same way: a folder of ours, any folder of masks or tables, one
mask, or one table of coordinates for many scans.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import cKDTree

from bids_cmb.bids.tables import POSITION_COLUMNS, read_cells
from bids_cmb.files import read_json
from bids_cmb.imaging.volume import load_labels
from bids_cmb.lesions.label_maps import common_volume, label_map, meet

POSITION = list(POSITION_COLUMNS)
PLACES = ("region", "group", "territory")  # columns that say where a lesion lies
KINDS_OF_FILE = (  # what a folder is read by: the first pattern that any file fits
    "*_seg-CMB*dseg.tsv",
    "*_seg-CMB*dseg.nii*",
    "*_label-CMB*mask.nii*",
    "*_CMB.nii*",
    "*.nii*",
    "*.tsv",
)
NO_LESIONS_IN = re.compile(r"_scans\.tsv$|_seg-mimics_|_label-brain_")
OTHER_DATASETS = {"derivatives", "sourcedata"}  # in a dataset, but not of it
SOURCE_ENTITIES = ("sub", "ses", "acq", "ce", "rec", "run", "echo", "part")
YES, NO = {"yes", "true", "1", "1.0"}, {"no", "false", "0", "0.0"}


@dataclass(frozen=True, eq=False)
class LesionAnnotations:
    """The lesions marked in one scan.

    Attributes:
        entities: Which scan: its ``sub``, ``ses``, ``acq``, … as far as the marks say.
        lesions: A row each: ``index`` (its value in the label map), ``x_mm``, ``y_mm``, ``z_mm``
            (world, RAS+), ``diameter_mm``, ``probability`` (0 to 1), ``uncertain``, ``included``,
            and of ``PLACES`` those that are known.
        image: Its mask or label map, if there is one.
        about: Facts of the scan, from the sidecar.
        file: What was read; None where one table names many scans.
    """

    entities: dict[str, str]
    lesions: pd.DataFrame
    image: Path | None = None
    about: dict = field(default_factory=dict)
    file: Path | None = None

    @property
    def name(self) -> str:
        """Its entities as in a file name."""
        return "_".join(f"{key}-{label}" for key, label in self.entities.items())

    @property
    def positions(self) -> np.ndarray:
        """World mm, shape (N, 3)."""
        return self.lesions[POSITION].to_numpy(float)

    def agrees(self, other: "LesionAnnotations") -> bool:
        """Whether both can be of one scan: no entity that both name differs."""
        common = self.entities.keys() & other.entities.keys()
        return all(self.entities[key] == other.entities[key] for key in common)


@dataclass(frozen=True, eq=False)
class Mimics:
    """What looks like a microbleed in a scan and is none, labelled as what it is.

    Attributes:
        numbers: How many of each kind.
        points: Where: their voxels, or their centres where there is no label map; world mm, (N, 3).
        kinds: Of every point, shape (N,).
    """

    numbers: dict[str, int]
    points: np.ndarray
    kinds: np.ndarray

    def nearest(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Kind of the nearest point to each position (F, 3), and how far away it is in mm."""
        if not len(positions) or not len(self.points):
            return np.full(len(positions), "", object), np.full(len(positions), np.inf)
        away, at = cKDTree(self.points).query(positions)
        return self.kinds[at].astype(object), away


def read_annotations(path: Path) -> list[LesionAnnotations]:
    """The lesions of every scan in a folder or a file.

    A folder is read by the first of ``KINDS_OF_FILE`` that any of its files fits, one file per
    scan. In a ``dseg`` every lesion has its own number; in any other image what is 0.5 or more is
    lesion and what touches is one. Where the app left results, only those it finished count.

    Args:
        path: Folder, image (``.nii``, ``.nii.gz``) or table (``.tsv``).

    Raises:
        ValueError: If there is nothing to read, a table or an image cannot be used, or a name
            does not say the participant; the sentence names the file.
        OSError: If a file cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    if path.is_dir():
        return [_one(file) for file in _files(path)]
    if path.suffix == ".tsv" and _who(_read(path)):
        return _many(path)
    return [_one(path, alone=True)]


def read_mimics(truth: LesionAnnotations) -> Mimics | None:
    """The mimics of a scan, from the files that lie beside its true lesions; None without any.

    They are called like those, ``seg-mimics`` in place of ``seg-CMB``: a table with ``kind``, and
    a label map with the ``index`` of each or, in the table, their centres.

    Raises:
        ValueError: If the table lacks a column.
        OSError: If there is a label map without a table, or a file cannot be read.
    """
    if truth.file is None or "_seg-CMB_" not in truth.file.name:
        return None
    table_file = _beside(truth.file, ".tsv")
    table_file = table_file.with_name(table_file.name.replace("_seg-CMB_", "_seg-mimics_"))
    image = _beside(table_file, ".nii.gz")
    if not table_file.exists() and not image.exists():
        return None
    table = _read(table_file)
    _need(table_file, table, ["kind"] if image.exists() else ["kind", *POSITION])
    kinds = table["kind"].fillna("n/a").to_numpy(object)
    numbers = table["kind"].fillna("n/a").value_counts(sort=False).to_dict()
    if not image.exists():
        return Mimics(numbers, _numbers(table_file, table[POSITION]).to_numpy(float), kinds)
    labels = load_labels(image)
    voxels = np.argwhere(labels.data > 0)
    named = pd.Series(kinds, index=_indices(table_file, table))
    values = np.rint(labels.data[tuple(voxels.T)]).astype(int)
    return Mimics(numbers, labels.world(voxels), named.reindex(values, fill_value="n/a").to_numpy())


def shared_volume(found: LesionAnnotations, truth: LesionAnnotations) -> np.ndarray:
    """What every found lesion has in common with every true one, mm³, shape (F, T).

    Raises:
        ValueError: If either has no label map, or if the grids do not meet.
    """
    for marks in (found, truth):
        if marks.image is None and len(marks.lesions):
            raise ValueError(
                f"{marks.name}: overlap needs a mask or label map of both sides; "
                "found coordinates only."
            )
    if not len(found.lesions) or not len(truth.lesions):
        return np.zeros((len(found.lesions), len(truth.lesions)))
    one, other = label_map(found.image), label_map(truth.image)
    if not meet(one, other):
        raise ValueError(
            f"{found.image}: must lie in the same space as {truth.image.name}; "
            "the two grids have no place in common."
        )
    numbers = (marks.lesions["index"].to_numpy() for marks in (found, truth))
    return common_volume(one, other, *numbers)


def _files(folder: Path) -> list[Path]:
    """One file per scan, those of scans that the app began and did not finish left out."""
    for pattern in KINDS_OF_FILE:
        files = [
            file
            for file in sorted(folder.rglob(f"sub-{pattern}"))
            if not NO_LESIONS_IN.search(file.name)
            and not OTHER_DATASETS & set(file.relative_to(folder).parts)
        ]
        if files:
            break
    else:
        raise ValueError(
            f"{folder}: masks or lesion tables named sub-… are needed; found none of "
            f"{', '.join(KINDS_OF_FILE[:4])} nor any other image or table."
        )
    finished = [file for file in files if "Microbleeds" in _sidecar(_marker(file))]
    return finished or files


def _marker(file: Path) -> Path:
    """The sidecar that the app writes last, beside one of its tables."""
    name = file.name.replace("_seg-CMB_", "_label-CMB_").partition(".")[0]
    return file.with_name(name.removesuffix("_dseg").removesuffix("_mask") + "_mask.json")


def _one(path: Path, *, alone: bool = False) -> LesionAnnotations:
    """The marks of one scan. A file that was named alone need not say whose it is."""
    entities = _entities(path.name)
    if "sub" not in entities and not alone:
        raise ValueError(f"{path}: the name must say the participant, sub-…; found {path.name}.")
    about = {**_sidecar(_beside(path, ".json")), **_sidecar(_marker(path))}
    if path.suffix == ".tsv":
        images = [file for end in (".nii.gz", ".nii") if (file := _beside(path, end)).exists()]
        lesions = _lesions(path, _read(path))
        return LesionAnnotations(entities, lesions, images[0] if images else None, about, path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(
            f"{path}: a folder, an image (.nii, .nii.gz) or a table (.tsv) is expected."
        )
    return LesionAnnotations(entities, _measured(path), path, about, path)


def _many(path: Path) -> list[LesionAnnotations]:
    """The marks of every scan that a table of coordinates names; ``n/a`` three times for none."""
    table = _read(path)
    who = _who(table)
    _need(path, table, POSITION)
    where = _numbers(path, table[POSITION])
    partly = where.isna().any(axis=1) & where.notna().any(axis=1)
    if partly.any():
        raise ValueError(
            f"{path}: a lesion must have x_mm, y_mm and z_mm, or n/a for all three; "
            f"line {int(np.flatnonzero(partly)[0]) + 2} has only some."
        )
    if table[who[0]].isna().any():
        line = int(np.flatnonzero(table[who[0]].isna())[0]) + 2
        raise ValueError(f"{path}: every line must name its {who[0]}; line {line} does not.")
    marks = []
    for labels, rows in table.groupby(who, sort=False, dropna=False):
        named = {
            key: label.removeprefix(f"{key}-")
            for key, label in zip(("sub", "ses"), labels, strict=False)
            if isinstance(label, str)
        }
        marks.append(
            LesionAnnotations(
                named, _lesions(path, rows[where.loc[rows.index].notna().all(axis=1)])
            )
        )
    return marks


def _who(table: pd.DataFrame) -> list[str]:
    """The columns that say whose lesion a row is; empty if the table is of one scan."""
    columns = [("participant_id", "subject"), ("session_id", "session")]
    named = [[name for name in names if name in table][:1] for names in columns]
    return [*named[0], *named[1]] if named[0] else []


def _lesions(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table as `LesionAnnotations` has them, whatever columns it came with."""
    _need(path, table, POSITION)
    numbers = _numbers(path, table[POSITION])
    if numbers.isna().any(axis=None):
        line = int(np.flatnonzero(numbers.isna().any(axis=1))[0]) + 2
        raise ValueError(f"{path}: every lesion must have a position; line {line} has not.")
    plain = pd.DataFrame(
        {
            "index": _indices(path, table),
            **{axis: numbers[axis] for axis in POSITION},
            "diameter_mm": _first(path, table, ("diameter_mm", "equiv_diameter_mm"), np.nan),
            "probability": _first(path, table, ("probability_max", "probability"), 1.0),
            "uncertain": _says(table, "visible", NO)
            | _says(table, "ignore", YES)
            | _says(table, "certainty", {"possible", "unseen"}),
            "included": ~_says(table, "included", NO),
        }
    ).reset_index(drop=True)
    if not plain["probability"].between(0, 1).all():
        raise ValueError(
            f"{path}: every lesion must have a probability from 0 to 1; found "
            f"{plain['probability'].min():g} to {plain['probability'].max():g} or none."
        )
    for place in PLACES:
        if place in table:
            plain[place] = table[place].str.strip().fillna("n/a").to_numpy()
    return plain


def _indices(path: Path, table: pd.DataFrame) -> pd.Series:
    """Every lesion's value in the label map; its place in the table where none is given."""
    given = _first(path, table, ("index",), np.nan)
    return given.fillna(pd.Series(np.arange(1, len(table) + 1.0), index=table.index)).astype(int)


def _first(path: Path, table: pd.DataFrame, names: tuple[str, ...], otherwise: object) -> pd.Series:
    """The first of the columns that is there and says anything, as numbers."""
    for name in names:
        if name in table and table[name].notna().any():
            return _numbers(path, table[[name]])[name]
    return pd.Series(otherwise, index=table.index, dtype=float)


def _says(table: pd.DataFrame, column: str, words: set[str]) -> pd.Series:
    """Where a column, if there is one, holds one of the words."""
    if column not in table:
        return pd.Series(np.zeros(len(table), bool), index=table.index)
    return table[column].fillna("").str.strip().str.lower().isin(words)


def _measured(path: Path) -> pd.DataFrame:
    """The lesions of a mask or label map: centre of mass, size, highest probability."""
    labels, stored = label_map(path), load_labels(path).data
    present = np.unique(labels.data[labels.data > 0])
    centres = np.array(ndimage.center_of_mass(labels.data > 0, labels.data, present))
    voxels = np.array(ndimage.sum_labels(labels.data > 0, labels.data, present), float)
    highest = np.array(ndimage.maximum(stored, labels.data, present), float)
    world = labels.world(centres.reshape(-1, 3))
    sure = "dseg" in path.name
    return pd.DataFrame(
        {
            "index": present.astype(int),
            **{axis: world[:, at] for at, axis in enumerate(POSITION)},
            "diameter_mm": np.cbrt(6 * voxels * labels.voxel_volume / np.pi),
            "probability": np.ones(len(present)) if sure else np.minimum(highest, 1.0),
            "uncertain": np.zeros(len(present), bool),
            "included": np.ones(len(present), bool),
        }
    )


def _read(path: Path) -> pd.DataFrame:
    """A BIDS table, every cell as text, ``n/a`` as NaN."""
    names, rows = read_cells(path)
    if not names:
        raise ValueError(f"{path}: a tab-separated table is expected; found an empty file.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: every column needs a name of its own; found {twice[0]} twice.")
    for line, row in enumerate(rows, start=2):
        if len(row) > len(names):
            raise ValueError(
                f"{path}: a tab-separated table is expected, each line with the {len(names)} "
                f"columns of the first; found {len(row)} in line {line}."
            )
    whole = [[*row, *[None] * (len(names) - len(row))] for row in rows]
    return pd.DataFrame(whole, columns=names, dtype=object).replace({"": None})


def _need(path: Path, table: pd.DataFrame, names: list[str]) -> None:
    lacking = [name for name in names if name not in table]
    if lacking:
        raise ValueError(
            f"{path}: the columns {', '.join(names)} are needed; "
            f"{', '.join(lacking)} not among {', '.join(map(str, table.columns))}."
        )


def _numbers(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    try:
        return table.astype(float)
    except ValueError as error:
        names = ", ".join(table.columns)
        raise ValueError(f"{path}: {names} must be numbers; {error}.") from None


def _entities(name: str) -> dict[str, str]:
    """The entities of a file name that belong to the scan, in the order of BIDS."""
    parts = dict(part.partition("-")[::2] for part in name.partition(".")[0].split("_"))
    return {key: parts[key] for key in SOURCE_ENTITIES if parts.get(key)}


def _beside(path: Path, extension: str) -> Path:
    return path.with_name(path.name.partition(".")[0] + extension)


def _sidecar(path: Path) -> dict:
    """A sidecar's content; empty if there is none that can be read."""
    return read_json(path) or {}
