"""Priors of the sources of a simulated scan, and draws from them.

Every number stands in ``resources/simulation/lesion_priors.json``. Lengths are mm, susceptibilities
ppm relative to the surrounding tissue.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bids_cmb.resource_files import load_resource
from bids_cmb.simulation.geometry import HeadGeometry

DEOXYGENATED_BLOOD_PPM = 4 * np.pi * 0.27  # of fully deoxygenated red cells against oxygenated ones


def load_priors(name: str = "default") -> dict:
    """Load the priors of sources; a variant states only where it differs from the default.

    Args:
        name: Of a variant in ``resources/simulation/lesion_priors.json``.

    Returns:
        Priors of microbleeds, mimics, vessels and blood.

    Raises:
        ValueError: If there is no variant of that name.
    """
    variants = load_resource("simulation/lesion_priors.json")
    if name not in variants:
        raise ValueError(f"Lesion priors must be one of {', '.join(variants)}; found {name!r}.")
    return _merge(variants["default"], variants[name])


def _merge(whole: dict, changes: dict) -> dict:
    return whole | {
        key: _merge(whole[key], value) if isinstance(whole.get(key), dict) else value
        for key, value in changes.items()
    }


@dataclass(frozen=True, eq=False)
class SamplingContext:
    """Bundle what every sampler of one scan needs.

    Attributes:
        rng: Source of chance.
        priors: From `load_priors`.
        geometry: Of the head.
        venous_ppm: Susceptibility of this scan's venous blood.
        deep_bleeds: Centres of the microbleeds of the basal ganglia, once there are some, (N, 3).
    """

    rng: np.random.Generator
    priors: dict
    geometry: HeadGeometry
    venous_ppm: float  # ppm, of this scan's blood
    deep_bleeds: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))


def start_sampling(
    rng: np.random.Generator, priors: dict, geometry: HeadGeometry
) -> SamplingContext:
    """Start to sample a scan: the susceptibility of its blood comes first.

    Args:
        rng: Source of chance.
        priors: From `load_priors`.
        geometry: The head, from `simulation.geometry.measure_geometry`.
    """
    return SamplingContext(rng, priors, geometry, _sample_venous_ppm(rng, priors["blood"]))


def _sample_venous_ppm(rng: np.random.Generator, priors: dict) -> float:
    """Sample the susceptibility of venous blood in ppm: BLOOD · haematocrit · (1 - oxygenation)."""
    oxygenation = sample_uniform(rng, priors["oxygenation"])
    return DEOXYGENATED_BLOOD_PPM * sample_uniform(rng, priors["haematocrit"]) * (1 - oxygenation)


def sample_uniform(rng: np.random.Generator, limits: Sequence[float]) -> float:
    """Sample a number uniformly between two limits."""
    return float(rng.uniform(*limits))


def sample_log_uniform(rng: np.random.Generator, limits: Sequence[float]) -> float:
    """Sample a number log-uniformly between two positive limits."""
    return float(np.exp(rng.uniform(*np.log(limits))))


def sample_integer(rng: np.random.Generator, limits: Sequence[int]) -> int:
    """Sample an integer uniformly, both limits included."""
    return int(rng.integers(limits[0], limits[1] + 1))
