"""Atlases of TemplateFlow, through its client, from an archive that is there already.

Nothing is fetched at run time unless it is asked for: on a cluster there is no network, and a run
that waits for one is a run that hangs.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.mars import label_of, table
from bids_cmb.anatomy.region_map import CORTEX, WHITE
from bids_cmb.anatomy.segmentation import Anatomy, around
from bids_cmb.imaging.volume import Volume, load_labels

SPACE = "MNI152NLin2009cAsym"
QUERIES = {
    "lobes": {
        "atlas": "HOCPAL", "desc": "th25", "suffix": "dseg", "resolution": 1,
        "extension": ".nii.gz",
    },
    "nuclei": {"atlas": "MASSP20", "suffix": "dseg", "resolution": 1, "extension": ".nii.gz"},
}  # fmt: skip
NUCLEUS_MM = 3.0  # a nucleus farther from an MNI position than this is not its name
COARSE = 2  # every second voxel of the atlas is enough for lobes


def archive() -> Path:
    """Where TemplateFlow keeps its archive."""
    said = os.environ.get("TEMPLATEFLOW_HOME")
    return Path(said) if said else Path.home() / ".cache" / "templateflow"


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
        """Those that are there."""
        return [path for path in (self.lobes, self.nuclei) if path]


def find_atlases(*, fetch: bool = False) -> Atlases:
    """The atlases that tell lobes apart and name nuclei.

    Args:
        fetch: Whether TemplateFlow's client may fetch them.

    Raises:
        ValueError: If they were to be fetched and could not be.
    """
    if not fetch:
        return _in_archive(archive())
    try:
        from templateflow import api  # noqa: PLC0415  looks at the archive when it is imported

        for query in QUERIES.values():
            api.get(SPACE, **query, raise_empty=True)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"--templateflow-fetch: the atlases must come; {said}.") from error
    _in_archive.cache_clear()
    return _in_archive(archive())


@lru_cache(maxsize=4)
def _in_archive(place: Path) -> Atlases:
    """The atlases of an archive; looked for once in a process."""
    if not (place.is_dir() and any(place.iterdir())):
        return Atlases()  # the client would unpack its skeleton there
    try:
        from templateflow import api  # noqa: PLC0415

        return Atlases(**{name: _whole(api.ls(SPACE, **query)) for name, query in QUERIES.items()})
    except Exception:
        return Atlases()  # whatever is wrong with an archive, a scan can be read without atlases


def _whole(paths: Iterable[Path | str]) -> Path | None:
    """The first file that is no placeholder."""
    return next((path for path in sorted(map(Path, paths)) if _holds_something(path)), None)


def _holds_something(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def lobes_of(anatomy: Anatomy, atlas: Path) -> np.ndarray | None:
    """The lobe of every voxel of cortex and white matter, on the grid of the anatomy.

    A voxel has the lobe that is nearest to its place in MNI space: the atlas is a ribbon of cortex,
    and an affine does not bring one ribbon onto another.

    Args:
        anatomy: Of the scan.
        atlas: Of lobes, as `find_atlases` found it.

    Returns:
        Labels of ``resources/atlases/mars.json``, uint8, 0 elsewhere; None without a way to MNI
        space.
    """
    if anatomy.to_mni is None:
        return None
    return _looked_up(anatomy, _grown(atlas), [*CORTEX, *WHITE])


def capsule_of(anatomy: Anatomy, atlas: Path) -> np.ndarray | None:
    """The white matter that an atlas calls internal capsule, bool, on the grid of the anatomy.

    Args:
        anatomy: Of the scan.
        atlas: Of nuclei, as `find_atlases` found it.

    Returns:
        None without a way to MNI space.
    """
    if anatomy.to_mni is None:
        return None
    labels = _looked_up(anatomy, _stored(atlas), WHITE)
    return np.isin(labels, table()["massp20"]["internal capsule"])


def _looked_up(anatomy: Anatomy, template: Volume, wanted: Sequence[int]) -> np.ndarray:
    """What a template says at the places of some structures, uint8, 0 elsewhere."""
    codes = anatomy.structures.data
    voxels = np.argwhere(np.isin(codes, wanted))
    places = anatomy.structures.world(voxels) @ anatomy.to_mni[:3, :3].T
    places += anatomy.to_mni[:3, 3]
    at = np.rint(template.index(places)).astype(int)
    at = np.clip(at, 0, np.array(template.shape) - 1)
    found = np.zeros(codes.shape, np.uint8)
    found[tuple(voxels.T)] = template.data[tuple(at.T)]
    return found


def parcel_at(
    mni: Sequence[float] | None, territory: str | None, lobe: str | None, atlases: Atlases
) -> str | None:
    """What an atlas calls a place.

    Args:
        mni: mm; None without a way to MNI space.
        territory: ``lobar`` asks for a parcel of the cortex, any other for a nucleus or tract.
        lobe: The parcel must be of this lobe, if it is one.
        atlases: Those there are.

    Returns:
        None without the atlas, and where it has nothing near.
    """
    path = atlases.lobes if territory == "lobar" else atlases.nuclei
    if mni is None or territory is None or path is None:
        return None
    known = table()
    if territory == "lobar":
        parcels = known["harvard_oxford"].get(lobe) or range(1, 49)
        wanted = [2 * parcel - right for parcel in parcels for right in (0, 1)]
        others = np.setdiff1d(np.arange(256), wanted)
        labels, _ = around(_stored(path), np.array(mni), but=others)
        return known["harvard_oxford_names"][(int(labels[0]) + 1) // 2 - 1] if len(labels) else None
    labels, away = around(_stored(path), np.array(mni), but=[0, *known["massp20"]["fluid"]])
    if not len(labels) or away[0] > NUCLEUS_MM:
        return None
    return next(name for name, own in known["massp20_names"].items() if labels[0] in own)


@lru_cache(maxsize=2)
def _stored(atlas: Path) -> Volume:
    """The labels of an atlas as they are, uint8."""
    stored = load_labels(atlas)
    return Volume(np.rint(stored.data).astype(np.uint8), stored.affine)


@lru_cache(maxsize=2)
def _grown(atlas: Path) -> Volume:
    """The lobes of the atlas, every voxel with the nearest, every second voxel."""
    stored = _stored(atlas)
    parcels = (stored.data[::COARSE, ::COARSE, ::COARSE].astype(int) + 1) // 2
    lobe = np.zeros(49, np.uint8)  # left parcels are 1, 3, 5 …, right ones 2, 4, 6 …
    for name, members in table()["harvard_oxford"].items():
        lobe[members] = label_of(name)
    labels = lobe[np.clip(parcels, 0, 48)]
    nearest = ndimage.distance_transform_edt(
        labels == 0, stored.spacing * COARSE, return_distances=False, return_indices=True
    )
    scale = np.diag([COARSE, COARSE, COARSE, 1])
    return Volume(labels[tuple(nearest)], stored.affine @ scale)
