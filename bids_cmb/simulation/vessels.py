"""The veins, sinuses and arteries of a head: where they run, how wide, how much iron is in them.

What is cut by the length of a slice looks like a microbleed; only where it lies and what it
continues into tell. Lengths are mm, positions world mm (RAS+).
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from bids_cmb.simulation.geometry import (
    BRAINSTEM,
    GRID,
    STRUCTURES,
    Terrain,
    both_sides,
    pick,
    settle,
    slope_at,
    unit,
    value_along,
    value_at,
    walk,
)
from bids_cmb.simulation.lesion_priors import Draw, between, how_many, log_between
from bids_cmb.simulation.sources import Source


def draw_vessels(draw: Draw) -> list[list[Source]]:
    """Every vessel of a scan, a body each."""
    return [vessel for part in VESSELS for vessel in part(draw)]


def _vein(draw: Draw, kind: str, points: np.ndarray, *, taper: float = 1.0) -> list[Source]:
    """One vein as a body of its own; ``taper`` is its last radius as a share of its first."""
    given = draw.law["vessels"][kind]
    chi = draw.venous + draw.law["blood"]["spread"] * draw.rng.standard_normal()
    radius = log_between(draw.rng, given["radius_mm"]) * np.linspace(1, taper, len(points))
    r2star = draw.law["r2star_per_ppm"] * abs(chi)
    return [Source(kind, points, radius, chi, between(draw.rng, given["water"]), r2star)]


def _artery(draw: Draw, kind: str, points: np.ndarray, limits: Sequence[float]) -> list[Source]:
    """A flow void: black, and no field of its own."""
    radius = log_between(draw.rng, limits) * np.linspace(1, 0.6, len(points))
    given = draw.law["vessels"]["perforator" if kind == "perforator" else "artery"]
    return [Source(kind, points, radius, 0.0, between(draw.rng, given["water"]), 0.0)]


def _runs(
    paths: np.ndarray, lengths: np.ndarray, good: np.ndarray, fewest: int = 3
) -> list[np.ndarray]:
    """Each path up to its length in mm or to where it first leaves what is good for it."""
    ends = np.where(good.all(axis=1), good.shape[1], good.argmin(axis=1))
    ends = np.minimum(ends, np.ceil(lengths / GRID).astype(int) + 1)
    return [path[:end] for path, end in zip(paths, ends, strict=True) if end >= fewest]


def _line(draw: Draw, waypoints: Sequence[np.ndarray], sway: float = 0.6) -> np.ndarray:
    """A smooth line through waypoints, each moved a little, with a point every 1.5 mm."""
    corners = np.array(waypoints) + sway * draw.rng.standard_normal((len(waypoints), 3))
    covered = np.append(0, np.linalg.norm(np.diff(corners, axis=0), axis=1).cumsum())
    at = np.linspace(0, covered[-1], max(3, round(covered[-1] / GRID)))
    line = np.column_stack([np.interp(at, covered, axis) for axis in corners.T])
    return ndimage.gaussian_filter1d(line, 2.0, axis=0, mode="nearest")


def _sides(draw: Draw, *places: Sequence[float]) -> list[list[np.ndarray]]:
    """Places given along the head's axes, on the left and on the right, in world mm."""
    return [
        [draw.terrain.world(side * right, front, top) for right, front, top in places]
        for side in (-1, 1)
    ]


# --- Veins and vessels of the surface -------------------------------------------------------------


def _pial_vessels(draw: Draw) -> list[list[Source]]:
    """Small vessels along the sulci, some in their depth and some at the edge of the cortex."""
    given, rng, terrain = draw.law["vessels"]["pial vessel"], draw.rng, draw.terrain
    number = how_many(rng, given["number"])
    near = terrain.around & (terrain.pia.data > -2.5)
    starts = np.concatenate(
        [
            pick(rng, terrain, near & (terrain.shell.data > 6), number - number // 3),
            pick(rng, terrain, near, number // 3),
        ]
    )
    level = rng.uniform(-1.2, 0.1, number)
    starts = settle(terrain.pia, starts, level)
    paths = walk(
        rng,
        terrain.pia,
        starts,
        unit(rng.standard_normal(starts.shape)),
        level=level,
        steps=round(given["length_mm"][1] / GRID),
        wobble=given["wobble"],
    )
    good = np.abs(value_along(terrain.pia, paths) - level[:, None]) < 1.5
    lengths = rng.uniform(*given["length_mm"], number)
    return [
        _artery(draw, "pial vessel", run, given["radius_mm"])
        if rng.random() < given["arterial"]
        else _vein(draw, "pial vessel", run, taper=0.6)
        for run in _runs(paths, lengths, good)
    ]


def _sinuses_and_cortical_veins(draw: Draw) -> list[list[Source]]:
    """The sinuses along the outer shell, and the veins over the hemispheres that seek them."""
    given, rng, terrain = draw.law["vessels"]["cortical vein"], draw.rng, draw.terrain
    sagittal, confluence = _sagittal(draw)
    transverse = [_transverse(draw, side, confluence) for side in (-1, 1)]
    number = how_many(rng, given["number"])
    over = terrain.around & (terrain.shell.data > 1.5) & (terrain.shell.data < 8)
    high = (terrain.head[..., 2] > -15) & (np.abs(terrain.head[..., 0]) > 12)
    starts = pick(rng, terrain, over & high, number)
    ends = np.concatenate([sagittal, *transverse])
    goal = np.linalg.norm(starts[:, None] - ends, axis=2).argmin(axis=1)
    targets = ends[np.clip(goal + rng.integers(-12, 13, number), 0, len(ends) - 1)]
    paths = walk(
        rng,
        terrain.pia,
        settle(terrain.pia, starts, -1.0),
        unit(targets - starts),
        level=-1.0,
        steps=round(given["length_mm"][1] / GRID),
        wobble=given["wobble"],
        targets=targets,
    )
    nearest = np.linalg.norm(paths - targets[:, None], axis=2).argmin(axis=1)
    good = np.arange(paths.shape[1]) <= nearest[:, None]  # beyond, they would circle around it
    lengths = rng.uniform(*given["length_mm"], number)
    veins = [
        _vein(draw, "cortical vein", run[::-1], taper=0.5) for run in _runs(paths, lengths, good)
    ]
    return [
        _vein(draw, "superior sagittal sinus", sagittal[::-1], taper=0.5),
        *(_vein(draw, "transverse sinus", line, taper=0.9) for line in transverse),
        *veins,
    ]


def _sagittal(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """The midline of the outer shell from front to back, and the confluence at its end."""
    terrain = draw.terrain
    middle = terrain.world(0, -5, 20)
    angles = np.radians(np.arange(-5, 225, 1.5))
    ways = np.column_stack([0 * angles, np.cos(angles), np.sin(angles)]) @ terrain.axes
    rays = middle + ways[:, None] * np.arange(1, 140.0)[:, None]
    inside = value_along(terrain.shell, rays) > 2.5
    outermost = inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)
    line = rays[np.arange(len(rays)), outermost]
    below = (value_at(terrain.tentorium, line) < 0) & (angles > np.pi * 0.75)
    end = int(below.argmax()) if below.any() else len(line) - 1
    line = ndimage.gaussian_filter1d(line[: end + 1], 2.0, axis=0, mode="nearest")
    return line, line[-1]


def _transverse(draw: Draw, side: int, confluence: np.ndarray) -> np.ndarray:
    """Along the outer shell where cerebrum and cerebellum are equally far, from the confluence."""
    terrain = draw.terrain
    edge = (np.abs(terrain.shell.data - 2) < 2) & (np.abs(terrain.tentorium.data) < 3)
    right, front, _ = terrain.along(confluence)
    across, along = side * (terrain.head[..., 0] - right), terrain.head[..., 1] - front
    edge &= (across > 3) & (along > -15) & (along < 45)
    places = terrain.codes.world(np.argwhere(edge))
    bins, behind = (across[edge] // 6).astype(int), along[edge]
    corners = []
    for at in np.unique(bins):  # the hindmost: further on, tentorium and petrous bone meet
        own = bins == at
        corners.append(places[own & (behind < behind[own].min() + 5)].mean(axis=0))
    line = _line(draw, [confluence, *corners] if corners else [confluence] * 3, sway=0.3)
    return np.concatenate([line[:1], settle(terrain.shell, line[1:], 2.0)])


def _medullary_veins(draw: Draw) -> list[list[Source]]:
    """Straight thin veins through the white matter, upright on the wall of the ventricles."""
    given, rng, terrain = draw.law["vessels"]["medullary vein"], draw.rng, draw.terrain
    number = how_many(rng, given["number"])
    white = np.isin(terrain.codes.data, both_sides("white")) & (terrain.pia.data > 6)
    beside = white & (terrain.wall.data > 0.5) & (terrain.wall.data < 8)
    starts = pick(rng, terrain, beside & (terrain.head[..., 2] > -5), number)
    ways = unit(slope_at(terrain.wall, starts) + 0.3 * terrain.axes[2])
    steps = round(given["length_mm"][1] / GRID)
    paths = walk(rng, None, starts, ways, steps=steps, wobble=given["wobble"])
    good = (value_along(terrain.pia, paths) > 2.5) & (value_along(terrain.wall, paths) > 0)
    lengths = rng.uniform(*given["length_mm"], len(starts))
    return [_vein(draw, "medullary vein", run, taper=0.6) for run in _runs(paths, lengths, good)]


def _deep_veins(draw: Draw) -> list[list[Source]]:
    """Septal, thalamostriate and internal cerebral veins, the vein of Galen, the straight sinus."""
    terrain = draw.terrain
    _, confluence = _sagittal(draw)
    galen = [terrain.world(0, *place) for place in ((-14, 3), (-20, 2), (-25, 6))]
    bodies = []
    for side in _sides(draw, (2, 19, 5), (2, 6, 8), (1.5, -6, 6), (1, -14, 3)):
        bodies.append(_vein(draw, "internal cerebral vein", _line(draw, side)))
    for side in _sides(draw, (6, 36, 8), (2, 28, 10), (2, 19, 5)):
        bodies.append(_vein(draw, "septal vein", _line(draw, side)))
    for side in _sides(draw, (19, -8, 14), (15, 4, 13), (10, 14, 9), (3, 19, 5)):
        line = settle(terrain.wall, _line(draw, side), 0.3)
        bodies.append(_vein(draw, "thalamostriate vein", line))
    bodies.append(_vein(draw, "vein of Galen", _line(draw, galen)))
    bodies.append(_vein(draw, "straight sinus", _line(draw, [galen[-1], confluence])))
    return bodies


# --- Arteries -------------------------------------------------------------------------------------


def _arteries(draw: Draw) -> list[list[Source]]:
    """The basilar artery, the circle of Willis and the branches from it, as flow voids."""
    given, terrain = draw.law["vessels"]["artery"], draw.terrain
    stems = [_basilar(draw)]
    wide = terrain.around & (terrain.pia.data < -1)
    for side in (-1, 1):
        tip = _nearest(terrain, wide, (9 * side, 19, -22))
        stems.append(_through_fluid(draw, tip, _nearest(terrain, wide, (40 * side, 20, -16))))
    for side in _sides(draw, (9, 18, -22), (3, 26, -20), (2, 46, -8), (2, 52, 10), (2, 36, 32)):
        stems.append(settle(terrain.pia, _line(draw, side, 1.0), -0.8))
    branches = []
    for stem, side in zip(stems[1:3], (-1, 1), strict=True):
        branches += _branches(draw, stem[-1], (0.4 * side, -0.7, 0.6))
        branches += _branches(draw, stems[0][-1], (side, -0.3, 0.1), number=1)
    return [
        *(_artery(draw, "artery", line, given["stem_mm"]) for line in stems),
        *(_artery(draw, "artery", line, given["branch_mm"]) for line in branches),
    ]


def _through_fluid(draw: Draw, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The shortest way between two places that shuns tissue, smoothed, (N, 3)."""
    terrain = draw.terrain
    ends = np.rint(terrain.codes.index(np.array([start, end]))).astype(int)
    low = np.maximum(ends.min(axis=0) - 8, 0)
    box = tuple(map(slice, low, ends.max(axis=0) + 9))
    toll = 1 + 10 * np.clip(1 + terrain.pia.data[box], 0, 1)  # none 1 mm from the tissue
    first, last = np.ravel_multi_index(
        tuple(np.minimum(ends - low, np.array(toll.shape) - 1).T), toll.shape
    )
    _, before = dijkstra(_graph(toll), indices=first, return_predecessors=True)
    way = [last]
    while way[-1] != first:
        way.append(before[way[-1]])
    line = terrain.codes.world(np.column_stack(np.unravel_index(way[::-1], toll.shape)) + low)
    return ndimage.gaussian_filter1d(line, 1.0, axis=0, mode="nearest")


def _graph(toll: np.ndarray) -> csr_array:
    """Voxels as a graph: neighbours by face or edge, the toll of both on the way between."""
    number = np.arange(toll.size).reshape(toll.shape)
    steps = [step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]
    links = []
    for step in steps:
        here = tuple(
            slice(max(-k, 0), n - max(k, 0)) for k, n in zip(step, toll.shape, strict=True)
        )
        there = tuple(
            slice(max(k, 0), n - max(-k, 0)) for k, n in zip(step, toll.shape, strict=True)
        )
        cost = np.linalg.norm(step) * (toll[here] + toll[there])
        links.append([number[here].ravel(), number[there].ravel(), cost.ravel()])
    start, end, cost = (np.concatenate(part) for part in zip(*links, strict=True))
    graph = csr_array((cost, (start, end)), shape=(toll.size, toll.size))
    return graph + graph.T


def _nearest(terrain: Terrain, mask: np.ndarray, place: Sequence[float]) -> np.ndarray:
    """World mm of the voxel of a mask next to a place along the head's axes."""
    away = terrain.away(place, mask)
    return terrain.codes.world(np.array(np.unravel_index(away.argmin(), away.shape)))


def _basilar(draw: Draw) -> np.ndarray:
    """In the fluid before the brainstem, upwards."""
    terrain = draw.terrain
    stem = (terrain.codes.data == BRAINSTEM) & (np.abs(terrain.head[..., 0]) < 5)
    places = terrain.head[stem]
    top = np.percentile(places[:, 2], 95)
    heights = np.linspace(top - 30, top - 8, 7)
    fronts = [places[np.abs(places[:, 2] - at) < 4, 1].max(initial=-10) + 2 for at in heights]
    corners = [terrain.world(0, *place) for place in zip(fronts, heights, strict=True)]
    return settle(terrain.pia, _line(draw, corners), -1.8)


def _branches(
    draw: Draw, start: np.ndarray, way: Sequence[float], number: int | None = None
) -> list[np.ndarray]:
    given, rng = draw.law["vessels"]["artery"], draw.rng
    number = number or how_many(rng, given["branches"])
    starts = start + 3 * rng.standard_normal((number, 3))
    ways = unit(np.array(way) @ draw.terrain.axes + 0.4 * rng.standard_normal((number, 3)))
    paths = walk(
        rng,
        draw.terrain.pia,
        settle(draw.terrain.pia, starts, -1.0),
        ways,
        level=-1.0,
        steps=round(given["length_mm"][1] / GRID),
        wobble=given["wobble"],
    )
    good = np.ones(paths.shape[:2], bool)
    return _runs(paths, rng.uniform(*given["length_mm"], number), good)


def _perforators(draw: Draw) -> list[list[Source]]:
    """Thin flow voids that fan upwards through the lentiform nuclei."""
    given, rng, terrain = draw.law["vessels"]["perforator"], draw.rng, draw.terrain
    bodies = []
    for side in (0, 1):
        codes = [*STRUCTURES["putamen"][side], *STRUCTURES["pallidum"][side]]
        starts = pick(
            rng, terrain, np.isin(terrain.codes.data, codes), how_many(rng, given["number"])
        )
        ways = np.array([(2 * side - 1) * 0.4, 0, 1]) @ terrain.axes
        ways = unit(ways + 0.25 * rng.standard_normal(starts.shape))
        steps = round(given["length_mm"][1] / GRID)
        paths = walk(rng, None, starts - 4 * ways, ways, steps=steps, wobble=given["wobble"])
        good = (value_along(terrain.pia, paths) > 1) & (value_along(terrain.wall, paths) > 1)
        lengths = rng.uniform(*given["length_mm"], len(starts))
        runs = _runs(paths, lengths, good)
        bodies += [_artery(draw, "perforator", run, given["radius_mm"]) for run in runs]
    return bodies


VESSELS = (
    _sinuses_and_cortical_veins,
    _pial_vessels,
    _medullary_veins,
    _deep_veins,
    _arteries,
    _perforators,
)
