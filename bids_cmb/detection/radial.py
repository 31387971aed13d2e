"""The detector `radial`: dark round spots, each measured and scored, without a network.

Peaks of radial symmetry (`detection.radial_symmetry`) are grown to spots and measured; a product of
logistic curves over the measures gives each spot its probability. All lengths are in mm and all
intensities in units of the brain's median.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.special import expit

from bids_cmb.detection.radial_symmetry import (
    BrainStack,
    compute_stack_symmetry,
    make_linear_weights,
    make_stack,
)
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import MAX_DIAMETER_MM, keep_connected, measure_elongation
from bids_cmb.networks.model_cards import load_card

PEAK_REACH_MM = 1.5  # around a peak, in which no higher one may be
SEED_REACH_MM = 1.2  # around a peak, in which its darkest voxel is looked for
RING_MM = (2.2, 4.5)  # inner and outer radius of the surround
MIN_RING_PIXELS = 8
MIN_CONTRAST = 0.1  # share of the surround lost: less is noise and mottle, not worth measuring
PATCH_MM = 6.0  # to each side in plane
PATCH_THROUGH_PLANE_MM = 8.0  # to each side across slices, and two slices at least
TAIL_SHARE = 0.35  # of its depth that a spot keeps in the next slice,
TEXTURE_SHARE = 0.2  # and of the surround, below which grey and white matter differ too
SHAPE_PIXEL_MM = 0.5  # shapes are measured on pixels of this size or smaller


@dataclass(frozen=True, eq=False)
class Candidate:
    """A dark spot and its measures.

    Attributes:
        index: Its darkest voxel in the scan.
        voxels: The spot, grown to half its depth, at most 10 mm wide, (N, 3), as ``index``.
        symmetry: Radial symmetry; comparable within one scan only.
        contrast: Its depth below the surround, as a share of the surround, 0 to 1.
        diameter: mm, of the disc with the area at half depth, in its slice.
        elongation: Long over short axis at half depth, in its slice; 1 is round.
        overrun: mm by which it extends through slices further than a ball of its diameter would.
        depth: mm below the brain's surface.
        ring_low: 15th percentile of the surround, in brain medians.
        ring_high: 85th percentile of the surround, in brain medians; high beside bright fluid.
    """

    index: tuple[int, int, int]
    voxels: np.ndarray
    symmetry: float
    contrast: float
    diameter: float
    elongation: float
    overrun: float
    depth: float
    ring_low: float
    ring_high: float


# --- The detector ---------------------------------------------------------------------------------


def run_radial(image: Volume, brain: Volume, parameters: Mapping | None = None) -> Volume:
    """Predict the probability of microbleed by the measures of dark round spots.

    Args:
        image: T2*-weighted magnitude or SWI, any positive scale.
        brain: True inside the brain, on the grid of ``image``.
        parameters: Of the card: ``gates``. Those of the package's card without.

    Returns:
        Probability, 0 to 1, float32, on the grid of ``image``; 0 outside the brain.

    Raises:
        ValueError: If ``brain`` is empty or not on the grid of ``image``, or if the median of the
            image inside it is not above 0.
    """
    gates = (parameters or load_card("radial")["parameters"])["gates"]
    data = np.zeros(image.shape, np.float32)
    for candidate in find_candidates(image, brain):
        voxels = tuple(candidate.voxels.T)
        data[voxels] = np.maximum(data[voxels], np.float32(_score(candidate, gates)))
    data[~np.asarray(brain.data, bool)] = 0
    return Volume(data, image.affine)


def _score(candidate: Candidate, gates: Sequence[Mapping]) -> float:
    """Multiply the logistic curves of the gates, 1/2 at each midpoint."""
    probability = 1.0
    for gate in gates:
        beyond = (getattr(candidate, gate["measure"]) - gate["midpoint"]) / gate["width"]
        probability *= expit(beyond if gate["keep"] == "above" else -beyond)
    return float(probability)


# --- Candidates -----------------------------------------------------------------------------------


def find_candidates(image: Volume, brain: Volume, *, most: int = 1000) -> list[Candidate]:
    """Find the small dark round spots of a scan and measure them.

    Args:
        image: T2*-weighted magnitude or SWI, any positive scale.
        brain: True inside the brain, on the grid of ``image``.
        most: Number of peaks of symmetry, the strongest, that are measured.

    Returns:
        The strongest symmetry first; the same for the same scan however its axes are stored.

    Raises:
        ValueError: As `run_radial`.

    Source:
        Symmetry in slices, then measures of the grown spot, for microbleeds: Bian et al. 2013,
        doi:10.1016/j.nicl.2013.01.012.
    """
    stack = make_stack(image, brain)
    symmetry = compute_stack_symmetry(stack)
    seeds = _find_seeds(stack, symmetry, most)
    depths = _measure_depths(stack, np.array(list(seeds), int).reshape(-1, 3))
    measured = (
        _measure_candidate(stack, seed, peak, symmetry[peak], depth)
        for (seed, peak), depth in zip(seeds.items(), depths, strict=True)
    )
    return [candidate for candidate in measured if candidate is not None]


def _find_seeds(stack: BrainStack, symmetry: np.ndarray, most: int) -> dict[tuple, tuple]:
    """Find the darkest voxel near every peak: from it to the peak, the strongest first."""
    reach = np.maximum(np.rint(PEAK_REACH_MM / stack.spacing), 1).astype(int)
    highest = ndimage.maximum_filter(symmetry, size=tuple(2 * reach + 1))
    peaks = np.argwhere((symmetry > 0) & (symmetry == highest))
    strongest = np.argsort(-symmetry[tuple(peaks.T)], kind="stable")[:most]
    seeds = {}
    for peak in peaks[strongest]:
        # Peaks of equal height on one spot share its darkest voxel and become one candidate.
        seeds.setdefault(_find_darkest(stack, peak), tuple(peak.tolist()))
    return seeds


def _find_darkest(stack: BrainStack, peak: np.ndarray) -> tuple[int, int, int]:
    """Find the darkest voxel of the brain near a peak, in its slice."""
    reach = np.ceil(SEED_REACH_MM / stack.spacing[:2]).astype(int)
    start, stop = np.maximum(peak[:2] - reach, 0), peak[:2] + reach + 1
    near = np.s_[start[0] : stop[0], start[1] : stop[1], peak[2]]
    distance = _measure_distances(stack.data[near].shape, peak[:2] - start, stack.spacing[:2])
    allowed = (distance <= SEED_REACH_MM) & stack.inside[near]
    values = np.where(allowed, stack.data[near], np.inf)
    offset = np.unravel_index(values.argmin(), values.shape)
    return (*(start + offset).tolist(), int(peak[2]))


def _measure_distances(
    shape: tuple[int, int], centre: np.ndarray, spacing: np.ndarray
) -> np.ndarray:  # fmt: skip
    """Measure the distance from ``centre`` to every pixel of a patch, mm, (X, Y)."""
    x, y = ((np.arange(n) - c) * mm for n, c, mm in zip(shape, centre, spacing, strict=True))
    return np.hypot(x[:, None], y[None, :])


def _measure_depths(stack: BrainStack, seeds: np.ndarray) -> np.ndarray:
    """Measure the distance of every seed (N, 3) to the nearest voxel outside the brain, mm.

    Where the scan ends inside the brain there is no surface; inf if there is none at all.
    """
    shell = np.argwhere(ndimage.binary_dilation(stack.inside) & ~stack.inside)
    if not len(shell):
        return np.full(len(seeds), np.inf)
    return cKDTree(shell * stack.spacing).query(seeds * stack.spacing)[0]


def _measure_candidate(
    stack: BrainStack, seed: tuple, peak: tuple, symmetry: float, depth: float
) -> Candidate | None:
    """Measure the spot at ``seed`` whose surround is a ring around ``peak``.

    Returns:
        None if it has no surround in the brain or is hardly darker.
    """
    start, near, centre = _locate_patch(stack, seed)
    data = stack.data[near]
    plane = data[:, :, centre[2]]
    # In a void the darkest voxel is anywhere; the votes meet in its middle.
    distance = _measure_distances(plane.shape, (peak - start)[:2], stack.spacing[:2])
    in_ring = (distance >= RING_MM[0]) & (distance <= RING_MM[1])
    ring = plane[stack.inside[near][:, :, centre[2]] & in_ring]
    darkest = data[tuple(centre)]
    if len(ring) < MIN_RING_PIXELS:
        return None
    low, surround, high = np.percentile(ring, [15, 50, 85])
    drop = surround - darkest
    if not drop > MIN_CONTRAST * surround:
        return None
    spot = keep_connected(data <= surround - drop / 2, centre)
    diameter, elongation = _measure_shape(plane, centre, surround - drop / 2, stack.spacing)
    tail_level = surround - max(TAIL_SHARE * drop, TEXTURE_SHARE * surround)
    tail = keep_connected(data <= tail_level, centre) & (distance <= RING_MM[1])[:, :, None]
    return Candidate(
        index=tuple(stack.map_to_scan(np.array([seed]))[0].tolist()),
        voxels=stack.map_to_scan(start + _list_near_voxels(spot, centre, stack.spacing)),
        symmetry=float(symmetry),
        contrast=float(min(drop / surround, 1)),
        diameter=diameter,
        elongation=elongation,
        overrun=_measure_overrun(tail, diameter, stack.spacing[2]),
        depth=float(depth),
        ring_low=float(low),
        ring_high=float(high),
    )


def _locate_patch(
    stack: BrainStack, seed: tuple[int, int, int]
) -> tuple[np.ndarray, tuple[slice, ...], np.ndarray]:
    """Locate the patch around a seed: its first voxel, its slices, and the seed's index in it."""
    sides = np.array([PATCH_MM, PATCH_MM, PATCH_THROUGH_PLANE_MM])
    reach = np.ceil(sides / stack.spacing).astype(int)
    reach[2] = max(reach[2], 2)
    start = np.maximum(seed - reach, 0)
    return start, tuple(map(slice, start, seed + reach + 1)), seed - start


def _list_near_voxels(spot: np.ndarray, centre: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """List the voxels of a spot within half of `MAX_DIAMETER_MM` of its centre, (N, 3)."""
    voxels = np.argwhere(spot)
    return voxels[np.linalg.norm((voxels - centre) * spacing, axis=1) <= MAX_DIAMETER_MM / 2]


def _measure_shape(
    plane: np.ndarray, centre: np.ndarray, level: float, spacing: np.ndarray
) -> tuple[float, float]:
    """Measure diameter (mm) and elongation of the dark piece at ``centre`` in its slice (X, Y).

    Between pixels by linear interpolation: two pixels of 1 mm have no shape.
    """
    parts = np.ceil(spacing[:2] / SHAPE_PIXEL_MM).astype(int)
    across, along = (
        make_linear_weights((n - 1) * part + 1, 1, part)
        for n, part in zip(plane.shape, parts, strict=True)
    )
    piece = keep_connected(across @ plane @ along.T <= level, centre[:2] * parts)
    pixel = spacing[:2] / parts
    area = piece.sum() * np.prod(pixel)
    return float(np.sqrt(4 * area / np.pi)), measure_elongation(np.argwhere(piece), pixel)


def _measure_overrun(tail: np.ndarray, diameter: float, thickness: float) -> float:
    """Measure the length in mm through slices beyond what a ball of ``diameter`` needs.

    A ball shows in a slice if it fills the share `TAIL_SHARE` of it, so its outer two slices need
    not be full, and any ball may lie between two slices. A 3 mm ball in 4 mm slices shows in one or
    two of them: 0 mm. A 3 mm tube in three of them: 3.8 mm.
    """
    slices = int(tail.any(axis=(0, 1)).sum())
    needed = max(diameter + (1 - 2 * TAIL_SHARE) * thickness, thickness)
    return float(max((slices - 1) * thickness - needed, 0))
