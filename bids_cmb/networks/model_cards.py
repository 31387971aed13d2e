"""Model cards: what is known about each detector and network, as data; nothing in them is run.

A card is ``<name>.json`` in the package or in a folder that the user names, which comes first. The
weights of its members lie beside it.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from bids_cmb.files import load_json, load_object

Rule = tuple[Callable[[object], bool], str]  # whether a value holds, and what it must be
DETECTION, ANATOMY = "cerebral microbleeds", "anatomy"
_SHELF = Path(str(files("bids_cmb") / "resources" / "models"))
NEEDED = {
    DETECTION: ("name", "description", "threshold", "definite_threshold", "min_volume_mm3"),
    ANATOMY: ("name", "description", "members", "classes"),
}
CURVE = ("slope", "offset")
MEMBER = ("name", "builder", "arguments", "grid", "weights", "sha256")


def card_names(task: str | None = None, models: Path | None = None) -> list[str]:
    """Every card, in alphabetical order.

    Args:
        task: Only those for it, `DETECTION` or `ANATOMY`.
        models: The user's folder of cards.
    """
    shelves = [_SHELF, *([models] if models else [])]
    names = sorted({path.stem for shelf in shelves for path in shelf.glob("*.json")})
    names = [name for name in names if _path(name, models)]  # a pipe is no card
    return [name for name in names if task is None or _task(name, models) == task]


def _task(name: str, models: Path | None) -> str | None:
    """What a card is for; None if it is none that can be used."""
    try:
        return card(name, models)["task"]
    except ValueError:
        return None


def card(name: str, models: Path | None = None) -> dict:
    """Read a card; again only if its file has changed. Not to be changed in place.

    Args:
        name: Of the detector or network.
        models: The user's folder of cards.

    Raises:
        ValueError: If there is none of that name, or it lacks what a card must say.
    """
    path = _path(name, models)
    if path is None:
        raise ValueError(
            f"A detector must be one of {', '.join(card_names(DETECTION, models))}; found {name!r}."
        )
    changed = path.stat()
    return dict(_read(path, (changed.st_mtime_ns, changed.st_size, changed.st_ino)))


@lru_cache(maxsize=32)
def _read(path: Path, _: tuple[int, ...]) -> dict:
    try:
        said = load_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: a model card must be JSON; {error}.") from error
    except OSError as error:
        raise ValueError(f"{path}: a model card must be readable; {error.strerror}.") from error
    if lacking := list(_lacking(said)):
        raise ValueError(f"{path}: a model card must hold {', '.join(lacking)}; found none.")
    for place, value, (holds, rule) in _values(said):
        if not holds(value):
            raise ValueError(
                f"{path}: {place} of a model card must be {rule}; found {json.dumps(value):.60}."
            )
    names = [member["name"] for member in said.get("members", [])]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: members of a model card must have names of their own.")
    return said


def read_entry(path: Path) -> dict:
    """Read the entry of a network that training wrote, to become a member of a card.

    Raises:
        ValueError: If it is no JSON object, or lacks what a member must have.
        OSError: If it cannot be read.
    """
    entry = load_object(path, "an entry that training wrote")
    if lacking := [key for key in MEMBER if key not in entry]:
        raise ValueError(
            f"{path}: an entry that training wrote must hold {', '.join(MEMBER)}; "
            f"found no {', '.join(lacking)}."
        )
    return entry


def weights_file(name: str, member: dict, models: Path | None = None) -> Path:
    """Where the weights of a card's member lie."""
    path = _path(name, models)
    home = _SHELF if path is None else path.parent
    return home / Path(member["weights"]).name  # never out of the folder


def members_of(said: dict, folds: tuple[str, ...] = ()) -> list[dict]:
    """The members of a card, or those of them that are asked for by name.

    Raises:
        ValueError: If a card has no member of that name.
    """
    members = said.get("members", [])
    names = [member["name"] for member in members]
    unknown = [fold for fold in folds if fold not in names]
    if unknown and names:
        raise ValueError(
            f"--members must name members of {said['name']}, {' '.join(names)}; "
            f"found {' '.join(unknown)}."
        )
    return [member for member in members if not folds or member["name"] in folds]


def _path(name: str, models: Path | None) -> Path | None:
    shelves = [*([models] if models else []), _SHELF]
    places = [shelf / f"{name}.json" for shelf in shelves if Path(name).name == name]
    return next((place for place in places if place.is_file()), None)


def is_packaged(name: str, models: Path | None = None) -> bool:
    """Whether a card of that name is one of the package, not the user's."""
    path = _path(name, models)
    return path is not None and path.parent == _SHELF


def _lacking(said: object) -> Iterator[str]:
    """What a card should say and does not."""
    if not isinstance(said, dict) or said.get("task") not in list(NEEDED):
        yield f"a task, {' or '.join(NEEDED)}"
        return
    yield from (key for key in NEEDED[said["task"]] if key not in said)
    members = said.get("members", [])
    for member in members if isinstance(members, list) else []:
        if isinstance(member, dict):
            yield from (f"{key} of each member" for key in MEMBER if key not in member)


def _values(said: Mapping) -> Iterator[tuple[str, object, Rule]]:
    """Everything of a card that has a rule: where it stands, what it is, the rule."""
    yield from ((key, said[key], rule) for key, rule in RULES.items() if key in said)
    members = said.get("members", [])
    for member in members if isinstance(members, list) else []:
        yield "each of the members", member, OBJECT
        for key, rule in MEMBER_RULES.items():
            if isinstance(member, dict) and key in member:
                yield f"{key} of each member", member[key], rule


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _cites(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and {"text", "doi"} <= set(one) for one in value
    )


def _turns(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(axes, list) and all(axis in (0, 1, 2) for axis in axes) for axes in value
    )


TEXT: Rule = (lambda value: isinstance(value, str) and bool(value), "a text")
OBJECT: Rule = (lambda value: isinstance(value, dict), "an object")
NUMBER: Rule = (_is_number, "a number")
CHANCE: Rule = (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and up to 1")
AMOUNT: Rule = (lambda value: _is_number(value) and value >= 0, "a number of at least 0")
POSITIVE: Rule = (lambda value: _is_number(value) and value > 0, "a number above 0")
RULES = {
    "name": TEXT,
    "description": TEXT,
    "design": TEXT,
    "threshold": CHANCE,
    "definite_threshold": CHANCE,
    "min_volume_mm3": AMOUNT,
    "memory_mb": AMOUNT,
    "parameters": OBJECT,
    "calibration": (
        lambda value: isinstance(value, dict) and all(map(_is_number, map(value.get, CURVE))),
        "an object with the numbers slope and offset",
    ),
    "citation": (_cites, "a list of objects with text and doi"),
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
    "flips": (_turns, "a list of lists of axes, 0 to 2"),
    "blind": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
}
