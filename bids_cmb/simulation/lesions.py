"""Microbleeds and everything that mimics them: positions, shapes and strengths.

Whatever shape and strength a microbleed can have, something labelled otherwise must have too; only
its position and what it continues into may tell them apart. So microbleeds and dots on the pia, in
fluid and on the outer shell come from one function, and vessels are cut to overlap with both.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.geometry import (
    BILATERAL_STRUCTURES,
    GRID_MM,
    LESION_REGIONS,
    HeadGeometry,
    is_tissue,
    normalize,
    project_to_level,
    random_walk_on_surface,
    sample_voxels,
)
from bids_cmb.simulation.lesion_priors import (
    SamplingContext,
    sample_integer,
    sample_log_uniform,
    sample_uniform,
    start_sampling,
)
from bids_cmb.simulation.sources import (
    MICROBLEED,
    SusceptibilitySource,
    make_sphere,
    measure_reach,
    number_objects,
    translate,
)
from bids_cmb.simulation.tissue_properties import CHOROID, CSF
from bids_cmb.simulation.vessels import sample_vessels

DEEP_NUCLEI = ("basal ganglia", "pallidum")  # regions that striate veins run through


def sample_sources(
    rng: np.random.Generator, priors: dict, geometry: HeadGeometry
) -> list[SusceptibilitySource]:
    """Sample all susceptibility sources of one scan: microbleeds, mimics and vessels.

    Args:
        rng: Source of chance.
        priors: From `simulation.lesion_priors.load_priors`.
        geometry: The head, from `simulation.geometry.measure_geometry`.

    Returns:
        The microbleeds first. The sources of one object share its number, from 1.
    """
    context = start_sampling(rng, priors, geometry)
    spots = _sample_spots(context)
    deep = [spot[0].points[0] for spot in spots if spot[0].region in DEEP_NUCLEI]
    return number_objects(
        [
            *spots,
            *sample_vessels(replace(context, deep_bleeds=np.reshape(deep, (-1, 3)))),
            *_sample_grains(context),
            *_sample_siderosis(context),
        ]
    )


def _sample_spots(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample microbleeds, then dots in proportion, then lacunes and large bleeds; no vessels."""
    damage = [body for part in LARGE_LESION_SAMPLERS for body in part(context)]
    lesions = _sample_microbleeds(context, damage)
    return [*lesions, *_sample_dots(context, len(lesions)), *damage]


# --- Spots: microbleeds, and the dots that look the same ------------------------------------------


def _sample_spot(context: SamplingContext, kind: str) -> list[SusceptibilitySource]:
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


def _sample_microbleeds(
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
    for _ in range(5):  # the smaller ones of a law fit where the larger do not
        body = _sample_spot(context, MICROBLEED)
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


def _sample_dots(context: SamplingContext, lesions: int) -> list[list[SusceptibilitySource]]:
    """Sample dots of the shape and strength of microbleeds, placed where none can lie."""
    priors, rng, geometry = context.priors["dots"], context.rng, context.geometry
    wanted = sum(sample_integer(rng, priors["per_lesion"]) for _ in range(lesions))
    kinds = rng.choice(
        list(priors["shares"]), max(wanted, priors["fewest"]), p=list(priors["shares"].values())
    )
    dots = []
    for kind, number in zip(*np.unique(kinds, return_counts=True), strict=True):
        for place in DOT_SAMPLERS[str(kind)](rng, geometry, int(number)):
            dots.append(translate(_sample_spot(context, str(kind)), place, "n/a"))
    return dots


def _sample_sulci(rng: np.random.Generator, geometry: HeadGeometry, number: int) -> np.ndarray:
    narrow = (
        geometry.csf_mask
        & (geometry.pial_depth.data < -GRID_MM / 2)
        & (geometry.pial_depth.data > -3)
    )
    return sample_voxels(rng, geometry, narrow & (geometry.shell_depth.data > 4), number)


def _sample_cisterns(rng: np.random.Generator, geometry: HeadGeometry, number: int) -> np.ndarray:
    wide = geometry.csf_mask & (geometry.pial_depth.data < -1.5) & (geometry.shell_depth.data > 3)
    low = (geometry.coordinates[..., 2] < -8) & (np.abs(geometry.coordinates[..., 0]) < 30)
    return sample_voxels(rng, geometry, wide & low, number)


def _sample_ventricles(rng: np.random.Generator, geometry: HeadGeometry, number: int) -> np.ndarray:
    return sample_voxels(rng, geometry, geometry.ventricle_distance.data < -GRID_MM / 3, number)


def _sample_pia(rng: np.random.Generator, geometry: HeadGeometry, number: int) -> np.ndarray:
    near = (np.abs(geometry.pial_depth.data) < GRID_MM) & geometry.csf_mask
    places = sample_voxels(rng, geometry, near, number)
    return project_to_level(geometry.pial_depth, places, rng.uniform(-0.5, 0.2, len(places)))


def _sample_shell(rng: np.random.Generator, geometry: HeadGeometry, number: int) -> np.ndarray:
    near = geometry.csf_mask & (np.abs(geometry.shell_depth.data) < 2 * GRID_MM)
    places = sample_voxels(rng, geometry, near, number)
    return project_to_level(geometry.shell_depth, places, rng.uniform(0, 1.5, len(places)))


DOT_SAMPLERS = {
    "sulcus dot": _sample_sulci,
    "cistern dot": _sample_cisterns,
    "ventricle dot": _sample_ventricles,
    "pial dot": _sample_pia,
    "shell dot": _sample_shell,
}


# --- Grains: calcium, iron, plexus ----------------------------------------------------------------


def _sample_grains(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample every kind of grain that this scan has, each grain an object of its own."""
    bodies = []
    for kind, priors in context.priors["grains"].items():
        if context.rng.random() < priors["share"]:
            for mask in GRAIN_MASKS[kind](context.geometry):
                number = sample_integer(context.rng, priors["number"])
                places = sample_voxels(context.rng, context.geometry, mask, number)
                bodies += [[_sample_grain(context, kind, place)] for place in places]
    return bodies


def _sample_grain(context: SamplingContext, kind: str, place: np.ndarray) -> SusceptibilitySource:
    priors, rng = context.priors["grains"][kind], context.rng
    chi = sample_uniform(rng, priors["chi_ppm"])
    r2star = context.priors["r2star_per_ppm"] * abs(chi)
    radius = sample_log_uniform(rng, priors["radius_mm"])
    return make_sphere(kind, place, radius, chi, sample_uniform(rng, priors["water"]), r2star)


def _restrict_to_ball(
    geometry: HeadGeometry, mask: np.ndarray, place: Sequence[float], radius: float
) -> np.ndarray:
    """Restrict a mask to a ball around a place along the head's axes, or to its nearest voxels."""
    away = geometry.distance_to(place, mask)
    return away <= max(radius, float(away.min()) + GRID_MM)


def _atrium_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    plexus = np.isin(geometry.codes.data, CHOROID)
    where = plexus if plexus.any() else geometry.ventricle_distance.data < 0
    return [_restrict_to_ball(geometry, where, (side * 24, -22, 2), 9) for side in (-1, 1)]


def _pineal_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    return [_restrict_to_ball(geometry, np.ones(geometry.codes.shape, bool), (0, -14, -3), 3)]


def _falx_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    middle = (np.abs(geometry.coordinates[..., 0]) < 1.5) & (geometry.coordinates[..., 2] > 20)
    deep = (
        (geometry.shell_depth.data > 3)
        & (geometry.shell_depth.data < 28)
        & (geometry.codes.data == CSF)
    )
    return [middle & deep]


def _pallidum_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    return [np.isin(geometry.codes.data, codes) for codes in BILATERAL_STRUCTURES["pallidum"]]


def _dentate_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    masks = []
    for codes in BILATERAL_STRUCTURES["cerebellum"]:
        mask = np.isin(geometry.codes.data, codes) & (geometry.pial_depth.data > 3)
        place = geometry.coordinates[np.isin(geometry.codes.data, codes[:1])].mean(axis=0) * (
            0.85,
            1,
            1,
        )
        masks.append(_restrict_to_ball(geometry, mask, place, 5))
    return masks


def _midbrain_masks(geometry: HeadGeometry) -> list[np.ndarray]:
    tissue = is_tissue(geometry.codes.data)
    places = ((5, -3, -17), (10, -1, -20))  # red nucleus, substantia nigra
    return [
        _restrict_to_ball(geometry, tissue, (side * right, front, top), 1.5)
        for side in (-1, 1)
        for right, front, top in places
    ]


GRAIN_MASKS = {
    "choroid plexus": _atrium_masks,
    "choroid calcification": _atrium_masks,
    "pineal calcification": _pineal_masks,
    "falx calcification": _falx_masks,
    "pallidal calcification": _pallidum_masks,
    "pallidal iron": _pallidum_masks,
    "dentate iron": _dentate_masks,
    "midbrain iron": _midbrain_masks,
}


# --- Damage that is no microbleed -----------------------------------------------------------------


def _sample_siderosis(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample superficial siderosis: lines of iron side by side along a few gyri."""
    priors, rng, geometry = context.priors["siderosis"], context.rng, context.geometry
    if rng.random() >= priors["share"]:
        return []
    over = (
        (np.abs(geometry.pial_depth.data) < GRID_MM)
        & (geometry.coordinates[..., 2] > 0)
        & (geometry.shell_depth.data < 20)
    )
    return [
        _sample_siderosis_sheet(context, priors, start)
        for start in sample_voxels(
            rng,
            geometry,
            over & (geometry.ventricle_distance.data > 15),
            sample_integer(rng, priors["number"]),
        )
    ]


def _sample_siderosis_sheet(
    context: SamplingContext, priors: dict, start: np.ndarray
) -> list[SusceptibilitySource]:
    rng, pia = context.rng, context.geometry.pial_depth
    lines = sample_integer(rng, priors["lines"])
    starts = project_to_level(pia, start + rng.standard_normal((lines, 3)), 0.0)
    ways = normalize(rng.standard_normal(3) + 0.1 * rng.standard_normal((lines, 3)))
    steps = round(sample_uniform(rng, priors["length_mm"]) / GRID_MM)
    paths = random_walk_on_surface(rng, pia, starts, ways, level=0.0, steps=steps, wobble=0.1)
    chi, water = sample_uniform(rng, priors["chi_ppm"]), sample_uniform(rng, priors["water"])
    r2star = context.priors["r2star_per_ppm"] * chi
    radius = rng.uniform(*priors["radius_mm"], (lines, 1)) * np.ones(steps + 1)
    return [
        SusceptibilitySource("siderosis", path, width, chi, water, r2star)
        for path, width in zip(paths, radius, strict=True)
    ]


def _sample_rim(
    context: SamplingContext, kind: str, radius: float, chi_ppm: Sequence[float], number: int = 4
) -> list[SusceptibilitySource]:
    """Sample a rim of iron around the origin: rings on a sphere, each at its own slant."""
    rng = context.rng
    chi = sample_uniform(rng, chi_ppm)
    turn = np.linspace(0, 2 * np.pi, max(13, round(2 * np.pi * radius / GRID_MM)))
    circle = np.column_stack([np.cos(turn), np.sin(turn)])
    rings = []
    for _ in range(number):
        plane = np.linalg.qr(rng.standard_normal((3, 2)))[0].T
        width = np.full(len(turn), sample_uniform(rng, (0.2, 0.5)))
        points = radius * circle @ plane
        r2star = context.priors["r2star_per_ppm"] * chi
        rings.append(SusceptibilitySource(kind, points, width, chi, 0.3, r2star))
    return rings


def _sample_deep_voxels(context: SamplingContext, number: int, room: float) -> np.ndarray:
    """Sample white matter and deep grey ``room`` mm from fluid, or as far as the head has."""
    geometry = context.geometry
    tissue = np.isin(geometry.codes.data, [*LESION_REGIONS["basal ganglia"][0], 2, 10, 41, 49])
    depth = np.where(
        tissue, np.minimum(geometry.pial_depth.data, geometry.ventricle_distance.data), 0
    )
    return sample_voxels(context.rng, geometry, depth > min(room, 0.8 * float(depth.max())), number)


def _sample_lacunes(context: SamplingContext) -> list[list[SusceptibilitySource]]:
    """Sample lacunes: small cavities full of fluid, some with a dark rim."""
    priors, rng = context.priors["lacune"], context.rng
    if rng.random() >= priors["share"]:
        return []
    bodies = []
    for place in _sample_deep_voxels(
        context, sample_integer(rng, priors["number"]), priors["radius_mm"][1]
    ):
        radius = sample_uniform(rng, priors["radius_mm"])
        # Fluid relaxes more slowly than the tissue around it: less than none beyond.
        body = [make_sphere("lacune", np.zeros(3), radius, 0.0, 1.0, -12.0)]
        if rng.random() < priors["rimmed"]:
            body += _sample_rim(context, "lacune", radius, priors["rim_chi_ppm"])
        bodies.append(translate(body, place, "n/a"))
    return bodies


def _large_lesion_sampler(
    kind: str,
) -> Callable[[SamplingContext], list[list[SusceptibilitySource]]]:
    """Return a sampler of large bleeds: lobules of different age, and a rim."""

    def drawn(context: SamplingContext) -> list[list[SusceptibilitySource]]:
        priors, rng = context.priors[kind], context.rng
        if rng.random() >= priors["share"]:
            return []
        bodies = []
        for place in _sample_deep_voxels(
            context, sample_integer(rng, priors["number"]), priors["radius_mm"][0]
        ):
            radius = sample_log_uniform(rng, priors["radius_mm"])
            body = [
                _sample_lobule(context, kind, radius) for _ in range(sample_integer(rng, (3, 7)))
            ]
            body += _sample_rim(context, kind, radius, priors["rim_chi_ppm"], number=6)
            bodies.append(translate(body, place, "n/a"))
        return bodies

    return drawn


def _sample_lobule(context: SamplingContext, kind: str, radius: float) -> SusceptibilitySource:
    priors, rng = context.priors[kind], context.rng
    lobule_radius = radius * sample_uniform(rng, (0.4, 0.65))
    place = (
        normalize(rng.standard_normal(3)) * (radius - lobule_radius) * sample_uniform(rng, (0.5, 1))
    )
    chi = sample_uniform(rng, priors["chi_ppm"])
    r2star = context.priors["r2star_per_ppm"] * abs(chi) / 4
    return make_sphere(
        kind, place, lobule_radius, chi, sample_uniform(rng, priors["water"]), r2star
    )


LARGE_LESION_SAMPLERS = (
    _large_lesion_sampler("haemorrhage"),
    _large_lesion_sampler("cavernoma"),
    _sample_lacunes,
)
