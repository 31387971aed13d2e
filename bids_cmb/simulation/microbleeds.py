"""Microbleeds: how many, where, of which shape and strength."""

from collections.abc import Callable, Sequence

import numpy as np

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.geometry import LESION_REGIONS, is_tissue, normalize, sample_voxels
from bids_cmb.simulation.lesion_priors import (
    SamplingContext,
    sample_integer,
    sample_log_uniform,
    sample_uniform,
)
from bids_cmb.simulation.sources import (
    MICROBLEED,
    SusceptibilitySource,
    make_sphere,
    measure_reach,
    translate,
)


def sample_spot(context: SamplingContext, kind: str) -> list[SusceptibilitySource]:
    """Sample one to three merged spheres around the origin: the one prior of lesions and dots."""
    priors, rng = context.priors["microbleed"], context.rng
    moment, chi = (
        _sample_moment(rng, priors["moment_ppm_mm3"]),
        sample_log_uniform(rng, priors["chi_ppm"]),
    )
    balls = 1 + int(rng.choice(len(priors["balls"]), p=priors["balls"]))
    shares = rng.dirichlet(np.full(balls, 6.0))
    radii = np.cbrt(shares * moment / chi)  # the moments of balls add up, merged or not
    places = np.zeros((balls, 3))
    for index in range(1, balls):
        way = normalize(rng.standard_normal(3))
        places[index] = places[index - 1] + way * radii[index - 1] * sample_uniform(
            rng, priors["ball_offset"]
        )
    places -= shares @ places
    water = sample_uniform(rng, priors["water"])
    r2star = context.priors["r2star_per_ppm"] * chi
    return [
        make_sphere(kind, place, radius, chi, water, r2star)
        for place, radius in zip(places, radii, strict=True)
    ]


def _sample_moment(rng: np.random.Generator, priors: dict) -> float:
    if priors["shape"] == "log-uniform":
        return sample_log_uniform(rng, (priors["low"], priors["high"]))
    drawn = priors["median"] * np.exp(priors["sigma"] * rng.standard_normal())
    return float(np.clip(drawn, priors["low"], priors["high"]))


def sample_microbleeds(
    context: SamplingContext, damage: list[list[SusceptibilitySource]]
) -> list[list[SusceptibilitySource]]:
    """Sample every microbleed of a scan, region by region, some in clusters."""
    priors, rng = context.priors["microbleed"], context.rng
    regions = [region for region, share in priors["region_shares"].items() if share]
    shares = np.array([priors["region_shares"][region] for region in regions])
    scan_shares = rng.dirichlet(priors["region_concentration"] * shares / shares.sum())
    numbers = rng.multinomial(_sample_count(rng, priors), scan_shares)
    taken = [(part.points.mean(axis=0), part.radius.max() + 3) for body in damage for part in body]
    lesions: list[list[SusceptibilitySource]] = []
    for region, number in zip(regions, numbers, strict=True):
        if number:
            lesions += _sample_region(context, region, int(number), taken)
    return lesions


def sample_further_microbleeds(
    context: SamplingContext, number: int, places: Sequence[np.ndarray]
) -> list[list[SusceptibilitySource]]:
    """Sample microbleeds beside those that a person has, as many as find room.

    Args:
        context: Of the scan.
        number: How many.
        places: Centres of what is there, world mm, each (3,).
    """
    priors = context.priors["microbleed"]
    regions = [region for region, share in priors["region_shares"].items() if share]
    shares = np.array([priors["region_shares"][region] for region in regions])
    taken = [(place, 3.0) for place in places]
    placed: list[list[SusceptibilitySource]] = []
    for region in context.rng.choice(regions, number, p=shares / shares.sum()):
        sampler = _voxel_sampler(context, context.geometry.regions[str(region)])
        placed += _place_microbleed(context, str(region), sampler, priors["apart_mm"], taken)
    return placed


def _sample_count(rng: np.random.Generator, priors: dict) -> int:
    """Sample the number of microbleeds of a scan: none, or from quantiles of positive scans."""
    if rng.random() < priors["scans_without"]:
        return 0
    shares, counts = np.transpose(priors["count_quantiles"])
    return int(np.floor(np.exp(np.interp(rng.random(), shares, np.log(counts)))))


def _sample_region(
    context: SamplingContext, region: str, number: int, taken: list
) -> list[list[SusceptibilitySource]]:
    """Sample up to ``number`` microbleeds, as many as find room; add their places to ``taken``."""
    priors = context.priors["microbleed"]
    clusters = priors["clusters"]
    chance = clusters["chance"].get(region, clusters["chance"]["other"])
    mask = context.geometry.regions[region]
    placed: list[list[SusceptibilitySource]] = []
    if number > 1 and context.rng.random() < chance:
        size = min(number, sample_integer(context.rng, clusters["size"]))
        placed = _sample_cluster(context, region, mask, size, taken)
    for _ in range(number - len(placed)):
        placed += _place_microbleed(
            context, region, _voxel_sampler(context, mask), priors["apart_mm"], taken
        )
    return placed


def _voxel_sampler(context: SamplingContext, mask: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: sample_voxels(context.rng, context.geometry, mask, 40)


def _sample_cluster(
    context: SamplingContext, region: str, mask: np.ndarray, size: int, taken: list
) -> list[list[SusceptibilitySource]]:
    """Sample a first microbleed, and others so near that all fit into a sphere."""
    priors, rng = context.priors["microbleed"], context.rng
    clusters = priors["clusters"]
    placed = _place_microbleed(
        context, region, _voxel_sampler(context, mask), priors["apart_mm"], taken
    )
    if not placed:
        return placed
    middle, elsewhere = taken[-1][0], taken[:-1]
    near = [taken[-1]]

    def beside() -> np.ndarray:
        ways = normalize(rng.standard_normal((40, 3)))
        return middle + ways * rng.uniform(0, clusters["within_mm"] / 2, (40, 1))

    for _ in range(size - 1):
        placed += _place_microbleed(context, region, beside, clusters["apart_mm"], near)
    taken[:] = elsewhere + near
    return placed


def _place_microbleed(
    context: SamplingContext,
    region: str,
    places: Callable[[], np.ndarray],
    apart: float,
    taken: list,
) -> list[list[SusceptibilitySource]]:
    """Place one microbleed at the first position clear of fluid and of other objects; or none."""
    clearance = context.priors["microbleed"]["clearance_mm"]
    for _ in range(5):  # the smaller ones of the priors fit where the larger do not
        body = sample_spot(context, MICROBLEED)
        extent = measure_reach(body)
        for place in places():
            free = all(np.linalg.norm(place - other) > apart + more for other, more in taken)
            if free and _is_clear(
                context.geometry.labels, place, clearance + extent, LESION_REGIONS[region][0]
            ):
                taken.append((place, 0.0))
                return [translate(body, place, region)]
    return []


def _is_clear(labels: Volume, place: np.ndarray, room: float, codes: Sequence[int]) -> bool:
    """Tell whether a place has one of ``codes``, and nothing but tissue within ``room`` mm.

    Voxels count as boxes, not as points: the distance is to their nearest face.
    """
    index = labels.index(place)
    here = np.rint(index).astype(int)
    margin = np.ceil(room / labels.spacing).astype(int) + 1
    low, high = np.maximum(here - margin, 0), here + margin + 1
    if (here < 0).any() or (here >= labels.shape).any() or (high > labels.shape).any():
        return False
    if labels.data[tuple(here)] not in codes:
        return False
    patch = labels.data[tuple(map(slice, low, high))]
    others = np.argwhere(~is_tissue(patch)) + low
    gaps = np.maximum(np.abs(others - index) - 0.5, 0) * labels.spacing
    return not (np.linalg.norm(gaps, axis=1) < room).any()
