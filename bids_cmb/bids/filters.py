"""Filter images by their names: labels, flags and filter files."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from bids_cmb.bids.entities import SCAN_ENTITIES, find_short_name, list_index_entities
from bids_cmb.files import load_object

DEFAULT_SUFFIXES = ("T2starw", "swi")
KNOWN_SUFFIXES = (*DEFAULT_SUFFIXES, "T2star", "MEGRE", "GRE", "veno", "SWImag")
CANONICAL_SUFFIXES = {suffix.casefold(): suffix for suffix in KNOWN_SUFFIXES}

FILE_PROPERTIES = {"suffix", "datatype", "extension"}
ANY_VALUE = "*"
GLOB = re.compile(r"[*?[]")
MAX_LISTED_LABELS = 20  # in a sentence

PHASE_LABELS = ("acq", "rec", "desc")
PHASE_PATTERN = r"(swi|gre|t2star|filt|filtered)?pha?|.*phase|phase(map|image|img)"
EXCLUSION_RULES = tuple(
    (entities, re.compile(pattern, re.IGNORECASE), reason)
    for entities, pattern, reason in (
        (("suffix",), r"dup-.*", "is a leftover of a repeated conversion"),
        (("suffix",), r".*defac.*", "is a defacing mask"),
        (("part",), r"(?!mag$).*", "is not the magnitude"),
        (("suffix", "acq", "rec", "desc"), r".*mi?nip.*|mip.*|.*mip", "is an intensity projection"),
        (("suffix",), r"qsm|.*map", "is a map, not a magnitude image"),
        (("suffix", *PHASE_LABELS), PHASE_PATTERN, "is a phase image"),
        (PHASE_LABELS, r"phasemask", "is a phase mask"),
        (PHASE_LABELS, r"real|imag(inary)?", "is a real or imaginary part"),
        (("bp",), r"(?!(brain|head)$).*", "shows another part of the body than the brain"),
        (("coil",), r".*", "is the image of one coil element"),
        (("space", "label", "seg", "res", "from", "to"), r".*", "is a derivative"),
    )
)


def find_contrast(desc: str) -> str:
    """Find the suffix of scans that a ``desc-`` ends with, as those of our outputs do.

    Returns:
        In the letter case of BIDS; of several the longest, empty without any.
    """
    endings = [known for known in CANONICAL_SUFFIXES if desc.casefold().endswith(known)]
    return CANONICAL_SUFFIXES[max(endings, key=len)] if endings else ""


@dataclass(frozen=True)
class Query:
    """A request for scans; an empty tuple requests all.

    Attributes:
        suffixes: In any letter case; ``T2starw`` stands for ``T2star`` too. Where there are
            ``filters`` the default gives way to the suffixes that they name.
        participants: Labels, with or without ``sub-``; globs; ``@file`` with labels in it.
        excluded: Likewise.
        sessions: Likewise, with or without ``ses-``.
        echo: Numbers, or ``combined``, or both: what to do with a scan of several echoes. It has no
            effect on an image without ``echo`` in its name.
        acq: Labels; likewise ``rec``.
        rec: Labels.
        run: Numbers, with or without leading zeros.
        filters: From `read_filter_file`. A scan must match one of them, and all of the above.
        shard: (i, n), the i-th of n parts of the subjects, from 1; by a hash of each label.
        database_dir: Folder of a pybids database, which is made if there is none.
        reset_database: Whether to make it anew.
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
    def requested_suffixes(self) -> list[str]:
        """The suffixes of the query and of its filters."""
        in_filters = [rule.get("suffix", ()) for rule in self.filters.values()]
        named = chain(self.suffixes, *in_filters)
        return [suffix for suffix in named if suffix not in (None, ANY_VALUE)]


# Labels


def read_labels(labels: Iterable[str], prefix: str) -> tuple[str, ...]:
    """Read labels: remove their prefix, and replace each ``@file`` by the labels in it.

    Args:
        labels: Labels, with or without ``prefix``; globs; ``@file``.
        prefix: ``sub-`` or ``ses-``.

    Raises:
        ValueError: If a file holds no labels.
    """
    each = chain.from_iterable(
        _read_label_file(Path(label[1:])) if label.startswith("@") else [label] for label in labels
    )
    return tuple(label.removeprefix(prefix) for label in each)


def _read_label_file(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if lines and lines[0].split("\t")[0].strip() == "participant_id":
        labels = [line.split("\t")[0].strip() for line in lines[1:]]
    else:
        labels = " ".join(lines).split()
    labels = [label for label in labels if label]
    if not labels:  # else it would request everybody
        raise ValueError(f"{path}: a file of labels must name at least one; found none.")
    return labels


def match_labels(patterns: Iterable[str], labels: Iterable[str]) -> set[str]:
    """Return the labels that a pattern matches; a glob that is itself a label is that label."""
    known, exact = set(labels), set(patterns)
    globs = [p for p in exact - known if GLOB.search(p)]
    return (known & exact) | {x for x in known if any(fnmatchcase(x, glob) for glob in globs)}


def find_unmatched(patterns: Iterable[str], labels: Iterable[str]) -> list[str]:
    """Return the patterns that match none of the labels."""
    known = set(labels)
    return [
        p for p in patterns if p not in known and not (GLOB.search(p) and match_labels([p], known))
    ]


def join_labels(labels: list[str]) -> str:
    """Join labels for a sentence: the first twenty, and how many more."""
    more = len(labels) - MAX_LISTED_LABELS
    return ", ".join(labels[:MAX_LISTED_LABELS]) + (f" and {more} more" if more > 0 else "")


def select_shard(subjects: list[str], shard: tuple[int, int] | None) -> list[str]:
    """Select the subjects of the i-th of n parts; all if there are no parts.

    Where a subject belongs depends on its label and n alone: others come and go, it stays.

    Raises:
        ValueError: If i is not from 1 to n.
    """
    if shard is None:
        return subjects
    part, parts = shard
    if not 1 <= part <= parts:
        raise ValueError(f"A shard I/N must have I from 1 to N; found {part}/{parts}.")
    return [label for label in subjects if _hash_label(label) % parts == part - 1]


def _hash_label(label: str) -> int:
    """Hash a label alike on every machine and in every run, as Python's own `hash` does not."""
    return int.from_bytes(hashlib.sha256(os.fsencode(label)).digest())


# Names and rules


@dataclass(frozen=True)
class ImageFile:
    """A file that may be a scan, described by its name alone.

    Attributes:
        path: The file.
        relative_path: The same from the root of the dataset, with ``/``.
        pairs: (name, value) of each entity in the name, in the order of the name.
        invalid_words: Parts of the name that are neither an entity nor the suffix.
        suffix: As written.
        extension: With its dot.
    """

    path: Path
    relative_path: str
    pairs: tuple[tuple[str, str], ...]
    invalid_words: tuple[str, ...]
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
    def canonical_suffix(self) -> str:
        """The suffix in the letter case of BIDS; unknown ones as written."""
        return CANONICAL_SUFFIXES.get(self.suffix.casefold(), self.suffix)

    @property
    def output_entities(self) -> tuple[tuple[str, str], ...]:
        """The entities that the names of outputs keep, in BIDS order."""
        return tuple((name, self.entities[name]) for name in SCAN_ENTITIES if name in self.entities)

    @property
    def properties(self) -> dict[str, str]:
        """All that a query can name: entities by their short names, suffix, folder, extension."""
        of_the_file = {"datatype": self.datatype, "extension": self.extension}
        return {**self.entities, "suffix": self.canonical_suffix, **of_the_file}

    @property
    def echo(self) -> tuple[float, str]:
        """A key to sort echoes: by number, those that are no number last."""
        text = self.entities.get("echo", "")
        return (int(text) if text.isdecimal() else float("inf"), text)


def parse_image_path(path: Path, bids_dir: Path) -> ImageFile:
    """Parse the name and the folder of a file; the file is not opened."""
    extension = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    *words, suffix = path.name.removesuffix(extension).split("_")
    return ImageFile(
        path,
        path.relative_to(bids_dir).as_posix(),
        tuple(tuple(word.split("-", 1)) for word in words if "-" in word),
        tuple(word for word in words if "-" not in word),
        suffix,
        extension,
    )


def find_rejection_reason(image: ImageFile, query: Query) -> str:
    """Find the first reason against an image, by its name alone; empty if there is none."""
    faults = _find_exclusions(image), _find_naming_faults(image), _find_mismatches(image, query)
    return next(chain(*faults), "")


def _find_exclusions(image: ImageFile) -> Iterator[str]:
    """Find reasons why such an image is never included, whatever was requested."""
    properties = image.properties
    for names, pattern, reason in EXCLUSION_RULES:
        for name in names:
            if name in properties and pattern.fullmatch(properties[name]):
                value = properties[name]
                yield f"{reason} ({value if name == 'suffix' else f'{name}-{value}'})"


def _find_naming_faults(image: ImageFile) -> Iterator[str]:
    """Find reasons why a name cannot be relied upon."""
    if image.invalid_words or "-" in image.suffix:
        odd = ", ".join(image.invalid_words) or image.suffix
        yield f"has a name that is not made of key-value pairs and a suffix ({odd})"
    if len(image.entities) < len(image.pairs):
        yield "has an entity twice in its name"
    place = image.relative_path.split("/")[:-2]
    named = [f"{name}-{value}" for name, value in image.output_entities if name in ("sub", "ses")]
    if named != place:
        yield f"lies in {'/'.join(place)}, though its name says {'_'.join(named) or 'nothing'}"


def _find_mismatches(image: ImageFile, query: Query) -> Iterator[str]:
    """Find reasons why a good image was not requested."""
    properties = image.properties
    by_filter = query.filters and query.suffixes == DEFAULT_SUFFIXES
    if not by_filter and not is_requested("suffix", image.canonical_suffix, query.suffixes):
        yield f"is used only with --suffix {image.canonical_suffix}"
    session = properties.get("ses")
    if query.sessions and not match_labels(query.sessions, [session] if session else []):
        yield f"is of {f'session {session}' if session else 'no session'}, which was not requested"
    for name, wanted in (("acq", query.acq), ("rec", query.rec), ("run", query.run)):
        if wanted and not is_requested(name, properties.get(name), wanted):
            entity = f"{name}-{properties[name]}" if name in properties else f"no {name}"
            yield f"has {entity}, which was not requested"
    if query.filters and not any(
        _matches_rule(properties, rule) for rule in query.filters.values()
    ):
        yield "matches no query of the filter file"


def is_requested(name: str, value: str | None, wanted: Iterable[str | None]) -> bool:
    """Check whether an entity's value, None if it is absent, is one of those wanted."""
    return any(_matches_value(name, value, item) for item in wanted)


def _matches_rule(properties: Mapping[str, str], rule: Mapping[str, tuple]) -> bool:
    return all(is_requested(name, properties.get(name), values) for name, values in rule.items())


def _matches_value(name: str, value: str | None, wanted: str | None) -> bool:
    """Check whether the value of an entity is the one wanted; None wants none, ``*`` any."""
    if wanted is None or value is None:
        return wanted == value
    if wanted == ANY_VALUE:
        return True
    wanted = wanted.removeprefix(f"{name}-")
    if name in list_index_entities() and wanted.isdecimal() and value.isdecimal():
        return int(wanted) == int(value)
    if name == "suffix":
        wanted, value = wanted.casefold(), value.casefold()
        return wanted == value or (wanted, value) == ("t2starw", "t2star")
    if name == "extension":
        return wanted.lstrip(".") == value.lstrip(".")
    return wanted == value


# Filter files


def read_filter_file(path: Path) -> tuple[dict[str, dict[str, tuple]], tuple[str, ...]]:
    """Read ``{query: {entity: value}}``, as fMRIPrep and BABS write it.

    A query is named after a suffix, in any letter case, and requests it unless it has a ``suffix``
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
    foreign = [name for name in content if name.casefold() not in CANONICAL_SUFFIXES]
    filters = {n: _parse_rule(path, n, rule) for n, rule in content.items() if n not in foreign}
    if not foreign:
        return filters, ()
    return filters, (f"{path}: queries for other images are ignored: {join_labels(foreign)}.",)


def _parse_rule(path: Path, query: str, rule: object) -> dict[str, tuple]:
    if not isinstance(rule, dict):
        raise ValueError(
            f"{path}: query `{query}` must be an object of entities; found {_format_json(rule)}."
        )
    return {"suffix": (CANONICAL_SUFFIXES[query.casefold()],)} | {
        _parse_entity(path, query, name): _parse_values(path, f"{query}.{name}", value)
        for name, value in rule.items()
    }


def _parse_entity(path: Path, query: str, name: str) -> str:
    short = name if name in FILE_PROPERTIES else find_short_name(name)
    if short is None:
        raise ValueError(
            f"{path}: query `{query}` may name BIDS entities only, such as acquisition or run; "
            f"found {_format_json(name)}."
        )
    return short


def _parse_values(path: Path, where: str, value: object) -> tuple[str | None, ...]:
    values = value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, str | int | None) for v in values):
        raise ValueError(
            f"{path}: `{where}` must be a text, a whole number, null, or a list of these; "
            f"found {_format_json(value)}."
        )
    return tuple(None if v is None else str(v) for v in values)


def _format_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]
