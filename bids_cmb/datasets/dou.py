"""Dou 2016: SWI in ``nii/``, and for each a ``.mat`` in ``ground_truth/`` with positions, ``cen``.

Source: Dou et al., IEEE Trans Med Imaging 2016;35:1182-1195, doi:10.1109/TMI.2016.2528129.
"""

from pathlib import Path

import numpy as np

from bids_cmb.datasets.base import (
    ALL_FLIPS,
    LabelledDataset,
    Point,
    UnknownConventions,
    by_stem,
    find_images,
    paired,
)

KEY = "cen"
MATLAB_7_3 = b"\x89HDF"


def read(folder: Path) -> LabelledDataset:
    """Every ``.mat`` file and the scan of the same name.

    Raises:
        ValueError: If there are none, one lacks its scan, or one cannot be read.
        OSError: If a file cannot be read at all.
    """
    images = by_stem(find_images(folder), folder)
    marked = by_stem(sorted(folder.rglob("*.mat")), folder)
    if not marked:
        raise ValueError(f"{folder}: files ….mat with positions are needed; found none.")
    scans, notes = paired(marked, images, folder, _points, "a .mat file")
    return LabelledDataset(
        title="Cerebral microbleeds on SWI (Dou et al. 2016)",
        licence="Given by the authors for research; see their page for terms.",
        scans=scans,
        links=("doi:10.1109/TMI.2016.2528129",),
        suffix="swi",
        known={"MagneticFieldStrength": 3, "EchoTime": 0.024, "RepetitionTime": 0.017},
        open=UnknownConventions(bases=(0, 1), flips=ALL_FLIPS, orders=("xyz", "yxz")),
        notes=notes,
    )


def _points(path: Path) -> tuple[Point, ...]:
    places = _places(path)
    if not places.size:
        return ()
    if places.ndim != 2 or places.shape[1] != 3 or places.dtype.kind not in "iuf":
        found = " × ".join(map(str, places.shape))
        raise ValueError(
            f"{path}: `{KEY}` must have three numbers for each lesion; found {found} "
            f"of {places.dtype}."
        )
    if not np.isfinite(places).all():
        raise ValueError(f"{path}: `{KEY}` must hold numbers; found NaN or infinite ones.")
    return tuple(
        Point(tuple(map(float, place)), where=f"{path}: {KEY}({number},:)")
        for number, place in enumerate(places.tolist(), start=1)
    )


def _places(path: Path) -> np.ndarray:
    """What ``cen`` holds, a row for each lesion."""
    from scipy.io import loadmat, whosmat  # noqa: PLC0415  (slow to import, and rarely needed)

    with path.open("rb") as file:
        newer = MATLAB_7_3 in file.read(1024)
    if newer:
        return _newer(path)
    try:
        names = [name for name, *_ in whosmat(path, appendmat=False)]
        content = loadmat(path, variable_names=[KEY], appendmat=False)
    except PermissionError:
        raise
    except Exception as error:  # (scipy raises a dozen kinds over broken files)
        said = str(error).strip().split("\n")[0][:120].rstrip(".")
        raise ValueError(f"{path}: a .mat file is expected; it cannot be read ({said}).") from error
    return np.asarray(_kept(path, content, names))


def _newer(path: Path) -> np.ndarray:
    """Of MATLAB 7.3, which is HDF5 and stores what it has the other way round."""
    import h5py  # noqa: PLC0415

    try:
        with h5py.File(path) as content:
            kept = _kept(path, content, content.keys())
            return np.zeros(0) if "MATLAB_empty" in kept.attrs else np.asarray(kept).T
    except OSError as error:
        raise ValueError(f"{path}: a .mat file is expected; it cannot be read.") from error


def _kept(path: Path, content: object, names: object) -> object:
    if KEY not in names:
        there = ", ".join(name for name in names if not name.startswith(("_", "#")))
        raise ValueError(f"{path}: positions are expected in `{KEY}`; found {there or 'nothing'}.")
    return content[KEY]
