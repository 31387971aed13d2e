"""What a reader finds in a folder of labels, before any image is opened."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

IMAGES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Point:
    """One lesion as somebody marked it.

    Attributes:
        at: Three numbers, as the source gives them.
        certainty: ``definite`` or ``possible``.
        diameter_mm: As measured by a reader; None if nobody did.
        where: Which row of which file says so.
    """

    at: tuple[float, float, float]
    certainty: str = "definite"
    diameter_mm: float | None = None
    where: str = ""


@dataclass(frozen=True)
class Labelled:
    """One scan and what is said of it.

    Attributes:
        name: Of the scan in its source.
        subject: Whose scan it is, in the source's words; scans of one subject share it.
        image: Its file.
        points: The lesions marked in it; none is a statement too.
        mask: A mask of lesions in place of points: 1, or the share of raters who saw them.
        counts: Numbers by column of the app's scan table, in place of both.
        kind: Which part of the source it comes from.
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
    """What the source leaves open of how its points are counted: all that is possible.

    Attributes:
        bases: Of the first voxel, 0 or 1.
        flips: Axes that are counted from the far end, each a string of ``x``, ``y``, ``z``.
        orders: Which axes of the image the three numbers stand for.
    """

    bases: tuple[int, ...] = (0,)
    flips: tuple[str, ...] = ("",)
    orders: tuple[str, ...] = ("xyz",)


@dataclass(frozen=True)
class LabelledDataset:
    """A folder of labels, read.

    Attributes:
        title: What the data are called.
        licence: Their terms, in words.
        scans: In the order of their names.
        links: Where they come from.
        suffix: Of the scans in BIDS.
        known: What the source says of all its scans, as BIDS sidecars do.
        world: Whether points are world mm, else voxels.
        open: Where they are voxels, how they may be counted.
        merged: Whether points in one dark spot are one lesion, marked on several slices.
        notes: A sentence for each thing that was passed over.
    """

    title: str
    licence: str
    scans: tuple[Labelled, ...]
    links: tuple[str, ...] = ()
    suffix: str = "T2starw"
    known: dict = field(default_factory=dict)
    world: bool = False
    open: UnknownConventions = UnknownConventions()
    merged: bool = False
    notes: tuple[str, ...] = ()


ALL_FLIPS = ("", "x", "y", "z", "xy", "xz", "yz", "xyz")


def stem(path: Path | str) -> str:
    """A file's name without its endings."""
    return Path(path).name.partition(".")[0]


def subject_of(name: str) -> str:
    """Whose scan a name is of, where it says so as BIDS does; else the name itself."""
    return name.partition("_")[0] if name.startswith("sub-") else name


def find_images(folder: Path) -> list[Path]:
    """Every NIfTI file below a folder, by name; files that hide are passed by."""
    return sorted(
        path
        for path in folder.rglob("*.nii*")
        if path.name.endswith(IMAGES) and not path.name.startswith(".")
    )


def by_stem(paths: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Files by name without endings.

    Raises:
        ValueError: If two have the same.
    """
    named: dict[str, Path] = {}
    for path in paths:
        other = named.setdefault(stem(path), path)
        if other != path:
            raise ValueError(
                f"{folder}: every file needs a name of its own; found "
                f"{other.relative_to(folder)} and {path.relative_to(folder)}."
            )
    return named


def paired(
    marked: Mapping[str, Path], images: Mapping[str, Path], folder: Path,
    points: Callable[[Path], tuple[Point, ...]], what: str,
) -> tuple[tuple[Labelled, ...], tuple[str, ...]]:  # fmt: skip
    """Scans with a file of positions each, by name, and a note on those without.

    Args:
        marked: The files of positions, by name.
        images: The scans, by name.
        folder: Where the scans lie.
        points: Reads a file of positions.
        what: Such a file, in words.

    Raises:
        ValueError: If a file lacks its scan, or cannot be understood.
        OSError: If one cannot be read at all.
    """
    for name, path in marked.items():
        if name not in images:
            raise ValueError(f"{path}: the scan {name}.nii is missing below {folder}.")
    scans = [
        Labelled(name, name, images[name], points(path)) for name, path in sorted(marked.items())
    ]
    alone = len(images.keys() - marked.keys())
    return tuple(scans), (f"{alone} scans without {what} are skipped.",) if alone else ()


def need(folder: Path, names: Iterable[str], what: str) -> Path:
    """The first of some folders that is there, whatever the case of its letters.

    Raises:
        ValueError: If none is.
    """
    wanted = [name.casefold() for name in names]
    below = sorted(path for path in folder.rglob("*") if path.is_dir())
    for path in below:
        if path.name.casefold() in wanted:
            return path
    raise ValueError(f"{folder}: a folder {' or '.join(names)} with {what} is needed; found none.")
