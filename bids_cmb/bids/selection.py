"""Which scans of a BIDS dataset are looked at, and why the others are not."""

import json
import os
import re
import sqlite3
import stat
import tempfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from bids_cmb.bids.filters import (
    CARRIED,
    Image,
    Query,
    image_at,
    is_wanted,
    listed,
    named_by,
    read_labels,
    rejection_reason,
    shard_of,
    unmatched,
)
from bids_cmb.bids.metadata import (
    Sidecars,
    common,
    echo_time_s,
    field_strength_t,
    of_spine,
    sidecar_reader,
    unreadable,
    weighting,
)

# pybids needs 2.2 GB for an index of 5000 subjects, 70 MB for 100.
SUBJECTS_PER_INDEX = 100
DATATYPES = ("anat", "swi")
ECHO_WEIGHTING = 60.0  # T·ms; microbleeds are read at 20 ms at 3 T, 40 ms at 1.5 T

# What looks like a susceptibility image is listed, taken or not; T1w and the rest are not.
SUSCEPTIBILITY = (
    r"[tr]2star[a-z0-9]*|swi[a-z0-9]*|mi?n?ip|(?:me)?gre|veno[a-z0-9]*|chimap|qsm|[a-z0-9]*flash"
)
# Control characters, and bytes that are no UTF-8: no table and no database holds them.
ODD_CHARACTERS = r"\x00-\x1f\x7f\ud800-\udfff"
ANNEX_POINTER = re.compile(rb"(\.\./)*(/|\.git/)annex/objects|version https://git-lfs")


@dataclass(frozen=True)
class Scan:
    """One image to look at, or several echoes to combine.

    Attributes:
        path: The magnitude image; the first echo if several are combined.
        relative_path: The same from the root of the dataset, with ``/``.
        datatype: ``anat`` or ``swi``, the folder.
        suffix: Spelled one way (``swi`` also for ``SWI``); unknown ones as found.
        entities: (name, value) from the file name, in BIDS order, values as written; without
            ``echo`` if echoes are combined. The ``desc`` is kept apart: outputs have their own.
        desc: The label of the file's ``desc``, nearly always empty.
        metadata: What the sidecars say, inheritance applied; EchoTime in s.
        more_echoes: Images to combine with ``path``; nearly always none.
        notes: A sentence for each thing that was decided or looks odd.
    """

    path: Path
    relative_path: str
    datatype: str
    suffix: str
    entities: tuple[tuple[str, str], ...]
    desc: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    more_echoes: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """The subject's label, without ``sub-``."""
        return dict(self.entities)["sub"]

    @property
    def session(self) -> str | None:
        """The session's label, without ``ses-``, if there are sessions."""
        return dict(self.entities).get("ses")

    @property
    def name(self) -> str:
        """Entities and suffix, unique in the dataset: ``sub-01_ses-1_acq-x_T2starw``."""
        return _joined(self.entities, self.desc, self.suffix)

    @property
    def echo_time_s(self) -> float | None:
        """Echo time in s, if a sidecar says one that can be."""
        return echo_time_s(self.metadata)

    @property
    def field_strength_t(self) -> float | None:
        """Field strength in T, if a sidecar says one that can be."""
        return field_strength_t(self.metadata)


@dataclass(frozen=True)
class ScanDecision:
    """A file that looks like a susceptibility image, and what became of it.

    Attributes:
        relative_path: From the root of the dataset, with ``/``.
        included: Whether it is processed.
        reason: Why it is included, or not.
        unusable: Whether it was requested and cannot be used (not fetched, empty, unreadable).
    """

    relative_path: str
    included: bool
    reason: str
    unusable: bool = False


@dataclass(frozen=True)
class Selection:
    """The scans to look at and every file considered, sorted by path; warnings in sentences."""

    scans: tuple[Scan, ...]
    considered: tuple[ScanDecision, ...]
    notes: tuple[str, ...] = ()


def find_scans(bids_dir: Path, query: Query) -> Selection:
    """Find the scans to look at; open none of them.

    Args:
        bids_dir: The root of a BIDS dataset, valid or not.
        query: Which scans are asked for.

    Returns:
        Every scan once, and a reason for every file that looks like a susceptibility image.

    Raises:
        ValueError: If ``bids_dir`` is no folder, its description is no object, a label names
            nobody, the shard is none, or the database was made from another dataset.
    """
    bids_dir = Path(bids_dir).absolute()
    subjects, query, notes = _resolved(bids_dir, query)
    indexed = _indexer(bids_dir, query)
    words = "|".join([SUSCEPTIBILITY, *map(re.escape, query.named_suffixes)])
    read = sidecar_reader(bids_dir)

    scans, considered = [], []
    for start in range(0, len(subjects), SUBJECTS_PER_INDEX):
        some = subjects[start : start + SUBJECTS_PER_INDEX]
        territory = _territory(some, words)
        seen, odd = _walked(bids_dir, some, territory)
        try:
            paths = indexed(some, territory)
        except PermissionError:  # pybids stops at the first link that it may not follow
            paths = seen
        images = [image_at(path, bids_dir) for path in paths]
        reasons = {image: rejection_reason(image, query) for image in images}
        found, settled = _settle([i for i, why in reasons.items() if not why], query.echo, read)
        scans += found
        considered += odd + settled
        considered += [_left(image.relative_path, why) for image, why in reasons.items() if why]

    notes += _empty_handed(subjects, scans)
    return Selection(
        tuple(sorted(scans, key=lambda scan: scan.relative_path)),
        tuple(sorted(considered, key=lambda file: file.relative_path)),
        tuple(notes),
    )


# Subjects and labels


def list_subjects(bids_dir: Path) -> list[str]:
    """The labels of the ``sub-`` folders, sorted, without ``sub-``.

    Raises:
        ValueError: If ``bids_dir`` is no folder.
    """
    if not Path(bids_dir).is_dir():
        raise ValueError(f"{bids_dir}: a BIDS dataset is a folder; found none there.")
    return _labels(Path(bids_dir), "sub-")


def _labels(folder: Path, prefix: str) -> list[str]:
    # pybids takes as long for its list of subjects as for the whole index
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.startswith(prefix) and _is_folder(e)]
    odd = re.compile(f"[{ODD_CHARACTERS}]")
    return sorted(n.removeprefix(prefix) for n in names if n != prefix and not odd.search(n))


def _resolved(bids_dir: Path, query: Query) -> tuple[list[str], Query, list[str]]:
    """The subjects of this shard, the query with its session labels read, and warnings."""
    present = list_subjects(bids_dir)
    notes = [] if present else [f"{bids_dir} has no `sub-` folders."]
    if query.database_dir:
        notes.append(f"Files are as {query.database_dir} lists them; newer ones are not seen.")

    wanted = read_labels(query.participants, "sub-")
    _refuse_unknown("participant", bids_dir, unmatched(wanted, present), present)
    excluded = read_labels(query.excluded, "sub-")
    if absent := unmatched(excluded, present):
        notes.append(f"Not in the dataset, though to be excluded: {listed(absent)}.")
    some = named_by(wanted, present) if wanted else set(present)
    chosen = sorted(some - named_by(excluded, present))

    query = replace(query, sessions=read_labels(query.sessions, "ses-"))
    _check_sessions(bids_dir, chosen, query.sessions)
    return shard_of(chosen, query.shard), query, notes


def _check_sessions(bids_dir: Path, subjects: list[str], sessions: tuple[str, ...]) -> None:
    """Refuse sessions that no subject has; stop looking as soon as every one was seen."""
    present, absent = set(), list(sessions)
    for subject in subjects:
        if not absent:
            return
        try:
            present.update(_labels(bids_dir / f"sub-{subject}", "ses-"))
        except OSError:
            continue  # said later, as a folder that cannot be read
        absent = unmatched(absent, present)
    _refuse_unknown("session", bids_dir, absent, sorted(present))


def _refuse_unknown(kind: str, bids_dir: Path, unknown: list[str], present: list[str]) -> None:
    if unknown:
        raise ValueError(
            f"Every {kind} label must exist in {bids_dir}; unknown: {listed(unknown)}; "
            f"there: {listed(present) or 'none'}."
        )


def _empty_handed(subjects: list[str], scans: list[Scan]) -> list[str]:
    served = {scan.subject for scan in scans}
    without = [subject for subject in subjects if subject not in served]
    if not without:
        return []
    count = f"{len(without)} of {len(subjects)} participants"
    return [f"No scan was selected for {count}: {listed(without)}."]


# Finding files


def _territory(subjects: list[str] | None, words: str) -> re.Pattern:
    """What may be entered, as a pattern of ``/`` and the relative path; group ``file`` if a file.

    Args:
        subjects: Labels; None for all.
        words: A pattern of suffixes, in any letter case.
    """
    char = f"[^/{ODD_CHARACTERS}]"
    who = f"{char}+" if subjects is None else "|".join(map(re.escape, subjects))
    file = rf"(?:{char}*_)?(?:mod-)?(?i:{words})(?:_{char}*)?\.nii(?:\.gz)?"
    return re.compile(
        rf"/sub-(?:{who})(?:/ses-{char}+)?(?:/(?:{'|'.join(DATATYPES)})(?:/(?P<file>{file}))?)?"
    )


def _indexer(bids_dir: Path, query: Query) -> Callable[[list[str], re.Pattern], list[Path]]:
    """A function from some subjects, and what may be entered, to the paths of their images."""
    if query.database_dir is None:
        return lambda _, territory: _index(bids_dir, territory)

    by_subject = defaultdict(list)
    for path in _stored(bids_dir, Path(query.database_dir), anew=query.reset_database):
        by_subject[path.relative_to(bids_dir).parts[0].removeprefix("sub-")].append(path)

    def among_the_stored(subjects: list[str], territory: re.Pattern) -> list[Path]:
        paths = chain.from_iterable(by_subject[subject] for subject in subjects)
        return [p for p in paths if territory.fullmatch(f"/{_relative(p, bids_dir)}")]

    return among_the_stored


def _index(bids_dir: Path, territory: re.Pattern, database_dir: Path | None = None) -> list[Path]:
    """Paths of the files within ``territory``, by pybids."""
    layouts = _layouts()
    indexer = layouts.BIDSLayoutIndexer(
        validate=False,
        index_metadata=False,
        ignore=[re.compile(rf"^(?!{territory.pattern}\Z)")],
        config_filename=".none",  # a `layout_config.json` in the data has no say here
    )
    try:
        # Validation would drop `swi` without a word.
        layout = layouts.BIDSLayout(
            bids_dir,
            validate=False,
            config=_pybids_config(),
            database_path=database_dir,
            indexer=indexer,
        )
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{bids_dir / 'dataset_description.json'}: must be an object as BIDS describes it; "
            f"pybids cannot read it ({error})."
        ) from error
    return _files_of(layout)


def _layouts():
    """pybids, which takes half a second to import; who only names a `Scan` need not wait."""
    import bids.layout  # noqa: PLC0415

    return bids.layout


def _files_of(layout) -> list[Path]:
    try:
        return [Path(path) for path in layout.get_files()]
    finally:
        layout.session.close()
        layout.connection_manager.engine.dispose()


def _pybids_config() -> dict:
    """The configuration of pybids, with ``swi`` among the datatypes.

    The paths tell us the datatype; this is for those who query a database that we made.
    """
    packaged = resources.files("bids.layout") / "config" / "bids.json"
    config = json.loads(packaged.read_text(encoding="utf-8"))
    [datatype] = [entity for entity in config["entities"] if entity["name"] == "datatype"]
    datatype["pattern"] = datatype["pattern"].replace("(anat|", "(anat|swi|")
    return config


def _stored(bids_dir: Path, database_dir: Path, *, anew: bool) -> list[Path]:
    """Paths in a pybids database, which is made if there is none, or ``anew``.

    Raises:
        ValueError: If it is no pybids database, or of another dataset.
    """
    database = database_dir / "layout_index.sqlite"
    if anew or not database.exists():
        database_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=database_dir) as making:
            _index(bids_dir, _territory(None, r"[a-z0-9]+"), Path(making))
            (Path(making) / database.name).replace(database)  # whole or not there
    root = _root_of(database)
    if not (root.exists() and root.samefile(bids_dir)):
        raise ValueError(f"{database}: must have been made from {bids_dir}; it is of {root}.")
    files = _files_of(_layouts().BIDSLayout(database_path=database_dir, validate=False))
    return [bids_dir / path.relative_to(root) for path in files if path.is_relative_to(root)]


def _root_of(database: Path) -> Path:
    try:
        with closing(sqlite3.connect(database)) as connection:
            [root] = connection.execute("SELECT root FROM layout_info").fetchone()
    except (sqlite3.Error, TypeError) as error:
        raise ValueError(f"{database}: must be a pybids database; {error}.") from error
    return Path(root)


def _walked(
    bids_dir: Path, subjects: list[str], territory: re.Pattern
) -> tuple[list[Path], list[ScanDecision]]:
    """The files within ``territory``; and what pybids passes over, or stops at, in silence.

    Returns:
        files: Every path that may be an image.
        odd: Folders that cannot be read, folders named like images, names that no table can hold.
    """
    files, odd, folders = [], [], [bids_dir / f"sub-{subject}" for subject in subjects]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as opened:
                entries = list(opened)
        except OSError as error:
            odd.append(_left(_relative(folder, bids_dir), unreadable(error), unusable=True))
            continue
        for entry in entries:
            relative = _relative(Path(entry.path), bids_dir)
            place = territory.fullmatch("/" + re.sub(f"[{ODD_CHARACTERS}]", "?", relative))
            if place and re.search(f"[{ODD_CHARACTERS}]", relative):
                escaped = relative.encode("unicode_escape").decode()
                odd.append(_left(escaped, "has characters in its name that no table can hold"))
            elif place and not _is_folder(entry):
                files += [Path(entry.path)] if place["file"] else []
            elif place and place["file"]:
                odd.append(_left(relative, "is a folder, not an image"))
            elif (extension := _in_capitals(relative)) and territory.fullmatch(
                f"/{relative.removesuffix(extension)}{extension.lower()}"
            ):
                why = f"has the extension {extension}; BIDS knows only {extension.lower()}"
                odd.append(_left(relative, why))
            elif place:
                folders.append(Path(entry.path))
    return files, odd


def _in_capitals(relative: str) -> str:
    """The extension of an image if it has capital letters, else empty."""
    found = re.search(r"\.nii(?:\.gz)?\Z", relative, re.IGNORECASE)
    return found[0] if found and found[0] != found[0].lower() else ""


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or to where we may not look
        return False


def _relative(path: Path, bids_dir: Path) -> str:
    return path.relative_to(bids_dir).as_posix()


def _left(relative_path: str, reason: str, *, unusable: bool = False) -> ScanDecision:
    return ScanDecision(relative_path, included=False, reason=reason, unusable=unusable)


# Doubles, echoes, files


Decision = tuple[list[Image], str]  # the images of one scan, and why they are taken


def _settle(
    images: list[Image], echo: tuple[str, ...], read: Callable[[Path], Sidecars]
) -> tuple[list[Scan], list[ScanDecision]]:
    """Choose between files that would be written under one name, and between echoes."""
    images, considered = _without_maps(images)
    images, of_others = _without_spines(images, read)
    considered += of_others
    kept = []
    for alike in _grouped(images, _identity).values():
        first, *others = sorted(alike, key=_preference)
        kept.append(first)
        why = f"gives the same output names as {first.relative_path}, which goes first"
        considered += [_left(other.relative_path, why) for other in others]

    scans = []
    for group in _grouped(kept, lambda image: _identity(image)[:-1]).values():
        told = {image: read(image.path) for image in group}
        taken, left = _settle_echoes(group, echo, told)
        considered += [_left(image.relative_path, why) for image, why in left.items()]
        for together, why in taken:
            faults = {image: fault for image in together if (fault := _fault(image.path))}
            considered += _as_considered(together, why, faults)
            if not faults:
                scans.append(_scan(together, why, told))
    return scans, considered


def _without_maps(images: list[Image]) -> tuple[list[Image], list[ScanDecision]]:
    """Leave each T2star that has a T2starw of the same name beside it.

    BIDS had T2star for images and for maps before it split the name; beside an image it is a map.
    """
    weighted = {_identity(image)[:-1] for image in images if image.spelling == "T2starw"}
    maps = {
        image
        for image in images
        if image.spelling == "T2star"
        and _identity(replace(image, suffix="T2starw"))[:-1] in weighted
    }
    why = "is probably a map, since there is a T2starw of the same name"
    return [i for i in images if i not in maps], [_left(i.relative_path, why) for i in maps]


def _without_spines(
    images: list[Image], read: Callable[[Path], Sidecars]
) -> tuple[list[Image], list[ScanDecision]]:
    """Leave images of the spinal cord, as their sidecars say."""
    parts = {image: part for image in images if (part := of_spine(read(image.path).metadata))}
    why = "shows another part of the body than the brain (BodyPartExamined {})"
    left = [_left(image.relative_path, why.format(part)) for image, part in parts.items()]
    return [image for image in images if image not in parts], left


def _grouped(items: Iterable, key: Callable[[Any], Hashable]) -> dict[Hashable, list]:
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _identity(image: Image) -> tuple:
    """Equal for files of which one can be taken; the echo comes last."""
    named = image.entities
    rest = [pair for pair in image.carried if pair[0] not in ("sub", "ses", "echo")]
    name = _joined(rest, named.get("desc", ""), image.spelling).casefold()
    return (named["sub"], named.get("ses"), name, image.echo)


def _joined(entities: Iterable[tuple[str, str]], desc: str, suffix: str) -> str:
    pairs = [*entities, ("desc", desc)] if desc else entities
    return "_".join([*(f"{name}-{value}" for name, value in pairs), suffix])


def _preference(image: Image) -> tuple:
    """Sorts files of one identity, the one to take first."""
    return (
        bool(_fault(image.path)),
        len(image.pairs) - len(image.carried),
        DATATYPES.index(image.datatype),
        image.extension != ".nii.gz",
        image.suffix != image.spelling,
        image.relative_path,
    )


def _settle_echoes(
    group: list[Image], echo: tuple[str, ...], told: dict[Image, Sidecars]
) -> tuple[list[Decision], dict[Image, str]]:
    """Decide about the files that differ in nothing but their echo.

    Returns:
        taken: The images of a scan and why they are taken, for each scan.
        left: Why an image is left, for each that is.
    """
    echoes = sorted((image for image in group if "echo" in image.entities), key=lambda i: i.echo)
    taken = [([i], f"is {i.spelling} in {i.datatype}/") for i in group if i not in echoes]
    numbers = [value for value in echo if value != "combined"]
    left = _of_other_numbers(echoes, numbers)
    echoes = [image for image in echoes if image not in left]

    if not echoes:
        return taken, left
    if "combined" in echo and taken:
        whole = taken[0][0][0].relative_path
        return taken, left | dict.fromkeys(echoes, f"is an echo of {whole}, which goes first")
    if "combined" in echo and len(echoes) > 1:
        why = f"is combined with the others of echoes {_numbers(echoes)}, as requested"
        return [*taken, (echoes, why)], left
    if numbers:
        return taken + [([i], f"is echo {i.entities['echo']}, as requested") for i in echoes], left
    nearest, others = _nearest_echo(echoes, told)
    return [*taken, nearest], others


def _of_other_numbers(echoes: list[Image], numbers: list[str]) -> dict[Image, str]:
    if not numbers:
        return {}
    why = f"is one of the echoes {_numbers(echoes)}; echo {', '.join(numbers)} was requested"
    return {i: why for i in echoes if not is_wanted("echo", i.entities["echo"], numbers)}


def _numbers(echoes: list[Image]) -> str:
    return ", ".join(image.entities["echo"] for image in echoes)


def _nearest_echo(
    echoes: list[Image], told: dict[Image, Sidecars]
) -> tuple[Decision, dict[Image, str]]:
    """The echo whose field strength times echo time is nearest 60 T·ms; the longer of equals."""
    if len(echoes) == 1:
        return (echoes, f"is echo {_numbers(echoes)}, the only magnitude echo"), {}
    weightings = {image: weighting(told[image].metadata) for image in echoes}
    distances = {i: abs(w - ECHO_WEIGHTING) for i, (w, _) in weightings.items() if w is not None}
    if distances:
        best = min(reversed(distances), key=distances.get)
        rule = f"is nearest {ECHO_WEIGHTING:.0f} T·ms"
    else:
        best, rule = echoes[-1], "is the last"

    said = {
        image: f"is echo {image.entities['echo']} of {len(echoes)} ({words})"
        for image, (_, words) in weightings.items()
    }
    others = {i: f"{said[i]}; echo {best.entities['echo']} {rule}" for i in echoes if i != best}
    return ([best], f"{said[best]} and {rule}"), others


def _as_considered(
    together: list[Image], why: str, faults: dict[Image, str]
) -> Iterator[ScanDecision]:
    for image in together:
        if image in faults:
            yield _left(image.relative_path, faults[image], unusable=True)
        elif faults:
            broken = ", ".join(sorted(other.relative_path for other in faults))
            yield _left(image.relative_path, f"cannot be combined without {broken}")
        else:
            yield ScanDecision(image.relative_path, included=True, reason=why)


def _scan(together: list[Image], why: str, told: dict[Image, Sidecars]) -> Scan:
    first, *further = together
    notes = list(dict.fromkeys(chain.from_iterable(told[image].notes for image in together)))
    if "echo" in first.entities:
        notes.append(f"{first.path.name} {why}.")
    if first.spelling == "T2star":
        notes.append(f"{first.path.name}: T2star may name an image or a map; taken as an image.")
    dropped = [f"{name}-{value}" for name, value in first.pairs if name not in (*CARRIED, "desc")]
    if dropped:
        notes.append(f"{first.path.name}: output names do not carry {', '.join(dropped)}.")
    return Scan(
        first.path,
        first.relative_path,
        first.datatype,
        first.spelling,
        tuple(pair for pair in first.carried if not (further and pair[0] == "echo")),
        first.entities.get("desc", ""),
        common([told[image].metadata for image in together]),
        tuple(image.path for image in further),
        tuple(notes),
    )


def _fault(path: Path) -> str:
    """Why a file cannot be used, without reading more than a pointer; empty if it can."""
    try:
        return _content_fault(path, path.stat())
    except FileNotFoundError:
        if path.is_symlink():
            return "is not fetched (broken git-annex or DataLad link)"
        return "is no longer there (the database is older than the dataset)"
    except OSError as error:
        return unreadable(error)


def _content_fault(path: Path, status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
        return "is not a regular file"
    if status.st_size == 0:
        return "is empty (0 bytes)"
    if not os.access(path, os.R_OK):
        return "cannot be read (permission denied)"
    if status.st_size < 2**15:  # a pointer of git-annex is never larger
        with path.open("rb") as opened:
            if ANNEX_POINTER.match(opened.read(256)):
                return "is not fetched (a git-annex or git-lfs pointer)"
    return ""
