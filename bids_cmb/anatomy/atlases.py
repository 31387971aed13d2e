"""Atlases of TemplateFlow, through its client, from an archive that is there already.

Nothing is fetched at run time unless requested: on a cluster there is no network, and a run
that waits for one is a run that hangs.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.mars import find_label, load_mars_table
from bids_cmb.anatomy.region_map import CORTEX
from bids_cmb.anatomy.segmentation import WHITE_MATTER, Anatomy, find_labels_near
from bids_cmb.imaging.nifti import load_labels
from bids_cmb.imaging.volume import Volume, map_points

SPACE = "MNI152NLin2009cAsym"
QUERIES = {
    "lobes": {
        "atlas": "HOCPAL", "desc": "th25", "suffix": "dseg", "resolution": 1,
        "extension": ".nii.gz",
    },
    "nuclei": {"atlas": "MASSP20", "suffix": "dseg", "resolution": 1, "extension": ".nii.gz"},
}  # fmt: skip
MAX_NUCLEUS_DISTANCE_MM = 3.0  # a nucleus farther from an MNI position than this is not its name
LOBE_STEP_VOXELS = 2  # every second voxel of the atlas is enough for lobes


def find_archive() -> Path:
    """Find the folder of TemplateFlow's archive."""
    home = os.environ.get("TEMPLATEFLOW_HOME")
    return Path(home) if home else Path.home() / ".cache" / "templateflow"


@dataclass(frozen=True)
class Atlases:
    """The atlases of an archive.

    Attributes:
        lobes: Harvard-Oxford's parcels of the cortex; None if the archive does not have it.
        nuclei: MASSP 2.0, nuclei and the internal capsule; None like ``lobes``.
    """

    lobes: Path | None = None
    nuclei: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """The atlases that are there."""
        return [path for path in (self.lobes, self.nuclei) if path]


def find_atlases(*, fetch: bool = False) -> Atlases:
    """Find the atlases of lobes and of nuclei.

    Args:
        fetch: Whether TemplateFlow's client may fetch them.

    Raises:
        ValueError: If they were to be fetched and could not be.
    """
    if not fetch:
        return _list_archive(find_archive())
    try:
        from templateflow import api  # noqa: PLC0415  looks at the archive when it is imported

        for query in QUERIES.values():
            api.get(SPACE, **query, raise_empty=True)
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        raise ValueError(f"--templateflow-fetch: the atlases must come; {message}.") from error
    _list_archive.cache_clear()
    return _list_archive(find_archive())


@lru_cache(maxsize=4)
def _list_archive(place: Path) -> Atlases:
    """List the atlases of an archive; searched once in a process."""
    if not (place.is_dir() and any(place.iterdir())):
        return Atlases()  # the client would unpack its skeleton there
    try:
        from templateflow import api  # noqa: PLC0415

        return Atlases(
            **{name: _find_complete(api.ls(SPACE, **query)) for name, query in QUERIES.items()}
        )
    except Exception:
        return Atlases()  # whatever is wrong with an archive, a scan can be read without atlases


def _find_complete(paths: Iterable[Path | str]) -> Path | None:
    """Find the first file that is no placeholder."""
    return next((path for path in sorted(map(Path, paths)) if _is_complete(path)), None)


def _is_complete(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def map_lobes(anatomy: Anatomy, atlas: Path) -> np.ndarray | None:
    """Map every voxel of cortex and white matter to a lobe, on the grid of the anatomy.

    A voxel has the lobe that is nearest to its place in MNI space: the atlas is a ribbon of cortex,
    and an affine does not bring one ribbon onto another.

    Args:
        anatomy: Of the scan.
        atlas: Of lobes, as `find_atlases` found it.

    Returns:
        Labels of ``resources/atlases/mars.json``, uint8, 0 elsewhere; None without an affine to MNI
        space.
    """
    if anatomy.to_mni is None:
        return None
    return _look_up(anatomy, _load_grown_lobes(atlas), [*CORTEX, *WHITE_MATTER])


def map_capsule(anatomy: Anatomy, atlas: Path) -> np.ndarray | None:
    """Map the internal capsule of an atlas to the white matter, bool, on the anatomy's grid.

    Args:
        anatomy: Of the scan.
        atlas: Of nuclei, as `find_atlases` found it.

    Returns:
        None without an affine to MNI space.
    """
    if anatomy.to_mni is None:
        return None
    labels = _look_up(anatomy, _load_atlas(atlas), WHITE_MATTER)
    return np.isin(labels, load_mars_table()["massp20"]["internal capsule"])


def _look_up(anatomy: Anatomy, template: Volume, wanted: Sequence[int]) -> np.ndarray:
    """Look up a template's labels at the voxels of some structures, uint8, 0 elsewhere."""
    codes = anatomy.structures.data
    voxels = np.argwhere(np.isin(codes, wanted))
    places = map_points(anatomy.to_mni, anatomy.structures.world(voxels))
    index = np.rint(template.index(places)).astype(int)
    index = np.clip(index, 0, np.array(template.shape) - 1)
    labels = np.zeros(codes.shape, np.uint8)
    labels[tuple(voxels.T)] = template.data[tuple(index.T)]
    return labels


def find_parcel(
    mni: Sequence[float] | None, territory: str | None, lobe: str | None, atlases: Atlases
) -> str | None:
    """Find the atlas parcel or nucleus at a point.

    Args:
        mni: mm; None without an affine to MNI space.
        territory: ``lobar`` asks for a parcel of the cortex, any other for a nucleus or tract.
        lobe: The parcel must be of this lobe, if it is one.
        atlases: Those there are.

    Returns:
        Its name; None without the atlas, and where it has nothing near.
    """
    path = atlases.lobes if territory == "lobar" else atlases.nuclei
    if mni is None or territory is None or path is None:
        return None
    known = load_mars_table()
    if territory == "lobar":
        parcels = known["harvard_oxford"].get(lobe) or range(1, 49)
        wanted = [2 * parcel - right for parcel in parcels for right in (0, 1)]
        others = np.setdiff1d(np.arange(256), wanted)
        labels, _ = find_labels_near(_load_atlas(path), np.array(mni), exclude=others)
        return known["harvard_oxford_names"][(int(labels[0]) + 1) // 2 - 1] if len(labels) else None
    labels, distances = find_labels_near(
        _load_atlas(path), np.array(mni), exclude=[0, *known["massp20"]["fluid"]]
    )
    if not len(labels) or distances[0] > MAX_NUCLEUS_DISTANCE_MM:
        return None
    return next(
        name
        for name, nucleus_labels in known["massp20_names"].items()
        if labels[0] in nucleus_labels
    )


@lru_cache(maxsize=2)
def _load_atlas(atlas: Path) -> Volume:
    """Load the labels of an atlas, uint8."""
    stored = load_labels(atlas)
    return Volume(np.rint(stored.data).astype(np.uint8), stored.affine)


@lru_cache(maxsize=2)
def _load_grown_lobes(atlas: Path) -> Volume:
    """Load the lobes of the atlas, grown to every voxel, every second voxel."""
    stored = _load_atlas(atlas)
    parcels = (
        stored.data[::LOBE_STEP_VOXELS, ::LOBE_STEP_VOXELS, ::LOBE_STEP_VOXELS].astype(int) + 1
    ) // 2
    lobe = np.zeros(49, np.uint8)  # left parcels are 1, 3, 5 …, right ones 2, 4, 6 …
    for name, members in load_mars_table()["harvard_oxford"].items():
        lobe[members] = find_label(name)
    labels = lobe[np.clip(parcels, 0, 48)]
    nearest = ndimage.distance_transform_edt(
        labels == 0, stored.spacing * LOBE_STEP_VOXELS, return_distances=False, return_indices=True
    )
    scale = np.diag([LOBE_STEP_VOXELS, LOBE_STEP_VOXELS, LOBE_STEP_VOXELS, 1])
    return Volume(labels[tuple(nearest)], stored.affine @ scale)
