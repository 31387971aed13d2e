"""BIDS entities: their names and order by the BIDS schema, and those in a file's name."""

from collections.abc import Iterable
from functools import cache

from bidsschematools.schema import load_schema

# Entities that outputs have from their scan, in the order of the schema; and those of their own.
SCAN_ENTITIES = ("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "chunk")
DERIVATIVE_ENTITIES = ("desc", "label", "seg", "space", "res", "from", "to", "mode")
PROPOSED_ENTITIES = ("bp", "coil")  # not yet in the schema
PROPOSED_SUFFIXES = ("swi", "minIP", "GRE")  # likewise
PYBIDS_NAMES = {"staining": "stain"}  # long names that differ from those of the schema


@cache
def read_entities() -> dict[str, str]:
    """Read the entities of the schema in its order: long name → short name."""
    schema = load_schema()
    return {name: schema.objects.entities[name].name for name in schema.rules.entities}


@cache
def list_index_entities() -> frozenset[str]:
    """List the entities whose values are numbers: run-01 and run-1 are the same run."""
    entities = load_schema().objects.entities
    return frozenset(
        short for name, short in read_entities().items() if entities[name].format == "index"
    )


@cache
def list_scan_suffixes() -> frozenset[str]:
    """List the suffixes of images as acquired, by the schema, and those that are proposed."""
    datatypes = load_schema().rules.files.raw
    return frozenset(PROPOSED_SUFFIXES).union(
        *(
            rule.suffixes
            for datatype in ("anat", "func", "dwi", "fmap", "perf", "pet")
            for rule in datatypes[datatype].values()
            if ".nii.gz" in rule.extensions
        )
    )


def is_scan_name(name: str) -> bool:
    """Check whether an image is named as BIDS names one as acquired, and no mask."""
    return name.partition(".")[0].rpartition("_")[2] in list_scan_suffixes()


def find_short_name(name: str) -> str | None:
    """Find the short name of an entity by its long or short name; None if it is no entity."""
    long_names = read_entities() | PYBIDS_NAMES
    known = {*long_names.values(), *PROPOSED_ENTITIES}
    return long_names.get(name, name if name in known else None)


def parse_entities(name: str) -> dict[str, str]:
    """Parse the entities of a file's name, in its order; a word without a value has an empty one.

    Args:
        name: With or without suffix and extension.
    """
    words = name.partition(".")[0].split("_")
    if "-" not in words[-1]:
        words.pop()  # the suffix
    return dict(word.partition("-")[::2] for word in words)


def parse_scan_entities(name: str) -> dict[str, str]:
    """Parse the entities of a file's name that belong to its scan, in the order of BIDS."""
    entities = parse_entities(name)
    return {key: entities[key] for key in SCAN_ENTITIES if entities.get(key)}


def join_entities(entities: Iterable[tuple[str, str]], desc: str, suffix: str) -> str:
    """Join entities, a ``desc`` if there is one, and a suffix to a name."""
    pairs = [*entities, ("desc", desc)] if desc else entities
    return "_".join([*(f"{name}-{value}" for name, value in pairs), suffix])
