"""Which images are asked for: their names, held against labels, flags and filter files."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from bids_cmb.files import load_object

DEFAULT_SUFFIXES = ("T2starw", "swi")
KNOWN_SUFFIXES = (*DEFAULT_SUFFIXES, "T2star", "MEGRE", "GRE", "veno", "SWImag")
SPELLINGS = {suffix.casefold(): suffix for suffix in KNOWN_SUFFIXES}

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
LISTED_LABELS = 20  # a sentence that lists 5000 subjects is not read

PHASE_LABELS = ("acq", "rec", "desc")
PHASE = r"(swi|gre|t2star|filt|filtered)?pha(se)?"
NEVER_TAKEN = tuple(
    (entities, re.compile(pattern, re.IGNORECASE), reason)
    for entities, pattern, reason in (
        (("suffix",), r"dup-.*", "is a leftover of a repeated conversion"),
        (("suffix",), r".*defac.*", "is a defacing mask"),
        (("part",), r"(?!mag$).*", "is not the magnitude"),
        (("suffix", "acq", "rec", "desc"), r".*mi?nip.*|mip.*|.*mip", "is an intensity projection"),
        (("suffix",), r"qsm|.*map", "is a map, not a magnitude image"),
        (("suffix", *PHASE_LABELS), PHASE, "is a phase image"),
        (("bp",), r"(?!(brain|head)$).*", "shows another part of the body than the brain"),
        (("coil",), r".*", "is the image of one coil element"),
        (("space", "label", "seg", "res", "from", "to"), r".*", "is a derivative"),
    )
)


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
        reset_database: Whether it is made anew.
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
    reset_database: bool = False

    @property
    def named_suffixes(self) -> list[str]:
        """Every suffix that it names, by itself or in its filters."""
        in_filters = [rule.get("suffix", ()) for rule in self.filters.values()]
        named = chain(self.suffixes, *in_filters)
        return [suffix for suffix in named if suffix not in (None, PRESENT)]


# Labels


def read_labels(labels: Iterable[str], prefix: str) -> tuple[str, ...]:
    """Labels without their prefix, those in an ``@file`` among them.

    Args:
        labels: Labels, with or without ``prefix``; globs; ``@file``.
        prefix: ``sub-`` or ``ses-``.

    Raises:
        ValueError: If there are no labels in a file.
    """
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


def named_by(patterns: Iterable[str], labels: Iterable[str]) -> set[str]:
    """Those of the labels that a pattern names; a glob that is itself a label is that label."""
    known, exact = set(labels), set(patterns)
    globs = [p for p in exact - known if GLOB.search(p)]
    return (known & exact) | {x for x in known if any(fnmatchcase(x, glob) for glob in globs)}


def unmatched(patterns: Iterable[str], labels: Iterable[str]) -> list[str]:
    """Those of the patterns that name none of the labels."""
    known = set(labels)
    return [p for p in patterns if p not in known and not (GLOB.search(p) and named_by([p], known))]


def listed(labels: list[str]) -> str:
    """The labels for a sentence: the first twenty, and how many more."""
    more = len(labels) - LISTED_LABELS
    return ", ".join(labels[:LISTED_LABELS]) + (f" and {more} more" if more > 0 else "")


def shard_of(subjects: list[str], shard: tuple[int, int] | None) -> list[str]:
    """The subjects of the i-th of n parts; all if there are no parts.

    Raises:
        ValueError: If i is not from 1 to n.
    """
    if shard is None:
        return subjects
    part, parts = shard
    if not 1 <= part <= parts:
        raise ValueError(f"A shard I/N must have I from 1 to N; found {part}/{parts}.")
    return subjects[part - 1 :: parts]


# Names and rules


@dataclass(frozen=True)
class Image:
    """A file that may be a scan, as its name tells."""

    path: Path
    relative_path: str
    pairs: tuple[tuple[str, str], ...]
    odd_words: tuple[str, ...]
    suffix: str
    extension: str

    @property
    def entities(self) -> dict[str, str]:
        """Values by the short names of the entities."""
        return dict(self.pairs)

    @property
    def datatype(self) -> str:
        """The folder."""
        return self.path.parent.name

    @property
    def spelling(self) -> str:
        """The suffix, spelled one way; unknown ones as found."""
        return SPELLINGS.get(self.suffix.casefold(), self.suffix)

    @property
    def carried(self) -> tuple[tuple[str, str], ...]:
        """The entities that output names carry, in BIDS order."""
        return tuple((name, self.entities[name]) for name in CARRIED if name in self.entities)

    @property
    def said(self) -> dict[str, str]:
        """All that a user may ask for: entities by their short names, and those of the file."""
        of_the_file = {"datatype": self.datatype, "extension": self.extension}
        return {**self.entities, "suffix": self.spelling, **of_the_file}

    @property
    def echo(self) -> tuple[float, str]:
        """Sorts echoes: by number, those that are no number last."""
        text = self.entities.get("echo", "")
        return (int(text) if text.isdecimal() else float("inf"), text)


def image_at(path: Path, bids_dir: Path) -> Image:
    """What the name and the place of a file tell; the file is not opened."""
    extension = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    *words, suffix = path.name.removesuffix(extension).split("_")
    return Image(
        path,
        path.relative_to(bids_dir).as_posix(),
        tuple(tuple(word.split("-", 1)) for word in words if "-" in word),
        tuple(word for word in words if "-" not in word),
        suffix,
        extension,
    )


def rejection_reason(image: Image, query: Query) -> str:
    """The first reason against taking an image, by its name alone; empty if there is none."""
    return next(chain(_unsuited(image), _misnamed(image), _unasked(image, query)), "")


def _unsuited(image: Image) -> Iterator[str]:
    """Reasons why such an image is never taken, whatever was asked for."""
    said = image.said
    for names, pattern, reason in NEVER_TAKEN:
        for name in names:
            if name in said and pattern.fullmatch(said[name]):
                yield f"{reason} ({said[name] if name == 'suffix' else f'{name}-{said[name]}'})"


def _misnamed(image: Image) -> Iterator[str]:
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


def _unasked(image: Image, query: Query) -> Iterator[str]:
    """Reasons why a good image is not taken this time."""
    said = image.said
    by_filter = query.filters and query.suffixes == DEFAULT_SUFFIXES
    if not by_filter and not is_wanted("suffix", image.spelling, query.suffixes):
        yield f"is used only with --suffix {image.spelling}"
    session = said.get("ses")
    if query.sessions and not named_by(query.sessions, [session] if session else []):
        yield f"is of {f'session {session}' if session else 'no session'}, which was not requested"
    for name, wanted in (("acq", query.acq), ("rec", query.rec), ("run", query.run)):
        if wanted and not is_wanted(name, said.get(name), wanted):
            found = f"{name}-{said[name]}" if name in said else f"no {name}"
            yield f"has {found}, which was not requested"
    if query.filters and not any(_fits(said, rule) for rule in query.filters.values()):
        yield "matches no query of the filter file"


def is_wanted(name: str, found: str | None, wanted: Iterable[str | None]) -> bool:
    """Whether an entity's value, None if it is absent, is one of those wanted."""
    return any(_same(name, found, value) for value in wanted)


def _fits(said: Mapping[str, str], rule: Mapping[str, tuple]) -> bool:
    return all(is_wanted(name, said.get(name), values) for name, values in rule.items())


def _same(name: str, found: str | None, wanted: str | None) -> bool:
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
    content = load_object(Path(path), "a filter file")
    foreign = [name for name in content if name.casefold() not in SPELLINGS]
    filters = {n: _rule(path, n, rule) for n, rule in content.items() if n not in foreign}
    if not foreign:
        return filters, ()
    return filters, (f"{path}: queries for other images are ignored: {listed(foreign)}.",)


def _rule(path: Path, query: str, rule: object) -> dict[str, tuple]:
    if not isinstance(rule, dict):
        raise ValueError(
            f"{path}: query `{query}` must be an object of entities; found {_json(rule)}."
        )
    return {"suffix": (SPELLINGS[query.casefold()],)} | {
        _entity(path, query, name): _values(path, f"{query}.{name}", value)
        for name, value in rule.items()
    }


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
    if any(isinstance(v, bool) or not isinstance(v, str | int | None) for v in values):
        raise ValueError(
            f"{path}: `{where}` must be a text, a whole number, null, or a list of these; "
            f"found {_json(value)}."
        )
    return tuple(None if v is None else str(v) for v in values)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]
