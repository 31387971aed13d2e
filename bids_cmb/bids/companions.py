"""Find the user's brain mask, segmentation, T1w image and transform of a scan.

All are found by their names. A file without ``space-`` lies in the space of the T1w image that
stands beside it under the same name (so do fMRIPrep's and sMRIPrep's), else in that of the scan.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bids_cmb.bids.entities import DERIVATIVE_ENTITIES, parse_entities
from bids_cmb.bids.filters import find_contrast
from bids_cmb.bids.scan import DATATYPES, Scan

SEGMENTATIONS = ("aparcaseg", "aparc+aseg", "synthseg", "freesurfer", "aseg")  # parcels first
FREESURFER_SEGMENTATIONS = ("aparc+aseg.mgz", "aseg.mgz")
FREESURFER_T1W = ("T1.mgz", "orig.mgz", "norm.mgz")
SYNTHSEG_ENDING = "_synthseg"  # that mri_synthseg adds to a name
TRANSFORM_EXTENSIONS = (".txt", ".tfm", ".mat", ".h5")


@dataclass(frozen=True)
class Segmentation:
    """A segmentation of the scan's head.

    Attributes:
        path: The label map.
        in_t1w_space: Whether it lies in the space of a T1w image, not of the scan.
        t1w: That image; None if there is none, or a transform makes it unnecessary.
        transform: The user's, from that space to the scan.
    """

    path: Path
    in_t1w_space: bool = False
    t1w: Path | None = None
    transform: Path | None = None

    @property
    def roles(self) -> list[tuple[str, Path]]:
        """The files that are used, each with what it is used for."""
        space = "a T1w image" if self.in_t1w_space else "the scan"
        roles = [
            (f"segmentation on {space}", self.path),
            ("T1w image", self.t1w),
            ("transform to the scan", self.transform),
        ]
        return [(role, path) for role, path in roles if path]


def find_mask(folders: Iterable[Path], scan: Scan, desc: str) -> Path | None:
    """Find a brain mask for the scan among the user's derivatives.

    It must belong to the same participant and session, carry ``desc-<desc>`` (or ``label-<desc>``)
    and lie in the scan's own space: ``space-orig``, ``space-<suffix>``, or no ``space-`` and no T1w
    image of its name beside; and it must not contradict any entity of the scan, nor name another
    contrast (``label-brain_desc-swi`` is no mask for a T2starw). Where the name does not say the
    space, it must lie in ``anat/`` or ``swi/``: in ``perf/`` it would lie in that of another image.
    Of several, the one that names the scan's contrast is taken, else the one that shares most
    entities, ties by name; the first folder that has one wins.
    """
    return _find_in_scan_space(folders, scan, "mask", [desc])


def find_segmentation(folders: Sequence[Path], scan: Scan, raw: Path) -> Segmentation | None:
    """Find a segmentation of the scan's head among the user's derivatives.

    First one in the scan's own space, found as `find_mask` finds a mask: a ``dseg`` with one of
    `SEGMENTATIONS` as its ``desc-`` or ``seg-``. Else one in the space of a T1w image: such a
    ``dseg``, what mri_synthseg made of a T1w image, or a subject's folder of FreeSurfer; of the
    scan's session, of none, or of another, in this order. The T1w image is the one beside it, else
    one of the raw dataset, of its session before others. A transform ``from-T1w_to-<suffix>`` (or
    ``to-orig``) for the scan makes it unnecessary.

    Args:
        folders: Derivative datasets, or FreeSurfer's folder of subjects.
        scan: Whose head it is.
        raw: The dataset of the scan.
    """
    if path := _find_in_scan_space(folders, scan, "dseg", SEGMENTATIONS):
        return Segmentation(path)
    for folder in folders:
        for path, beside in _find_in_t1w_space(folder, scan):
            transform = _find_transform(folders, scan)
            t1w = None if transform else beside or _find_raw_t1w(path, scan, raw)
            return Segmentation(path, in_t1w_space=True, t1w=t1w, transform=transform)
    return None


def _parse_source_entities(path: Path) -> dict[str, str]:
    """Parse the entities that a derivative has from its scan."""
    entities = parse_entities(path.name)
    return {key: value for key, value in entities.items() if key not in DERIVATIVE_ENTITIES}


def _is_in_t1w_space(path: Path) -> bool:
    space = parse_entities(path.name).get("space")
    return space == "T1w" or (space is None and _find_t1w_beside(path) is not None)


def _find_t1w_beside(path: Path) -> Path | None:
    """Find the T1w image in the same folder whose name differs in `DERIVATIVE_ENTITIES` only."""
    entities = _parse_source_entities(path)
    images = [
        image
        for image in sorted(path.parent.glob("*_T1w.nii*"))
        if _parse_source_entities(image) == entities
        and parse_entities(image.name).get("space") in (None, "T1w")
    ]
    return min(images, key=lambda image: "desc-preproc" not in image.name, default=None)


def _find_in_scan_space(
    folders: Iterable[Path], scan: Scan, suffix: str, labels: Sequence[str]
) -> Path | None:  # fmt: skip
    """Find a file with one of these labels in the scan's own space."""
    wanted = dict(scan.entities)
    home = Path(*(f"{key}-{wanted[key]}" for key in ("sub", "ses") if key in wanted))
    spaces = {"orig", scan.suffix.lower()}
    for folder in folders:
        agreeing = []
        for path in sorted((folder / home).glob(f"*/*_{suffix}.nii*")):
            entities = parse_entities(path.name)
            named = {key: entities.pop(key, "") for key in ("desc", "label", "seg")}
            space = entities.pop("space", "orig" if path.parent.name in DATATYPES else "").lower()
            in_scan_space = space in spaces and not _is_in_t1w_space(path)
            agrees = all(wanted.get(key) == value for key, value in entities.items())
            of_this = named["desc"] == scan.desc + scan.suffix
            of_another = not of_this and find_contrast(named["desc"])
            if set(named.values()) & set(labels) and in_scan_space and agrees and not of_another:
                agreeing.append((not of_this, -len(entities), path))
        if agreeing:
            return min(agreeing)[-1]
    return None


def _list_dirs(folder: Path, scan: Scan) -> list[Path]:
    """List the participant's folders: of the scan's session, of no session, of the others."""
    subject = folder / f"sub-{scan.subject}"
    first = [subject / f"ses-{scan.session}"] if scan.session else []
    rest = sorted(path for path in subject.glob("ses-*") if path.is_dir() and path not in first)
    return [*first, subject, *rest]


def _find_in_t1w_space(folder: Path, scan: Scan) -> Iterator[tuple[Path, Path | None]]:
    """Find segmentations in the space of a T1w image, and that image if beside; the best first."""
    for home in _list_dirs(folder, scan):
        ranked = []
        for path in home.glob("*/*_dseg.nii*"):
            entities = parse_entities(path.name)
            names = (entities.get("desc"), entities.get("seg"))
            ranks = [rank for rank, name in enumerate(SEGMENTATIONS) if name in names]
            if ranks and _is_in_t1w_space(path):
                ranked.append((ranks[0], path, _find_t1w_beside(path)))
        for path in home.glob(f"*/*_T1w{SYNTHSEG_ENDING}.nii*"):
            t1w = path.with_name(path.name.replace(SYNTHSEG_ENDING, ""))
            rank = SEGMENTATIONS.index("synthseg")
            ranked.append((rank, path, t1w if t1w.is_file() else None))
        yield from ((path, t1w) for _, path, t1w in sorted(ranked, key=lambda item: item[:2]))
    yield from _find_of_freesurfer(folder, scan)


def _find_of_freesurfer(folder: Path, scan: Scan) -> Iterator[tuple[Path, Path | None]]:
    """Find segmentations of FreeSurfer and their T1w images, in a folder of its subjects."""
    subject = f"sub-{scan.subject}"
    names = [f"{subject}_ses-{scan.session}"] if scan.session else []
    for name in [*names, subject, *_list_freesurfer_sessions(folder, subject)]:
        segmentations, images = (
            [path for path in (folder / name / "mri" / file for file in files) if path.is_file()]
            for files in (FREESURFER_SEGMENTATIONS, FREESURFER_T1W)
        )
        if segmentations:
            yield segmentations[0], next(iter(images), None)


def _list_freesurfer_sessions(folder: Path, subject: str) -> Sequence[str]:
    """List the subject's folders of FreeSurfer that are named by session, by name."""
    try:
        return _group_by_subject(folder, folder.stat().st_mtime_ns).get(subject, ())
    except OSError:
        return ()


@lru_cache(maxsize=16)
def _group_by_subject(folder: Path, changed: int) -> Mapping[str, list[str]]:  # noqa: ARG001 a key
    """Group folders by subject; a parent is listed once for all scans until it changes."""
    names: dict[str, list[str]] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        subject, with_session, _ = name.partition("_ses-")
        if with_session:
            names.setdefault(subject, []).append(name)
    return names


def _find_raw_t1w(segmentation: Path, scan: Scan, raw: Path) -> Path | None:
    """Find the T1w image of the raw dataset that a segmentation was most likely made from."""
    original = segmentation.with_name(segmentation.name.replace(SYNTHSEG_ENDING, ""))
    entities = _parse_source_entities(original)
    dirs = _list_dirs(raw, scan)
    session = entities.get("ses")
    dirs.sort(key=lambda folder: session is not None and folder.name != f"ses-{session}")
    images = [image for folder in dirs for image in sorted(folder.glob("anat/*_T1w.nii*"))]
    return min(images, key=lambda image: _parse_source_entities(image) != entities, default=None)


def _find_transform(folders: Iterable[Path], scan: Scan) -> Path | None:
    """Find the user's transform from the T1w image to the scan."""
    wanted = dict(scan.entities)
    for folder in folders:
        for home in _list_dirs(folder, scan)[: 2 if scan.session else 1]:
            for path in sorted(home.glob("*/*_from-T1w_to-*_xfm.*")):
                entities = parse_entities(path.name)
                shared = _parse_source_entities(path)
                if (
                    path.suffix in TRANSFORM_EXTENSIONS
                    and entities.get("to", "").lower() in ("orig", scan.suffix.lower())
                    and entities.get("mode", "image") == "image"
                    and entities.get("desc") in (None, scan.desc + scan.suffix)
                    and all(wanted.get(key) == value for key, value in shared.items())
                ):
                    return path
    return None
