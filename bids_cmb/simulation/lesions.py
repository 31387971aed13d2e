"""What bleeds in a head, and everything that only looks as if it did: places, shapes, strengths.

Whatever shape and strength a microbleed can have, something labelled otherwise must have too; only
where it lies and what it continues into may tell them apart. So microbleeds and dots on the pia, in
fluid and on the outer shell come from one function, and vessels are cut to overlap with both.
"""

from collections.abc import Callable, Sequence

import numpy as np

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.geometry import (
    GRID,
    REGIONS,
    STRUCTURES,
    Terrain,
    is_tissue,
    pick,
    settle,
    unit,
    walk,
)
from bids_cmb.simulation.lesion_priors import Draw, begin, between, how_many, log_between
from bids_cmb.simulation.sources import MICROBLEED, Source, ball, moved, numbered, reach
from bids_cmb.simulation.tissue_properties import CHOROID, CSF
from bids_cmb.simulation.vessels import draw_vessels


def draw_sources(rng: np.random.Generator, given: dict, terrain: Terrain) -> list[Source]:
    """Draw what bleeds and what does not in one scan.

    Args:
        rng: Source of chance.
        given: The numbers, from `simulation.lesion_priors.law`.
        terrain: The head, from `simulation.geometry.find_terrain`.

    Returns:
        The microbleeds first. The sources of one body share its number, from 1.
    """
    draw = begin(rng, given, terrain)
    return numbered([*_spots(draw), *draw_vessels(draw), *_grains(draw), *_siderosis(draw)])


def _spots(draw: Draw) -> list[list[Source]]:
    damage = [body for part in DAMAGE for body in part(draw)]
    lesions = _microbleeds(draw, damage)
    return [*lesions, *_dots(draw, len(lesions)), *damage]


# --- Spots: microbleeds, and the dots that look the same ------------------------------------------


def _spot(draw: Draw, kind: str) -> list[Source]:
    """A body of one to three merged balls around 0: the one law of lesions and dots."""
    given, rng = draw.law["microbleed"], draw.rng
    moment, chi = _moment(rng, given["moment_ppm_mm3"]), log_between(rng, given["chi_ppm"])
    balls = 1 + int(rng.choice(len(given["balls"]), p=given["balls"]))
    shares = rng.dirichlet(np.full(balls, 6.0))
    radii = np.cbrt(shares * moment / chi)  # the moments of balls add up, merged or not
    places = np.zeros((balls, 3))
    for at in range(1, balls):
        way = unit(rng.standard_normal(3))
        places[at] = places[at - 1] + way * radii[at - 1] * between(rng, given["ball_offset"])
    places -= shares @ places
    water = between(rng, given["water"])
    r2star = draw.law["r2star_per_ppm"] * chi
    return [
        ball(kind, place, radius, chi, water, r2star)
        for place, radius in zip(places, radii, strict=True)
    ]


def _moment(rng: np.random.Generator, given: dict) -> float:
    if given["shape"] == "log-uniform":
        return log_between(rng, (given["low"], given["high"]))
    drawn = given["median"] * np.exp(given["sigma"] * rng.standard_normal())
    return float(np.clip(drawn, given["low"], given["high"]))


def _microbleeds(draw: Draw, damage: list[list[Source]]) -> list[list[Source]]:
    """Every microbleed of a scan, region by region, some in clusters."""
    given, rng = draw.law["microbleed"], draw.rng
    shares = np.array(list(given["region_shares"].values()))
    own = rng.dirichlet(given["region_concentration"] * shares / shares.sum())
    numbers = rng.multinomial(_count(rng, given), own)
    taken = [(part.points.mean(axis=0), part.radius.max() + 3) for body in damage for part in body]
    lesions: list[list[Source]] = []
    for region, number in zip(given["region_shares"], numbers, strict=True):
        if number:
            lesions += _in_region(draw, region, int(number), taken)
    return lesions


def _count(rng: np.random.Generator, given: dict) -> int:
    """Microbleeds of one scan: none, or a draw from the quantiles of positive scans."""
    if rng.random() < given["scans_without"]:
        return 0
    shares, counts = np.transpose(given["count_quantiles"])
    return int(np.floor(np.exp(np.interp(rng.random(), shares, np.log(counts)))))


def _in_region(draw: Draw, region: str, number: int, taken: list) -> list[list[Source]]:
    """Up to ``number`` microbleeds, as many as find room; ``taken`` grows by their places."""
    given = draw.law["microbleed"]
    clusters = given["clusters"]
    chance = clusters["chance"].get(region, clusters["chance"]["other"])
    mask = draw.terrain.regions[region]
    placed: list[list[Source]] = []
    if number > 1 and draw.rng.random() < chance:
        size = min(number, how_many(draw.rng, clusters["size"]))
        placed = _cluster(draw, region, mask, size, taken)
    for _ in range(number - len(placed)):
        placed += _placed(draw, region, _picker(draw, mask), given["apart_mm"], taken)
    return placed


def _picker(draw: Draw, mask: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: pick(draw.rng, draw.terrain, mask, 40)


def _cluster(
    draw: Draw, region: str, mask: np.ndarray, size: int, taken: list
) -> list[list[Source]]:
    """A first microbleed, and others so near that all fit into a ball."""
    given, rng = draw.law["microbleed"], draw.rng
    clusters = given["clusters"]
    placed = _placed(draw, region, _picker(draw, mask), given["apart_mm"], taken)
    if not placed:
        return placed
    middle, elsewhere = taken[-1][0], taken[:-1]
    near = [taken[-1]]

    def beside() -> np.ndarray:
        ways = unit(rng.standard_normal((40, 3)))
        return middle + ways * rng.uniform(0, clusters["within_mm"] / 2, (40, 1))

    for _ in range(size - 1):
        placed += _placed(draw, region, beside, clusters["apart_mm"], near)
    taken[:] = elsewhere + near
    return placed


def _placed(
    draw: Draw, region: str, places: Callable[[], np.ndarray], apart: float, taken: list
) -> list[list[Source]]:
    """One microbleed at the first place that is clear of fluid and of what is there; or none."""
    clearance = draw.law["microbleed"]["clearance_mm"]
    for _ in range(5):  # the smaller ones of a law fit where the larger do not
        body = _spot(draw, MICROBLEED)
        extent = reach(body)
        for place in places():
            free = all(np.linalg.norm(place - other) > apart + more for other, more in taken)
            if free and _clear(draw.terrain.labels, place, clearance + extent, REGIONS[region][0]):
                taken.append((place, 0.0))
                return [moved(body, place, region)]
    return []


def _clear(labels: Volume, place: np.ndarray, room: float, codes: Sequence[int]) -> bool:
    """Whether a place has one of ``codes``, and nothing but tissue within ``room`` mm.

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


def _dots(draw: Draw, lesions: int) -> list[list[Source]]:
    """What has the shape and strength of microbleeds and lies where none can lie."""
    given, rng, terrain = draw.law["dots"], draw.rng, draw.terrain
    wanted = sum(how_many(rng, given["per_lesion"]) for _ in range(lesions))
    kinds = rng.choice(
        list(given["shares"]), max(wanted, given["fewest"]), p=list(given["shares"].values())
    )
    dots = []
    for kind, number in zip(*np.unique(kinds, return_counts=True), strict=True):
        for place in DOT_PLACES[str(kind)](rng, terrain, int(number)):
            dots.append(moved(_spot(draw, str(kind)), place, "n/a"))
    return dots


def _sulci(rng: np.random.Generator, terrain: Terrain, number: int) -> np.ndarray:
    narrow = terrain.around & (terrain.pia.data < -GRID / 2) & (terrain.pia.data > -3)
    return pick(rng, terrain, narrow & (terrain.shell.data > 4), number)


def _cisterns(rng: np.random.Generator, terrain: Terrain, number: int) -> np.ndarray:
    wide = terrain.around & (terrain.pia.data < -1.5) & (terrain.shell.data > 3)
    low = (terrain.head[..., 2] < -8) & (np.abs(terrain.head[..., 0]) < 30)
    return pick(rng, terrain, wide & low, number)


def _ventricles(rng: np.random.Generator, terrain: Terrain, number: int) -> np.ndarray:
    return pick(rng, terrain, terrain.wall.data < -GRID / 3, number)


def _on_pia(rng: np.random.Generator, terrain: Terrain, number: int) -> np.ndarray:
    near = (np.abs(terrain.pia.data) < GRID) & terrain.around
    places = pick(rng, terrain, near, number)
    return settle(terrain.pia, places, rng.uniform(-0.5, 0.2, len(places)))


def _on_shell(rng: np.random.Generator, terrain: Terrain, number: int) -> np.ndarray:
    near = terrain.around & (np.abs(terrain.shell.data) < 2 * GRID)
    places = pick(rng, terrain, near, number)
    return settle(terrain.shell, places, rng.uniform(0, 1.5, len(places)))


DOT_PLACES = {
    "sulcus dot": _sulci,
    "cistern dot": _cisterns,
    "ventricle dot": _ventricles,
    "pial dot": _on_pia,
    "shell dot": _on_shell,
}


# --- Grains: calcium, iron, plexus ----------------------------------------------------------------


def _grains(draw: Draw) -> list[list[Source]]:
    """Every kind of grain that this scan has, each grain a body of its own."""
    bodies = []
    for kind, given in draw.law["grains"].items():
        if draw.rng.random() < given["share"]:
            for mask in GRAIN_PLACES[kind](draw.terrain):
                number = how_many(draw.rng, given["number"])
                places = pick(draw.rng, draw.terrain, mask, number)
                bodies += [[_grain(draw, kind, place)] for place in places]
    return bodies


def _grain(draw: Draw, kind: str, place: np.ndarray) -> Source:
    given, rng = draw.law["grains"][kind], draw.rng
    chi = between(rng, given["chi_ppm"])
    r2star = draw.law["r2star_per_ppm"] * abs(chi)
    radius = log_between(rng, given["radius_mm"])
    return ball(kind, place, radius, chi, between(rng, given["water"]), r2star)


def _within(
    terrain: Terrain, mask: np.ndarray, place: Sequence[float], radius: float
) -> np.ndarray:
    """The voxels of a mask near a place along the head's axes; if none, those nearest to it."""
    away = terrain.away(place, mask)
    return away <= max(radius, float(away.min()) + GRID)


def _atria(terrain: Terrain) -> list[np.ndarray]:
    plexus = np.isin(terrain.codes.data, CHOROID)
    where = plexus if plexus.any() else terrain.wall.data < 0
    return [_within(terrain, where, (side * 24, -22, 2), 9) for side in (-1, 1)]


def _pineal(terrain: Terrain) -> list[np.ndarray]:
    return [_within(terrain, np.ones(terrain.codes.shape, bool), (0, -14, -3), 3)]


def _falx(terrain: Terrain) -> list[np.ndarray]:
    middle = (np.abs(terrain.head[..., 0]) < 1.5) & (terrain.head[..., 2] > 20)
    deep = (terrain.shell.data > 3) & (terrain.shell.data < 28) & (terrain.codes.data == CSF)
    return [middle & deep]


def _pallida(terrain: Terrain) -> list[np.ndarray]:
    return [np.isin(terrain.codes.data, codes) for codes in STRUCTURES["pallidum"]]


def _dentate(terrain: Terrain) -> list[np.ndarray]:
    masks = []
    for codes in STRUCTURES["cerebellum"]:
        mask = np.isin(terrain.codes.data, codes) & (terrain.pia.data > 3)
        place = terrain.head[np.isin(terrain.codes.data, codes[:1])].mean(axis=0) * (0.85, 1, 1)
        masks.append(_within(terrain, mask, place, 5))
    return masks


def _midbrain(terrain: Terrain) -> list[np.ndarray]:
    tissue = is_tissue(terrain.codes.data)
    places = ((5, -3, -17), (10, -1, -20))  # red nucleus, substantia nigra
    return [
        _within(terrain, tissue, (side * right, front, top), 1.5)
        for side in (-1, 1)
        for right, front, top in places
    ]


GRAIN_PLACES = {
    "choroid plexus": _atria,
    "choroid calcification": _atria,
    "pineal calcification": _pineal,
    "falx calcification": _falx,
    "pallidal calcification": _pallida,
    "pallidal iron": _pallida,
    "dentate iron": _dentate,
    "midbrain iron": _midbrain,
}


# --- Damage that is no microbleed -----------------------------------------------------------------


def _siderosis(draw: Draw) -> list[list[Source]]:
    """Lines of iron side by side along the surface of a few gyri."""
    given, rng, terrain = draw.law["siderosis"], draw.rng, draw.terrain
    if rng.random() >= given["share"]:
        return []
    over = (
        (np.abs(terrain.pia.data) < GRID) & (terrain.head[..., 2] > 0) & (terrain.shell.data < 20)
    )
    return [
        _sheet(draw, given, start)
        for start in pick(
            rng, terrain, over & (terrain.wall.data > 15), how_many(rng, given["number"])
        )
    ]


def _sheet(draw: Draw, given: dict, start: np.ndarray) -> list[Source]:
    rng, pia = draw.rng, draw.terrain.pia
    lines = how_many(rng, given["lines"])
    starts = settle(pia, start + rng.standard_normal((lines, 3)), 0.0)
    ways = unit(rng.standard_normal(3) + 0.1 * rng.standard_normal((lines, 3)))
    steps = round(between(rng, given["length_mm"]) / GRID)
    paths = walk(rng, pia, starts, ways, level=0.0, steps=steps, wobble=0.1)
    chi, water = between(rng, given["chi_ppm"]), between(rng, given["water"])
    r2star = draw.law["r2star_per_ppm"] * chi
    radius = rng.uniform(*given["radius_mm"], (lines, 1)) * np.ones(steps + 1)
    return [
        Source("siderosis", path, width, chi, water, r2star)
        for path, width in zip(paths, radius, strict=True)
    ]


def _rings(
    draw: Draw, kind: str, radius: float, chi_ppm: Sequence[float], number: int = 4
) -> list[Source]:
    """A rim of iron around 0: rings on a ball, each at a slant of its own."""
    rng = draw.rng
    chi = between(rng, chi_ppm)
    turn = np.linspace(0, 2 * np.pi, max(13, round(2 * np.pi * radius / GRID)))
    circle = np.column_stack([np.cos(turn), np.sin(turn)])
    rings = []
    for _ in range(number):
        plane = np.linalg.qr(rng.standard_normal((3, 2)))[0].T
        width = np.full(len(turn), between(rng, (0.2, 0.5)))
        points = radius * circle @ plane
        r2star = draw.law["r2star_per_ppm"] * chi
        rings.append(Source(kind, points, width, chi, 0.3, r2star))
    return rings


def _deep_places(draw: Draw, number: int, room: float) -> np.ndarray:
    """Places in white matter and deep grey, ``room`` mm from fluid, or as far as the head has."""
    terrain = draw.terrain
    tissue = np.isin(terrain.codes.data, [*REGIONS["basal ganglia"][0], 2, 10, 41, 49])
    depth = np.where(tissue, np.minimum(terrain.pia.data, terrain.wall.data), 0)
    return pick(draw.rng, terrain, depth > min(room, 0.8 * float(depth.max())), number)


def _lacunes(draw: Draw) -> list[list[Source]]:
    """Small cavities full of fluid, some with a dark rim."""
    given, rng = draw.law["lacune"], draw.rng
    if rng.random() >= given["share"]:
        return []
    bodies = []
    for place in _deep_places(draw, how_many(rng, given["number"]), given["radius_mm"][1]):
        radius = between(rng, given["radius_mm"])
        # Fluid relaxes more slowly than the tissue around it: less than none beyond.
        body = [ball("lacune", np.zeros(3), radius, 0.0, 1.0, -12.0)]
        if rng.random() < given["rimmed"]:
            body += _rings(draw, "lacune", radius, given["rim_chi_ppm"])
        bodies.append(moved(body, place, "n/a"))
    return bodies


def _large(kind: str) -> Callable[[Draw], list[list[Source]]]:
    """How to draw what is too large for a microbleed: lobules of different age, and a rim."""

    def drawn(draw: Draw) -> list[list[Source]]:
        given, rng = draw.law[kind], draw.rng
        if rng.random() >= given["share"]:
            return []
        bodies = []
        for place in _deep_places(draw, how_many(rng, given["number"]), given["radius_mm"][0]):
            radius = log_between(rng, given["radius_mm"])
            body = [_lobule(draw, kind, radius) for _ in range(how_many(rng, (3, 7)))]
            body += _rings(draw, kind, radius, given["rim_chi_ppm"], number=6)
            bodies.append(moved(body, place, "n/a"))
        return bodies

    return drawn


def _lobule(draw: Draw, kind: str, radius: float) -> Source:
    given, rng = draw.law[kind], draw.rng
    own = radius * between(rng, (0.4, 0.65))
    place = unit(rng.standard_normal(3)) * (radius - own) * between(rng, (0.5, 1))
    chi = between(rng, given["chi_ppm"])
    r2star = draw.law["r2star_per_ppm"] * abs(chi) / 4
    return ball(kind, place, own, chi, between(rng, given["water"]), r2star)


DAMAGE = (_large("haemorrhage"), _large("cavernoma"), _lacunes)
