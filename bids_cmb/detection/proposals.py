"""Proposals: where the first stage of a detector suspects a microbleed, and what a second one sees.

The first stage gives every voxel a probability. Its peaks are the proposals: two neighbouring
lesions have a peak each. The second stage is shown the surround of a peak and numbers that tell
where in the head it lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage
from scipy.special import logit

from bids_cmb.anatomy.segmentation import Anatomy
from bids_cmb.detection.distilled import symmetry
from bids_cmb.imaging.preprocessing import Preprocessed, crop_or_pad
from bids_cmb.imaging.volume import Volume

SMOOTHING_MM = 0.4  # standard deviation: a plateau of the first stage gets one peak
BRIGHTEST = 3.0  # brain medians: above, fluid and fat are all one
HALF = 0.5  # of a peak's probability, down to which its extent is measured
EXTENT_MM = 5.0  # from the peak within which its extent is measured
FAR_MM = 20.0  # beyond it, a distance says no more
TISSUE_MM = 2.0  # standard deviation of the weight by which the tissue around a peak counts
CLIP = 1e-5  # of a probability, before its log-odds are taken
MNI_SCALE = 100.0  # mm: positions in MNI space become numbers of about 1

TISSUES = {
    "outside": (0,),
    "fluid": (24,),
    "ventricle": (4, 43, 5, 44, 14, 15),
    "white matter": (2, 41),
    "cortex": (3, 42),
    "thalamus": (10, 49),
    "striatum": (11, 50, 12, 51, 26, 58),
    "pallidum": (13, 52),
    "hippocampus and amygdala": (17, 53, 18, 54),
    "ventral diencephalon": (28, 60),
    "cerebellar white matter": (7, 46),
    "cerebellar cortex": (8, 47),
    "brainstem": (16,),
}
DISTANT = (
    "fluid", "ventricle", "thalamus", "striatum", "pallidum", "cerebellar white matter",
    "brainstem",
)  # fmt: skip
SHAPE_FEATURES = ("log-odds", "slices", "diameter", "elongation", "spacing", "depth")
PLACE_FEATURES = (
    *SHAPE_FEATURES,
    "anatomy known",
    *(f"share of {name}" for name in TISSUES),
    *(f"distance to {name}" for name in DISTANT),
    "distance to midline",
    "MNI known", "MNI |x|", "MNI y", "MNI z",
)  # fmt: skip
CHANNELS = ("image", "probability", "symmetry")  # of a patch
ANATOMY_FROM = len(SHAPE_FEATURES)  # the features from here on need an anatomy


@dataclass(frozen=True)
class Rules:
    """How proposals are picked; ``parameters`` of a model card.

    Attributes:
        floor: Least probability of a peak, 0 to 1.
        apart_mm: Least distance between two peaks within a slice.
        most: Number of proposals of a scan, the likeliest.
    """

    floor: float = 0.0005
    apart_mm: float = 1.5
    most: int = 80

    @classmethod
    def from_card(cls, parameters: dict) -> "Rules":
        """Read the rules of a card; what it leaves out has its default.

        Raises:
            ValueError: If there is a parameter that no rule knows.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(parameters) - set(known)):
            raise ValueError(
                f"The parameters of proposals may be {', '.join(known)}; "
                f"found {', '.join(unknown)}."
            )
        return cls(**parameters)


@dataclass(frozen=True, eq=False)
class Proposal:
    """A peak of the first stage.

    Attributes:
        voxel: On the network's grid, (3,).
        probability: Of the first stage there, 0 to 1.
    """

    voxel: tuple[int, int, int]
    probability: float


def find_proposals(probability: Volume, inside: np.ndarray, rules: Rules) -> list[Proposal]:
    """Find the peaks of a probability map, the likeliest first.

    A peak is a local maximum of the smoothed map. Of two peaks that lie nearer than the rules
    allow, within a slice or in neighbouring ones, the likelier stays; of equals, the one with the
    lower index.

    Args:
        probability: 0 to 1, on the network's grid, slices last.
        inside: Where peaks may lie, bool, (X, Y, Z).
        rules: How near, how likely and how many.
    """
    spacing = probability.spacing
    smooth = ndimage.gaussian_filter(probability.data.astype(np.float32), SMOOTHING_MM / spacing)
    highest = ndimage.maximum_filter(smooth, size=3)
    peaks = np.argwhere((smooth == highest) & (smooth >= rules.floor) & inside)
    values = smooth[tuple(peaks.T)]
    peaks = peaks[np.lexsort((*peaks.T[::-1], -np.round(values, 6)))]
    reach = np.array([rules.apart_mm, rules.apart_mm, max(rules.apart_mm, 1.5 * spacing[2])])
    kept = np.zeros((0, 3))
    found = []
    for peak in peaks:
        away = np.linalg.norm((kept - peak) * spacing / reach, axis=1)
        if len(kept) and away.min() < 1:
            continue
        kept = np.vstack([kept, peak])
        value = float(probability.data[tuple(peak)])
        found.append(Proposal(tuple(int(at) for at in peak), value))
        if len(found) == rules.most:
            break
    return found


# --- What the second stage is shown ---------------------------------------------------------------


def stack_channels(fed: Preprocessed, probability: np.ndarray) -> np.ndarray:
    """Stack what patches are cut from, float16 (X, Y, Z, 3).

    Args:
        fed: The scan on the network's grid.
        probability: Of the first stage, (X, Y, Z).

    Returns:
        Image in brain medians up to 3, probability, and radial symmetry up to 3.
    """
    image = np.clip(fed.image.data, 0, BRIGHTEST)
    symmetric = np.clip(symmetry(fed), 0, BRIGHTEST)
    return np.stack([image, probability, symmetric], axis=-1).astype(np.float16)


def cut_patch(channels: np.ndarray, voxel: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Cut the surround of a voxel, which becomes the ``shape // 2``-th; 0 beyond the scan."""
    start = np.asarray(voxel) - np.asarray(shape) // 2
    return crop_or_pad(channels, start, shape)


def mask_hidden(hidden: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Give the factors by which patches and places are multiplied so that a network misses some.

    Args:
        hidden: Names of `CHANNELS` and `PLACE_FEATURES`.

    Returns:
        Of each channel (as `stack_channels` has them) and each feature (as `describe_places` has
        them), float32: 0 if it is hidden, else 1.

    Raises:
        ValueError: If a name is neither.
    """
    if unknown := sorted(set(hidden) - {*CHANNELS, *PLACE_FEATURES}):
        raise ValueError(
            f"Hidden may be {', '.join(CHANNELS)} and features of the place; "
            f"found {', '.join(unknown)}."
        )
    shown = np.array([name not in hidden for name in CHANNELS], np.float32)
    listed = np.array([name not in hidden for name in PLACE_FEATURES], np.float32)
    return shown, listed


def describe_places(
    voxels: Sequence[Sequence[int]], probability: Volume, brain: Volume, anatomy: Anatomy | None
) -> np.ndarray:
    """Describe shape and place of proposals by the numbers that `PLACE_FEATURES` names.

    Args:
        voxels: Of the network's grid, (N, 3).
        probability: Of the first stage, on that grid.
        brain: The brain mask, on the same grid.
        anatomy: What lies where; without, the features that need it are 0.

    Returns:
        float32 (N, features). Distances are in units of 10 mm, up to 20 mm; shares 0 to 1.
    """
    voxels = np.asarray(voxels, int).reshape(-1, 3)
    out = np.zeros((len(voxels), len(PLACE_FEATURES)), np.float32)
    if not len(voxels):
        return out
    depth = ndimage.distance_transform_edt(brain.data, brain.spacing)
    for row, voxel in zip(out, voxels, strict=True):
        row[:5] = _describe_shape(probability, voxel)
        row[5] = min(depth[tuple(voxel)], FAR_MM) / 10
    if anatomy is not None:
        out[:, ANATOMY_FROM:] = _describe_surround(anatomy, probability.world(voxels))
    return out


def extent(probability: Volume, voxel: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Find the voxels that belong to a peak: those about it of at least half its probability.

    Returns:
        inside: bool, of a box about the peak.
        start: First voxel of the box, (3,).
    """
    reach = np.ceil(EXTENT_MM / probability.spacing).astype(int)
    start = np.maximum(np.asarray(voxel) - reach, 0)
    box = tuple(map(slice, start, np.asarray(voxel) + reach + 1))
    data = probability.data[box]
    middle = tuple(np.asarray(voxel) - start)
    pieces, _ = ndimage.label(data >= HALF * data[middle], structure=np.ones((3, 3, 3)))
    return pieces == pieces[middle], start


def _describe_shape(probability: Volume, voxel: np.ndarray) -> tuple[float, ...]:
    """Log-odds / 5, slices / 5, in-plane diameter / 5 mm, elongation / 3, slice distance / 5 mm."""
    inside, _ = extent(probability, voxel)
    pixel = probability.spacing[:2]
    shadow = np.argwhere(inside.any(axis=2)) * pixel
    spread = np.cov(shadow.T, bias=True) if len(shadow) > 1 else np.zeros((2, 2))
    short, long = np.linalg.eigvalsh(spread + np.diag(pixel**2) / 12)
    area = inside.any(axis=2).sum() * np.prod(pixel)
    chance = np.clip(probability.data[tuple(voxel)], CLIP, 1 - CLIP)
    return (
        float(logit(chance)) / 5,
        inside.any(axis=(0, 1)).sum() / 5,
        float(np.sqrt(4 * area / np.pi)) / 5,
        min(float(np.sqrt(long / short)), 6) / 3,
        float(probability.spacing[2]) / 5,
    )


def _describe_surround(anatomy: Anatomy, positions: np.ndarray) -> np.ndarray:
    """The features from `ANATOMY_FROM` on, (N, features)."""
    labels = anatomy.structures
    index = labels.index(positions)
    codes = np.rint(labels.data).astype(int)
    columns = [np.ones(len(positions))]

    def look_up(data: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(data, index.T, order=1, mode="nearest")

    for members in TISSUES.values():
        where = np.isin(codes, members).astype(np.float32)
        columns.append(look_up(ndimage.gaussian_filter(where, TISSUE_MM / labels.spacing)))
    for name in DISTANT:
        where = np.isin(codes, TISSUES[name])
        if not where.any():
            columns.append(np.full(len(positions), FAR_MM / 10))
            continue
        away = ndimage.distance_transform_edt(~where, labels.spacing)
        columns.append(np.minimum(look_up(away.astype(np.float32)), FAR_MM) / 10)
    normal, offset = anatomy.midline
    columns.append(np.minimum(np.abs(positions @ normal + offset), FAR_MM) / 10)
    mni = np.zeros((len(positions), 4))
    if anatomy.to_mni is not None:
        there = positions @ anatomy.to_mni[:3, :3].T + anatomy.to_mni[:3, 3]
        mni[:, 0] = 1
        mni[:, 1:] = np.clip(there / MNI_SCALE, -1.5, 1.5)
        mni[:, 1] = np.abs(mni[:, 1])
    return np.column_stack([*columns, mni]).astype(np.float32)
