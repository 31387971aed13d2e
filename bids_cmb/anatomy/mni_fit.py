"""The affine from a scan to MNI space.

The structures of the scan are laid over those of a mean head, voxel by voxel, as far as the field
of view reaches: what it cuts away takes no part, so nothing needs to find out what is cut.
What a part of a head leaves open is drawn towards what heads are like.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.optimize import OptimizeResult, least_squares

from bids_cmb.anatomy.mni_template import (
    GROUPS,
    MniTemplate,
    compose_linear,
    index_groups,
    index_sides,
)
from bids_cmb.imaging.cropping import crop
from bids_cmb.imaging.volume import Volume, map_points

MAX_MNI_RMS_MM = 6.0  # beyond it, MNI positions are a guess
MAX_MNI_UNCERTAINTY_MM = 5.0  # beyond it, the MNI position of a lesion is a guess
MIN_STRUCTURE_ML = 0.05  # of a structure whose centroid is believed
MIN_FOUND_STRUCTURES = 4  # for an affine
BLOCK_MM = 8.0  # over which the scan's structures are averaged
MARGIN_MM = 10.0  # around the brain, where the template must have none
INFORMATION_PER_ML = 0.8  # one over the squared error of a share, for each ml
# Root mean square distance of a head's structures from the template's, 3 mm, and of cerebral places
# by what the network segments from where they lie by true structures, 2.5 mm.
BEYOND_AFFINE_MM = 3.9
MIN_TURN_SD = np.radians(5.0)  # patients lie less straight than the heads of the template
MIN_STRETCH_SD = 0.045  # nor are twelve heads enough to tell how much heads differ in size
SHIFT_MM = 10.0  # unit of the search
SMALL_STEP = 1e-4
START_Y_MM, START_HEIGHTS_MM = -18.0, range(-15, 61, 15)  # of the brain's middle, in MNI space
START_NODS = (-1.5, 0.0, 1.5)  # standard deviations
THIN, TRIED_STARTS = 6, 3


@dataclass(frozen=True, eq=False)
class MniFit:
    """An affine to MNI space.

    Attributes:
        to_mni: World mm to MNI mm, (4, 4).
        fit_mm: Root mean square distance of the structures' centroids after it.
        covariance: Of each coordinate, as a quadratic form in (x, y, z, 1), world mm, (4, 4).
    """

    to_mni: np.ndarray
    fit_mm: float
    covariance: np.ndarray


def find_field_of_view(image: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Find the box of a scan beyond which nothing was acquired or everything has one value.

    Returns:
        Its first voxel along each axis, and the one after its last, each (3,).
    """
    varied = [
        np.flatnonzero(np.ptp(image.data, axis=tuple({0, 1, 2} - {axis})) > 0) for axis in range(3)
    ]
    if not all(len(planes) for planes in varied):
        return np.zeros(3, int), np.array(image.shape)
    return tuple(np.transpose([(planes[0], planes[-1] + 1) for planes in varied]))


def fit_to_mni(
    structures: Volume,
    template: MniTemplate,
    field_of_view: tuple[np.ndarray, np.ndarray] | None = None,
) -> MniFit | None:
    """Fit the affine that lays the structures over those of the template.

    The likeliest affine (least squares), given what shares of blocks of `BLOCK_MM` the structures
    fill, and the forms of the template's heads. Neighbouring blocks err together; so each counts
    only as much as `INFORMATION_PER_ML` says, which was set so that heads that are cut move as far
    as their covariance says.

    Args:
        structures: FreeSurfer codes.
        template: From `load_template`.
        field_of_view: From `find_field_of_view`; the whole grid without.

    Returns:
        None with fewer than `MIN_FOUND_STRUCTURES`.
    """
    if field_of_view is not None:
        structures = crop(structures, *field_of_view)
    if _count_structures(structures) < MIN_FOUND_STRUCTURES:
        return None
    places, shares, block_ml = _average_blocks(structures)
    middle = places[shares[:, :-1].sum(axis=1) > 0].mean(axis=0)
    weight = np.sqrt(INFORMATION_PER_ML * block_ml) * _weight_groups(template)
    overlay = _Overlay(template, places, shares, weight, middle)
    solution = overlay.search(overlay.find_start())
    to_mni, slopes = overlay.compose(solution.x), overlay.derive_affine(solution.x)
    spread = np.linalg.inv(solution.jac.T @ solution.jac)
    covariance = np.einsum("kai,kl,laj->ij", slopes, spread, slopes) / 3
    fit_mm = _measure_misfit(map_points(to_mni, places), shares, template, block_ml)
    return MniFit(to_mni, fit_mm, covariance)


@dataclass(frozen=True, eq=False)
class _Overlay:
    """The structures of a scan over those of a template.

    The affine is searched in twelve steps: the form in standard deviations, and where the middle of
    the brain comes to lie.

    Attributes:
        template: As for `fit_to_mni`.
        places: Middles of blocks, world mm, (N, 3).
        shares: Of the scan's structures in them, as `MniTemplate.shares`, (N, groups + 1).
        weight: Of the groups, (groups + 1,).
        middle: Of the brain, world mm, (3,).
    """

    template: MniTemplate
    places: np.ndarray
    shares: np.ndarray
    weight: np.ndarray
    middle: np.ndarray

    def compose(self, steps: np.ndarray) -> np.ndarray:
        """Compose the affine, (…, 4, 4), of steps (…, 12)."""
        spread = self.template.form_sd.copy()
        spread[:3] = np.maximum(spread[:3], MIN_TURN_SD)
        spread[3:6] = np.maximum(spread[3:6], MIN_STRETCH_SD)
        affine = np.zeros((*steps.shape[:-1], 4, 4))
        linear = compose_linear(self.template.form + steps[..., :9] * spread)
        affine[..., :3, :3] = linear
        affine[..., :3, 3] = SHIFT_MM * steps[..., 9:] - linear @ self.middle
        affine[..., 3, 3] = 1
        return affine

    def derive_affine(self, steps: np.ndarray) -> np.ndarray:
        """Derive the upper rows of the affine by each step, (12, 3, 4)."""
        change = SMALL_STEP * np.eye(12)
        both = self.compose(steps + change) - self.compose(steps - change)
        return both[:, :3] / (2 * SMALL_STEP)

    def compare(self, steps: np.ndarray) -> np.ndarray:
        """Compare the shares with the template's, and the form with that of heads."""
        expected = self.template.sample(map_points(self.compose(steps), self.places))
        return np.concatenate([((expected - self.shares) * self.weight).ravel(), steps[:9]])

    def derive(self, steps: np.ndarray) -> np.ndarray:
        """Derive what `compare` gives by each step, (…, 12)."""
        at_home, sample = map_points(self.compose(steps), self.places), self.template.sample
        slopes = [(sample(at_home + mm) - sample(at_home - mm)) / 2 for mm in np.eye(3)]
        known = np.column_stack([self.places, np.ones(len(self.places))])
        moves = known @ np.swapaxes(self.derive_affine(steps), 1, 2)
        changes = np.einsum("anc,kna->nck", slopes * self.weight, moves)
        return np.concatenate([changes.reshape(-1, 12), np.eye(9, 12)])

    def search(self, start: np.ndarray) -> OptimizeResult:
        """Search the least squares from a start."""
        return least_squares(self.compare, start, self.derive, method="lm", ftol=1e-4, xtol=1e-3)

    def find_start(self) -> np.ndarray:
        """Find where to start: the best of a few searches among every `THIN`-th block."""
        thin = replace(self, places=self.places[::THIN], shares=self.shares[::THIN],
                       weight=self.weight * np.sqrt(THIN))  # fmt: skip
        starts = [
            np.array([nod, *np.zeros(8), *np.divide([0, START_Y_MM, height], SHIFT_MM)])
            for nod in START_NODS
            for height in START_HEIGHTS_MM
        ]
        starts.sort(key=lambda steps: np.sum(thin.compare(steps) ** 2))
        return min(map(thin.search, starts[:TRIED_STARTS]), key=lambda solution: solution.cost).x


def _count_structures(structures: Volume) -> int:
    """Count the codes of `GROUPS` that are large enough."""
    counts = np.bincount(structures.data.ravel())
    large = np.flatnonzero(counts * structures.voxel_volume >= MIN_STRUCTURE_ML * 1000)
    return int((index_groups(large) < len(GROUPS)).sum())


def _average_blocks(structures: Volume) -> tuple[np.ndarray, np.ndarray, float]:
    """Average the structures over blocks of voxels, in and near the brain.

    Returns:
        places: Middles of the blocks, world mm, (N, 3).
        shares: As `MniTemplate.shares`, (N, groups + 1).
        block_ml: Volume of a block.
    """
    step = np.maximum(1, np.rint(BLOCK_MM / structures.spacing)).astype(int)
    step = np.minimum(step, structures.shape)
    count = np.array(structures.shape) // step
    codes = structures.data[tuple(map(slice, count * step))]
    codes = codes.reshape(np.stack([count, step], axis=1).ravel())
    groups = index_groups(codes)
    members = [groups == group for group in range(len(GROUPS))]
    shares = np.stack(
        [part.mean(axis=(1, 3, 5)) for part in (*members, index_sides(codes))], axis=-1
    )
    empty = shares[..., :-1].sum(axis=-1) == 0
    near = ndimage.distance_transform_edt(empty, step * structures.spacing) <= MARGIN_MM
    places = structures.world(np.argwhere(near) * step + (step - 1) / 2)
    return places, shares[near], structures.voxel_volume * float(np.prod(step)) / 1000


def _weight_groups(template: MniTemplate) -> np.ndarray:
    """Weight the groups, (groups + 1,): of small ones a ml counts more, yet all of it less."""
    volumes = np.maximum(template.shares[:-1].sum(axis=(1, 2, 3)), 1)
    return np.append((volumes.max() / volumes) ** 0.25, 1.0)


def _measure_misfit(
    at_home: np.ndarray, shares: np.ndarray, template: MniTemplate, block_ml: float
) -> float:
    """Measure the root mean square distance of centroids from the template's, left and right.

    Both are those of what the field of view holds.

    Args:
        at_home: Middles of the blocks in MNI space, mm, (N, 3).
        shares: Of the scan's structures, (N, groups + 1).
        template: As for `fit_to_mni`.
        block_ml: Volume of a block.
    """
    expected, apart = template.sample(at_home)[:, :-1], []
    for side in (at_home[:, 0] < 0, at_home[:, 0] >= 0):
        masses = [part[side].sum(axis=0) for part in (shares[:, :-1], expected)]
        known = np.minimum(*masses) * block_ml > MIN_STRUCTURE_ML
        here, there = (
            part[side][:, known].T @ at_home[side] / mass[known, None]
            for part, mass in zip((shares[:, :-1], expected), masses, strict=True)
        )
        apart.extend(np.linalg.norm(here - there, axis=1))
    return float(np.sqrt(np.mean(np.square(apart))))


def estimate_mni_uncertainty(
    covariance: np.ndarray, fit_mm: float, centre: Sequence[float]
) -> float:
    """Estimate the root mean square error of the MNI position of a place, mm.

    Two parts: what the scan leaves open of the affine, which grows with the distance from what the
    field of view holds, and `BEYOND_AFFINE_MM`, or the misfit where that is larger.

    Args:
        covariance: As `MniFit.covariance`.
        fit_mm: As `MniFit.fit_mm`.
        centre: World mm, (3,).
    """
    place = np.array([*centre, 1.0])
    variance = 3 * max(float(place @ covariance @ place), 0.0)
    return float(np.sqrt(variance + max(fit_mm, BEYOND_AFFINE_MM) ** 2))


def format_itk_affine(to_mni: np.ndarray) -> str:
    """Format a transform for ITK, ANTs and nitransforms, to bring the scan onto the template.

    ITK maps points of the template to points of the scan, both LPS, so this is the inverse of
    ``to_mni`` between two changes of sign.

    Args:
        to_mni: World mm of the scan to mm of the template, RAS+, (4, 4).
    """
    signs = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix = signs @ np.linalg.inv(to_mni) @ signs
    numbers = " ".join(f"{x:.9g}" for x in [*matrix[:3, :3].ravel(), *matrix[:3, 3]])
    return "\n".join([
        "#Insight Transform File V1.0", "#Transform 0", "Transform: AffineTransform_double_3_3",
        f"Parameters: {numbers}", "FixedParameters: 0 0 0", "",
    ])  # fmt: skip
