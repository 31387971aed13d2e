"""Lesion annotations, predicted or true, read from tables and label maps.

They come from an output folder of the app, any folder of masks or tables, one mask, or one table of
coordinates for many scans.
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import cKDTree

from bids_cmb.bids.entities import is_scan_name, parse_scan_entities
from bids_cmb.bids.tables import DIAMETER_COLUMNS, POSITION_COLUMNS, read_cells
from bids_cmb.evaluation.contrasts import find_contrast_of_scan
from bids_cmb.files import read_json
from bids_cmb.imaging.nifti import load_labels
from bids_cmb.lesions.label_maps import load_label_map

POSITION_COLUMNS = list(POSITION_COLUMNS)
LOCATION_COLUMNS = ("region", "group", "territory")
FILE_PATTERNS = (  # of a folder, those files are read that match the first pattern with any match
    "*_seg-CMB*dseg.tsv",
    "*_seg-CMB*dseg.nii*",
    "*_label-CMB*mask.nii*",
    "*_CMB.nii*",
    "*.nii*",
    "*.tsv",
)
EXCLUDED_NAMES = re.compile(r"_scans\.tsv$|_seg-mimics_|_label-brain_")
EXCLUDED_FOLDERS = {"derivatives", "sourcedata"}  # other datasets within a dataset
TRUE_WORDS, FALSE_WORDS = {"yes", "true", "1", "1.0"}, {"no", "false", "0", "0.0"}


@dataclass(frozen=True, eq=False)
class LesionAnnotations:
    """Lesions marked in a scan.

    Attributes:
        entities: Of the scan: ``sub``, ``ses``, ``acq``, … as far as they are known.
        lesions: A row each: ``index`` (its value in the label map), ``x_mm``, ``y_mm``, ``z_mm``
            (world, RAS+), ``diameter_mm``, ``probability`` (0 to 1), ``uncertain``, ``included``,
            and of ``LOCATION_COLUMNS`` those that are known.
        image: Its mask or label map, if there is one.
        sidecar: Content of the sidecar.
        file: That was read; None for one table of many scans.
        contrast: Of the scan, as `contrasts.find_contrast_of_scan` gives it.
        named_with_contrast: Whether the name says it, since another scan has the same entities.
    """

    entities: dict[str, str]
    lesions: pd.DataFrame
    image: Path | None = None
    sidecar: dict = field(default_factory=dict)
    file: Path | None = None
    contrast: str = ""
    named_with_contrast: bool = False

    @property
    def name(self) -> str:
        """Entities as in a file name, and the contrast where that is needed."""
        words = [f"{key}-{label}" for key, label in self.entities.items()]
        return "_".join([*words, self.contrast] if self.named_with_contrast else words)

    @property
    def positions(self) -> np.ndarray:
        """Centres of the lesions, world mm, shape (N, 3)."""
        return self.lesions[POSITION_COLUMNS].to_numpy(float)

    def may_match(self, other: "LesionAnnotations") -> bool:
        """Check whether both can be of one scan: no entity or contrast that both name differs."""
        if self.contrast and other.contrast and self.contrast != other.contrast:
            return False
        common = self.entities.keys() & other.entities.keys()
        return all(self.entities[key] == other.entities[key] for key in common)

    def tell_contrast(self) -> "LesionAnnotations":
        """Add the contrast to the name, if it is known."""
        return replace(self, named_with_contrast=bool(self.contrast))


@dataclass(frozen=True, eq=False)
class Mimics:
    """Labelled mimics of a scan.

    Attributes:
        counts: Number of mimics of each kind.
        points: Their voxels, or their centres without a label map; world mm, (N, 3).
        kinds: Of every point, shape (N,).
    """

    counts: dict[str, int]
    points: np.ndarray
    kinds: np.ndarray

    def find_nearest(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the kind of the nearest point to each position (F, 3), and its distance in mm."""
        if not len(positions) or not len(self.points):
            return np.full(len(positions), "", object), np.full(len(positions), np.inf)
        distance, nearest = cKDTree(self.points).query(positions)
        return self.kinds[nearest].astype(object), distance


def read_annotations(path: Path) -> list[LesionAnnotations]:
    """Read the lesions of every scan in a folder or a file.

    Of a folder, the files that match the first of ``FILE_PATTERNS`` with any match are read, one
    per scan, but no image that is a scan by its name. In a ``dseg`` every lesion has its own
    number; in any other image voxels of 0.5 or more are lesion, and those that touch are one. Of
    results of the app only complete ones are read.

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
        scans = [_read_scan(file) for file in _find_files(path)]
        number = Counter(scan.name for scan in scans)
        return [scan.tell_contrast() if number[scan.name] > 1 else scan for scan in scans]
    if path.suffix == ".tsv" and _find_subject_columns(_read_table(path)):
        return _read_coordinates(path)
    return [_read_scan(path, alone=True)]


def read_mimics(truth: LesionAnnotations) -> Mimics | None:
    """Read the mimics of a scan, from the files beside its true lesions; None without any.

    They have the same names, with ``seg-mimics`` for ``seg-CMB``: a table with ``kind``, and a
    label map with the ``index`` of each or, in the table, their centres.

    Raises:
        ValueError: If the table lacks a column.
        OSError: If there is a label map without a table, or a file cannot be read.
    """
    if truth.file is None or "_seg-CMB_" not in truth.file.name:
        return None
    table_path = _sibling_path(truth.file, ".tsv")
    table_path = table_path.with_name(table_path.name.replace("_seg-CMB_", "_seg-mimics_"))
    map_path = _sibling_path(table_path, ".nii.gz")
    if not table_path.exists() and not map_path.exists():
        return None
    table = _read_table(table_path)
    _require_columns(
        table_path, table, ["kind"] if map_path.exists() else ["kind", *POSITION_COLUMNS]
    )
    kinds = table["kind"].fillna("n/a").to_numpy(object)
    counts = table["kind"].fillna("n/a").value_counts(sort=False).to_dict()
    if not map_path.exists():
        return Mimics(
            counts, _to_numbers(table_path, table[POSITION_COLUMNS]).to_numpy(float), kinds
        )
    labels = load_labels(map_path)
    voxels = np.argwhere(labels.data > 0)
    kind_of = pd.Series(kinds, index=_get_indices(table_path, table))
    values = np.rint(labels.data[tuple(voxels.T)]).astype(int)
    return Mimics(
        counts, labels.world(voxels), kind_of.reindex(values, fill_value="n/a").to_numpy()
    )


def _find_files(folder: Path) -> list[Path]:
    """Find one file per scan, without those of incomplete results of the app."""
    files = next(filter(None, (_match_files(folder, pattern) for pattern in FILE_PATTERNS)), [])
    if not files:
        raise ValueError(
            f"{folder}: masks or lesion tables named sub-… are needed; found none of "
            f"{', '.join(FILE_PATTERNS[:4])} nor any other table or image that is no scan by its "
            "name."
        )
    complete = [file for file in files if "Microbleeds" in _read_sidecar(_marker_path(file))]
    return complete or files


def _match_files(folder: Path, pattern: str) -> list[Path]:
    """List the files of a pattern, sorted, without scans and those of other datasets within."""
    return [
        file
        for file in sorted(folder.rglob(f"sub-{pattern}"))
        if not EXCLUDED_NAMES.search(file.name)
        and not is_scan_name(file.name)
        and not EXCLUDED_FOLDERS & set(file.relative_to(folder).parts)
    ]


def _marker_path(file: Path) -> Path:
    """Get the path of the app's marker of a complete result, beside one of its tables."""
    name = file.name.replace("_seg-CMB_", "_label-CMB_").partition(".")[0]
    return file.with_name(name.removesuffix("_dseg").removesuffix("_mask") + "_mask.json")


def _read_scan(path: Path, *, alone: bool = False) -> LesionAnnotations:
    """Read the lesions of one scan; its name may lack entities if it is the only file."""
    entities = parse_scan_entities(path.name)
    if is_scan_name(path.name):
        raise ValueError(f"{path}: a mask or label map is expected; by its name it is a scan.")
    if "sub" not in entities and not alone:
        raise ValueError(f"{path}: the name must say the participant, sub-…; found {path.name}.")
    sidecar = {**_read_sidecar(_sibling_path(path, ".json")), **_read_sidecar(_marker_path(path))}
    contrast = find_contrast_of_scan(path.name, sidecar)
    if path.suffix == ".tsv":
        images = [
            file for end in (".nii.gz", ".nii") if (file := _sibling_path(path, end)).exists()
        ]
        lesions = _make_lesion_table(path, _read_table(path))
        image = images[0] if images else None
        return LesionAnnotations(entities, lesions, image, sidecar, path, contrast)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(
            f"{path}: a folder, an image (.nii, .nii.gz) or a table (.tsv) is expected."
        )
    return LesionAnnotations(entities, _measure_labels(path), path, sidecar, path, contrast)


def _read_coordinates(path: Path) -> list[LesionAnnotations]:
    """Read a table of coordinates of many scans; a scan without lesions has ``n/a`` for all."""
    table = _read_table(path)
    subject_columns = _find_subject_columns(table)
    _require_columns(path, table, POSITION_COLUMNS)
    positions = _to_numbers(path, table[POSITION_COLUMNS])
    incomplete = positions.isna().any(axis=1) & positions.notna().any(axis=1)
    if incomplete.any():
        raise ValueError(
            f"{path}: a lesion must have x_mm, y_mm and z_mm, or n/a for all three; "
            f"line {int(np.flatnonzero(incomplete)[0]) + 2} has only some."
        )
    if table[subject_columns[0]].isna().any():
        line = int(np.flatnonzero(table[subject_columns[0]].isna())[0]) + 2
        raise ValueError(
            f"{path}: every line must name its {subject_columns[0]}; line {line} does not."
        )
    annotations = []
    for labels, rows in table.groupby(subject_columns, sort=False, dropna=False):
        entities = {
            key: label.removeprefix(f"{key}-")
            for key, label in zip(("sub", "ses"), labels, strict=False)
            if isinstance(label, str)
        }
        annotations.append(
            LesionAnnotations(
                entities,
                _make_lesion_table(path, rows[positions.loc[rows.index].notna().all(axis=1)]),
            )
        )
    return annotations


def _find_subject_columns(table: pd.DataFrame) -> list[str]:
    """Find the columns of participant and session; none if the table is of one scan."""
    columns = [("participant_id", "subject"), ("session_id", "session")]
    present = [[name for name in names if name in table][:1] for names in columns]
    return [*present[0], *present[1]] if present[0] else []


def _make_lesion_table(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Make the table of `LesionAnnotations` from any table of lesions."""
    _require_columns(path, table, POSITION_COLUMNS)
    positions = _to_numbers(path, table[POSITION_COLUMNS])
    if positions.isna().any(axis=None):
        line = int(np.flatnonzero(positions.isna().any(axis=1))[0]) + 2
        raise ValueError(f"{path}: every lesion must have a position; line {line} has not.")
    lesions = pd.DataFrame(
        {
            "index": _get_indices(path, table),
            **{axis: positions[axis] for axis in POSITION_COLUMNS},
            "diameter_mm": _get_first_column(path, table, DIAMETER_COLUMNS, np.nan),
            "probability": _get_first_column(path, table, ("probability_max", "probability"), 1.0),
            "uncertain": _has_word(table, "visible", FALSE_WORDS)
            | _has_word(table, "ignore", TRUE_WORDS)
            | _has_word(table, "certainty", {"possible", "unseen"}),
            "included": ~_has_word(table, "included", FALSE_WORDS),
        }
    ).reset_index(drop=True)
    if not lesions["probability"].between(0, 1).all():
        raise ValueError(
            f"{path}: every lesion must have a probability from 0 to 1; found "
            f"{lesions['probability'].min():g} to {lesions['probability'].max():g} or none."
        )
    for column in LOCATION_COLUMNS:
        if column in table:
            lesions[column] = table[column].str.strip().fillna("n/a").to_numpy()
    return lesions


def _get_indices(path: Path, table: pd.DataFrame) -> pd.Series:
    """Get every lesion's value in the label map; the number of its row if none is given."""
    indices = _get_first_column(path, table, ("index",), np.nan)
    return indices.fillna(pd.Series(np.arange(1, len(table) + 1.0), index=table.index)).astype(int)


def _get_first_column(
    path: Path, table: pd.DataFrame, names: tuple[str, ...], default: object
) -> pd.Series:
    """Get the first of the columns that has any value, as numbers."""
    for name in names:
        if name in table and table[name].notna().any():
            return _to_numbers(path, table[[name]])[name]
    return pd.Series(default, index=table.index, dtype=float)


def _has_word(table: pd.DataFrame, column: str, words: set[str]) -> pd.Series:
    """Check each row for one of the words in a column; False without the column."""
    if column not in table:
        return pd.Series(np.zeros(len(table), bool), index=table.index)
    return table[column].fillna("").str.strip().str.lower().isin(words)


def _measure_labels(path: Path) -> pd.DataFrame:
    """Measure the lesions of a mask or label map: centre of mass, size, highest probability."""
    labels, stored = load_label_map(path), load_labels(path).data
    present = np.unique(labels.data[labels.data > 0])
    centres = np.array(ndimage.center_of_mass(labels.data > 0, labels.data, present))
    n_voxels = np.array(ndimage.sum_labels(labels.data > 0, labels.data, present), float)
    highest = np.array(ndimage.maximum(stored, labels.data, present), float)
    world = labels.world(centres.reshape(-1, 3))
    is_label_map = "dseg" in path.name
    return pd.DataFrame(
        {
            "index": present.astype(int),
            **{axis: world[:, axis_index] for axis_index, axis in enumerate(POSITION_COLUMNS)},
            "diameter_mm": np.cbrt(6 * n_voxels * labels.voxel_volume / np.pi),
            "probability": np.ones(len(present)) if is_label_map else np.minimum(highest, 1.0),
            "uncertain": np.zeros(len(present), bool),
            "included": np.ones(len(present), bool),
        }
    )


def _read_table(path: Path) -> pd.DataFrame:
    """Read a BIDS table, every cell as text, ``n/a`` as NaN."""
    names, rows = read_cells(path)
    if not names:
        raise ValueError(f"{path}: a tab-separated table is expected; found an empty file.")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{path}: every column needs a name of its own; found {repeated[0]} twice."
        )
    for line, row in enumerate(rows, start=2):
        if len(row) > len(names):
            raise ValueError(
                f"{path}: a tab-separated table is expected, each line with the {len(names)} "
                f"columns of the first; found {len(row)} in line {line}."
            )
    padded = [[*row, *[None] * (len(names) - len(row))] for row in rows]
    return pd.DataFrame(padded, columns=names, dtype=object).replace({"": None})


def _require_columns(path: Path, table: pd.DataFrame, names: list[str]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(
            f"{path}: the columns {', '.join(names)} are needed; "
            f"{', '.join(missing)} not among {', '.join(map(str, table.columns))}."
        )


def _to_numbers(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    try:
        return table.astype(float)
    except ValueError as error:
        names = ", ".join(table.columns)
        raise ValueError(f"{path}: {names} must be numbers; {error}.") from None


def _sibling_path(path: Path, extension: str) -> Path:
    return path.with_name(path.name.partition(".")[0] + extension)


def _read_sidecar(path: Path) -> dict:
    """Read a sidecar; empty if there is none that can be read."""
    return read_json(path) or {}
