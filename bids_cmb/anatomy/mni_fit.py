"""The affine from a scan to MNI space, through the structures' centroids.

A field of view that cuts a structure holds a part of it, whose centroid is another one: it is
compared with that of the part of the template's structure that the same field of view holds. What
the centroids leave open is drawn towards what heads are like.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bids_cmb.anatomy.template import CEREBRUM, StructureTemplate
from bids_cmb.imaging.volume import Volume

FLUID = 24  # around the brain
MIN_STRUCTURE_ML = 0.05  # of a structure whose centroid is believed
FACE_MM = 2.0  # from the end of the field of view: what lies there is cut
MAX_FACE_SHARE = 0.1  # of a structure's largest cross-section that may lie at that end
MIN_FOUND_STRUCTURES, MIN_WHOLE_STRUCTURES = 8, 4  # for an affine; the latter without a template
CENTROID_ERROR_MM = 2.5  # of each coordinate of a centroid after the fit, at least
FARTHER_OFF = {4: 1.6, 43: 1.6, 11: 1.3, 50: 1.3, 17: 1.3, 53: 1.3}  # times that error
MAX_WEIGHT_DISTANCE = 1.5 * np.sqrt(3)  # errors; of what lies farther off, less is believed
LEAST_SHARE = 0.02  # of a structure, for the error of its part's centroid
# Of seventeen whole heads: mean and standard deviation of the stretch to MNI space along x, y and
# z, how its axes go together, its shears, and the turns about x (nodding), y and z.
MEAN_STRETCH, STRETCH_SD, STRETCH_CORRELATION = (1.04, 1.06, 1.10), (0.045, 0.05, 0.03), 0.6
SHEAR_SD = 0.02
MEAN_TURN_DEG, TURN_SD_DEG = (-10.0, 0.0, 0.0), (8.0, 5.0, 5.0)
MOMENT_ERROR_MM = 1.5  # of the cerebrum's extent, in standard deviations of its places
SHARE_ERROR = 0.4  # of the share of a cut structure that the field of view holds, relative
SHARES_VARY = {4: 3, 43: 3, 11: 1.5, 50: 1.5, 17: 1.5, 53: 1.5, 13: 1.5, 52: 1.5}  # times that
NO_SHARES = (2, 41, 3, 42, 7, 46, 8, 47, 14, 15)  # too large, or too different between heads
MAX_STEPS, MAX_TRIALS, LEAST_GAIN = 20, 6, 0.02  # of the search
STEPS = np.array([1e-3] * 9 + [0.5] * 3)  # for derivatives: radians, mm
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclass(frozen=True, eq=False)
class MniFit:
    """An affine to MNI space.

    Attributes:
        to_mni: World mm to MNI mm, (4, 4).
        fit_mm: Weighted root mean square distance of the centroids after it.
        covariance: Of each coordinate, as a quadratic form in (x, y, z, 1), world mm, (4, 4).
    """

    to_mni: np.ndarray
    fit_mm: float
    covariance: np.ndarray


def compute_centroids(structures: Volume) -> dict[int, np.ndarray]:
    """Compute the centroid of every structure that is large enough, world mm, by code."""
    places = np.nonzero((structures.data > 0) & (structures.data != FLUID))
    codes = structures.data[places].astype(int)
    counts = np.bincount(codes)
    middles = np.stack([np.bincount(codes, axis) for axis in places], axis=1)
    enough = MIN_STRUCTURE_ML * 1000 / structures.voxel_volume
    return {
        int(code): structures.world(middles[code] / counts[code])
        for code in np.flatnonzero(counts >= max(enough, 1))
    }


def find_field_of_view(image: Volume) -> np.ndarray:
    """Find the box of a scan beyond which nothing was acquired or everything has one value.

    Returns:
        World mm to the box's own coordinates, in each of which it reaches from 0 to 1, (4, 4).
    """
    varied = [
        np.flatnonzero(np.ptp(image.data, axis=tuple({0, 1, 2} - {axis})) > 0) for axis in range(3)
    ]
    if not all(len(planes) for planes in varied):
        varied = [np.arange(size) for size in image.shape]
    low = np.array([planes[0] - 0.5 for planes in varied])
    high = np.array([planes[-1] + 0.5 for planes in varied])
    box = image.affine @ _join_affine(np.diag(high - low), low)
    return np.linalg.inv(box)


def _find_grid_box(structures: Volume) -> np.ndarray:
    return find_field_of_view(Volume(np.broadcast_to(0, structures.shape), structures.affine))


def list_cut_structures(structures: Volume, field_of_view: np.ndarray | None = None) -> set[int]:
    """List the structures that the field of view cuts, by code.

    One is cut if it has at an end of the field of view a cross-section of more than
    `MAX_FACE_SHARE` of its largest one that way.

    Args:
        structures: FreeSurfer codes.
        field_of_view: From `find_field_of_view`; that of the grid without.
    """
    if field_of_view is None:
        field_of_view = _find_grid_box(structures)
    places = np.argwhere(structures.data > 0)
    codes = structures.data[tuple(places.T)].astype(int)
    along = Volume(structures.data, field_of_view @ structures.affine).world(places)
    size = 1 / np.linalg.norm(field_of_view[:3, :3], axis=1)  # mm
    cut: set[int] = set()
    for axis in range(3):
        slab = max(FACE_MM, float(structures.spacing.max()))
        layer = np.floor(along[:, axis] * size[axis] / slab).astype(int)
        last = int(np.ceil(size[axis] / slab - 1e-6)) - 1
        layer = np.clip(layer, 0, max(last, 0))
        from_end = np.clip(np.floor((1 - along[:, axis]) * size[axis] / slab), 0, None)
        width = int(layer.max(initial=0)) + 1
        count = np.bincount(codes * width + layer, minlength=(codes.max(initial=0) + 1) * width)
        largest = count.reshape(-1, width).max(axis=1)
        for at_end in (layer == 0, from_end == 0):
            ends = np.bincount(codes[at_end], minlength=len(largest))
            cut |= set(np.flatnonzero(ends > MAX_FACE_SHARE * np.maximum(largest, 1)).tolist())
    return cut


def fit_to_mni(
    structures: Volume,
    centroids: Mapping,
    field_of_view: np.ndarray | None = None,
    template: StructureTemplate | None = None,
) -> MniFit | None:
    """Fit the affine that brings the structures' centroids nearest to those of the template.

    The likeliest affine, given the centroids (what lies far off has less weight, so that one
    structure that was missed does not turn the head), the extent of the cerebrum, the shares that
    are left of the cut structures, and what heads are like: their stretch, shears and turns have
    the means and spreads of `MEAN_STRETCH` and the constants below it.

    Args:
        structures: FreeSurfer codes.
        centroids: Code → mm in MNI152NLin2009cAsym.
        field_of_view: From `find_field_of_view`; that of the grid without.
        template: What of it the field of view holds; without, cut structures are left out and the
            extent of the cerebrum takes no part.

    Returns:
        None with fewer than `MIN_FOUND_STRUCTURES`, or without a template fewer than
        `MIN_WHOLE_STRUCTURES` whole.
    """
    here = compute_centroids(structures)
    known = set(here) if template is None else set(template.codes.tolist())
    shared = sorted(code for code in here if str(code) in centroids and code in known)
    if len(shared) < MIN_FOUND_STRUCTURES:
        return None
    if field_of_view is None:
        field_of_view = _find_grid_box(structures)
    cut = list_cut_structures(structures, field_of_view)
    if template is None:
        shared = [code for code in shared if code not in cut]
        if len(shared) < MIN_WHOLE_STRUCTURES:
            return None
    evidence = _collect_evidence(structures, here, shared, cut, centroids, field_of_view, template)
    return _search(evidence)


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What the fit knows of a scan: M structures.

    Attributes:
        source: Centroids, world mm, (M, 3).
        middle: Of those that count, world mm, (3,).
        target: Centroids of whole structures in MNI space, mm, (M, 3).
        error: Of each coordinate, mm, (M,).
        cut: Whether the field of view cuts them, bool, (M,).
        shares: Of the structure in a mean head that is there, (M,).
        share_error: Relative, (M,); infinite where the share says nothing.
        moments: Of the cerebrum, mm² in world axes, (3, 3); None if unknown.
        measure: From an affine: volumes, centroids and moments of the template's parts.
        whole: What ``measure`` gives without a field of view.
    """

    source: np.ndarray
    middle: np.ndarray
    target: np.ndarray
    error: np.ndarray
    cut: np.ndarray
    shares: np.ndarray
    share_error: np.ndarray
    moments: np.ndarray | None
    measure: Callable | None
    whole: tuple[np.ndarray, np.ndarray, np.ndarray] | None

    def compare(
        self, to_mni: np.ndarray, stretch: np.ndarray, turn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare with the template under an affine.

        Args:
            to_mni: World mm to MNI mm, (4, 4).
            stretch: Its symmetric part: diagonal and shears, (6,).
            turn: Its rotation, (3, 3).

        Returns:
            Distances of the centroids, mm, (M, 3), and all other differences in standard errors.
        """
        target, others = self.target, [_judge_shape(stretch), _judge_turn(turn)]
        if self.whole is not None:
            parts = self.measure(to_mni) if self.cut.any() else self.whole
            target = target + parts[1] - self.whole[1]
            share = parts[0] / self.whole[0]
            apart = (self.shares - share) / (self.share_error * (share + 0.1))
            others.append(np.where(self.cut, apart, 0))
            if self.moments is not None:
                wide = np.sqrt(np.diag(self.whole[2]))
                seen = to_mni[:3, :3] @ self.moments @ to_mni[:3, :3].T - parts[2]
                mm = [seen[i, j] / (2 * np.sqrt(wide[i] * wide[j])) for i, j in PAIRS]
                others.append(np.array(mm) / MOMENT_ERROR_MM)
        return self.source @ to_mni[:3, :3].T + to_mni[:3, 3] - target, np.concatenate(others)


def _collect_evidence(
    structures: Volume,
    here: Mapping[int, np.ndarray],
    codes: Sequence[int],
    cut: set[int],
    centroids: Mapping,
    field_of_view: np.ndarray,
    template: StructureTemplate | None,
) -> _Evidence:
    source = np.array([here[code] for code in codes])
    target = np.array([centroids[str(code)] for code in codes], float)
    is_cut = np.array([code in cut for code in codes])
    middle = np.average(source, axis=0, weights=np.where(is_cut, 0.1, 1.0))
    error = CENTROID_ERROR_MM * np.array([FARTHER_OFF.get(code, 1.0) for code in codes])
    shares, share_error = np.ones(len(codes)), np.full(len(codes), np.inf)
    if template is None:
        return _Evidence(source, middle, target, error, is_cut, shares, share_error, None, None,
                         None)  # fmt: skip
    size = 1 / np.linalg.norm(field_of_view[:3, :3], axis=1)

    def measure(to_mni: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return template.measure_parts(field_of_view @ np.linalg.inv(to_mni), size, codes)

    everywhere = _join_affine(np.eye(3) / 1e4, np.full(3, 0.5))
    whole = template.measure_parts(everywhere, np.full(3, 1e4), codes)
    counts = np.bincount(structures.data.ravel(), minlength=max(codes) + 1)[codes]
    shares = counts * structures.voxel_volume * np.prod(MEAN_STRETCH) / whole[0]
    kept = np.clip(shares, LEAST_SHARE, 1)
    error = np.where(is_cut, error / np.sqrt(kept), error)
    varying = [np.inf if code in NO_SHARES else SHARES_VARY.get(code, 1) for code in codes]
    moments = None
    if {2, 41, 3, 42} <= set(codes):
        places = np.argwhere(np.isin(structures.data, CEREBRUM))
        moments = np.cov(structures.world(places[:: max(1, len(places) // 20000)]).T)
    return _Evidence(source, middle, target, error, is_cut, shares,
                     SHARE_ERROR * np.array(varying), moments, measure, whole)  # fmt: skip


def _search(evidence: _Evidence) -> MniFit:
    """Find the likeliest affine (Levenberg and Marquardt's steps) and its covariance."""
    weight = np.where(evidence.cut, 0.1, 1.0)
    there = np.average(evidence.target, axis=0, weights=weight)
    similar = _fit_similarity(evidence.source - evidence.middle, evidence.target - there, weight)
    left, _, right = np.linalg.svd(similar)
    turn, form = left @ right, np.array([*MEAN_STRETCH, 0, 0, 0, *there])

    def compare(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turned, moved = _turn(step[:3]) @ turn, form + step[3:]
        return evidence.compare(_compose(turned, moved, evidence.middle), moved[:6], turned)

    now, damping = compare(np.zeros(12)), 1e-2
    cost = _sum_cost(*now, evidence.error)
    for _ in range(MAX_STEPS):
        normal, slope, weight = _linearise(compare, now, evidence.error)
        for _ in range(MAX_TRIALS):
            step = -np.linalg.solve(normal + damping * np.diag(np.diag(normal)), slope)
            after = compare(step)
            gain = cost - _sum_cost(*after, evidence.error)
            if gain > 0:
                break
            damping *= 5
        if gain <= 0:
            break
        turn, form, now = _turn(step[:3]) @ turn, form + step[3:], after
        cost, damping = cost - gain, max(damping / 5, 1e-4)
        if gain < LEAST_GAIN:
            break
    normal, _, weight = _linearise(compare, now, evidence.error)
    relative = np.linalg.norm(now[0], axis=1) ** 2 * weight * CENTROID_ERROR_MM**2
    share = weight * CENTROID_ERROR_MM**2
    fit_mm = float(np.sqrt(relative.sum() / share.sum()))
    spread = np.linalg.inv(normal) * max(1.0, fit_mm / CENTROID_ERROR_MM / np.sqrt(3)) ** 2
    covariance = np.zeros((4, 4))
    slopes = []
    for index, size in enumerate(STEPS):
        step = np.zeros(12)
        step[index] = size
        both = [
            _compose(_turn(sign * step[:3]) @ turn, form + sign * step[3:], evidence.middle)
            for sign in (1, -1)
        ]
        slopes.append((both[0] - both[1])[:3] / (2 * size))
    for axis in range(3):
        along = np.array([slope[axis] for slope in slopes])
        covariance += along.T @ spread @ along / 3
    return MniFit(_compose(turn, form, evidence.middle), fit_mm, covariance)


def _linearise(
    compare: Callable, now: tuple[np.ndarray, np.ndarray], error: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linearise a comparison: normal matrix (12, 12), slope (12,) and weights of centroids."""
    distance = np.linalg.norm(now[0], axis=1) / error
    weight = 1 / np.maximum(distance / MAX_WEIGHT_DISTANCE, 1) / error**2
    root = np.sqrt(weight)[:, None]
    flat = np.concatenate([(now[0] * root).ravel(), now[1]])
    columns = []
    for index, size in enumerate(STEPS):
        step = np.zeros(12)
        step[index] = size
        apart, others = compare(step)
        columns.append((np.concatenate([(apart * root).ravel(), others]) - flat) / size)
    slopes = np.array(columns)
    return slopes @ slopes.T, slopes @ flat, weight


def _sum_cost(apart: np.ndarray, others: np.ndarray, error: np.ndarray) -> float:
    """Sum up squares, of far centroids their distance (Huber's cost)."""
    distance, far = np.linalg.norm(apart, axis=1) / error, MAX_WEIGHT_DISTANCE
    costs = np.where(distance < far, distance**2, 2 * far * distance - far**2)
    return float(costs.sum() + others @ others)


def _judge_shape(stretch: np.ndarray) -> np.ndarray:
    """Express stretch and shears (6,) as independent numbers of standard deviation 1."""
    spread = np.outer(STRETCH_SD, STRETCH_SD)
    spread = spread * (STRETCH_CORRELATION + (1 - STRETCH_CORRELATION) * np.eye(3))
    apart = np.linalg.solve(np.linalg.cholesky(spread), stretch[:3] - np.array(MEAN_STRETCH))
    return np.concatenate([apart, stretch[3:] / SHEAR_SD])


def _judge_turn(turn: np.ndarray) -> np.ndarray:
    """Express how a head lies (3, 3) as turns about x, y and z in standard deviations."""
    away = turn @ _turn(np.radians(MEAN_TURN_DEG)).T
    angle = np.arccos(np.clip((np.trace(away) - 1) / 2, -1, 1))
    axis = np.array([away[2, 1] - away[1, 2], away[0, 2] - away[2, 0], away[1, 0] - away[0, 1]])
    return axis / 2 / max(float(np.sinc(angle / np.pi)), 0.1) / np.radians(TURN_SD_DEG)


def _turn(vector: np.ndarray) -> np.ndarray:
    """Turn about a vector by its length in radians, (3, 3) (Rodrigues)."""
    x, y, z = vector
    angle = float(np.linalg.norm(vector))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    half = np.sinc(angle / 2 / np.pi) ** 2 / 2
    return np.eye(3) + np.sinc(angle / np.pi) * cross + half * cross @ cross


def _compose(turn: np.ndarray, form: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Compose an affine: turn (3, 3), then stretch, shears and shift (9,), about a middle."""
    a, b, c, ab, ac, bc = form[:6]
    linear = np.array([[a, ab, ac], [ab, b, bc], [ac, bc, c]]) @ turn
    return _join_affine(linear, form[6:] - linear @ middle)


def _join_affine(linear: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Join a matrix (3, 3) and a shift (3,) to an affine (4, 4)."""
    return np.vstack([np.column_stack([linear, shift]), [0, 0, 0, 1]])


def _fit_similarity(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Fit turn and scale from centred points to centred points, (3, 3) (Umeyama 1991)."""
    u, size, v = np.linalg.svd((y * weight[:, None]).T @ x)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ v))])
    scale = (size * signs).sum() / np.average((x**2).sum(axis=1), weights=weight) / weight.sum()
    return scale * (u * signs) @ v
