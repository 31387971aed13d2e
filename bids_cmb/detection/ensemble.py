"""Detectors: a name and a scan in, the chance of microbleed at every voxel out.

A detector is a card of data (`networks.model_cards`): what it is after, its thresholds, its
coefficients. One whose card has members is an ensemble of networks, each on its own grid; any other
is a function ``(image, brain) → probability`` of its name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.special import expit, logit

from bids_cmb.anatomy.segmentation import Anatomy
from bids_cmb.config import BALANCED
from bids_cmb.detection.cascade import cascade, sees_phase
from bids_cmb.detection.distilled import distilled
from bids_cmb.detection.gated import gated
from bids_cmb.detection.outputs import Evidence, together
from bids_cmb.detection.radial_symmetry import Candidate, find_candidates
from bids_cmb.detection.two_stage import two_stage
from bids_cmb.imaging.preprocessing import (
    Grid,
    Preprocessed,
    find_bounds,
    preprocess,
    resample_to_scan,
)
from bids_cmb.imaging.volume import Volume, crop
from bids_cmb.networks.inference import ModelOptions, Network, load_network, predict, release_memory
from bids_cmb.networks.model_cards import (
    DETECTION,
    list_cards,
    load_card,
    locate_weights,
    select_members,
)

LEAST = 1e-6  # chance below which, and above 1 less which, log-odds say no more
COMMON_THRESHOLD = 0.5  # of the mean of several detectors, on the scale that they share
STEPS = 10_000  # of a probability: what other threads or processors change lies far below


@dataclass(frozen=True, eq=False)
class Probability:
    """What the detectors say about a scan.

    Attributes:
        mean: Chance that a voxel is microbleed, 0 to 1, float32, on the scan's grid; of several
            detectors the mean on their common scale.
        members: The detectors that were asked.
        spread: Standard deviation over the detectors, or over the members of the only one, float32;
            None if there was one answer only.
        evidence: What the detectors leave behind besides.
    """

    mean: Volume
    members: tuple[str, ...]
    spread: Volume | None = None
    evidence: Evidence = field(default_factory=Evidence)

    @property
    def description(self) -> str:
        """What the map shows, in a sentence for its sidecar."""
        if len(self.members) == 1:
            return f"Probability of cerebral microbleed, by {self.members[0]}."
        names = f"{', '.join(self.members[:-1])} and {self.members[-1]}"
        return (
            f"Mean of the probabilities of cerebral microbleed by {names}, each on a common scale "
            f"where the threshold of its model card is {COMMON_THRESHOLD}."
        )


def detect(
    names: str | Sequence[str], image: Volume, brain: Volume, models: ModelOptions | None = None,
    phase: Volume | None = None, anatomy: Anatomy | None = None,
) -> Probability:  # fmt: skip
    """Ask one or several detectors for the chance of microbleed at every voxel.

    Args:
        names: A detector, or several, whose answers are averaged with equal weight.
        image: T2*-weighted magnitude or SWI, as it came.
        brain: True inside the brain, on the grid of ``image``.
        models: Which networks, and how; those of the package without.
        phase: As `imaging.phase.load_phase_map` gives it, for those who take it.
        anatomy: What lies where in the head, for those who take it.

    Returns:
        On the grid of ``image``; 0 outside the brain, for detectors of two stages 0 beyond the
        lesions that they see up to `imaging.preprocessing.BRAIN_SHELL_MM` outside it. The
        spread is that of the detectors, or of the members if there is one detector. Several
        detectors are averaged `on_common_scale`, where a voxel is lesion from `COMMON_THRESHOLD`
        on.

    Raises:
        ValueError: If a name is unknown, comes twice or none is given, or weights are not those of
            their card, or a detector answers with anything but probabilities; or as `radial`.
    """
    asked = (names,) if isinstance(names, str) else tuple(names)
    if not asked or len(set(asked)) < len(asked):
        raise ValueError(f"Detectors must be named once each; found {list(asked)}.")
    models = models or ModelOptions()
    told = {name: _told(name, image, brain, models, phase, anatomy) for name in asked}
    found = {name: parts for name, (parts, _) in told.items()}
    for name, parts in found.items():
        _check_chances(name, parts)
    evidence = together(left for _, left in told.values())
    curves = {name: load_card(name, models.folder).get("calibration") for name in asked}
    chances = [calibrated(_mean(parts), curves[name]) for name, parts in found.items()]
    if len(asked) > 1:
        thresholds = [load_card(name, models.folder)["threshold"] for name in asked]
        chances = list(map(on_common_scale, chances, thresholds))
    mean = Volume(np.round(_mean(chances) * STEPS) / np.float32(STEPS), image.affine)
    if len(asked) == 1:
        chances = [calibrated(part, curves[asked[0]]) for part in found[asked[0]]]
    if len(chances) == 1:
        return Probability(mean, asked, evidence=evidence)
    return Probability(mean, asked, Volume(np.std(chances, axis=0), image.affine), evidence)


def _check_chances(name: str, parts: Iterable[np.ndarray]) -> None:
    """Refuse the answers of a detector that are no probabilities."""
    for part in parts:
        low, high = part.min(), part.max()
        if not (low >= 0 and high <= 1):  # also true of NaN
            raise ValueError(
                f"The detector {name} must give probabilities from 0 to 1; found "
                f"{low:.3g} to {high:.3g}."
            )


def _mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(parts, axis=0, dtype=np.float32)


def on_common_scale(
    chance: np.ndarray | float, threshold: float
) -> np.ndarray | float:  # fmt: skip
    """Map a detector's chances to a scale that it shares with others.

    Detectors differ in what their numbers mean: the threshold of one may be the noise of another.
    A line from (0, 0) over (threshold, 1/2) to (1, 1) makes them comparable at the only value whose
    meaning is known of each, so that the mean of several says how far they are, on balance, above
    or below the value from which each alone would call a voxel a lesion.

    Args:
        chance: 0 to 1.
        threshold: Of the detector's card, above 0 and up to 1.

    Returns:
        0 to 1, of the same dtype; the order of the chances is kept.
    """
    knots = [0, threshold, 1] if threshold < 1 else [0, 1]
    mapped = np.interp(chance, knots, [0, COMMON_THRESHOLD, 1][: len(knots)])
    return mapped.astype(chance.dtype) if isinstance(chance, np.ndarray) else float(mapped)


def thresholds_of(cards: Sequence[Mapping]) -> tuple[float, float]:
    """Find the probabilities from which a voxel is lesion, and a lesion definite.

    Args:
        cards: Of the detectors that are averaged.

    Returns:
        Those of the card if there is one; of several `COMMON_THRESHOLD`, and the mean of their
        thresholds for definite lesions on the common scale.
    """
    if len(cards) == 1:
        return cards[0]["threshold"], cards[0]["definite_threshold"]
    definite = [on_common_scale(one["definite_threshold"], one["threshold"]) for one in cards]
    return COMMON_THRESHOLD, float(np.mean(definite))


def at_operating_point(card: dict, name: str) -> dict:
    """Give the card with the threshold of one of its operating points.

    Args:
        card: Of the detector.
        name: Of the operating point; `BALANCED` is that of the card's own threshold.

    Raises:
        ValueError: If the card has no such operating point.
    """
    if name == BALANCED:
        return card
    points = {one["name"]: one for one in card.get("operating_points", ()) if "name" in one}
    if name not in points:
        known = ", ".join(points) or "none"
        raise ValueError(
            f"{card['name']}: --operating-point must be one that its model card has; "
            f"found {name}, and on the card {known}."
        )
    threshold = points[name]["threshold"]
    definite = max(card["definite_threshold"], threshold)
    return {**card, "threshold": threshold, "definite_threshold": definite}


def check_detector(name: str, models: Path | None = None) -> None:
    """Make sure that a card can be used as a detector, before any scan is read.

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
    if "members" not in card and name not in _FUNCTIONS:
        raise ValueError(
            f"{name}: the card of a detector must have members, or the name "
            f"{' or '.join(_FUNCTIONS)}; found none."
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


def _check_design(name: str, card: Mapping, model: Mapping) -> None:
    """Refuse a card that lacks parts or parameters of the package's card of its design."""
    parts = [{one["name"] for one in each.get("members", ())} for each in (model, card)]
    if not parts[0] <= parts[1]:
        raise ValueError(
            f"{name}: a detector of the design {card['design']} must have the members "
            f"{', '.join(sorted(parts[0]))}; found {', '.join(sorted(parts[1]))}."
        )
    if "parameters" in card or model.get("design") not in WITH_DEFAULTS:
        _check_alike(f"{name}: parameters", card.get("parameters", {}), model["parameters"])
    for gate in card.get("parameters", {}).get("gates", ()):
        if gate["measure"] not in Candidate.__dataclass_fields__ or gate["width"] <= 0:
            raise ValueError(
                f"{name}: a gate must have a measure of a candidate and a width above 0; "
                f"found {gate['measure']!r} and {gate['width']}."
            )


def _check_alike(place: str, value: object, model: object) -> None:
    """Refuse parameters that lack a part of the model's, or where it is of another kind."""
    number = isinstance(model, int | float) and not isinstance(model, bool)
    kind = (int, float) if number else type(model)
    if not isinstance(value, kind) or (number and isinstance(value, bool)):
        raise ValueError(
            f"{place} must be {KINDS.get(type(model), 'a number')}; found {value!r:.60}."
        )
    if isinstance(model, dict):
        for key, part in model.items():
            if key not in value and not key.endswith("reason"):  # which is for people
                raise ValueError(f"{place} must hold {key}; found none.")
            if key in value:
                _check_alike(f"{place}.{key}", value[key], part)
    if isinstance(model, list) and model:
        for part in value:
            _check_alike(f"each of {place}", part, model[0])


def calibrated(chance: np.ndarray, curve: Mapping[str, float] | None) -> np.ndarray:
    """Chances after a logistic curve over their log-odds; 0 stays 0.

    Args:
        chance: 0 to 1.
        curve: ``slope`` and ``offset``; the chances stay as they are without.
    """
    if not curve:
        return chance
    out = np.zeros_like(chance)
    there = chance > 0
    kept = np.clip(chance[there], LEAST, 1 - LEAST)
    out[there] = expit(curve["slope"] * logit(kept) + curve["offset"])
    return out


def takes_phase(names: Iterable[str], models: ModelOptions) -> bool:
    """Whether any of these detectors has a network that takes phase.

    Raises:
        ValueError: If a name is unknown.
    """
    cards = [load_card(name, models.folder) for name in names]
    return any(_takes_phase(card) for card in cards)


def _takes_phase(card: Mapping) -> bool:
    return card.get("design") in WITH_PHASE and any(map(sees_phase, card["members"]))


def answers(
    name: str, image: Volume, brain: Volume, models: ModelOptions, phase: Volume | None = None,
    anatomy: Anatomy | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """What each member of a detector says before any calibration.

    Args:
        name: Of the detector.
        image: T2*-weighted magnitude or SWI, as it came.
        brain: True inside the brain, on the grid of ``image``.
        models: Which networks, and how.
        phase: As `detect`.
        anatomy: As `detect`.

    Returns:
        Maps of 0 to 1, float32, on the grid of ``image``.

    Raises:
        ValueError: As `detect`.
    """
    return _told(name, image, brain, models, phase, anatomy)[0]


def _told(
    name: str, image: Volume, brain: Volume, models: ModelOptions, phase: Volume | None,
    anatomy: Anatomy | None,
) -> tuple[list[np.ndarray], Evidence]:  # fmt: skip
    """As `answers`, and the evidence."""
    card = load_card(name, models.folder)
    if "members" not in card:
        return [_FUNCTIONS[name](image, brain, card["parameters"]).data], Evidence()
    if "design" in card:
        chance, evidence = _chained(card, image, brain, models, phase, anatomy)
        return [chance], evidence
    return _averaged(card, image, brain, models), Evidence()


def _averaged(card: dict, image: Volume, brain: Volume, models: ModelOptions) -> list[np.ndarray]:
    """What the members of an ensemble say, each on its own grid."""
    low, high = find_bounds(np.asarray(brain.data) > 0)
    box, window = tuple(map(slice, low, high)), crop(image, low, high)
    found, fed = [], {}
    members = select_members(card, models.members)
    with ThreadPoolExecutor(1) as aside:  # a member is asked while the next one is loaded
        loaded = [
            aside.submit(
                load_network,
                member,
                locate_weights(card["name"], member, models.folder),
                precision=models.precision,
            )
            for member in members
        ]
        for member, network in zip(members, loaded, strict=True):
            grid = Grid.from_card(member["grid"])
            if grid not in fed:  # members that see the same grid see the same numbers
                fed = {grid: preprocess(image, brain, grid)}
            seen = _asked(network.result(), window, fed[grid])
            chance = np.zeros(image.shape, np.float32)
            chance[box] = np.where(brain.data[box], seen.data, 0)
            found.append(chance)
            release_memory()
    return found


def _chained(
    card: dict, image: Volume, brain: Volume, models: ModelOptions, phase: Volume | None,
    anatomy: Anatomy | None,
) -> tuple[np.ndarray, Evidence]:  # fmt: skip
    """What a detector says whose networks work one after the other, by its design."""
    if card["design"] not in DESIGNS:
        raise ValueError(
            f"The design of a detector must be one of {', '.join(DESIGNS)}; "
            f"found {card['design']!r} for {card['name']}."
        )
    if models.members:
        raise ValueError(
            f"--members must name members of an ensemble; found {' '.join(models.members)} for "
            f"{card['name']}, whose networks work one after the other."
        )
    more = (phase,) if _takes_phase(card) else ()
    beyond = card["design"] in WITH_ANATOMY  # its proposals may lie in a shell around the brain
    if beyond:
        more = (anatomy, second_opinion(card, image, brain, models))
    chance, evidence = DESIGNS[card["design"]](image, brain, card, models, *more)
    release_memory()
    if beyond:
        return chance.data, evidence
    return np.where(brain.data, chance.data, 0).astype(np.float32), evidence


def second_opinion(
    card: Mapping, image: Volume, brain: Volume, models: ModelOptions
) -> Volume | None:
    """Compute the probability by the bundled ensemble that a card names as ``second_opinion``.

    Args:
        card: Of a detector of two stages.
        image: T2*-weighted magnitude or SWI, as it came.
        brain: True inside the brain, on the grid of ``image``.
        models: How to compute; the ensemble is that of the package, whatever folder this names.

    Returns:
        The mean of its members, on the grid of ``image``; None if the card names none.
    """
    if "second_opinion" not in card:
        return None
    bundled = replace(models, folder=None, members=())
    members = _averaged(load_card(card["second_opinion"]), image, brain, bundled)
    return Volume(_mean(members), image.affine)


def _asked(network: Network, window: Volume, fed: Preprocessed) -> Volume:
    """What a network says of a scan on its own grid, on that of a part of the scan."""
    # A voxel more than the brain: its edge lies between voxels of the network's grid.
    where = ndimage.binary_dilation(fed.brain.data, np.ones((3, 3, 3), bool))
    found = Volume(predict(network, fed.image.data, where), fed.image.affine)
    return resample_to_scan(found, window)


def radial(image: Volume, brain: Volume, parameters: Mapping | None = None) -> Volume:
    """Paint every dark round spot with the chance that its measures give it.

    Args:
        image: T2*-weighted magnitude or SWI, any positive scale.
        brain: True inside the brain, on the grid of ``image``.
        parameters: Of the card: ``gates``. Those of the package's card without.

    Returns:
        Probability, 0 to 1, float32, on the grid of ``image``; 0 outside the brain.

    Raises:
        ValueError: If ``brain`` is empty or not on the grid of ``image``, or if the median of the
            image inside it is not above 0.
    """
    gates = (parameters or load_card("radial")["parameters"])["gates"]
    data = np.zeros(image.shape, np.float32)
    for candidate in find_candidates(image, brain):
        spot = tuple(candidate.voxels.T)
        data[spot] = np.maximum(data[spot], np.float32(_chance(candidate, gates)))
    data[~np.asarray(brain.data, bool)] = 0
    return Volume(data, image.affine)


def _chance(candidate: Candidate, gates: list[dict]) -> float:
    """The product over gates of a logistic curve, 1/2 at each midpoint."""
    chance = 1.0
    for gate in gates:
        beyond = (getattr(candidate, gate["measure"]) - gate["midpoint"]) / gate["width"]
        # tanh instead of exp: the same curve, and no overflow far from the midpoint
        chance *= 0.5 + 0.5 * np.tanh(beyond / 2 if gate["keep"] == "above" else -beyond / 2)
    return float(chance)


KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
_FUNCTIONS = {"radial": radial}
DESIGNS: dict[str, Callable[..., tuple[Volume, Evidence]]] = {
    "cascade": cascade,
    "distilled": distilled,
    "gated": gated,
    "two-stage": two_stage,
}
WITH_ANATOMY = {"two-stage"}  # those that are told what lies where
WITH_DEFAULTS = {"cascade"}  # whose parameters need not be on the card
WITH_PHASE = {"cascade"}  # those that may be given phase besides
