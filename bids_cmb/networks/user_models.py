"""User-trained networks as a detector: a card, and their weights beside it."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bids_cmb.files import replacing, write_json
from bids_cmb.networks.model_cards import (
    DETECTION,
    USE_KEYS,
    list_cards,
    load_card,
    locate_weights,
    read_entry,
)
from bids_cmb.networks.weights import check_file

DETECTOR_NAME = re.compile(r"[^\W_][\w.-]*")
COPIED_KEYS = (
    "design",
    "parameters",
    "views_for",
    "first_stage_weight",
    "second_opinion",
    "second_opinion_members",
    "second_opinion_weight",
    "citation",
    "licence",
    "definite_threshold",
    "min_volume_mm3",
)


def make_card(
    name: str,
    entries: Sequence[tuple[str, Path]],
    models: Path,
    *,
    like: str = "ensemble",
    threshold: float | None = None,
) -> Path:
    """Copy networks that `training.train` wrote into a folder of models, with a card.

    Args:
        name: Of the new detector.
        entries: For each network its part in the detector and the entry that training wrote; an
            empty part is named as its recipe was. Of a detector whose networks work one
            after the other, parts that are not named are those of ``like``.
        models: The user's folder of cards.
        like: The detector whose design, thresholds and rules are taken.
        threshold: Probability of a lesion's voxels; that of ``like`` without.

    Returns:
        The card.

    Raises:
        ValueError: If the name or a part cannot be used, an entry is none, or its weights are
            others.
        OSError: If something cannot be read or written.
    """
    if not DETECTOR_NAME.fullmatch(name):
        raise ValueError(
            "The name of a detector must be letters, digits, '.', '_' and '-', and begin with a "
            f"letter or digit; found {name!r}."
        )
    if name in list_cards():
        raise ValueError(
            f"The name of a user's detector must be none of the package's "
            f"({', '.join(list_cards())}); found {name!r}."
        )
    base = load_card(like, models)
    base_list = base.get("members", [])
    base_members = {
        member["name"]: (member, locate_weights(like, member, models)) for member in base_list
    }
    chosen = dict(base_members) if "design" in base else {}
    for part, path in entries:
        entry = read_entry(path)
        part = part or entry["name"]  # noqa: PLW2901
        if "design" in base and part not in base_members:
            raise ValueError(
                f"A part of {like} must be one of {', '.join(base_members)}, as in "
                f"{next(iter(base_members))}=OUT/NAME.json; found {part}."
            )
        if part in base_members:
            replaced, _ = base_members[part]
            entry = {key: replaced[key] for key in USE_KEYS if key in replaced} | entry
        chosen[part] = (entry, path.with_name(Path(entry["weights"]).name))
    members = [_copy_member(name, part, *member, models) for part, member in chosen.items()]
    new_card = {
        "name": name,
        "task": DETECTION,
        "description": f"User-trained networks; the remaining settings are those of {like}.",
        **{key: base[key] for key in COPIED_KEYS if key in base},
        "threshold": base["threshold"] if threshold is None else threshold,
        "members": members,
    }
    if not 0 < new_card["threshold"] <= 1:
        raise ValueError(f"--threshold must lie above 0 and up to 1; found {threshold:g}.")
    new_card["definite_threshold"] = max(new_card["definite_threshold"], new_card["threshold"])
    place = models / f"{name}.json"
    write_json(place, new_card)
    return place


def _copy_member(name: str, part: str, entry: Mapping, weights: Path, models: Path) -> dict:
    """Copy a member's weights into the folder and return its entry."""
    check_file(weights, entry["sha256"])
    place = models / f"{name}-{part}{weights.suffix}"
    models.mkdir(parents=True, exist_ok=True)
    with replacing(place) as beside:
        shutil.copyfile(weights, beside)
    return {**entry, "name": part, "weights": place.name}
