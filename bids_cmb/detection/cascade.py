"""The cascade: boxes in slices, joined across slices, then judged in three dimensions.

After Al-masni et al. 2020, doi:10.1016/j.nicl.2020.102464. A one-stage detector looks at every
slice; its boxes are joined to suspects (`detection.boxes.joined`); a 3D network says of each
suspect how likely it is a microbleed; and that chance is painted into the suspect's dark voxels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage

from bids_cmb.detection.boxes import Suspect, joined, read_boxes, thinned
from bids_cmb.detection.outputs import Box, Evidence
from bids_cmb.imaging.phase import NEUTRAL, resample_phase
from bids_cmb.imaging.preprocessing import Grid, Preprocessed, crop_or_pad, preprocess
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import CONNECTIVITY_26, MAX_DIAMETER_MM
from bids_cmb.networks.inference import ModelOptions, load_patch_model
from bids_cmb.networks.model_cards import locate_weights

AT_ONCE = 8  # slices
WITHOUT_PHASE = 2  # channels; one more is phase
PATCHES_AT_ONCE = 32
RIM = 1.0  # mm added to each side of a suspect's box in which its dark voxels are looked for
SURROUND = 3.0  # mm around that, whose median is what a spot is darker than
HALF = 0.5  # of the depth of a spot: the voxels that are darker are the spot
BRIGHTEST = 3.0  # brain medians: above, fluid and fat are all one
Ask = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rules:
    """From boxes to suspects; `parameters` of the card.

    Attributes:
        confidence: Of a box, at least.
        overlap: Intersection over union of two boxes of a slice, at most.
        near_mm: Between middles of boxes of neighbouring slices that show the same.
        gap: Slices without a box that the same may skip.
        most: Suspects that are judged, the surest.
    """

    confidence: float = 0.1
    overlap: float = 0.3
    near_mm: float = 3.0
    gap: int = 1
    most: int = 400


@dataclass(frozen=True, eq=False)
class Judged:
    """What the cascade makes of a suspect, for whoever wants to draw its boxes.

    Attributes:
        suspect: In voxels of the network's grid.
        centre: World mm.
        size: mm, the sides of its box.
        chance: 0 to 1.
    """

    suspect: Suspect
    centre: tuple[float, float, float]
    size: tuple[float, float]
    chance: float


def cascade(
    image: Volume, brain: Volume, card: dict, models: ModelOptions, phase: Volume | None = None
) -> tuple[Volume, Evidence]:
    """The chance of microbleed at every voxel, and the box of every suspect.

    Args:
        image: T2*-weighted magnitude or SWI, as it came.
        brain: True inside the brain, on the grid of ``image``.
        card: With the members ``boxes`` and ``patches``; without ``patches`` the confidence of the
            surest box stands for the chance.
        models: Where weights are, and how to compute.
        phase: As `imaging.phase.load_phase_map` gives it, for a network that `sees_phase`.

    Returns:
        0 to 1, float32, on the grid of ``image``; and the boxes, the surest first.

    Raises:
        ValueError: If a member is missing, or weights are not those of the card.
    """
    fed, found = judge(image, brain, card, models, phase)
    boxes = [boxed(card["name"], fed.image, one) for one in found]
    return painted(image, fed.image.affine, found), Evidence(boxes=tuple(boxes))


def boxed(name: str, grid: Volume, one: Judged) -> Box:
    """The box of a suspect: as wide as its surest box, as deep as its slices.

    Args:
        name: Of the detector.
        grid: The scan on the network's grid.
        one: The suspect.
    """
    first, last = one.suspect.slices
    middle = np.array([*one.suspect.centre[:2], (first + last) / 2])
    return Box(
        detector=name,
        centre=tuple(grid.world(middle).tolist()),
        sides=(*one.size, float((1 + last - first) * grid.spacing[2])),
        slices=one.suspect.boxes,
        confidence=one.suspect.confidence,
        probability=one.chance,
    )


def sees_phase(member: Mapping) -> bool:
    """Whether a network for boxes, by its entry or its recipe's, takes phase."""
    return member.get("arguments", {}).get("inputs", 0) > WITHOUT_PHASE


def judge(
    image: Volume, brain: Volume, card: dict, models: ModelOptions, phase: Volume | None = None
) -> tuple[Preprocessed, list[Judged]]:
    """Every suspect and its chance; and the scan as the networks see it. As `cascade`."""
    parts = {member["name"]: member for member in card["members"]}
    if "boxes" not in parts:
        raise ValueError(
            f"The members of a cascade must be boxes and patches; found {', '.join(parts)} for "
            f"{card['name']}."
        )

    def loaded(member: Mapping) -> Ask:
        path = locate_weights(card["name"], member, models.folder)
        return load_patch_model(member, path, precision=models.precision)

    member = parts["boxes"]
    grid, rules = Grid.from_card(member["grid"]), rules_of(card)
    fed = preprocess(image, brain, grid)
    seen = resample_phase(phase, brain, grid) if phase is not None and sees_phase(member) else None
    suspects = find_suspects(loaded(member), member, fed, rules, seen)
    chances = [suspect.confidence for suspect in suspects]
    if "patches" in parts:
        chances = judged(loaded(parts["patches"]), parts["patches"], fed.image.data, suspects)
    spacing = fed.image.spacing
    return fed, [
        Judged(
            suspect,
            tuple(fed.image.world(np.array(suspect.centre)).tolist()),
            (float(suspect.size[0] * spacing[0]), float(suspect.size[1] * spacing[1])),
            float(chance),
        )
        for suspect, chance in zip(suspects, chances, strict=True)
    ]


def rules_of(card: Mapping) -> Rules:
    """The rules on a card; what it leaves out has its default.

    Raises:
        ValueError: If it holds a parameter that no cascade has.
    """
    given, known = card.get("parameters", {}), [field.name for field in fields(Rules)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"The parameters of a cascade may be {', '.join(known)}; found {', '.join(unknown)} "
            f"for {card['name']}."
        )
    return Rules(**given)


# --- First stage: boxes ---------------------------------------------------------------------------


def planes(
    slices: np.ndarray, at: int, inputs: int, phase: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """What the first network is shown of a slice.

    Args:
        slices: A scan in brain medians, (X, Y, Z).
        at: Which slice.
        inputs: Channels: the mean of the slice and its neighbours; the slice itself; 1 - phase of
            the slice and its neighbours.
        phase: 0 to 1, (X, Y, Z), as `imaging.phase.resample_phase` has it; without, it is even.

    Returns:
        float32, (X, Y, inputs).
    """
    near = np.clip([at - 1, at, at + 1], 0, slices.shape[2] - 1)
    three = np.clip(slices[:, :, near].astype(np.float32), 0, BRIGHTEST)
    shown = [three.mean(axis=2), three[:, :, 1]]
    if inputs > WITHOUT_PHASE:
        even = np.full_like(shown[0], NEUTRAL)
        shown.append(even if phase is None else (1 - phase[:, :, near]).mean(axis=2))
    return np.stack(shown[:inputs], axis=-1).astype(np.float32)


def cell(arguments: Mapping) -> int:
    """Pixels of a cell of the first network's answer."""
    return 2 ** (len(arguments["stages"]) - 1)


def in_pixels(member: Mapping) -> np.ndarray:
    """The anchors of a member, or of a recipe's entries, which are in mm, in pixels (A, 2).

    Raises:
        ValueError: If the grid leaves the size of pixels to the scan.
    """
    spacing = member["grid"].get("spacing")
    if not isinstance(spacing, list | tuple) or None in spacing[:2]:
        raise ValueError(
            f"The grid of a network for boxes needs three sizes, those of pixels in mm; found "
            f"{spacing}."
        )
    return np.asarray(member["arguments"]["anchors"]) / np.asarray(member["grid"]["spacing"][:2])


def find_suspects(
    ask: Ask, member: Mapping, fed: Preprocessed, rules: Rules, phase: np.ndarray | None = None
) -> list[Suspect]:
    """The places that the first network suspects in a scan, the surest first.

    Args:
        ask: The network.
        member: Its entry.
        fed: The scan on its grid.
        rules: For its boxes.
        phase: On the same grid, 0 to 1, (X, Y, Z), where there is one.

    Raises:
        ValueError: If the grid is none for boxes: its slices are no whole number of cells.
    """
    slices = [np.zeros((0, 5), np.float32) for _ in range(fed.image.shape[2])]
    arguments, anchors = member["arguments"], in_pixels(member)
    inputs, stride = arguments["inputs"], cell(arguments)
    if any(side % stride for side in fed.image.shape[:2]):
        raise ValueError(
            f"`multiple` of a grid for boxes must be one of {stride}; found slices of "
            f"{fed.image.shape[0]} x {fed.image.shape[1]}."
        )
    wanted = np.flatnonzero(fed.brain.data.any(axis=(0, 1)))
    for part in np.split(wanted, range(AT_ONCE, len(wanted), AT_ONCE)):
        shown = np.stack([planes(fed.image.data, at, inputs, phase) for at in part])
        for at, answer in zip(part, ask(shown), strict=True):
            boxes = read_boxes(answer, anchors, stride)
            boxes = boxes[boxes[:, 4] >= rules.confidence]
            slices[at] = thinned(_within(boxes, fed.brain.data[:, :, at]), rules.overlap)
    near = rules.near_mm / float(fed.image.spacing[0])
    return joined(slices, near=near, gap=rules.gap)[: rules.most]


def _within(boxes: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Boxes whose middle lies in the brain."""
    at = np.floor(boxes[:, :2]).astype(int)
    inside = ((at >= 0) & (at < brain.shape)).all(axis=1)
    at = np.where(inside[:, None], at, 0)
    return boxes[inside & brain[tuple(at.T)]]


# --- Second stage: patches ------------------------------------------------------------------------


def patch(data: np.ndarray, centre: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """The voxels around a place, float32 (X, Y, Z, 1), 0 beyond the scan.

    Args:
        data: A scan in brain medians.
        centre: In voxels; the nearest voxel is the patch's ``shape // 2``-th.
        shape: Voxels of the patch.
    """
    start = np.floor(np.asarray(centre) + 0.5).astype(int) - np.asarray(shape) // 2
    return np.clip(crop_or_pad(data, start, shape).astype(np.float32), 0, BRIGHTEST)[..., None]


def judged(
    ask: Ask, member: Mapping, data: np.ndarray, suspects: Sequence[Suspect]
) -> np.ndarray:  # fmt: skip
    """What the second network says of each suspect: chances, (N,)."""
    shape = tuple(member["arguments"]["shape"])
    said = [np.zeros((0, 1), np.float32)]
    for first in range(0, len(suspects), PATCHES_AT_ONCE):
        group = suspects[first : first + PATCHES_AT_ONCE]
        said.append(ask(np.stack([patch(data, one.centre, shape) for one in group])))
    logits = np.concatenate(said)[:, 0]
    return 0.5 + 0.5 * np.tanh(logits / 2)


# --- Back to the scan -----------------------------------------------------------------------------


def painted(image: Volume, affine: np.ndarray, found: Sequence[Judged]) -> Volume:
    """Each suspect's chance in its dark voxels, the highest where suspects meet.

    A suspect's box is as wide as its surest box and as deep as its slices, and `RIM` wider on each
    side, but no wider than 10 mm. Its spot are the voxels in it that touch the darkest voxel within
    its own sides and are darker than halfway from that to the median of what surrounds the box.

    Args:
        image: The scan, for its grid and its brightness.
        affine: Of the grid of the suspects' voxels.
        found: Suspects with their chances.

    Returns:
        On the grid of ``image``, float32.
    """
    data = np.zeros(image.shape, np.float32)
    to_grid = np.linalg.inv(affine) @ image.affine
    mm = np.linalg.norm(affine[:3, :3], axis=0)
    for one in found:
        box, away = _around(image, to_grid, mm, one)
        if not away.size:
            continue
        spot = _spot(image.data[box], away, _reach(one.suspect, mm))
        data[box] = np.where(spot, np.maximum(data[box], np.float32(one.chance)), data[box])
    return Volume(data, image.affine)


def _reach(suspect: Suspect, mm: np.ndarray) -> np.ndarray:
    """Half the sides of a suspect's box, mm (3,)."""
    first, last = suspect.slices
    deep = max(suspect.centre[2] - first, last - suspect.centre[2]) + HALF
    return np.minimum([suspect.size[0] / 2, suspect.size[1] / 2, deep] * mm, MAX_DIAMETER_MM / 2)


def _around(
    image: Volume, to_grid: np.ndarray, mm: np.ndarray, one: Judged
) -> tuple[tuple[slice, ...], np.ndarray]:
    """A part of the scan around a suspect, and how far its voxels lie from the middle, mm."""
    reach = _reach(one.suspect, mm) + RIM + SURROUND
    corners = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T * (reach / mm)
    corners = (corners + one.suspect.centre - to_grid[:3, 3]) @ np.linalg.inv(to_grid[:3, :3]).T
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, image.shape)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, image.shape)
    box = tuple(map(slice, low, np.maximum(low, high)))
    index = np.stack(np.meshgrid(*map(np.arange, low, np.maximum(low, high)), indexing="ij"), -1)
    there = index @ to_grid[:3, :3].T + to_grid[:3, 3]
    return box, np.abs(there - one.suspect.centre) * mm


def _spot(data: np.ndarray, away: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """The dark voxels of a suspect, bool (X, Y, Z); at least one."""
    core = (away <= np.maximum(reach, away.min(axis=(0, 1, 2)))).all(axis=-1)
    if not core.any():  # voxels larger than the box: the nearest one
        core = away.sum(axis=-1) == away.sum(axis=-1).min()
    wide = np.minimum(reach + RIM, MAX_DIAMETER_MM / 2)
    inside = (away <= wide).all(axis=-1) | core
    dark = np.where(core, data, np.inf)
    darkest = np.unravel_index(dark.argmin(), dark.shape)
    around = data[~inside] if (~inside).any() else data
    level = data[darkest] + HALF * max(float(np.median(around)) - data[darkest], 0)
    pieces, _ = ndimage.label(inside & (data <= level), structure=CONNECTIVITY_26)
    return pieces == pieces[darkest]
