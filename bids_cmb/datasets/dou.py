"""Dou 2016: SWI in ``nii/``, and for each a ``.mat`` in ``ground_truth/`` with positions, ``cen``.

Source: Dou et al., IEEE Trans Med Imaging 2016;35:1182-1195, doi:10.1109/TMI.2016.2528129.
"""

from pathlib import Path

import numpy as np

from bids_cmb.bids.spreadsheets import summarize_error
from bids_cmb.datasets.base import (
    ALL_FLIPS,
    LabelledDataset,
    Point,
    UnknownConventions,
    find_images,
    index_by_stem,
    pair_with_images,
)

VARIABLE = "cen"
HDF5_SIGNATURE = b"\x89HDF"


def read(folder: Path) -> LabelledDataset:
    """Read every ``.mat`` file and the scan of the same name.

    Raises:
        ValueError: If there are none, one lacks its scan, or one cannot be read.
        OSError: If a file cannot be read at all.
    """
    images = index_by_stem(find_images(folder), folder)
    marked = index_by_stem(sorted(folder.rglob("*.mat")), folder)
    if not marked:
        raise ValueError(f"{folder}: files ….mat with positions are needed; found none.")
    scans, notes = pair_with_images(marked, images, folder, _read_points, "a .mat file")
    return LabelledDataset(
        title="Cerebral microbleeds on SWI (Dou et al. 2016)",
        licence="Given by the authors for research; see their page for terms.",
        scans=scans,
        links=("doi:10.1109/TMI.2016.2528129",),
        suffix="swi",
        metadata={"MagneticFieldStrength": 3, "EchoTime": 0.024, "RepetitionTime": 0.017},
        conventions=UnknownConventions(bases=(0, 1), flips=ALL_FLIPS, orders=("xyz", "yxz")),
        notes=notes,
    )


def _read_points(path: Path) -> tuple[Point, ...]:
    array = _read_array(path)
    if not array.size:
        return ()
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iuf":
        shape = " × ".join(map(str, array.shape))
        raise ValueError(
            f"{path}: `{VARIABLE}` must have three numbers for each lesion; found {shape} "
            f"of {array.dtype}."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: `{VARIABLE}` must hold numbers; found NaN or infinite ones.")
    return tuple(
        Point(tuple(map(float, coordinates)), origin=f"{path}: {VARIABLE}({number},:)")
        for number, coordinates in enumerate(array.tolist(), start=1)
    )


def _read_array(path: Path) -> np.ndarray:
    """Read the array ``cen``, a row for each lesion."""
    from scipy.io import loadmat, whosmat  # noqa: PLC0415  (slow to import, and rarely needed)

    with path.open("rb") as file:
        newer = HDF5_SIGNATURE in file.read(1024)
    if newer:
        return _read_hdf5(path)
    try:
        names = [name for name, *_ in whosmat(path, appendmat=False)]
        content = loadmat(path, variable_names=[VARIABLE], appendmat=False)
    except PermissionError:
        raise
    except Exception as error:  # (scipy raises a dozen kinds over broken files)
        reason = summarize_error(error)
        raise ValueError(
            f"{path}: a .mat file is expected; it cannot be read ({reason})."
        ) from error
    return np.asarray(_get_variable(path, content, names))


def _read_hdf5(path: Path) -> np.ndarray:
    """Read the array from a file of MATLAB 7.3, which is HDF5 and stores arrays transposed."""
    import h5py  # noqa: PLC0415

    try:
        with h5py.File(path) as content:
            variable = _get_variable(path, content, content.keys())
            return np.zeros(0) if "MATLAB_empty" in variable.attrs else np.asarray(variable).T
    except OSError as error:
        raise ValueError(f"{path}: a .mat file is expected; it cannot be read.") from error


def _get_variable(path: Path, content: object, names: object) -> object:
    if VARIABLE not in names:
        there = ", ".join(name for name in names if not name.startswith(("_", "#")))
        raise ValueError(
            f"{path}: positions are expected in `{VARIABLE}`; found {there or 'nothing'}."
        )
    return content[VARIABLE]
