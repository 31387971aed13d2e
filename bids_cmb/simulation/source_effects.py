"""What susceptibility sources do to the signal of the pixels that they reach."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_cmb.simulation.acquisition import AcquisitionModel
from bids_cmb.simulation.dephasing import perturb_signal
from bids_cmb.simulation.slice_sampling import Sampling
from bids_cmb.simulation.sources import MICROBLEED, SusceptibilitySource


@dataclass(frozen=True, eq=False)
class Effect:
    """How one object changes the signal of the fine pixels it reaches.

    Attributes:
        object_id: Number of the object.
        is_lesion: Whether it is a microbleed.
        voxels: Flat indices, (V,).
        factor: Complex, (V,).
    """

    object_id: int
    is_lesion: bool
    voxels: np.ndarray
    factor: np.ndarray


def compute_effects(
    sources: Sequence[SusceptibilitySource], acquisition: AcquisitionModel
) -> list[Effect]:
    """Compute the effect of every object that reaches into the scan."""
    echo = acquisition.protocol.echo_time_s
    bodies: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    kinds = {source.object_id: source.kind for source in sources}
    for source in sources:
        perturbation = perturb_signal(
            source.points, source.radius, acquisition.sampling, rad_per_ppm=acquisition.rad_per_ppm,
            chi=source.susceptibility_ppm, water=source.spin_fraction,
            decay=echo * source.r2star_hz,
        )  # fmt: skip
        bodies.setdefault(source.object_id, []).append(perturbation)
    return [
        Effect(body, kinds[body] == MICROBLEED, *_multiply_factors(parts))
        for body, parts in bodies.items()
        if any(len(voxels) for voxels, _ in parts)
    ]


def _multiply_factors(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Multiply the factors of several sources where they meet."""
    if len(parts) == 1:
        return parts[0]
    voxels, inverse = np.unique(
        np.concatenate([voxels for voxels, _ in parts]), return_inverse=True
    )
    factor = np.ones(len(voxels), np.complex64)
    np.multiply.at(factor, inverse, np.concatenate([factor for _, factor in parts]))
    return voxels, factor


def group_by_slice(
    effects: Sequence[Effect], sampling: Sampling
) -> list[tuple[np.ndarray, np.ndarray]]:
    """List for each slice the flat pixels with an effect, and the product of the factors."""
    count = sampling.shape[2]
    if not effects:
        return [(np.empty(0, int), np.empty(0, np.complex64))] * count
    voxels, factor = _multiply_factors(
        [(effect.voxels, effect.factor) for effect in effects]
        + [(np.empty(0, int), np.empty(0, np.complex64))]
    )
    pixels, slices = np.divmod(voxels, count)
    order = np.argsort(slices, kind="stable")
    ends = np.searchsorted(slices[order], np.arange(1, count))
    return list(
        zip(np.split(pixels[order], ends), np.split(factor[order], ends), strict=True)
    )  # fmt: skip
