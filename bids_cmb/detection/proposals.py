"""Proposals: the peaks of a detector's first stage, and the input of the second stage about them.

The first stage gives every voxel a probability. Its peaks are the proposals: two neighbouring
lesions have a peak each. The input of the second stage is a patch around a peak and features of its
shape and its location in the head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import logit

from bids_cmb.anatomy.segmentation import Anatomy
from bids_cmb.detection.distilled import scale_symmetry
from bids_cmb.detection.members import MAX_INTENSITY, read_rules
from bids_cmb.imaging.cropping import crop, crop_or_pad
from bids_cmb.imaging.preprocessing import BRAIN_SHELL_MM, Preprocessed, measure_distances
from bids_cmb.imaging.volume import Volume, map_points
from bids_cmb.lesions.measure import keep_connected, measure_elongation

SMOOTHING_MM = 0.4  # standard deviation: a plateau of the first stage gets one peak
EXTENT_SHARE = 0.5  # of a peak's probability, down to which its extent is measured
EXTENT_MM = 5.0  # from the peak within which its extent is measured
MAX_DISTANCE_MM = 20.0  # of a feature: larger distances are set to it
TISSUE_SIGMA_MM = 2.0  # of the Gaussian weight of the tissue around a peak
CLIP = 1e-5  # of a probability, before its log-odds are taken
MNI_SCALE_MM = 100.0  # positions in MNI space become numbers of about 1

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
class ProposalRules:
    """Rules by which proposals are selected; ``parameters`` of a model card.

    Attributes:
        floor: Least probability of a peak, 0 to 1.
        apart_mm: Least distance between two peaks within a slice.
        most: Number of proposals of a scan, the likeliest.
        likely: Probability from which a peak is a proposal beyond that number, up to ``limit``: a
            scan of thin slices has many likely peaks. Without it none is.
        limit: Number of proposals with those beyond.
    """

    floor: float = 0.0005
    apart_mm: float = 1.5
    most: int = 80
    likely: float = np.inf
    limit: int = 200

    @classmethod
    def from_card(cls, parameters: Mapping) -> "ProposalRules":
        """Read the rules of a card; what it leaves out has its default.

        Raises:
            ValueError: If there is a parameter that no rule has.
        """
        return read_rules(cls, parameters, "proposals")


@dataclass(frozen=True, eq=False)
class Proposal:
    """A peak of the first stage.

    Attributes:
        voxel: On the network's grid, (3,).
        probability: Of the first stage at the peak, 0 to 1.
    """

    voxel: tuple[int, int, int]
    probability: float


def find_proposals(
    probability: Volume, brain: Volume, rules: ProposalRules
) -> list[Proposal]:  # fmt: skip
    """Find the peaks of a probability map, the likeliest first.

    A peak is a local maximum of the smoothed map. Of two peaks that are nearer than the rules
    allow, within a slice or in neighbouring ones, the likelier is kept; of equals, the one with the
    lower index.

    Args:
        probability: 0 to 1, on the network's grid, slices last.
        brain: The brain mask, on the same grid; peaks lie up to `BRAIN_SHELL_MM` outside it.
        rules: Least distance, least probability and number.
    """
    spacing = probability.spacing
    smooth = ndimage.gaussian_filter(probability.data.astype(np.float32), SMOOTHING_MM / spacing)
    highest = ndimage.maximum_filter(smooth, size=3)
    peaks = np.argwhere((smooth == highest) & (smooth >= rules.floor))
    peaks = peaks[np.isfinite(measure_distances(brain, peaks, BRAIN_SHELL_MM))]
    values = smooth[tuple(peaks.T)]
    peaks = peaks[np.lexsort((*peaks.T[::-1], -np.round(values, 6)))]
    reach = np.array([rules.apart_mm, rules.apart_mm, max(rules.apart_mm, 1.5 * spacing[2])])
    kept = np.zeros((0, 3))
    proposals = []
    for peak in peaks:
        value = float(probability.data[tuple(peak)])
        if len(proposals) >= rules.most and value < rules.likely:
            continue
        distance = np.linalg.norm((kept - peak) * spacing / reach, axis=1)
        if len(kept) and distance.min() < 1:
            continue
        kept = np.vstack([kept, peak])
        proposals.append(Proposal(tuple(peak.tolist()), value))
        if len(proposals) == max(rules.most, rules.limit):
            break
    return proposals


# --- Input of the second stage --------------------------------------------------------------------


def stack_channels(fed: Preprocessed, probability: np.ndarray) -> np.ndarray:
    """Stack the channels that patches are cut from, float16 (X, Y, Z, 3).

    Args:
        fed: The scan on the network's grid.
        probability: Of the first stage, (X, Y, Z).

    Returns:
        Image in brain medians up to 3, probability, and radial symmetry up to 3.
    """
    channels = np.empty((*probability.shape, len(CHANNELS)), np.float16)
    channels[..., 2] = np.clip(scale_symmetry(fed), 0, MAX_INTENSITY)
    channels[..., 1] = probability
    channels[..., 0] = np.clip(fed.image.data, 0, MAX_INTENSITY)
    return channels


def cut_patch(channels: np.ndarray, voxel: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Cut a patch around a voxel, its ``shape // 2``-th; 0 beyond the scan."""
    start = np.asarray(voxel) - np.asarray(shape) // 2
    return crop_or_pad(channels, start, shape)


def mask_hidden(hidden: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Make the factors that hide channels of patches and features of places from a network.

    Args:
        hidden: Names of `CHANNELS` and `PLACE_FEATURES`.

    Returns:
        channels: Factors of the channels of `stack_channels`, float32: 0 if hidden, else 1.
        features: Factors of the features of `describe_places`, likewise.

    Raises:
        ValueError: If a name is neither.
    """
    if unknown := sorted(set(hidden) - {*CHANNELS, *PLACE_FEATURES}):
        raise ValueError(
            f"Hidden may be {', '.join(CHANNELS)} and features of the place; "
            f"found {', '.join(unknown)}."
        )
    channels = np.array([name not in hidden for name in CHANNELS], np.float32)
    features = np.array([name not in hidden for name in PLACE_FEATURES], np.float32)
    return channels, features


def describe_places(
    voxels: Sequence[Sequence[int]], probability: Volume, brain: Volume, anatomy: Anatomy | None
) -> np.ndarray:
    """Describe shape and location of proposals by the features that `PLACE_FEATURES` names.

    Args:
        voxels: Of the network's grid, (N, 3).
        probability: Of the first stage, on that grid.
        brain: The brain mask, on the same grid.
        anatomy: Of the scan; the features that need it are 0 without.

    Returns:
        float32 (N, features). Distances are in units of 10 mm, up to 20 mm; shares 0 to 1.
    """
    voxels = np.asarray(voxels, int).reshape(-1, 3)
    features = np.zeros((len(voxels), len(PLACE_FEATURES)), np.float32)
    if not len(voxels):
        return features
    outside = Volume(~brain.data, brain.affine)
    depths = np.minimum(measure_distances(outside, voxels, MAX_DISTANCE_MM), MAX_DISTANCE_MM)
    for row, voxel, depth in zip(features, voxels, depths, strict=True):
        row[:5] = _describe_shape(probability, voxel)
        row[5] = depth / 10
    if anatomy is not None:
        features[:, ANATOMY_FROM:] = _describe_surround(anatomy, probability.world(voxels))
    return features


def _find_extent(probability: Volume, voxel: np.ndarray) -> np.ndarray:
    """Find the voxels of a peak: connected, of at least half its probability; bool, in a box."""
    reach = np.ceil(EXTENT_MM / probability.spacing).astype(int)
    start = np.maximum(voxel - reach, 0)
    data = probability.data[tuple(map(slice, start, voxel + reach + 1))]
    middle = tuple(voxel - start)
    return keep_connected(data >= EXTENT_SHARE * data[middle], middle)


def _describe_shape(probability: Volume, voxel: np.ndarray) -> tuple[float, ...]:
    """Describe shape: the first five of `SHAPE_FEATURES`.

    Log-odds / 5, slices / 5, in-plane diameter / 5 mm, elongation / 3, slice distance / 5 mm.
    """
    inside = _find_extent(probability, voxel)
    pixel = probability.spacing[:2]
    projection = inside.any(axis=2)
    area = projection.sum() * np.prod(pixel)
    peak = np.clip(probability.data[tuple(voxel)], CLIP, 1 - CLIP)
    return (
        float(logit(peak)) / 5,
        inside.any(axis=(0, 1)).sum() / 5,
        float(np.sqrt(4 * area / np.pi)) / 5,
        min(measure_elongation(np.argwhere(projection), pixel), 6) / 3,
        float(probability.spacing[2]) / 5,
    )


def _crop_to_surround(labels: Volume, positions: np.ndarray) -> Volume:
    """Crop a label map to the box of positions, and as far beyond as distances are measured."""
    index = labels.index(positions)
    margin = np.ceil(MAX_DISTANCE_MM / labels.spacing) + 2
    shape = np.array(labels.shape)
    low = np.clip(np.floor(index.min(axis=0)) - margin, 0, shape - 1).astype(int)
    end = np.clip(np.ceil(index.max(axis=0)) + margin + 1, low + 1, shape).astype(int)
    return crop(labels, low, end)


def _describe_surround(anatomy: Anatomy, positions: np.ndarray) -> np.ndarray:
    """Describe location in the head: the features from `ANATOMY_FROM` on, (N, features)."""
    labels = _crop_to_surround(anatomy.structures, positions)
    index = labels.index(positions)
    codes = np.rint(labels.data).astype(int)
    columns = [np.ones(len(positions))]

    def interpolate(data: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(data, index.T, order=1, mode="nearest")

    sigma = TISSUE_SIGMA_MM / labels.spacing
    for tissue_codes in TISSUES.values():
        mask = np.isin(codes, tissue_codes).astype(np.float32)
        columns.append(interpolate(ndimage.gaussian_filter(mask, sigma)))
    for name in DISTANT:
        mask = np.isin(codes, TISSUES[name])
        if not mask.any():
            columns.append(np.full(len(positions), MAX_DISTANCE_MM / 10))
            continue
        distance = ndimage.distance_transform_edt(~mask, labels.spacing).astype(np.float32)
        columns.append(np.minimum(interpolate(distance), MAX_DISTANCE_MM) / 10)
    normal, offset = anatomy.midline
    columns.append(np.minimum(np.abs(positions @ normal + offset), MAX_DISTANCE_MM) / 10)
    mni = np.zeros((len(positions), 4))
    if anatomy.to_mni is not None:
        in_mni = map_points(anatomy.to_mni, positions)
        mni[:, 0] = 1
        mni[:, 1:] = np.clip(in_mni / MNI_SCALE_MM, -1.5, 1.5)
        mni[:, 1] = np.abs(mni[:, 1])
    return np.column_stack([*columns, mni]).astype(np.float32)
