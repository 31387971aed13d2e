"""Model cards: detectors and networks described as data; nothing in them is run.

A card is ``<name>.json`` in the package or in a folder that the user names, which comes first. The
weights of its members lie beside it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from bids_cmb.files import is_number, load_json, load_object
from bids_cmb.imaging.protocol_kinds import PROTOCOL_KINDS
from bids_cmb.resource_files import RESOURCES

Rule = tuple[Callable[[object], bool], str]  # whether a value holds, and what it must be
DETECTION, ANATOMY = "cerebral microbleeds", "anatomy"
_PACKAGED_DIR = Path(str(RESOURCES / "models"))
REQUIRED_KEYS = {
    DETECTION: ("name", "description", "threshold", "definite_threshold", "min_volume_mm3"),
    ANATOMY: ("name", "description", "members", "classes"),
}
CALIBRATION_KEYS = ("slope", "offset")
VIEW_KEYS = ("zooms", "exponents")  # of a member: what its network is shown besides the scan
USE_KEYS = (*VIEW_KEYS, "protocol_kinds")  # of a member: how it is used, not what it has learnt
MEMBER_KEYS = ("name", "builder", "arguments", "grid", "weights", "sha256")


def list_cards(task: str | None = None, models: Path | None = None) -> list[str]:
    """List the names of all cards, in alphabetical order.

    Args:
        task: Only those for it, `DETECTION` or `ANATOMY`.
        models: The user's folder of cards.
    """
    folders = [_PACKAGED_DIR, *([models] if models else [])]
    names = sorted({path.stem for folder in folders for path in folder.glob("*.json")})
    names = [name for name in names if _find_path(name, models)]  # a pipe is no card
    return [name for name in names if task is None or _read_task(name, models) == task]


def check_model_dir(models: Path) -> None:
    """Check that the user's folder of cards is there.

    Raises:
        ValueError: If it is not.
    """
    if not models.is_dir():
        raise ValueError(f"{models}: --model-dir must be a folder; there is none.")


def _read_task(name: str, models: Path | None) -> str | None:
    """Read the task of a card; None if it cannot be used."""
    try:
        return load_card(name, models)["task"]
    except ValueError:
        return None


def load_card(name: str, models: Path | None = None) -> dict:
    """Load a card; again only if its file has changed. Do not change it in place.

    Args:
        name: Of the detector or network.
        models: The user's folder of cards.

    Raises:
        ValueError: If there is none of that name, or it lacks a required key.
    """
    path = _find_path(name, models)
    if path is None:
        raise ValueError(
            f"A detector must be one of {', '.join(list_cards(DETECTION, models))}; found {name!r}."
        )
    changed = path.stat()
    return dict(_read(path, (changed.st_mtime_ns, changed.st_size, changed.st_ino)))


@lru_cache(maxsize=32)
def _read(path: Path, _: tuple[int, ...]) -> dict:
    try:
        card = load_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: a model card must be JSON; {error}.") from error
    except OSError as error:
        raise ValueError(f"{path}: a model card must be readable; {error.strerror}.") from error
    if lacking := list(_list_missing(card)):
        raise ValueError(f"{path}: a model card must hold {', '.join(lacking)}; found none.")
    for place, value, (holds, rule) in _list_checked(card):
        if not holds(value):
            raise ValueError(
                f"{path}: {place} of a model card must be {rule}; found {json.dumps(value):.60}."
            )
    names = [member["name"] for member in card.get("members", [])]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: members of a model card must have names of their own.")
    return card


def read_entry(path: Path) -> dict:
    """Read the entry of a network that training wrote, to become a member of a card.

    Raises:
        ValueError: If it is no JSON object, or lacks what a member must have.
        OSError: If it cannot be read.
    """
    entry = load_object(path, "an entry that training wrote")
    if lacking := [key for key in MEMBER_KEYS if key not in entry]:
        raise ValueError(
            f"{path}: an entry that training wrote must hold {', '.join(MEMBER_KEYS)}; "
            f"found no {', '.join(lacking)}."
        )
    return entry


def locate_weights(name: str, member: dict, models: Path | None = None) -> Path:
    """Locate the weights of a card's member."""
    path = _find_path(name, models)
    home = _PACKAGED_DIR if path is None else path.parent
    return home / Path(member["weights"]).name  # never out of the folder


def select_members(card: dict, folds: tuple[str, ...] = ()) -> list[dict]:
    """Select the members of a card, all or those of some names.

    Raises:
        ValueError: If a card has no member of that name, or its members work one after the other.
    """
    if folds and "design" in card:
        raise ValueError(
            f"--members must name members of an ensemble; found {' '.join(folds)} for "
            f"{card['name']}, whose networks work one after the other."
        )
    members = card.get("members", [])
    names = [member["name"] for member in members]
    unknown_names = [fold for fold in folds if fold not in names]
    if unknown_names and names:
        raise ValueError(
            f"--members must name members of {card['name']}, {' '.join(names)}; "
            f"found {' '.join(unknown_names)}."
        )
    return [member for member in members if not folds or member["name"] in folds]


def _find_path(name: str, models: Path | None) -> Path | None:
    folders = [*([models] if models else []), _PACKAGED_DIR]
    paths = [folder / f"{name}.json" for folder in folders if Path(name).name == name]
    return next((path for path in paths if path.is_file()), None)


def is_packaged(name: str, models: Path | None = None) -> bool:
    """Check whether a card of that name is one of the package, not the user's."""
    path = _find_path(name, models)
    return path is not None and path.parent == _PACKAGED_DIR


def _list_missing(card: object) -> Iterator[str]:
    """List the keys that a card lacks."""
    if not isinstance(card, dict) or card.get("task") not in list(REQUIRED_KEYS):
        yield f"a task, {' or '.join(REQUIRED_KEYS)}"
        return
    yield from (key for key in REQUIRED_KEYS[card["task"]] if key not in card)
    members = card.get("members", [])
    for member in members if isinstance(members, list) else []:
        if isinstance(member, dict):
            yield from (f"{key} of each member" for key in MEMBER_KEYS if key not in member)


def _list_checked(card: Mapping) -> Iterator[tuple[str, object, Rule]]:
    """List every value of a card that has a rule: its key, the value, the rule."""
    yield from ((key, card[key], rule) for key, rule in RULES.items() if key in card)
    members = card.get("members", [])
    for member in members if isinstance(members, list) else []:
        yield "each of the members", member, OBJECT
        for key, rule in MEMBER_RULES.items():
            if isinstance(member, dict) and key in member:
                yield f"{key} of each member", member[key], rule


def _is_citation(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and {"text", "doi"} <= set(item) for item in value
    )


def _is_flips(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(axes, list) and all(axis in (0, 1, 2) for axis in axes) for axes in value
    )


def _is_list_of_numbers(value: object, least: float) -> bool:
    return isinstance(value, list) and all(is_number(item) and item >= least for item in value)


TEXT: Rule = (lambda value: isinstance(value, str) and bool(value), "a text")
OBJECT: Rule = (lambda value: isinstance(value, dict), "an object")
NUMBER: Rule = (is_number, "a number")
PROBABILITY: Rule = (
    lambda value: is_number(value) and 0 < value <= 1,
    "a number above 0 and up to 1",
)
NON_NEGATIVE: Rule = (lambda value: is_number(value) and value >= 0, "a number of at least 0")
POSITIVE: Rule = (lambda value: is_number(value) and value > 0, "a number above 0")
KINDS: Rule = (
    lambda value: isinstance(value, list) and all(kind in PROTOCOL_KINDS for kind in value),
    f"a list of kinds of protocol: {', '.join(PROTOCOL_KINDS)}",
)
RULES = {
    "name": TEXT,
    "description": TEXT,
    "design": TEXT,
    "threshold": PROBABILITY,
    "definite_threshold": PROBABILITY,
    "min_volume_mm3": NON_NEGATIVE,
    "memory_mb": NON_NEGATIVE,
    "parameters": OBJECT,
    "views_for": KINDS,
    "calibration": (
        lambda value: (
            isinstance(value, dict) and all(map(is_number, map(value.get, CALIBRATION_KEYS)))
        ),
        "an object with the numbers slope and offset",
    ),
    "citation": (_is_citation, "a list of objects with text and doi"),
    "members": (lambda value: isinstance(value, list) and bool(value), "a list of networks"),
}
MEMBER_RULES = {
    "name": TEXT,
    "builder": TEXT,
    "arguments": OBJECT,
    "grid": OBJECT,
    "weights": TEXT,
    "sha256": TEXT,
    "temperature": POSITIVE,
    "offset": NUMBER,
    "flips": (_is_flips, "a list of lists of axes, 0 to 2"),
    "zooms": (lambda value: _is_list_of_numbers(value, 1), "a list of numbers of at least 1"),
    "exponents": (
        lambda value: _is_list_of_numbers(value, 0.1),
        "a list of numbers of at least 0.1",
    ),
    "blind": (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "protocol_kinds": KINDS,
}
