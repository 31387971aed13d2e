"""What the user gave for a scan: brain masks, segmentations, and how a T1w image lies on it.

All are found by their names. A file without ``space-`` lies in the space of the T1w image that
stands beside it under the same name (so do fMRIPrep's and sMRIPrep's), else in that of the scan.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bids_cmb.bids.selection import Scan

SEGMENTATIONS = ("aparcaseg", "aparc+aseg", "synthseg", "freesurfer", "aseg")  # parcels first
FREESURFER = ("aparc+aseg.mgz", "aseg.mgz")
FREESURFER_T1W = ("T1.mgz", "orig.mgz", "norm.mgz")
SYNTHSEG = "_synthseg"  # what mri_synthseg puts behind a name
TRANSFORMS = (".txt", ".tfm", ".mat", ".h5")
OURS = ("desc", "label", "seg", "space", "res", "from", "to", "mode")  # no entities of a scan


@dataclass(frozen=True)
class Segmentation:
    """A segmentation of the scan's head.

    Attributes:
        path: The label map.
        on_t1w: Whether it lies in the space of a T1w image, not of the scan.
        t1w: That image; None if there is none, or a transform makes it needless.
        transform: From it to the scan, by the user's word.
    """

    path: Path
    on_t1w: bool = False
    t1w: Path | None = None
    transform: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Those whose content decides where things lie."""
        return [path for _, path in self.roles]

    @property
    def roles(self) -> list[tuple[str, Path]]:
        """The same, each with what it is taken for."""
        space = "a T1w image" if self.on_t1w else "the scan"
        roles = [
            (f"segmentation on {space}", self.path),
            ("T1w image", self.t1w),
            ("transform to the scan", self.transform),
        ]
        return [(role, path) for role, path in roles if path]


def find_mask(folders: Iterable[Path], scan: Scan, desc: str) -> Path | None:
    """A brain mask for the scan among the user's derivatives.

    It must belong to the same participant and session, carry ``desc-<desc>`` (or ``label-<desc>``)
    and lie in the scan's own space: ``space-orig``, ``space-<suffix>``, or no ``space-`` and no T1w
    image of its name beside; and it must not contradict any entity of the scan. The one that shares
    most entities is taken, ties by name; the first folder that has one wins.
    """
    return _on_scan(folders, scan, "mask", [desc])


def find_segmentation(folders: Sequence[Path], scan: Scan, raw: Path) -> Segmentation | None:
    """A segmentation of the scan's head among the user's derivatives.

    First one in the scan's own space, found as `find_mask` finds a mask: a ``dseg`` with one of
    `SEGMENTATIONS` as its ``desc-`` or ``seg-``. Else one in the space of a T1w image: such a
    ``dseg``, what mri_synthseg made of a T1w image, or a subject's folder of FreeSurfer; of the
    scan's session, of none, or of another, in this order. The T1w image is the one beside it, else
    one of the raw dataset, of its session before others. A transform ``from-T1w_to-<suffix>`` (or
    ``to-orig``) for the scan makes it needless.

    Args:
        folders: Derivative datasets, or FreeSurfer's folder of subjects.
        scan: Whose head it is.
        raw: The dataset of the scan.
    """
    if own := _on_scan(folders, scan, "dseg", SEGMENTATIONS):
        return Segmentation(own)
    for folder in folders:
        if found := next(_on_t1w(folder, scan), None):
            transform = _transform(folders, scan)
            t1w = None if transform else found[1] or _raw_t1w(found[0], scan, raw)
            return Segmentation(found[0], on_t1w=True, t1w=t1w, transform=transform)
    return None


def _entities(path: Path) -> dict[str, str]:
    return dict(part.partition("-")[::2] for part in path.name.split(".")[0].split("_")[:-1])


def _of_scan(entities: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in entities.items() if key not in OURS}


def _in_t1w_space(path: Path) -> bool:
    space = _entities(path).get("space")
    return space == "T1w" or (space is None and _beside(path) is not None)


def _beside(path: Path) -> Path | None:
    """The T1w image in the same folder, of the same name but for what says what a file is."""
    own = _of_scan(_entities(path))
    images = [
        image
        for image in sorted(path.parent.glob("*_T1w.nii*"))
        if _of_scan(_entities(image)) == own and _entities(image).get("space") in (None, "T1w")
    ]
    return min(images, key=lambda image: "desc-preproc" not in image.name, default=None)


def _on_scan(
    folders: Iterable[Path], scan: Scan, suffix: str, labels: Sequence[str]
) -> Path | None:  # fmt: skip
    """A file with one of these labels in the scan's own space."""
    wanted = dict(scan.entities)
    here = Path(*(f"{key}-{wanted[key]}" for key in ("sub", "ses") if key in wanted))
    spaces = {"orig", scan.suffix.lower()}
    for folder in folders:
        agreeing = []
        for path in sorted((folder / here).glob(f"*/*_{suffix}.nii*")):
            has = _entities(path)
            own = {has.pop(key, None) for key in ("desc", "label", "seg")}
            at_home = has.pop("space", "orig").lower() in spaces and not _in_t1w_space(path)
            if own & set(labels) and at_home and all(wanted.get(key) == has[key] for key in has):
                agreeing.append((-len(has), path))
        if agreeing:
            return min(agreeing)[1]
    return None


def _homes(folder: Path, scan: Scan) -> list[Path]:
    """The participant's folders: of the scan's session, of no session, of the others."""
    subject = folder / f"sub-{scan.subject}"
    first = [subject / f"ses-{scan.session}"] if scan.session else []
    rest = sorted(path for path in subject.glob("ses-*") if path.is_dir() and path not in first)
    return [*first, subject, *rest]


def _on_t1w(folder: Path, scan: Scan) -> Iterator[tuple[Path, Path | None]]:
    """Segmentations in the space of a T1w image and that image if it is beside, the best first."""
    for home in _homes(folder, scan):
        ranked = []
        for path in home.glob("*/*_dseg.nii*"):
            has = _entities(path)
            labels = [one for one in SEGMENTATIONS if one in (has.get("desc"), has.get("seg"))]
            if labels and _in_t1w_space(path):
                ranked.append((SEGMENTATIONS.index(labels[0]), path, _beside(path)))
        for path in home.glob(f"*/*_T1w{SYNTHSEG}.nii*"):
            t1w = path.with_name(path.name.replace(SYNTHSEG, ""))
            rank = SEGMENTATIONS.index("synthseg")
            ranked.append((rank, path, t1w if t1w.is_file() else None))
        yield from ((path, t1w) for _, path, t1w in sorted(ranked, key=lambda one: one[:2]))
    subject = f"sub-{scan.subject}"
    names = [f"{subject}_ses-{scan.session}"] if scan.session else []
    for name in [*names, subject, *_freesurfer_sessions(folder, subject)]:
        home = folder / name / "mri"
        segmented, images = (
            [home / one for one in kind if (home / one).is_file()]
            for kind in (FREESURFER, FREESURFER_T1W)
        )
        if segmented:
            yield segmented[0], next(iter(images), None)


def _freesurfer_sessions(folder: Path, subject: str) -> Sequence[str]:
    """The subject's folders of FreeSurfer that are named by session, by name."""
    try:
        return _by_subject(folder, folder.stat().st_mtime_ns).get(subject, ())
    except OSError:
        return ()


@lru_cache(maxsize=16)
def _by_subject(folder: Path, changed: int) -> Mapping[str, list[str]]:  # noqa: ARG001 a key
    """Subject → its folders, of a folder listed once for all scans until it changes."""
    names: dict[str, list[str]] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        subject, with_session, _ = name.partition("_ses-")
        if with_session:
            names.setdefault(subject, []).append(name)
    return names


def _raw_t1w(segmentation: Path, scan: Scan, raw: Path) -> Path | None:
    """The T1w image of the raw dataset that a segmentation was most likely made from."""
    own = _of_scan(_entities(segmentation.with_name(segmentation.name.replace(SYNTHSEG, ""))))
    homes = _homes(raw, scan)
    session = own.get("ses")
    homes.sort(key=lambda home: session is not None and home.name != f"ses-{session}")
    images = [image for home in homes for image in sorted(home.glob("anat/*_T1w.nii*"))]
    return min(images, key=lambda image: _of_scan(_entities(image)) != own, default=None)


def _transform(folders: Iterable[Path], scan: Scan) -> Path | None:
    """The user's transform from the T1w image to the scan."""
    wanted = dict(scan.entities)
    for folder in folders:
        for home in _homes(folder, scan)[: 2 if scan.session else 1]:
            for path in sorted(home.glob("*/*_from-T1w_to-*_xfm.*")):
                has = _entities(path)
                rest = _of_scan(has)
                if (
                    path.suffix in TRANSFORMS
                    and has.get("to", "").lower() in ("orig", scan.suffix.lower())
                    and has.get("mode", "image") == "image"
                    and has.get("desc") in (None, scan.desc + scan.suffix)
                    and all(wanted.get(key) == rest[key] for key in rest)
                ):
                    return path
    return None
