"""Model cards: what is known about each detector and network, as data; nothing in them is run.

A card is ``<name>.json`` in the package or in a folder that the user names, which comes first. The
weights of its members lie in the folder ``weights`` of the package, or beside the user's card.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

DETECTION, ANATOMY = "cerebral microbleeds", "anatomy"
_SHELF = Path(str(files("bids_cmb") / "data" / "cards"))
_WEIGHTS = Path(str(files("bids_cmb") / "data" / "weights"))
NEEDED = {
    DETECTION: ("name", "description", "threshold", "definite_threshold", "min_volume_mm3"),
    ANATOMY: ("name", "description", "members", "classes"),
}
MEMBER = ("name", "builder", "arguments", "grid", "weights", "sha256")


def card_names(task: str | None = None, models: Path | None = None) -> list[str]:
    """Every card, in alphabetical order.

    Args:
        task: Only those for it, `DETECTION` or `ANATOMY`.
        models: The user's folder of cards.
    """
    shelves = [_SHELF, *([models] if models else [])]
    names = sorted({path.stem for shelf in shelves for path in shelf.glob("*.json")})
    return [name for name in names if task is None or card(name, models).get("task") == task]


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
        said = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: a model card must be JSON; {error}.") from error
    if lacking := list(_lacking(said)):
        raise ValueError(f"{path}: a model card must hold {', '.join(lacking)}; found none.")
    return said


def weights_file(name: str, member: dict, models: Path | None = None) -> Path:
    """Where the weights of a card's member lie."""
    path = _path(name, models)
    home = _WEIGHTS if path is None or path.parent == _SHELF else path.parent
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
            f"--folds takes members of {said['name']}, {' '.join(names)}; "
            f"found {' '.join(unknown)}."
        )
    return [member for member in members if not folds or member["name"] in folds]


def _path(name: str, models: Path | None) -> Path | None:
    shelves = [*([models] if models else []), _SHELF]
    places = [shelf / f"{name}.json" for shelf in shelves if Path(name).name == name]
    return next((place for place in places if place.is_file()), None)


def _lacking(said: dict) -> Iterator[str]:
    """What a card should say and does not."""
    if not isinstance(said, dict) or said.get("task") not in NEEDED:
        yield f"a task, {' or '.join(NEEDED)}"
        return
    yield from (key for key in NEEDED[said["task"]] if key not in said)
    for member in said.get("members", []):
        yield from (f"{key} of each member" for key in MEMBER if key not in member)
