"""The design `cascade`: boxes in slices, linked across slices, then classified in 3D.

After Al-masni et al. 2020, doi:10.1016/j.nicl.2020.102464. A one-stage detector predicts boxes in
every slice; they are linked to candidates (`detection.boxes.link_boxes`); a 3D network predicts the
probability that each candidate is a microbleed; and the candidate's dark voxels get it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from bids_cmb.detection.boxes import (
    BoxCandidate,
    decode_boxes,
    link_boxes,
    suppress_non_maxima,
)
from bids_cmb.detection.members import (
    MAX_INTENSITY,
    index_members,
    load_predictor,
    read_rules,
    split_batches,
)
from bids_cmb.detection.outputs import Box, DetectorOutputs
from bids_cmb.imaging.cropping import crop_or_pad
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.phase import NEUTRAL, resample_phase
from bids_cmb.imaging.preprocessing import Preprocessed, preprocess
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import MAX_DIAMETER_MM, keep_connected
from bids_cmb.networks.inference import Predictor
from bids_cmb.networks.loading import ModelOptions

SLICES_PER_BATCH = 8
PATCHES_PER_BATCH = 32
CHANNELS_WITHOUT_PHASE = 2  # one more is phase
RIM_MM = 1.0  # added to each side of a candidate's box in which its dark voxels are looked for
SURROUND_MM = 3.0  # around that: its median is what a spot is darker than
DEPTH_SHARE = 0.5  # of the depth of a spot: the voxels that are darker are the spot


@dataclass(frozen=True)
class CandidateRules:
    """Rules from boxes to candidates; `parameters` of the card.

    Attributes:
        confidence: Least confidence of a box.
        overlap: Largest intersection over union of two boxes of a slice.
        near_mm: Between centres of boxes of neighbouring slices that show the same thing.
        gap: Slices without a box that the same thing may skip.
        most: Number of candidates that are classified, by falling confidence.
    """

    confidence: float = 0.1
    overlap: float = 0.3
    near_mm: float = 3.0
    gap: int = 1
    most: int = 400

    @classmethod
    def from_card(cls, card: Mapping) -> "CandidateRules":
        """Read the rules of a card; what it leaves out has its default.

        Raises:
            ValueError: If it holds a parameter that no cascade has.
        """
        return read_rules(cls, card.get("parameters", {}), "a cascade", card["name"])


@dataclass(frozen=True, eq=False)
class ScoredCandidate:
    """A candidate and its probability.

    Attributes:
        candidate: In voxels of the network's grid.
        centre: World mm.
        size: mm, the sides of its box.
        probability: Of a microbleed, 0 to 1.
    """

    candidate: BoxCandidate
    centre: tuple[float, float, float]
    size: tuple[float, float]
    probability: float


def run_cascade(
    image: Volume, brain: Volume, card: dict, models: ModelOptions, phase: Volume | None = None
) -> tuple[Volume, DetectorOutputs]:
    """Predict the probability of microbleed at every voxel, and the box of every candidate.

    Args:
        image: T2*-weighted magnitude or SWI, as acquired.
        brain: True inside the brain, on the grid of ``image``.
        card: With the members ``boxes`` and ``patches``; without ``patches`` the highest confidence
            of its boxes is a candidate's probability.
        models: Where weights are, and how to compute.
        phase: From `imaging.phase.load_phase_map`, for a network that `uses_phase`.

    Returns:
        0 to 1, float32, on the grid of ``image``; and the boxes, by falling confidence.

    Raises:
        ValueError: If a member is missing, or weights are not those of the card.
    """
    fed, candidates = detect_candidates(image, brain, card, models, phase)
    boxes = tuple(make_box(card["name"], fed.image, scored) for scored in candidates)
    return render_probability(image, fed.image.affine, candidates), DetectorOutputs(boxes=boxes)


def make_box(name: str, grid: Volume, scored: ScoredCandidate) -> Box:
    """Make the 3D box of a candidate: as wide as its surest box, as deep as its slices.

    Args:
        name: Of the detector.
        grid: The scan on the network's grid.
        scored: The candidate.
    """
    candidate = scored.candidate
    first, last = candidate.slices
    centre = np.array([*candidate.centre[:2], (first + last) / 2])
    return Box(
        detector=name,
        centre=tuple(grid.world(centre).tolist()),
        sides=(*scored.size, float((1 + last - first) * grid.spacing[2])),
        slices=candidate.boxes,
        confidence=candidate.confidence,
        probability=scored.probability,
    )


def uses_phase(member: Mapping) -> bool:
    """Check whether a network for boxes, by its entry or its recipe, takes phase."""
    return member.get("arguments", {}).get("inputs", 0) > CHANNELS_WITHOUT_PHASE


def detect_candidates(
    image: Volume, brain: Volume, card: dict, models: ModelOptions, phase: Volume | None = None
) -> tuple[Preprocessed, list[ScoredCandidate]]:
    """Detect candidates and classify them.

    Args and errors are those of `run_cascade`.

    Returns:
        The scan on the networks' grid; and the candidates, by falling confidence.
    """
    members = index_members(card)
    if "boxes" not in members:
        raise ValueError(
            f"The members of a cascade must be boxes and patches; found {', '.join(members)} for "
            f"{card['name']}."
        )
    boxes = members["boxes"]
    grid, rules = Grid.from_card(boxes["grid"]), CandidateRules.from_card(card)
    fed = preprocess(image, brain, grid)
    used = resample_phase(phase, brain, grid) if phase is not None and uses_phase(boxes) else None
    predict = load_predictor(card, boxes, models)
    candidates = find_box_candidates(predict, boxes, fed, rules, used)
    probabilities = [candidate.confidence for candidate in candidates]
    if "patches" in members:
        patches = members["patches"]
        predict = load_predictor(card, patches, models)
        probabilities = classify_candidates(predict, patches, fed.image.data, candidates)
    spacing = fed.image.spacing
    return fed, [
        ScoredCandidate(
            candidate,
            tuple(fed.image.world(np.array(candidate.centre)).tolist()),
            (float(candidate.size[0] * spacing[0]), float(candidate.size[1] * spacing[1])),
            float(probability),
        )
        for candidate, probability in zip(candidates, probabilities, strict=True)
    ]


# --- First stage: boxes ---------------------------------------------------------------------------


def make_slice_input(
    slices: np.ndarray, index: int, inputs: int, phase: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """Make the first network's input of a slice.

    Args:
        slices: A scan in brain medians, (X, Y, Z).
        index: Of the slice.
        inputs: Channels: the mean of the slice and its neighbours; the slice itself; 1 - phase of
            the slice and its neighbours.
        phase: From `imaging.phase.resample_phase`, 0 to 1, (X, Y, Z); neutral without.

    Returns:
        float32, (X, Y, inputs).
    """
    near = np.clip([index - 1, index, index + 1], 0, slices.shape[2] - 1)
    neighbours = np.clip(slices[:, :, near].astype(np.float32), 0, MAX_INTENSITY)
    channels = [neighbours.mean(axis=2), neighbours[:, :, 1]]
    if inputs > CHANNELS_WITHOUT_PHASE:
        neutral = np.full_like(channels[0], NEUTRAL)
        channels.append(neutral if phase is None else (1 - phase[:, :, near]).mean(axis=2))
    return np.stack(channels[:inputs], axis=-1).astype(np.float32)


def compute_stride(arguments: Mapping) -> int:
    """Compute how many pixels a cell of the first network's output has along each side."""
    return 2 ** (len(arguments["stages"]) - 1)


def scale_anchors(member: Mapping) -> np.ndarray:
    """Scale the anchors of a member or a recipe from mm to pixels, (A, 2).

    Raises:
        ValueError: If the grid leaves the size of pixels to the scan.
    """
    spacing = member["grid"].get("spacing")
    if not isinstance(spacing, list | tuple) or None in spacing[:2]:
        raise ValueError(
            f"The grid of a network for boxes needs three sizes, those of pixels in mm; found "
            f"{spacing}."
        )
    return np.asarray(member["arguments"]["anchors"]) / np.asarray(spacing[:2])


def find_box_candidates(
    predict: Predictor,
    member: Mapping,
    fed: Preprocessed,
    rules: CandidateRules,
    phase: np.ndarray | None = None,
) -> list[BoxCandidate]:
    """Find the candidates of the first network in a scan.

    Args:
        predict: The network.
        member: Its entry.
        fed: The scan on its grid.
        rules: For its boxes.
        phase: On the same grid, 0 to 1, (X, Y, Z), where there is one.

    Returns:
        By falling confidence.

    Raises:
        ValueError: If the grid is none for boxes: its slices are no whole number of cells.
    """
    slices = [np.zeros((0, 5), np.float32) for _ in range(fed.image.shape[2])]
    arguments, anchors = member["arguments"], scale_anchors(member)
    inputs, stride = arguments["inputs"], compute_stride(arguments)
    if any(side % stride for side in fed.image.shape[:2]):
        raise ValueError(
            f"`multiple` of a grid for boxes must be one of {stride}; found slices of "
            f"{fed.image.shape[0]} x {fed.image.shape[1]}."
        )
    within = np.flatnonzero(fed.brain.data.any(axis=(0, 1)))
    for batch in split_batches(within, SLICES_PER_BATCH):
        images = [make_slice_input(fed.image.data, index, inputs, phase) for index in batch]
        for index, output in zip(batch, predict(np.stack(images)), strict=True):
            boxes = decode_boxes(output, anchors, stride)
            boxes = boxes[boxes[:, 4] >= rules.confidence]
            boxes = _keep_within_brain(boxes, fed.brain.data[:, :, index])
            slices[index] = suppress_non_maxima(boxes, rules.overlap)
    near = rules.near_mm / float(fed.image.spacing[0])
    return link_boxes(slices, near=near, gap=rules.gap)[: rules.most]


def _keep_within_brain(boxes: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Keep the boxes whose centre lies in the brain, (X, Y)."""
    pixels = np.floor(boxes[:, :2]).astype(int)
    inside = ((pixels >= 0) & (pixels < brain.shape)).all(axis=1)
    pixels = np.where(inside[:, None], pixels, 0)
    return boxes[inside & brain[tuple(pixels.T)]]


# --- Second stage: patches ------------------------------------------------------------------------


def crop_patch(data: np.ndarray, centre: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Crop the second network's input around a position, 0 beyond the scan.

    Args:
        data: A scan in brain medians.
        centre: In voxels; the nearest voxel is the patch's ``shape // 2``-th.
        shape: Voxels of the patch.

    Returns:
        float32 (X, Y, Z, 1).
    """
    start = np.floor(np.asarray(centre) + 0.5).astype(int) - np.asarray(shape) // 2
    return np.clip(crop_or_pad(data, start, shape).astype(np.float32), 0, MAX_INTENSITY)[..., None]


def classify_candidates(
    predict: Predictor, member: Mapping, data: np.ndarray, candidates: Sequence[BoxCandidate]
) -> np.ndarray:  # fmt: skip
    """Predict the probability of microbleed of each candidate by the second network, (N,)."""
    shape = tuple(member["arguments"]["shape"])
    logits = [np.zeros((0, 1), np.float32)]
    for batch in split_batches(candidates, PATCHES_PER_BATCH):
        patches = [crop_patch(data, candidate.centre, shape) for candidate in batch]
        logits.append(predict(np.stack(patches)))
    return expit(np.concatenate(logits)[:, 0])


# --- Back to the scan -----------------------------------------------------------------------------


def render_probability(
    image: Volume, affine: np.ndarray, candidates: Sequence[ScoredCandidate]
) -> Volume:
    """Render each candidate's probability in its dark voxels, the highest where candidates meet.

    A candidate's box is as wide as its surest box and as deep as its slices, and `RIM_MM` wider on
    each side, but no wider than 10 mm. Its spot are the voxels in it that are connected to the
    darkest voxel within its own sides and are darker than halfway from that to the median of what
    surrounds the box.

    Args:
        image: The scan, for its grid and its intensity.
        affine: Of the grid of the candidates' voxels.
        candidates: With their probabilities.

    Returns:
        On the grid of ``image``, float32.
    """
    data = np.zeros(image.shape, np.float32)
    to_grid = np.linalg.inv(affine) @ image.affine
    mm = np.linalg.norm(affine[:3, :3], axis=0)
    for scored in candidates:
        reach = _measure_reach(scored.candidate, mm)
        box, distance = _find_surround(image, to_grid, mm, scored.candidate.centre, reach)
        if not distance.size:
            continue
        spot = _grow_spot(image.data[box], distance, reach)
        highest = np.maximum(data[box], np.float32(scored.probability))
        data[box] = np.where(spot, highest, data[box])
    return Volume(data, image.affine)


def _measure_reach(candidate: BoxCandidate, mm: np.ndarray) -> np.ndarray:
    """Measure half the sides of a candidate's box, mm (3,)."""
    first, last = candidate.slices
    slices = max(candidate.centre[2] - first, last - candidate.centre[2]) + 0.5  # to their surface
    sides = [candidate.size[0] / 2, candidate.size[1] / 2, slices]
    return np.minimum(sides * mm, MAX_DIAMETER_MM / 2)


def _find_surround(
    image: Volume, to_grid: np.ndarray, mm: np.ndarray, centre: Sequence[float], reach: np.ndarray
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Find the part of the scan around a candidate.

    Returns:
        box: Of voxels of the scan.
        distance: Of its voxels from the centre along each axis of the grid, mm, (X, Y, Z, 3).
    """
    margin = reach + RIM_MM + SURROUND_MM
    corners = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T * (margin / mm)
    corners = (corners + centre - to_grid[:3, 3]) @ np.linalg.inv(to_grid[:3, :3]).T
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, image.shape)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, image.shape)
    high = np.maximum(low, high)
    index = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1)
    voxels = index @ to_grid[:3, :3].T + to_grid[:3, 3]
    return tuple(map(slice, low, high)), np.abs(voxels - centre) * mm


def _grow_spot(data: np.ndarray, distance: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Grow the dark voxels of a candidate, bool (X, Y, Z); at least one."""
    core = (distance <= np.maximum(reach, distance.min(axis=(0, 1, 2)))).all(axis=-1)
    if not core.any():  # voxels larger than the box: the nearest one
        core = distance.sum(axis=-1) == distance.sum(axis=-1).min()
    wide = np.minimum(reach + RIM_MM, MAX_DIAMETER_MM / 2)
    inside = (distance <= wide).all(axis=-1) | core
    dark = np.where(core, data, np.inf)
    darkest = np.unravel_index(dark.argmin(), dark.shape)
    surround = data[~inside] if (~inside).any() else data
    depth = max(float(np.median(surround)) - data[darkest], 0)
    return keep_connected(inside & (data <= data[darkest] + DEPTH_SHARE * depth), darkest)
