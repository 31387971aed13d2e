"""The recipes that come with the package, and what to do with what they train."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bids_cmb.files import load_object
from bids_cmb.networks.model_cards import DETECTION, list_cards, load_card, locate_weights
from bids_cmb.resource_files import RESOURCES

GOALS = {  # by task of a recipe: what is learnt, and what it needs beside labelled scans
    "lesions": ("microbleeds, voxel by voxel", ""),
    "anatomy": ("structures of the head", "label maps of heads"),
    "tissue": ("structures near a lesion", "label maps of heads"),
    "boxes": ("boxes around candidates", ""),
    "patches": ("which candidate is one", "--pretrained boxes=OUT/cascade-boxes.json"),
    "gate": ("which tiles have a microbleed", ""),
    "slices": ("microbleeds in tiles that pass the gate", ""),
    "candidates": ("candidates, voxel by voxel", ""),
    "classification": ("which candidate is one", "--pretrained proposal-1=OUT/proposal-1.json"),
    "teacher": ("which candidate is one", "--pretrained candidates=OUT/distilled-candidates.json"),
    "student": ("the same, smaller", "--pretrained teacher=OUT/distilled-teacher.json"),
}
TITLES = ("recipe", "part of", "learns", "patches", "MB", "core-hours", "needs")


@dataclass(frozen=True)
class Part:
    """A network of a bundled detector: the detector, the part's name, and its entry."""

    detector: str
    name: str
    entry: dict


def list_recipes() -> dict[str, Path]:
    """List the recipes of the package: name → file."""
    paths = [Path(str(entry)) for entry in (RESOURCES / "recipes").iterdir()]
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def describe_recipes() -> str:
    """Describe the recipes as a table: size and cost are those of the networks in the package."""
    rows = [TITLES, *(_describe_recipe(path) for path in list_recipes().values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    notes = (
        "",
        "patches: in a batch x batches in an epoch x epochs at most. MB, core-hours: of the "
        "network in the package, - where none was kept or nothing measured.",
        "Begin with ensemble-c: it stands alone, and --fine-tune starts from the bundled weights.",
    )
    return "\n".join([*lines, *notes]) + "\n"


def _describe_recipe(path: Path) -> tuple[str, ...]:
    recipe = load_object(path, "a recipe")
    goal, needs = GOALS[recipe["task"]]
    part = find_part(recipe["name"])
    effort = part.entry["training"].get("core_hours") if part else None
    size = locate_weights(part.detector, part.entry).stat().st_size / 2**20 if part else math.nan
    return (
        recipe["name"],
        part.detector if part else "-",
        goal,
        f"{recipe['batch']} x {recipe['steps']} x {recipe['epochs']}",
        "-" if math.isnan(size) else f"{size:.1f}",
        "-" if effort is None else f"{effort:.1f}",
        needs or "nothing else",
    )


def find_part(recipe: str) -> Part | None:
    """Find the part of a bundled model that a recipe trained; None if there is none."""
    return next(
        (part for part in _list_parts() if part.entry["training"]["recipe"] == recipe), None
    )


def _list_parts() -> Iterator[Part]:
    for name in list_cards():
        for entry in load_card(name).get("members", []):
            if "recipe" in entry.get("training", {}):
                yield Part(name, entry["name"], entry)


def list_next_commands(recipe: str, entry: Path) -> list[str]:
    """List the commands that make a detector of what a recipe trained, and use it.

    Args:
        recipe: Its name.
        entry: That the training wrote.

    Returns:
        Command lines; none for a network that is no part of a detector.
    """
    part = find_part(recipe)
    card = load_card(part.detector) if part else {"task": DETECTION}
    if card["task"] != DETECTION:
        return []
    named = f"{part.name}={entry} --like {part.detector}" if "design" in card else str(entry)
    return [
        f"bids-cmb models create NAME {named} --model-dir MODELS",
        "bids-cmb BIDS_DIR OUTPUT_DIR participant --model-dir MODELS --detector NAME",
    ]
