"""Atlases of TemplateFlow, through its client, from an archive that is there already.

Nothing is fetched at run time unless it is asked for: on a cluster there is no network, and a run
that waits for one is a run that hangs.
"""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy import Anatomy
from bids_cmb.mars import label_of, table
from bids_cmb.regions import CORTEX, WHITE
from bids_cmb.volume import Volume, load_labels

SPACE = "MNI152NLin2009cAsym"
LOBES = {"atlas": "HOCPAL", "desc": "th25", "suffix": "dseg", "resolution": 1}
COARSE = 2  # every second voxel of the atlas is enough for lobes


def archive() -> Path:
    """Where TemplateFlow keeps its archive."""
    said = os.environ.get("TEMPLATEFLOW_HOME")
    return Path(said) if said else Path.home() / ".cache" / "templateflow"


def find_lobes(*, fetch: bool = False) -> Path | None:
    """The atlas that tells lobes apart: Harvard-Oxford, left and right.

    Args:
        fetch: Whether TemplateFlow's client may fetch it.

    Returns:
        None if the archive does not have it.

    Raises:
        ValueError: If it was to be fetched and could not be.
    """
    if not fetch:
        return _in_archive(archive())
    try:
        from templateflow import api  # noqa: PLC0415  looks at the archive when it is imported

        found = api.get(SPACE, **LOBES, raise_empty=True)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"--templateflow-fetch: the atlas of lobes must come; {said}.") from error
    _in_archive.cache_clear()
    return Path(found[0] if isinstance(found, list) else found)


@lru_cache(maxsize=4)
def _in_archive(place: Path) -> Path | None:
    """The atlas of lobes in an archive; looked for once in a process."""
    if not (place.is_dir() and any(place.iterdir())):
        return None  # the client would unpack its skeleton there
    try:
        from templateflow import api  # noqa: PLC0415

        paths = [Path(path) for path in api.ls(SPACE, **LOBES)]
    except Exception:
        return None  # whatever is wrong with an archive, a scan can be read without lobes
    return next((path for path in sorted(paths) if path.is_file() and path.stat().st_size), None)


def lobes_of(anatomy: Anatomy, atlas: Path) -> np.ndarray | None:
    """The lobe of every voxel of cortex and white matter, on the grid of the anatomy.

    A voxel has the lobe that is nearest to its place in MNI space: the atlas is a ribbon of cortex,
    and an affine does not bring one ribbon onto another.

    Args:
        anatomy: Of the scan.
        atlas: As `find_lobes` found it.

    Returns:
        Labels of ``data/regions.json``, uint8, 0 elsewhere; None without a way to MNI space.
    """
    if anatomy.to_mni is None:
        return None
    grown = _grown(atlas)
    codes = anatomy.structures.data
    voxels = np.argwhere(np.isin(codes, [*CORTEX, *WHITE]))
    world = anatomy.structures.world(voxels)
    places = world @ anatomy.to_mni[:3, :3].T + anatomy.to_mni[:3, 3]
    at = np.rint(grown.index(places)).astype(int)
    at = np.clip(at, 0, np.array(grown.shape) - 1)
    found = np.zeros(codes.shape, np.uint8)
    found[tuple(voxels.T)] = grown.data[tuple(at.T)]
    return found


@lru_cache(maxsize=2)
def _grown(atlas: Path) -> Volume:
    """The lobes of the atlas, every voxel with the nearest, every second voxel."""
    stored = load_labels(atlas)
    parcels = (np.rint(stored.data[::COARSE, ::COARSE, ::COARSE]).astype(int) + 1) // 2
    lobe = np.zeros(49, np.uint8)  # left parcels are 1, 3, 5 …, right ones 2, 4, 6 …
    for name, members in table()["harvard_oxford"].items():
        lobe[members] = label_of(name)
    labels = lobe[np.clip(parcels, 0, 48)]
    nearest = ndimage.distance_transform_edt(
        labels == 0, stored.spacing * COARSE, return_distances=False, return_indices=True
    )
    scale = np.diag([COARSE, COARSE, COARSE, 1])
    return Volume(labels[tuple(nearest)], stored.affine @ scale)
