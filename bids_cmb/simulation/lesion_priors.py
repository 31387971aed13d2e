"""The numbers that a scan's sources are drawn by, and how chance draws them.

Every number stands in ``resources/simulation/lesion_priors.json``; lengths are mm, susceptibilities
ppm against the tissue around.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from bids_cmb.simulation.geometry import Terrain

BLOOD_PPM = 4 * np.pi * 0.27  # of fully deoxygenated red cells against oxygenated ones


def law(name: str = "default") -> dict:
    """The numbers that sources are drawn by; a law says only where it differs from the default.

    Raises:
        ValueError: If there is no law of that name.
    """
    text = (
        resources.files("bids_cmb")
        .joinpath("resources/simulation/lesion_priors.json")
        .read_text("utf-8")
    )
    laws = json.loads(text)
    if name not in laws:
        raise ValueError(f"Lesion priors must be one of {', '.join(laws)}; found {name!r}.")
    return _merged(laws["default"], laws[name])


def _merged(whole: dict, changes: dict) -> dict:
    return whole | {
        key: _merged(whole[key], value) if isinstance(whole.get(key), dict) else value
        for key, value in changes.items()
    }


@dataclass(frozen=True, eq=False)
class Draw:
    """What every part of one scan's drawing needs: chance, law, head."""

    rng: np.random.Generator
    law: dict
    terrain: Terrain
    venous: float  # ppm, of this scan's blood


def begin(rng: np.random.Generator, given: dict, terrain: Terrain) -> Draw:
    """Begin to draw a scan: its blood comes first.

    Args:
        rng: Source of chance.
        given: The numbers, from `law`.
        terrain: The head, from `simulation.geometry.find_terrain`.
    """
    return Draw(rng, given, terrain, _venous(rng, given["blood"]))


def _venous(rng: np.random.Generator, given: dict) -> float:
    """Susceptibility of venous blood in ppm, from haematocrit and oxygenation."""
    oxygenation = between(rng, given["oxygenation"])
    return BLOOD_PPM * between(rng, given["haematocrit"]) * (1 - oxygenation)


def between(rng: np.random.Generator, limits: Sequence[float]) -> float:
    """A number between two, each as likely."""
    return float(rng.uniform(*limits))


def log_between(rng: np.random.Generator, limits: Sequence[float]) -> float:
    """A number between two, each order of size as likely."""
    return float(np.exp(rng.uniform(*np.log(limits))))


def how_many(rng: np.random.Generator, limits: Sequence[int]) -> int:
    """A whole number between two, both ends included."""
    return int(rng.integers(limits[0], limits[1] + 1))
