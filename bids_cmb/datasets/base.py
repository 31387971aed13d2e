"""A folder of labels as its reader returns it, before any image is opened."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_ENDINGS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Point:
    """A lesion that was marked by a point.

    Attributes:
        coordinates: Three numbers, as the source gives them.
        certainty: ``definite`` or ``possible``.
        diameter_mm: As measured by a reader; None if unknown.
        origin: File and row of the source.
    """

    coordinates: tuple[float, float, float]
    certainty: str = "definite"
    diameter_mm: float | None = None
    origin: str = ""


@dataclass(frozen=True)
class LabelledScan:
    """A scan and its labels.

    Attributes:
        name: Of the scan in its source.
        subject: Of the scan, as the source names it.
        image: Its file.
        points: The lesions marked in it; empty for a scan without lesions.
        mask: A mask of lesions in place of points: 1, or the share of raters who saw them.
        counts: Numbers by column of the app's scan table, in place of both.
        kind: Part of the source that it comes from.
    """

    name: str
    subject: str
    image: Path
    points: tuple[Point, ...] = ()
    mask: Path | None = None
    counts: dict[str, int] | None = None
    kind: str = ""


@dataclass(frozen=True)
class UnknownConventions:
    """The voxel index conventions that are possible for a source.

    Attributes:
        bases: Of the first voxel, 0 or 1.
        flips: Axes that are counted from the far end, each a string of ``x``, ``y``, ``z``.
        orders: Axes of the image that the three numbers stand for.
    """

    bases: tuple[int, ...] = (0,)
    flips: tuple[str, ...] = ("",)
    orders: tuple[str, ...] = ("xyz",)


@dataclass(frozen=True)
class LabelledDataset:
    """The content of a folder of labels.

    Attributes:
        title: Of the data.
        licence: Their terms, in words.
        scans: In the order of their names.
        links: To their sources.
        suffix: Of the scans in BIDS.
        metadata: Of all scans, for their BIDS sidecars.
        world: Whether points are world mm, else voxels.
        conventions: Of points in voxels.
        merged: Whether points in one dark spot are one lesion, marked on several slices.
        notes: A sentence for whatever was skipped.
    """

    title: str
    licence: str
    scans: tuple[LabelledScan, ...]
    links: tuple[str, ...] = ()
    suffix: str = "T2starw"
    metadata: dict = field(default_factory=dict)
    world: bool = False
    conventions: UnknownConventions = UnknownConventions()
    merged: bool = False
    notes: tuple[str, ...] = ()


ALL_FLIPS = ("", "x", "y", "z", "xy", "xz", "yz", "xyz")


def get_stem(path: Path | str) -> str:
    """Return a file's name without its endings."""
    return Path(path).name.partition(".")[0]


def get_subject(name: str) -> str:
    """Return the subject in a name as in BIDS; else the name itself."""
    return name.partition("_")[0] if name.startswith("sub-") else name


def find_images(folder: Path) -> list[Path]:
    """Find the NIfTI files below a folder, by name; hidden files are skipped."""
    return sorted(
        path
        for path in folder.rglob("*.nii*")
        if path.name.endswith(IMAGE_ENDINGS) and not path.name.startswith(".")
    )


def index_by_stem(paths: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Map files by their names without endings.

    Raises:
        ValueError: If two have the same.
    """
    named: dict[str, Path] = {}
    for path in paths:
        other = named.setdefault(get_stem(path), path)
        if other != path:
            raise ValueError(
                f"{folder}: every file needs a name of its own; found "
                f"{other.relative_to(folder)} and {path.relative_to(folder)}."
            )
    return named


def pair_with_images(
    marked: Mapping[str, Path], images: Mapping[str, Path], folder: Path,
    points: Callable[[Path], tuple[Point, ...]], what: str,
) -> tuple[tuple[LabelledScan, ...], tuple[str, ...]]:  # fmt: skip
    """Pair files of positions with scans, by name; return a note on scans without one.

    Args:
        marked: The files of positions, by name.
        images: The scans, by name.
        folder: Folder of the scans.
        points: Function that reads a file of positions.
        what: Such a file, in words.

    Raises:
        ValueError: If a file lacks its scan, or cannot be understood.
        OSError: If one cannot be read at all.
    """
    for name, path in marked.items():
        if name not in images:
            raise ValueError(f"{path}: the scan {name}.nii is missing below {folder}.")
    scans = [
        LabelledScan(name, name, images[name], points(path))
        for name, path in sorted(marked.items())
    ]
    alone = len(images.keys() - marked.keys())
    return tuple(scans), (f"{alone} scans without {what} are skipped.",) if alone else ()


def find_folder(folder: Path, names: Iterable[str], what: str) -> Path:
    """Find the first folder with one of these names, in any letter case.

    Raises:
        ValueError: If none is.
    """
    wanted = [name.casefold() for name in names]
    below = sorted(path for path in folder.rglob("*") if path.is_dir())
    for path in below:
        if path.name.casefold() in wanted:
            return path
    raise ValueError(f"{folder}: a folder {' or '.join(names)} with {what} is needed; found none.")
