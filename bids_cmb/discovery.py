"""Which scans of a BIDS dataset are looked at, and why the others are not."""

import json
import os
import re
import sqlite3
import stat
import tempfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from bids.layout import BIDSLayout, BIDSLayoutIndexer

# pybids needs 2.2 GB for an index of 5000 subjects, 70 MB for 100.
SUBJECTS_PER_INDEX = 100
LISTED_LABELS = 20  # a sentence that lists 5000 subjects is not read

DEFAULT_SUFFIXES = ("T2starw", "swi")
KNOWN_SUFFIXES = (*DEFAULT_SUFFIXES, "T2star", "MEGRE", "GRE", "veno", "SWImag")
SPELLINGS = {suffix.casefold(): suffix for suffix in KNOWN_SUFFIXES}
DATATYPES = ("anat", "swi")
EXTENSIONS = (".nii.gz", ".nii")
ECHO_WEIGHTING = 60.0  # T·ms; microbleeds are read at 20 ms at 3 T, 40 ms at 1.5 T
ASSUMED_FIELD = 3.0  # T, where no sidecar says

# The entities that output names carry, in the order of the BIDS schema, and every other one that
# a filter file may name. Values: what stands in file names.
CARRIED = ("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "chunk")
ENTITIES = {
    "subject": "sub", "session": "ses", "acquisition": "acq", "ceagent": "ce",
    "reconstruction": "rec", "direction": "dir", "modality": "mod", "sample": "sample",
    "tracer": "trc", "staining": "stain", "description": "desc",
}  # fmt: skip
SHORT = {*CARRIED, *ENTITIES.values(), "bp", "coil", "flip", "inv", "mt", "proc", "split", "space"}
OF_THE_FILE = {"suffix", "datatype", "extension"}
INDICES = {"run", "echo", "flip", "inv", "split", "chunk"}  # run-01 and run-1 are the same run
PRESENT = "*"
GLOB = re.compile(r"[*?[]")

# What looks like a susceptibility image is listed, taken or not; T1w and the rest are not.
SUSCEPTIBILITY = (
    r"[tr]2star[a-z0-9]*|swi[a-z0-9]*|mi?n?ip|(?:me)?gre|veno[a-z0-9]*|chimap|qsm|[a-z0-9]*flash"
)
NEVER_TAKEN = tuple(
    (entities, re.compile(pattern, re.IGNORECASE), reason)
    for entities, pattern, reason in (
        (("suffix",), r"dup-.*", "is a leftover of a repeated conversion"),
        (("suffix",), r".*defac.*", "is a defacing mask"),
        (("part",), r"(?!mag$).*", "is not the magnitude"),
        (("suffix", "acq", "rec", "desc"), r".*mi?nip.*|mip.*|.*mip", "is an intensity projection"),
        (("suffix",), r"qsm|.*map", "is a map, not a magnitude image"),
        (("acq", "rec", "desc"), r"(swi|gre|t2star|filt|filtered)?pha(se)?", "is a phase image"),
        (("bp",), r"(?!(brain|head)$).*", "shows another part of the body than the brain"),
        (("coil",), r".*", "is the image of one coil element"),
        (("space", "label", "seg", "res", "from", "to"), r".*", "is a derivative"),
    )
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
        return _within(self.metadata.get("EchoTime"), highest=1)

    @property
    def field_strength_t(self) -> float | None:
        """Field strength in T, if a sidecar says one that can be."""
        return _within(self.metadata.get("MagneticFieldStrength"), highest=25)


@dataclass(frozen=True)
class Considered:
    """A file that looks like a susceptibility image, and what became of it.

    Attributes:
        relative_path: From the root of the dataset, with ``/``.
        taken: Whether it is looked at.
        reason: Why it was taken, or left.
        wanted: Whether it was asked for and cannot be used (not fetched, empty, unreadable).
    """

    relative_path: str
    taken: bool
    reason: str
    wanted: bool = False


@dataclass(frozen=True)
class Selection:
    """The scans to look at and every file considered, sorted by path; warnings in sentences."""

    scans: tuple[Scan, ...]
    considered: tuple[Considered, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Query:
    """Which scans are asked for; an empty tuple asks for all.

    Attributes:
        suffixes: In any letter case; ``T2starw`` stands for ``T2star`` too. Where there are
            ``filters`` the default gives way to the suffixes that they name.
        participants: Labels, with or without ``sub-``; globs; ``@file`` with labels in it.
        excluded: Likewise.
        sessions: Likewise, with or without ``ses-``.
        echo: Numbers, or ``combined``, or both. Says what to do with a scan of several echoes;
            an image without ``echo`` in its name is not concerned.
        acq: Labels; likewise ``rec``.
        rec: Labels.
        run: Numbers, with or without zeros in front.
        filters: What `read_filter_file` gave. A scan must match one of them, and all of the above.
        shard: (i, n), the i-th of n parts of the subjects, from 1.
        database_dir: Where a pybids database is, or shall be.
    """

    suffixes: tuple[str, ...] = DEFAULT_SUFFIXES
    participants: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    echo: tuple[str, ...] = ()
    acq: tuple[str, ...] = ()
    rec: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    filters: Mapping[str, Mapping[str, tuple]] = field(default_factory=dict)
    shard: tuple[int, int] | None = None
    database_dir: Path | None = None


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
    read = _sidecar_reader(bids_dir)

    scans, considered = [], []
    for start in range(0, len(subjects), SUBJECTS_PER_INDEX):
        some = subjects[start : start + SUBJECTS_PER_INDEX]
        seen, odd = _walked(bids_dir, some, _territory(some, _words(query)))
        try:
            paths = indexed(some)
        except PermissionError:  # pybids stops at the first link that it may not follow
            paths = seen
        asked, refused = _by_name([_parsed(path, bids_dir) for path in paths], query)
        found, settled = _settle(asked, query, read)
        scans += found
        considered += [*odd, *refused, *settled]

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
    notes = []
    present = list_subjects(bids_dir)
    if not present:
        notes.append(f"{bids_dir} has no `sub-` folders.")
    if query.database_dir:
        notes.append(f"Files are as {query.database_dir} lists them; newer ones are not seen.")

    wanted = _expanded(query.participants, "sub-")
    _refuse_unknown("participant", bids_dir, _unmatched(wanted, present), present)
    excluded = _expanded(query.excluded, "sub-")
    absent = _unmatched(excluded, present)
    if absent:
        notes.append(f"Not in the dataset, though to be excluded: {_listed(absent)}.")
    some = _named_by(wanted, present) if wanted else set(present)
    chosen = sorted(some - _named_by(excluded, present))

    query = replace(query, sessions=_expanded(query.sessions, "ses-"))
    _check_sessions(bids_dir, chosen, query.sessions)
    return _shard(chosen, query.shard), query, notes


def _expanded(labels: Iterable[str], prefix: str) -> tuple[str, ...]:
    """Labels without their prefix, those in an ``@file`` among them."""
    each = chain.from_iterable(
        _labels_in(Path(label[1:])) if label.startswith("@") else [label] for label in labels
    )
    return tuple(label.removeprefix(prefix) for label in each)


def _labels_in(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if lines and lines[0].split("\t")[0].strip() == "participant_id":
        labels = [line.split("\t")[0].strip() for line in lines[1:]]
    else:
        labels = " ".join(lines).split()
    labels = [label for label in labels if label]
    if not labels:  # else it would ask for everybody
        raise ValueError(f"{path}: a file of labels must name at least one; found none.")
    return labels


def _named_by(patterns: Iterable[str], labels: Iterable[str]) -> set[str]:
    """Those of the labels that a pattern names; a glob that is itself a label is that label."""
    known, exact = set(labels), set(patterns)
    globs = [p for p in exact - known if GLOB.search(p)]
    return (known & exact) | {x for x in known if any(fnmatchcase(x, glob) for glob in globs)}


def _unmatched(patterns: Iterable[str], present: Iterable[str]) -> list[str]:
    known = set(present)
    return [
        pattern
        for pattern in patterns
        if pattern not in known
        and not (GLOB.search(pattern) and any(fnmatchcase(x, pattern) for x in known))
    ]


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
        absent = _unmatched(absent, present)
    _refuse_unknown("session", bids_dir, absent, sorted(present))


def _refuse_unknown(kind: str, bids_dir: Path, unknown: list[str], present: list[str]) -> None:
    if unknown:
        raise ValueError(
            f"Every {kind} label must exist in {bids_dir}; unknown: {_listed(unknown)}; "
            f"there: {_listed(present) or 'none'}."
        )


def _listed(labels: list[str]) -> str:
    more = len(labels) - LISTED_LABELS
    return ", ".join(labels[:LISTED_LABELS]) + (f" and {more} more" if more > 0 else "")


def _shard(subjects: list[str], shard: tuple[int, int] | None) -> list[str]:
    if shard is None:
        return subjects
    part, parts = shard
    if not 1 <= part <= parts:
        raise ValueError(f"A shard I/N must have I from 1 to N; found {part}/{parts}.")
    return subjects[part - 1 :: parts]


def _empty_handed(subjects: list[str], scans: list[Scan]) -> list[str]:
    served = {scan.subject for scan in scans}
    without = [subject for subject in subjects if subject not in served]
    if not without:
        return []
    return [f"{len(without)} of {len(subjects)} subjects have no scan taken: {_listed(without)}."]


# Finding files


def _words(query: Query) -> str:
    """A pattern of the suffixes to list: those that look right and those asked for."""
    named = [suffix for rule in query.filters.values() for suffix in rule.get("suffix", ())]
    asked = [s for s in (*query.suffixes, *named) if s not in (None, PRESENT)]
    return "|".join([SUSCEPTIBILITY, *map(re.escape, asked)])


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


def _indexer(bids_dir: Path, query: Query) -> Callable[[list[str]], list[Path]]:
    """A function from some subjects to the paths of their images."""
    if query.database_dir is None:
        return lambda subjects: _index(bids_dir, _territory(subjects, _words(query)))

    by_subject = defaultdict(list)
    for path in _stored(bids_dir, Path(query.database_dir)):
        by_subject[path.relative_to(bids_dir).parts[0].removeprefix("sub-")].append(path)

    def among_the_stored(subjects: list[str]) -> list[Path]:
        territory = _territory(subjects, _words(query))
        paths = chain.from_iterable(by_subject[subject] for subject in subjects)
        return [p for p in paths if territory.fullmatch(f"/{p.relative_to(bids_dir).as_posix()}")]

    return among_the_stored


def _index(bids_dir: Path, territory: re.Pattern, database_dir: Path | None = None) -> list[Path]:
    """Paths of the files within ``territory``, by pybids."""
    indexer = BIDSLayoutIndexer(
        validate=False,
        index_metadata=False,
        ignore=[re.compile(rf"^(?!{territory.pattern}\Z)")],
        config_filename=".none",  # a `layout_config.json` in the data has no say here
    )
    try:
        # Validation would drop `swi` without a word.
        layout = BIDSLayout(
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


def _files_of(layout: BIDSLayout) -> list[Path]:
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


def _stored(bids_dir: Path, database_dir: Path) -> list[Path]:
    """Paths in a pybids database, which is made if there is none.

    Raises:
        ValueError: If it is no pybids database, or of another dataset.
    """
    database = database_dir / "layout_index.sqlite"
    if not database.exists():
        database_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=database_dir) as making:
            _index(bids_dir, _territory(None, r"[a-z0-9]+"), Path(making))
            (Path(making) / database.name).replace(database)  # whole or not there
    root = _root_of(database)
    if not (root.exists() and root.samefile(bids_dir)):
        raise ValueError(f"{database}: must have been made from {bids_dir}; it is of {root}.")
    files = _files_of(BIDSLayout(database_path=database_dir, validate=False))
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
) -> tuple[list[Path], list[Considered]]:
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
            why = f"cannot be read ({_brief(error)})"
            odd.append(_left(_relative(folder, bids_dir), why, wanted=True))
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
            elif place:
                folders.append(Path(entry.path))
    return files, odd


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or to where we may not look
        return False


def _relative(path: Path, bids_dir: Path) -> str:
    return path.relative_to(bids_dir).as_posix()


def _left(relative_path: str, reason: str, *, wanted: bool = False) -> Considered:
    return Considered(relative_path, taken=False, reason=reason, wanted=wanted)


def _brief(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


# Names and rules


@dataclass(frozen=True)
class _Image:
    """A file that may be a scan, as its name tells."""

    path: Path
    relative_path: str
    pairs: tuple[tuple[str, str], ...]
    odd_words: tuple[str, ...]
    suffix: str
    extension: str

    @property
    def entities(self) -> dict[str, str]:
        return dict(self.pairs)

    @property
    def datatype(self) -> str:
        return self.path.parent.name

    @property
    def spelling(self) -> str:
        return SPELLINGS.get(self.suffix.casefold(), self.suffix)

    @property
    def carried(self) -> tuple[tuple[str, str], ...]:
        """The entities that output names carry, in BIDS order."""
        return tuple((name, self.entities[name]) for name in CARRIED if name in self.entities)

    @property
    def echo(self) -> tuple[float, str]:
        """Sorts echoes: by number, those that are no number last."""
        text = self.entities.get("echo", "")
        return (int(text) if text.isdecimal() else float("inf"), text)


def _parsed(path: Path, bids_dir: Path) -> _Image:
    extension = next((end for end in EXTENSIONS if path.name.endswith(end)), path.suffix)
    *words, suffix = path.name.removesuffix(extension).split("_")
    return _Image(
        path,
        _relative(path, bids_dir),
        tuple(tuple(word.split("-", 1)) for word in words if "-" in word),
        tuple(word for word in words if "-" not in word),
        suffix,
        extension,
    )


def _joined(entities: Iterable[tuple[str, str]], desc: str, suffix: str) -> str:
    pairs = [*entities, ("desc", desc)] if desc else entities
    return "_".join([*(f"{name}-{value}" for name, value in pairs), suffix])


def _by_name(images: list[_Image], query: Query) -> tuple[list[_Image], list[Considered]]:
    """Those that may be taken, by name alone; and the others with the first reason against them."""
    reasons = {
        image: next(chain(_unsuited(image), _misnamed(image), _unasked(image, query)), "")
        for image in images
    }
    left = [_left(image.relative_path, why) for image, why in reasons.items() if why]
    return [image for image, why in reasons.items() if not why], left


def _unsuited(image: _Image) -> Iterator[str]:
    """Reasons why such an image is never taken, whatever was asked for."""
    said = {"suffix": image.suffix, **image.entities}
    for names, pattern, reason in NEVER_TAKEN:
        for name in names:
            if name in said and pattern.fullmatch(said[name]):
                yield f"{reason} ({said[name] if name == 'suffix' else f'{name}-{said[name]}'})"


def _misnamed(image: _Image) -> Iterator[str]:
    """Reasons why a name cannot be relied upon."""
    if image.odd_words or "-" in image.suffix:
        odd = ", ".join(image.odd_words) or image.suffix
        yield f"has a name that is not made of key-value pairs and a suffix ({odd})"
    if len(image.entities) < len(image.pairs):
        yield "has an entity twice in its name"
    place = image.relative_path.split("/")[:-2]
    named = [f"{name}-{value}" for name, value in image.carried if name in ("sub", "ses")]
    if named != place:
        yield f"lies in {'/'.join(place)}, though its name says {'_'.join(named) or 'nothing'}"


def _unasked(image: _Image, query: Query) -> Iterator[str]:
    """Reasons why a good image is not taken this time."""
    by_filter = query.filters and query.suffixes == DEFAULT_SUFFIXES
    if not by_filter and not any(_same("suffix", s, image.spelling) for s in query.suffixes):
        yield f"is taken only when {image.spelling} is asked for"
    session = image.entities.get("ses")
    if query.sessions and not _named_by(query.sessions, [session] if session else []):
        yield f"is of {f'session {session}' if session else 'no session'}, which was not asked for"
    for name, wanted in (("acq", query.acq), ("rec", query.rec), ("run", query.run)):
        if wanted and not any(_same(name, value, image.entities.get(name)) for value in wanted):
            found = f"{name}-{image.entities[name]}" if name in image.entities else f"no {name}"
            yield f"has {found}, which was not asked for"
    if query.filters and not any(_fits(image, rule) for rule in query.filters.values()):
        yield "matches no query of the filter file"


def _fits(image: _Image, rule: Mapping[str, tuple]) -> bool:
    said = {
        **image.entities,
        "suffix": image.spelling,
        "datatype": image.datatype,
        "extension": image.extension,
    }
    return all(
        any(_same(name, value, said.get(name)) for value in values) for name, values in rule.items()
    )


def _same(name: str, wanted: str | None, found: str | None) -> bool:
    """Whether the value of an entity is the one wanted; None wants none, ``*`` wants any."""
    if wanted is None or found is None:
        return wanted == found
    if wanted == PRESENT:
        return True
    wanted = wanted.removeprefix(f"{name}-")
    if name in INDICES and wanted.isdecimal() and found.isdecimal():
        return int(wanted) == int(found)
    if name == "suffix":
        wanted, found = wanted.casefold(), found.casefold()
        return wanted == found or (wanted, found) == ("t2starw", "t2star")
    if name == "extension":
        return wanted.lstrip(".") == found.lstrip(".")
    return wanted == found


# Doubles, echoes, files


Decision = tuple[list[_Image], str]  # the images of one scan, and why they are taken


def _settle(
    images: list[_Image], query: Query, read: Callable[[Path], tuple[dict, tuple[str, ...]]]
) -> tuple[list[Scan], list[Considered]]:
    """Choose between files that would be written under one name, and between echoes."""
    images, considered = _without_maps(images)
    kept = []
    for alike in _grouped(images, _identity).values():
        first, *others = sorted(alike, key=_preference)
        kept.append(first)
        why = f"gives the same output names as {first.relative_path}, which goes first"
        considered += [_left(other.relative_path, why) for other in others]

    scans = []
    for group in _grouped(kept, lambda image: _identity(image)[:-1]).values():
        told = {image.path: read(image.path) for image in group}
        taken, left = _settle_echoes(group, query, {p: data for p, (data, _) in told.items()})
        considered += [_left(image.relative_path, why) for image, why in left]
        for together, why in taken:
            faults = {image: fault for image in together if (fault := _fault(image.path))}
            considered += _as_considered(together, why, faults)
            if not faults:
                scans.append(_scan(together, why, told))
    return scans, considered


def _without_maps(images: list[_Image]) -> tuple[list[_Image], list[Considered]]:
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


def _grouped(items: Iterable, key: Callable[[Any], Hashable]) -> dict[Hashable, list]:
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _identity(image: _Image) -> tuple:
    """Equal for files of which one can be taken; the echo comes last."""
    named = image.entities
    rest = [pair for pair in image.carried if pair[0] not in ("sub", "ses", "echo")]
    name = _joined(rest, named.get("desc", ""), image.spelling).casefold()
    return (named["sub"], named.get("ses"), name, image.echo)


def _preference(image: _Image) -> tuple:
    """Sorts files of one identity, the one to take first."""
    return (
        bool(_fault(image.path)),
        len(image.pairs) - len(image.carried),
        DATATYPES.index(image.datatype),
        EXTENSIONS.index(image.extension),
        image.suffix != image.spelling,
        image.relative_path,
    )


def _settle_echoes(
    group: list[_Image], query: Query, metadata: dict[Path, dict]
) -> tuple[list[Decision], list[tuple[_Image, str]]]:
    """Decide about the files that differ in nothing but their echo.

    Returns:
        taken: The images of a scan and why they are taken, for each scan.
        left: An image and why it is left.
    """
    echoes = sorted((image for image in group if "echo" in image.entities), key=lambda i: i.echo)
    taken = [([i], f"is {i.spelling} in {i.datatype}/") for i in group if i not in echoes]
    if not echoes:
        return taken, []

    numbers = [value for value in query.echo if value != "combined"]
    said = ", ".join(image.entities["echo"] for image in echoes)
    asked = [e for e in echoes if any(_same("echo", n, e.entities["echo"]) for n in numbers)]
    left = []
    if numbers:
        wish = f"is one of the echoes {said}; echo {', '.join(numbers)} was asked for"
        left = [(image, wish) for image in echoes if image not in asked]
        echoes = asked

    if "combined" in query.echo and taken and echoes:
        whole = taken[0][0][0].relative_path
        return taken, left + [(i, f"is an echo of {whole}, which goes first") for i in echoes]
    if "combined" in query.echo and len(echoes) > 1:
        names = ", ".join(image.entities["echo"] for image in echoes)
        return [*taken, (echoes, f"is combined with the others of echoes {names}, as asked")], left
    if numbers:
        return taken + [([i], f"is echo {i.entities['echo']}, as asked") for i in echoes], left
    chosen, others = _nearest_echo(echoes, metadata)
    return [*taken, chosen], left + others


def _nearest_echo(
    echoes: list[_Image], metadata: dict[Path, dict]
) -> tuple[Decision, list[tuple[_Image, str]]]:
    """The echo whose field strength times echo time is nearest 60 T·ms; the longer of equals."""
    if len(echoes) == 1:
        return (echoes, f"is echo {echoes[0].entities['echo']}, the only magnitude echo"), []
    weightings = {image: _weighting(metadata[image.path]) for image in echoes}
    known = [image for image in echoes if weightings[image][0] is not None]
    if known:
        best = min(reversed(known), key=lambda i: abs(weightings[i][0] - ECHO_WEIGHTING))
        rule = f"is nearest {ECHO_WEIGHTING:.0f} T·ms"
    else:
        best, rule = echoes[-1], "is the last"

    def told(image: _Image) -> str:
        number = f"echo {image.entities['echo']} of {len(echoes)}"
        return f"{number} ({weightings[image][1]})"

    others = [
        (image, f"is {told(image)}; echo {best.entities['echo']} {rule}")
        for image in echoes
        if image is not best
    ]
    return ([best], f"is {told(best)} and {rule}"), others


def _weighting(metadata: dict) -> tuple[float | None, str]:
    """Field strength times echo time, T·ms, or None; and the same in words."""
    echo_time = _within(metadata.get("EchoTime"), highest=1)
    strength = _within(metadata.get("MagneticFieldStrength"), highest=25)
    if echo_time is None:
        return None, "echo time unknown"
    value = 1000 * echo_time * (strength or ASSUMED_FIELD)
    assumed = "" if strength else f", field strength unknown, {ASSUMED_FIELD:g} T assumed"
    return value, f"{value:.0f} T·ms{assumed}"


def _as_considered(
    together: list[_Image], why: str, faults: dict[_Image, str]
) -> Iterator[Considered]:
    for image in together:
        if image in faults:
            yield _left(image.relative_path, faults[image], wanted=True)
        elif faults:
            broken = ", ".join(sorted(other.relative_path for other in faults))
            yield _left(image.relative_path, f"cannot be combined without {broken}")
        else:
            yield Considered(image.relative_path, taken=True, reason=why)


def _scan(together: list[_Image], why: str, told: dict[Path, tuple[dict, tuple[str, ...]]]) -> Scan:
    first, *further = together
    metadata = [told[image.path][0] for image in together]
    notes = list(dict.fromkeys(chain.from_iterable(told[i.path][1] for i in together)))
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
        _common(metadata),
        tuple(image.path for image in further),
        tuple(notes),
    )


def _common(metadata: list[dict]) -> dict:
    """What the echoes agree on, and the mean of their echo times, which stands for them all."""
    first, *others = metadata
    shared = {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
    times = [_within(each.get("EchoTime"), highest=1) for each in metadata]
    if others and all(times):
        shared["EchoTime"] = sum(times) / len(times)
    return shared


def _fault(path: Path) -> str:
    """Why a file cannot be used, without reading more than a pointer; empty if it can."""
    try:
        return _content_fault(path, path.stat())
    except FileNotFoundError:
        if path.is_symlink():
            return "is not fetched (broken git-annex or DataLad link)"
        return "is no longer there (the database is older than the dataset)"
    except OSError as error:
        return f"cannot be read ({_brief(error)})"


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


# Sidecars


def read_sidecars(bids_dir: Path, image_path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the JSON files say that apply to an image, by the inheritance principle.

    A file applies if it lies in the image's folder or above, has the image's suffix, and names no
    entity that the image's name does not have too. The deeper one wins; in one folder, the one
    that names more entities.

    Args:
        bids_dir: The root of the dataset.
        image_path: An image in it.

    Returns:
        metadata: As written, but EchoTime in s where it was in ms.
        notes: A sentence for each file or value that cannot be believed.
    """
    return _sidecar_reader(Path(bids_dir).absolute())(Path(image_path).absolute())


def _sidecar_reader(bids_dir: Path) -> Callable[[Path], tuple[dict, tuple[str, ...]]]:
    """`read_sidecars` for one dataset; reads each folder and each file once."""
    jsons_in, read_object = cache(_jsons_in), cache(_read_object)

    def read(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
        image = _parsed(path, bids_dir)
        above = [folder for folder in path.parents if folder.is_relative_to(bids_dir)]
        metadata, notes = {}, []
        for folder in reversed(above):
            applying = [
                (len(pairs), name)
                for name, pairs, suffix in jsons_in(folder)
                if suffix == image.suffix and pairs <= set(image.pairs)
            ]
            for _, name in sorted(applying):
                content, complaint = read_object(folder / name)
                metadata |= content
                notes += [f"{_relative(folder / name, bids_dir)} {complaint}."] if complaint else []
        return _in_seconds(metadata), (*notes, *_oddities(path.name, metadata))

    return read


def _jsons_in(folder: Path) -> list[tuple[str, frozenset[tuple[str, ...]], str]]:
    """Name, entities and suffix of each JSON file in a folder; none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".json")]
    except OSError:
        return []
    split = [(name, name.removesuffix(".json").split("_")) for name in names]
    return [
        (name, frozenset(tuple(word.split("-", 1)) for word in words), suffix)
        for name, (*words, suffix) in split
    ]


def _read_object(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object, or an empty one and what is wrong, as the end of a sentence."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}, "is not fetched (broken git-annex or DataLad link) and is passed over"
    except OSError as error:
        return {}, f"cannot be read ({_brief(error)}) and is passed over"
    except (ValueError, RecursionError):
        return {}, "is not valid JSON and is passed over"
    if not isinstance(content, dict):
        return {}, "is not a JSON object and is passed over"
    return content, ""


def _within(value: Any, *, highest: float) -> float | None:
    """The value as a number if it is one above 0 and not above ``highest``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value <= highest else None  # also NaN


def _in_seconds(metadata: dict[str, Any]) -> dict[str, Any]:
    milliseconds = _milliseconds(metadata)
    return metadata if milliseconds is None else {**metadata, "EchoTime": milliseconds / 1000}


def _milliseconds(metadata: dict[str, Any]) -> float | None:
    """EchoTime, if it can only be in ms: no echo is read after a second."""
    value = _within(metadata.get("EchoTime"), highest=1000)
    return value if value is not None and value > 1 else None


def _oddities(name: str, metadata: dict[str, Any]) -> Iterator[str]:
    milliseconds = _milliseconds(metadata)
    if milliseconds is not None:
        yield (
            f"{name}: EchoTime {milliseconds:g} looks like ms, not s; "
            f"read as {milliseconds / 1000:g} s."
        )
    for key, highest, unit in (("EchoTime", 1000, "s"), ("MagneticFieldStrength", 25, "T")):
        if key in metadata and _within(metadata[key], highest=highest) is None:
            found = repr(metadata[key])[:40]
            yield f"{name}: {key} must be a number in {unit} that can be; found {found}, not used."


# Filter files


def read_filter_file(path: Path) -> tuple[dict[str, dict[str, tuple]], tuple[str, ...]]:
    """Read ``{query: {entity: value}}``, as fMRIPrep and BABS write it.

    A query is named after a suffix, in any letter case, and asks for it unless it has a ``suffix``
    of its own. Entities go by their long or short names. ``null``: the entity must be absent;
    ``"*"``: present; a list: any of these.

    Args:
        path: A JSON file.

    Returns:
        filters: For `Query`; entities by their short names.
        notes: A sentence about the queries for other images, which are ignored.

    Raises:
        ValueError: If it is not such a file. The sentence names the query and what was found.
    """
    content = _filter_content(path)
    filters, foreign = {}, []
    for name, rule in content.items():
        if name.casefold() not in SPELLINGS:
            foreign.append(name)
            continue
        if not isinstance(rule, dict):
            raise ValueError(
                f"{path}: query `{name}` must be an object of entities; found {_json(rule)}."
            )
        filters[name] = {"suffix": (SPELLINGS[name.casefold()],)} | {
            _entity(path, name, entity): _values(path, f"{name}.{entity}", value)
            for entity, value in rule.items()
        }
    if not foreign:
        return filters, ()
    return filters, (f"{path}: queries for other images are ignored: {_listed(foreign)}.",)


def _filter_content(path: Path) -> dict:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: a filter file must be JSON; {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: a filter file must be an object of queries; found {_json(content)}."
        )
    return content


def _entity(path: Path, query: str, name: str) -> str:
    short = ENTITIES.get(name, name)
    if short not in SHORT | OF_THE_FILE:
        raise ValueError(
            f"{path}: query `{query}` may name BIDS entities only, such as acquisition or run; "
            f"found {_json(name)}."
        )
    return short


def _values(path: Path, where: str, value: object) -> tuple[str | None, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(
        v is None or (isinstance(v, str | int) and v is not True and v is not False) for v in values
    ):
        raise ValueError(
            f"{path}: `{where}` must be a text, a whole number, null, or a list of these; "
            f"found {_json(value)}."
        )
    return tuple(None if v is None else str(v) for v in values)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]
