"""Designs of detectors, by name, and the check that a model card fits its design.

A detector is a model card (`networks.model_cards`): its members, parameters and thresholds. A card
with members and no design is an ensemble of networks; a design is a function of a scan and a card
whose members run one after the other; a card without members is a function of its name.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bids_cmb.detection.cascade import run_cascade, uses_phase
from bids_cmb.detection.distilled import run_distilled
from bids_cmb.detection.gated import run_gated
from bids_cmb.detection.outputs import DetectorOutputs
from bids_cmb.detection.radial import Candidate, run_radial
from bids_cmb.detection.two_stage import run_two_stage
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import DETECTION, list_cards, load_card

FUNCTIONS: dict[str, Callable[..., Volume]] = {"radial": run_radial}
DESIGNS: dict[str, Callable[..., tuple[Volume, DetectorOutputs]]] = {
    "cascade": run_cascade,
    "distilled": run_distilled,
    "gated": run_gated,
    "two-stage": run_two_stage,
}
WITH_ANATOMY = {"two-stage"}  # whose classifiers use the anatomy
WITH_DEFAULTS = {"cascade"}  # whose parameters need not be on the card
WITH_PHASE = {"cascade"}  # whose networks may use phase
KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


def detectors_use_phase(names: Iterable[str], models: ModelOptions) -> bool:
    """Check whether any of these detectors has a network that uses phase.

    Raises:
        ValueError: If a name is unknown.
    """
    cards = [load_card(name, models.folder) for name in names]
    return any(map(card_uses_phase, cards))


def card_uses_phase(card: Mapping) -> bool:
    """Check whether a detector has a network that uses phase."""
    return card.get("design") in WITH_PHASE and any(map(uses_phase, card["members"]))


def check_detector(name: str, models: Path | None = None) -> None:
    """Check that a card can be used as a detector, before any scan is loaded.

    Args:
        name: Of the card.
        models: The user's folder of cards.

    Raises:
        ValueError: If there is no such card, or it is of something else; if it has neither
            networks nor the name of a function, an unknown design, a grid that cannot be, or
            other parts and parameters than the package's card of that design.
    """
    card = load_card(name, models)
    if card["task"] != DETECTION:
        names = ", ".join(list_cards(DETECTION, models))
        raise ValueError(f"A detector must be one of {names}; found {name!r}, for {card['task']}.")
    if "members" not in card and name not in FUNCTIONS:
        raise ValueError(
            f"{name}: the card of a detector must have members, or the name "
            f"{' or '.join(FUNCTIONS)}; found none."
        )
    if card.get("design", next(iter(DESIGNS))) not in DESIGNS:
        raise ValueError(
            f"{name}: the design of a detector must be one of {', '.join(DESIGNS)}; "
            f"found {card['design']!r}."
        )
    for member in card.get("members", ()):
        try:
            Grid.from_card(member["grid"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}, member {member['name']}: {error}") from error
    if "design" in card or "members" not in card:
        _check_design(name, card, load_card(card.get("design", name)))


def _check_design(name: str, card: Mapping, template: Mapping) -> None:
    """Refuse a card that lacks members or parameters of the package's card of its design."""
    needed, given = (
        {member["name"] for member in each.get("members", ())} for each in (template, card)
    )
    if not needed <= given:
        raise ValueError(
            f"{name}: a detector of the design {card['design']} must have the members "
            f"{', '.join(sorted(needed))}; found {', '.join(sorted(given))}."
        )
    if "parameters" in card or template.get("design") not in WITH_DEFAULTS:
        _check_structure(f"{name}: parameters", card.get("parameters", {}), template["parameters"])
    for gate in card.get("parameters", {}).get("gates", ()):
        if gate["measure"] not in Candidate.__dataclass_fields__ or gate["width"] <= 0:
            raise ValueError(
                f"{name}: a gate must have a measure of a candidate and a width above 0; "
                f"found {gate['measure']!r} and {gate['width']}."
            )


def _check_structure(path: str, value: object, template: object) -> None:
    """Refuse parameters that lack a part of the template's, or where it is of another kind."""
    number = isinstance(template, int | float) and not isinstance(template, bool)
    kind = (int, float) if number else type(template)
    if not isinstance(value, kind) or (number and isinstance(value, bool)):
        raise ValueError(
            f"{path} must be {KINDS.get(type(template), 'a number')}; found {value!r:.60}."
        )
    if isinstance(template, dict):
        for key, part in template.items():
            if key not in value and not key.endswith("reason"):  # which is for people
                raise ValueError(f"{path} must hold {key}; found none.")
            if key in value:
                _check_structure(f"{path}.{key}", value[key], part)
    if isinstance(template, list) and template:
        for part in value:
            _check_structure(f"each of {path}", part, template[0])
