"""Infer the voxel index convention of points: base 0 or 1, flipped axes, order of the axes.

Microbleeds are dark. Of the possible conventions, the one is chosen under which the points lie in
the darkest spots, if it is clearly better than the next one and than chance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from bids_cmb.imaging.volume import Volume

CORE_SIGMA_MM = 1.0  # of the Gaussian weight of a spot
SHELL_RANGE_MM = (4.0, 8.0)  # from the position, of the surround that a spot is compared with
CONTROL_RANGE_MM = (8.0, 16.0)  # from a point, of the positions that give the darkness by chance
CONTROLS_PER_POINT = 12
MIN_ERRORS_ABOVE_CHANCE = 3.0  # standard errors
MIN_MARGIN = 0.1  # share of the best darkness by which the next must be less,
MIN_ERRORS_APART = 2.0  # and by so many standard errors


@dataclass(frozen=True)
class IndexConvention:
    """A convention of voxel indices.

    Attributes:
        base: Of the first voxel.
        flips: Axes of the image that are counted from the far end, of ``x``, ``y``, ``z``.
        order: Axes of the image that the three numbers stand for, in turn.
    """

    base: int = 0
    flips: str = ""
    order: str = "xyz"

    def index(self, points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Convert points of this convention, (N, 3), to indices of the image from 0, (N, 3)."""
        index = np.empty_like(points, dtype=float)
        for place, axis in enumerate(self.order):
            index[:, "xyz".index(axis)] = points[:, place] - self.base
        for axis in self.flips:
            number = "xyz".index(axis)
            index[:, number] = shape[number] - 1 - index[:, number]
        return index

    def __str__(self) -> str:
        """Describe the convention."""
        flips = f"{', '.join(self.flips)} from the far end" if self.flips else "no axis flipped"
        return f"first voxel {self.base}, {flips}, order {', '.join(self.order)}"


@dataclass(frozen=True, eq=False)
class Darkness:
    """The darkness at the points of one scan.

    Attributes:
        points: For each convention and point, the share of the surround's signal that is lost; NaN
            outside the image. Shape (conventions, N).
        chance: The same for positions beside the points, shape (conventions, M).
    """

    points: np.ndarray
    chance: np.ndarray


@dataclass(frozen=True)
class ConventionFit:
    """An inferred convention and its fit.

    Attributes:
        convention: The convention.
        darkness: Mean over its points, share of the surround's signal.
        chance: The same beside them.
        next_best: Darkness of the next best convention; None if there was no other.
        points: Number of points.
    """

    convention: IndexConvention
    darkness: float
    chance: float
    next_best: float | None
    points: int


def candidate_conventions(
    bases: Iterable[int], flips: Iterable[str], orders: Iterable[str]
) -> list[IndexConvention]:
    """List every combination of bases, flips and orders."""
    return [IndexConvention(*combination) for combination in product(bases, flips, orders)]


def measure_darkness(
    image: Volume, points: np.ndarray, candidates: Sequence[IndexConvention]
) -> Darkness:
    """Measure the darkness at points under each convention.

    Args:
        image: The scan.
        points: As the source gives them, shape (N, 3), N at least 1.
        candidates: Possible conventions.
    """
    rng = np.random.default_rng(len(points))  # the same for the same points
    offsets = _draw_offsets(rng, len(points))
    losses, control_losses = [], []
    for convention in candidates:
        world = image.world(convention.index(points, image.shape))
        losses.append([_measure_signal_loss(image, position) for position in world])
        controls = (world[:, None] + offsets).reshape(-1, 3)
        control_losses.append([_measure_signal_loss(image, position) for position in controls])
    return Darkness(np.array(losses), np.array(control_losses))


def _draw_offsets(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw offsets of random length and direction, mm, (count, `CONTROLS_PER_POINT`, 3)."""
    step = rng.standard_normal((count, CONTROLS_PER_POINT, 3))
    step /= np.linalg.norm(step, axis=-1, keepdims=True)
    return step * rng.uniform(*CONTROL_RANGE_MM, (count, CONTROLS_PER_POINT, 1))


def _measure_signal_loss(image: Volume, position: np.ndarray) -> float:
    """Measure the share of the surround's signal that is lost; NaN outside, 0 without surround."""
    center = image.index(position)
    if not ((center > -0.5) & (center < np.array(image.shape) - 0.5)).all():
        return np.nan
    reach = SHELL_RANGE_MM[1] / image.spacing
    box = tuple(
        slice(max(int(low), 0), min(int(high) + 1, size))
        for low, high, size in zip(
            np.ceil(center - reach), np.floor(center + reach), image.shape, strict=True
        )
    )
    index = np.stack(np.mgrid[box], axis=-1)
    distances = np.linalg.norm(image.world(index.reshape(-1, 3)) - position, axis=1)
    data = image.data[box].reshape(-1)
    shell = data[(distances >= SHELL_RANGE_MM[0]) & (distances <= SHELL_RANGE_MM[1])]
    around = float(np.median(shell)) if shell.size else 0.0
    if around <= 0:
        return 0.0
    weight = np.exp(-0.5 * (distances / CORE_SIGMA_MM) ** 2)
    # In thick slices, every voxel may be too far to have a weight: then the nearest counts.
    total = weight.sum()
    core = float(weight @ data / total) if total > 1e-6 else float(data[distances.argmin()])
    return 1 - core / around


def infer_convention(
    candidates: Sequence[IndexConvention], darknesses: Sequence[Darkness]
) -> ConventionFit:
    """Infer the convention from the darkness at all points.

    Args:
        candidates: Possible conventions.
        darknesses: Of every scan with points, at least one.

    Raises:
        ValueError: If under no convention all points lie in the image, none is better than chance,
            or two are too similar.
    """
    points = np.concatenate(
        [darkness.points for darkness in darknesses], axis=1
    )  # (conventions, N)
    chance = np.concatenate([darkness.chance for darkness in darknesses], axis=1)
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
    if means[best] < usual + MIN_ERRORS_ABOVE_CHANCE * spread / np.sqrt(number):
        raise ValueError(
            f"microbleeds are dark, and the {number} points are not: their spots lack "
            f"{100 * means[best]:.0f} % of the signal around them at best ({candidates[best]}), "
            f"places beside them {100 * usual:.0f} ± {100 * spread:.0f} %; --index-base, --flips "
            "and --order together say how voxels are counted."
        )
    others = [rank for rank in order[1:] if inside[rank]]
    if not others:
        return ConventionFit(candidates[best], float(means[best]), usual, None, number)
    for other in others:
        _check_distinct(candidates, points, (best, int(other)), spread)
    return ConventionFit(
        candidates[best], float(means[best]), usual, float(means[others[0]]), number
    )


def describe_fit(fit: ConventionFit) -> str:
    """Describe why a convention was inferred."""
    explanation = (
        f"the {fit.points} points lack {100 * fit.darkness:.0f} % of the signal around them, "
        f"places beside them {100 * fit.chance:.0f} %"
    )
    if fit.next_best is None:
        return explanation
    return f"{explanation}, the next way to count {100 * fit.next_best:.0f} %"


def _check_distinct(
    candidates: Sequence[IndexConvention], points: np.ndarray, pair: tuple[int, int], spread: float
) -> None:
    best, other = pair
    apart = points[best] - points[other]
    number = len(apart)
    by_chance = spread * np.sqrt(2 / number)
    error = apart.std(ddof=1) / np.sqrt(number) if number > 2 else by_chance
    if apart.mean() < max(MIN_MARGIN * points[best].mean(), MIN_ERRORS_APART * error):
        raise ValueError(
            f"the {number} points do not tell how voxels are counted: {candidates[best]} "
            f"({100 * points[best].mean():.0f} % of the signal lost) and {candidates[other]} "
            f"({100 * points[other].mean():.0f} %) come too near to each other; --index-base, "
            "--flips and --order say it."
        )
