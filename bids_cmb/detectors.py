"""Detectors: a name and a scan in, the chance of microbleed at every voxel out.

A detector is a function ``(image, brain) → probability`` on the scan's grid and a card of data,
``data/detectors/<name>.json``: what it is after, its thresholds, its coefficients.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from bids_cmb.candidates import Candidate, find_candidates
from bids_cmb.volume import Volume

_CARDS = files("bids_cmb") / "data" / "detectors"


@dataclass(frozen=True, eq=False)
class Probability:
    """What the detectors say about a scan.

    Attributes:
        mean: Chance that a voxel is microbleed, 0 to 1, float32, on the scan's grid.
        members: The detectors that were averaged.
        spread: Standard deviation over the members, float32; None if there is one only.
    """

    mean: Volume
    members: tuple[str, ...]
    spread: Volume | None = None


def detector_names() -> list[str]:
    """Every detector that has a card, in alphabetical order."""
    names = (entry.name for entry in _CARDS.iterdir())
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def card(name: str) -> dict:
    """What is known about a detector: task, citations, thresholds, parameters.

    Raises:
        ValueError: If there is no detector of that name.
    """
    if name not in detector_names():
        raise ValueError(
            f"A detector must be one of {', '.join(detector_names())}; found {name!r}."
        )
    return json.loads((_CARDS / f"{name}.json").read_text(encoding="utf-8"))


def detect(names: str | Sequence[str], image: Volume, brain: Volume) -> Probability:
    """Ask one or several detectors for the chance of microbleed at every voxel.

    Args:
        names: A detector, or several, whose answers are averaged with equal weight.
        image: T2*-weighted magnitude or SWI, as it came.
        brain: True inside the brain, on the grid of ``image``.

    Returns:
        On the grid of ``image``; 0 outside the brain.

    Raises:
        ValueError: If a name is unknown, comes twice or none is given; or as `radial`.
    """
    members = (names,) if isinstance(names, str) else tuple(names)
    if not members or len(set(members)) < len(members):
        raise ValueError(f"Detectors must be named once each; found {list(members)}.")
    for name in members:
        card(name)
    answers = [_FUNCTIONS[name](image, brain).data for name in members]
    if len(answers) == 1:
        return Probability(Volume(answers[0], image.affine), members)
    mean, spread = np.mean(answers, axis=0), np.std(answers, axis=0)
    return Probability(Volume(mean, image.affine), members, Volume(spread, image.affine))


def radial(image: Volume, brain: Volume) -> Volume:
    """Paint every dark round spot with the chance that its measures give it.

    Args:
        image: T2*-weighted magnitude or SWI, any positive scale.
        brain: True inside the brain, on the grid of ``image``.

    Returns:
        Probability, 0 to 1, float32, on the grid of ``image``; 0 outside the brain.

    Raises:
        ValueError: If ``brain`` is empty or not on the grid of ``image``, or if the median of the
            image inside it is not above 0.
    """
    gates = card("radial")["parameters"]["gates"]
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


_FUNCTIONS = {"radial": radial}
