"""Which way somebody counted voxels: from 0 or 1, from which end, which axis first.

Microbleeds are dark. Of all conventions that a source leaves open, the one is taken under which its
points lie in the darkest spots, if no other comes near and chance does not reach it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from bids_cmb.imaging.volume import Volume

CORE_MM, RIM_MM, FAR_MM = 1.0, 4.0, 8.0  # sigma of the spot; the shell that it is held against
BESIDE_MM = (8.0, 16.0)  # how far from the points chance is asked
CHANCES = 12  # for each point
ABOVE = 3.0  # standard errors above chance
MARGIN, APART = 0.1, 2.0  # share of the best, and standard errors, that the next must stay behind


@dataclass(frozen=True)
class IndexConvention:
    """One way to count voxels.

    Attributes:
        base: Of the first voxel.
        flips: Axes of the image that are counted from the far end, of ``x``, ``y``, ``z``.
        order: Axes of the image that the three numbers stand for, in turn.
    """

    base: int = 0
    flips: str = ""
    order: str = "xyz"

    def index(self, points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Indices of the image from 0, (N, 3), of points as they were counted, (N, 3)."""
        index = np.empty_like(points, dtype=float)
        for place, axis in enumerate(self.order):
            index[:, "xyz".index(axis)] = points[:, place] - self.base
        for axis in self.flips:
            at = "xyz".index(axis)
            index[:, at] = shape[at] - 1 - index[:, at]
        return index

    def __str__(self) -> str:
        """The way in words."""
        flips = f"{', '.join(self.flips)} from the far end" if self.flips else "no axis flipped"
        return f"first voxel {self.base}, {flips}, order {', '.join(self.order)}"


@dataclass(frozen=True, eq=False)
class Darkness:
    """How dark the points of one scan lie.

    Attributes:
        points: For each way and point, share of the surround's signal that is lost; NaN outside
            the image. Shape (conventions, N).
        chance: The same for places beside the points, shape (conventions, M).
    """

    points: np.ndarray
    chance: np.ndarray


@dataclass(frozen=True)
class ConventionFit:
    """The convention that was inferred, and why.

    Attributes:
        convention: It.
        darkness: Mean over its points, share of the surround's signal.
        chance: The same beside them.
        next_best: Of the convention that comes next; None if there was no other.
        points: How many.
    """

    convention: IndexConvention
    darkness: float
    chance: float
    next_best: float | None
    points: int


def candidate_conventions(
    bases: Iterable[int], flips: Iterable[str], orders: Iterable[str]
) -> list[IndexConvention]:
    """Give every combination."""
    return [IndexConvention(*one) for one in product(bases, flips, orders)]


def darkness(image: Volume, points: np.ndarray, candidates: Sequence[IndexConvention]) -> Darkness:
    """How dark points lie under each way to count.

    Args:
        image: The scan.
        points: As they were counted, shape (N, 3), N at least 1.
        candidates: Ways to count.
    """
    rng = np.random.default_rng(len(points))  # chance, but the same for the same points
    aside = _aside(rng, len(points))
    found, chance = [], []
    for way in candidates:
        world = image.world(way.index(points, image.shape))
        found.append([_lost(image, place) for place in world])
        beside = (world[:, None] + aside).reshape(-1, 3)
        chance.append([_lost(image, place) for place in beside])
    return Darkness(np.array(found), np.array(chance))


def _aside(rng: np.random.Generator, count: int) -> np.ndarray:
    """Steps of a random length in random directions, mm, (count, CHANCES, 3)."""
    step = rng.standard_normal((count, CHANCES, 3))
    step /= np.linalg.norm(step, axis=-1, keepdims=True)
    return step * rng.uniform(*BESIDE_MM, (count, CHANCES, 1))


def _lost(image: Volume, place: np.ndarray) -> float:
    """Share of the surround's signal that a spot lacks; NaN outside, 0 where nothing surrounds."""
    at = image.index(place)
    if not ((at > -0.5) & (at < np.array(image.shape) - 0.5)).all():
        return np.nan
    more = FAR_MM / image.spacing
    box = tuple(
        slice(max(int(low), 0), min(int(high) + 1, size))
        for low, high, size in zip(
            np.ceil(at - more), np.floor(at + more), image.shape, strict=True
        )
    )
    index = np.stack(np.mgrid[box], axis=-1)
    away = np.linalg.norm(image.world(index.reshape(-1, 3)) - place, axis=1)
    data = image.data[box].reshape(-1)
    shell = data[(away >= RIM_MM) & (away <= FAR_MM)]
    around = float(np.median(shell)) if shell.size else 0.0
    if around <= 0:
        return 0.0
    weight = np.exp(-0.5 * (away / CORE_MM) ** 2)
    # Thick slices: the nearest voxel must weigh something, however far its centre is.
    total = weight.sum()
    core = float(weight @ data / total) if total > 1e-6 else float(data[away.argmin()])
    return 1 - core / around


def infer_convention(
    candidates: Sequence[IndexConvention], seen: Sequence[Darkness]
) -> ConventionFit:
    """The way to count that all points speak for.

    Args:
        candidates: Ways to count.
        seen: Of every scan with points, one at least.

    Raises:
        ValueError: If no way has all points in the image, none beats chance, or two come too near
            to each other.
    """
    points = np.concatenate([one.points for one in seen], axis=1)  # (conventions, N)
    chance = np.concatenate([one.chance for one in seen], axis=1)
    number = points.shape[1]
    inside = np.isfinite(points).all(axis=1)
    if not inside.any():
        out = int(np.isnan(points).sum(axis=1).min())
        raise ValueError(
            f"all points must lie in their images; {out} of {number} lie outside under "
            + ("every way to count." if len(candidates) > 1 else f"{candidates[0]}.")
        )
    means = np.where(inside, np.nan_to_num(points).mean(axis=1), -np.inf)
    order = np.argsort(-means, kind="stable")
    best = int(order[0])
    usual, spread = float(np.nanmean(chance[best])), float(np.nanstd(chance[best]))
    if means[best] < usual + ABOVE * spread / np.sqrt(number):
        raise ValueError(
            f"microbleeds are dark, and the {number} points are not: their spots lack "
            f"{100 * means[best]:.0f} % of the signal around them at best ({candidates[best]}), "
            f"places beside them {100 * usual:.0f} ± {100 * spread:.0f} %; --index-base, --flips "
            "and --order together say how voxels are counted."
        )
    others = [at for at in order[1:] if inside[at]]
    if not others:
        return ConventionFit(candidates[best], float(means[best]), usual, None, number)
    for other in others:
        _refuse_near(candidates, points, (best, int(other)), spread)
    return ConventionFit(
        candidates[best], float(means[best]), usual, float(means[others[0]]), number
    )


def _refuse_near(
    candidates: Sequence[IndexConvention], points: np.ndarray, pair: tuple[int, int], spread: float
) -> None:
    best, other = pair
    apart = points[best] - points[other]
    number = len(apart)
    by_chance = spread * np.sqrt(2 / number)
    error = apart.std(ddof=1) / np.sqrt(number) if number > 2 else by_chance
    if apart.mean() < max(MARGIN * points[best].mean(), APART * error):
        raise ValueError(
            f"the {number} points do not tell how voxels are counted: {candidates[best]} "
            f"({100 * points[best].mean():.0f} % of the signal lost) and {candidates[other]} "
            f"({100 * points[other].mean():.0f} %) come too near to each other; --index-base, "
            "--flips and --order say it."
        )
