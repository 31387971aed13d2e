"""Networks that the user trained become a detector: a card, and their weights beside it."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bids_cmb.files import replacing, write_json
from bids_cmb.networks.model_cards import DETECTION, card, card_names, read_entry, weights_file
from bids_cmb.networks.weights import check_file

KEPT = ("design", "parameters", "citation", "licence", "definite_threshold", "min_volume_mm3")


def make_card(
    name: str,
    entries: Sequence[tuple[str, Path]],
    models: Path,
    *,
    like: str = "ensemble",
    threshold: float | None = None,
) -> Path:
    """Put networks that `training.train` left into a folder of models, with a card.

    Args:
        name: Of the new detector.
        entries: For each network its part in the detector and the entry that training wrote; a
            part that is empty is called as its recipe was. Of a detector whose networks work one
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
    if Path(name).name != name or name in card_names():
        raise ValueError(
            f"A detector of one's own needs a name that none of the package has "
            f"({', '.join(card_names())}); found {name!r}."
        )
    base = card(like, models)
    known = base.get("members", [])
    held = {one["name"]: (one, weights_file(like, one, models)) for one in known}
    chosen = dict(held) if "design" in base else {}
    for part, path in entries:
        entry = read_entry(path)
        part = part or entry["name"]  # noqa: PLW2901
        if "design" in base and part not in held:
            raise ValueError(
                f"A part of {like} must be one of {', '.join(held)}, as in {next(iter(held))}="
                f"OUT/NAME.json; found {part}."
            )
        chosen[part] = (entry, path.with_name(Path(entry["weights"]).name))
    members = [_kept(name, part, *one, models) for part, one in chosen.items()]
    said = {
        "name": name,
        "task": DETECTION,
        "description": f"User-trained networks; the remaining settings are those of {like}.",
        **{key: base[key] for key in KEPT if key in base},
        "threshold": base["threshold"] if threshold is None else threshold,
        "members": members,
    }
    if not 0 < said["threshold"] <= 1:
        raise ValueError(f"--threshold must lie above 0 and up to 1; found {threshold:g}.")
    said["definite_threshold"] = max(said["definite_threshold"], said["threshold"])
    place = models / f"{name}.json"
    write_json(place, said)
    return place


def _kept(name: str, part: str, entry: Mapping, weights: Path, models: Path) -> dict:
    """The entry of a member whose weights now lie in the folder."""
    check_file(weights, entry["sha256"])
    place = models / f"{name}-{part}{weights.suffix}"
    models.mkdir(parents=True, exist_ok=True)
    with replacing(place) as beside:
        shutil.copyfile(weights, beside)
    return {**entry, "name": part, "weights": place.name}
