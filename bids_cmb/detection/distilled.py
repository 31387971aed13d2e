"""The design `distilled`: a sensitive network detects candidates, a distilled one classifies them.

After Sundaresan et al. 2023, doi:10.3389/fninf.2023.1204186: the input of the candidate network is
how dark a voxel is and how radially symmetric its surround; connected voxels that it detects are a
candidate; a student, trained to agree with a teacher, gives each candidate its probability. Rules
of size, shape and location are those of all lesions here (`lesions.measure`, `bids.tables`): they
set flags, and remove nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import expit

from bids_cmb.detection.members import index_members, load_predictor, split_batches
from bids_cmb.detection.outputs import DetectorOutputs
from bids_cmb.detection.radial_symmetry import compute_radial_symmetry
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import Preprocessed, dilate_brain, preprocess
from bids_cmb.imaging.resampling import resample_to_scan
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import CONNECTIVITY_26
from bids_cmb.networks.inference import Predictor, predict_in_slabs
from bids_cmb.networks.loading import ModelOptions

PATCH_VOXELS = 24  # of the student's patch, along each axis
FLUID_INTENSITY = 2.0  # brain medians: what is as bright or brighter has no darkness
SYMMETRY_PERCENTILE = 99.9  # of the brain's symmetry, scaled to 1
MULTIPLE = (4, 4, 4)  # voxels that the sides of an image for the candidate network must divide by
MAX_VOXELS_AT_ONCE = 1_250_000  # for the candidate network: with the overlap about 1 GB
HALO_VOXELS = 16  # overlap of its slabs: what is further off does not change its output
MIN_VOXEL_SHARE = 0.25  # of a voxel of the scan that a candidate must fill
PATCHES_PER_BATCH = 64


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """A scan as input of the networks.

    Attributes:
        channels: Darkness and symmetry, 0 to 1, float32, (X, Y, Z, 2).
        brain: bool, on the same grid.
    """

    channels: np.ndarray
    brain: Volume


@dataclass(frozen=True, eq=False)
class CandidateRegion:
    """A connected part of the candidate network's output.

    Attributes:
        centre: The voxel nearest to its centre of mass of the probability, (3,).
        voxels: Those of at least half its highest probability, (N, 3).
        probability: The highest.
    """

    centre: np.ndarray
    voxels: np.ndarray
    probability: float


def run_distilled(
    image: Volume, brain: Volume, card: Mapping, models: ModelOptions
) -> tuple[Volume, DetectorOutputs]:
    """Detect candidates and classify each by the student.

    Args:
        image: T2*-weighted magnitude or SWI, as acquired.
        brain: True inside the brain, on the grid of ``image``.
        card: With the members ``candidates`` and ``student`` and, in ``parameters``,
            ``candidate_threshold`` and ``most_candidates``.
        models: Where the weights are, and how to compute.

    Returns:
        The student's probability at the voxels of each candidate, float32, on the grid of
        ``image``; and no further outputs.

    Raises:
        ValueError: If weights are not those of the card, or the image cannot be scaled.
    """
    members, parameters = index_members(card), card["parameters"]
    predict, classify = (
        load_predictor(card, members[part], models) for part in ("candidates", "student")
    )
    grid = Grid.from_card(members["candidates"]["grid"])
    network_input = prepare_input(preprocess(image, brain, grid))
    regions = find_regions(
        predict_candidates(predict, network_input),
        threshold=parameters["candidate_threshold"],
        most=parameters["most_candidates"],
    )
    probabilities = classify_regions(classify, network_input.channels, regions)
    probability = render_probability(regions, probabilities, network_input.brain, image)
    return probability, DetectorOutputs()


def prepare_input(fed: Preprocessed) -> NetworkInput:
    """Prepare the networks' input from a scan on their grid, its brain's median 1."""
    inside = dilate_brain(fed.brain)
    return NetworkInput(stack_channels(fed.image.data, scale_symmetry(fed), inside), fed.brain)


def stack_channels(image: np.ndarray, symmetry: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Stack the networks' channels, (X, Y, Z, 2): darkness and symmetry, 0 outside.

    Args:
        image: In brain medians, (X, Y, Z).
        symmetry: From `scale_symmetry`.
        inside: The brain and its surface, bool. Not where the image is above 0, as the published
            code has it: the middle of a microbleed may be 0.
    """
    darkness = np.clip(1 - image.astype(np.float32) / FLUID_INTENSITY, 0, 1)
    return np.stack([darkness * inside, symmetry * inside], axis=-1).astype(np.float32)


def scale_symmetry(fed: Preprocessed) -> np.ndarray:
    """Compute the fast radial symmetry of dark spots and scale it to 0 to 1, float32, (X, Y, Z).

    Radii in mm, in slices, as `detection.radial_symmetry` computes it; divided by the strongest of
    the scan, less the last thousandth, and clipped at 1.
    """
    symmetry = compute_radial_symmetry(fed.image, fed.brain).data
    highest = np.percentile(symmetry[fed.brain.data], SYMMETRY_PERCENTILE)
    return np.clip(symmetry / highest, 0, 1) if highest > 0 else symmetry


def predict_candidates(predict: Predictor, network_input: NetworkInput) -> np.ndarray:
    """Predict the candidate network's probability at every voxel, 0 outside the brain.

    The network sees the whole brain or overlapping slabs of it, not tiles with seams.
    """

    def predict_probability(images: np.ndarray) -> np.ndarray:
        logits = predict(images)[0]
        return expit(logits[..., 1] - logits[..., 0])

    brain = network_input.brain
    missing = -np.array(brain.shape) % MULTIPLE
    padded = np.pad(network_input.channels, [*((0, more) for more in missing), (0, 0)])
    probability = predict_in_slabs(
        predict_probability, MULTIPLE, padded, MAX_VOXELS_AT_ONCE, HALO_VOXELS
    )
    kept = probability[tuple(map(slice, brain.shape))]
    return np.where(brain.data, kept, 0).astype(np.float32)


def find_regions(
    probability: np.ndarray, *, threshold: float, most: int
) -> list[CandidateRegion]:  # fmt: skip
    """Find what is connected above a threshold, by face, edge or corner; the likeliest first.

    Args:
        probability: 0 to 1, (X, Y, Z).
        threshold: Lowest probability that counts.
        most: Largest number of regions.
    """
    pieces, _ = ndimage.label(probability >= threshold, structure=CONNECTIVITY_26)
    regions = []
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        values = np.where(pieces[box] == number, probability[box], 0)
        start, highest = np.array([side.start for side in box]), float(values.max())
        centre = ndimage.center_of_mass(values) + start
        voxels = np.argwhere(values >= max(threshold, highest / 2)) + start
        regions.append(CandidateRegion(np.rint(centre).astype(int), voxels, highest))
    return sorted(regions, key=lambda region: (-region.probability, *region.centre))[:most]


def classify_regions(
    predict: Predictor, channels: np.ndarray, regions: Sequence[CandidateRegion]
) -> np.ndarray:
    """Predict the student's probability that each region is a microbleed, float32, (N,)."""
    half = PATCH_VOXELS // 2
    padded = np.pad(channels, [(half, half)] * 3 + [(0, 0)])
    probabilities = [np.zeros(0, np.float32)]
    for batch in split_batches(regions, PATCHES_PER_BATCH):
        patches = [
            padded[tuple(slice(start, start + PATCH_VOXELS) for start in region.centre)]
            for region in batch
        ]
        logits = predict(np.stack(patches))
        probabilities.append(expit(logits[:, 1] - logits[:, 0]).astype(np.float32))
    return np.concatenate(probabilities)


def render_probability(
    regions: Sequence[CandidateRegion], probabilities: Sequence[float], grid: Volume, scan: Volume
) -> Volume:
    """Render each region's probability at its voxels, on the grid of the scan.

    A probability stays what it is to the edge of its region: where the region fills a voxel of the
    scan in part, the part decides whether the voxel belongs to the region, and does not make it
    less likely.

    Args:
        regions: On the networks' grid.
        probabilities: Of each.
        grid: Any map on the networks' grid.
        scan: Any map on the grid of the scan.
    """
    share, probability = (np.zeros(grid.shape, np.float32) for _ in range(2))
    for region, value in zip(regions, probabilities, strict=True):
        share[tuple(region.voxels.T)] = 1
        probability[tuple(region.voxels.T)] = value
    part = resample_to_scan(Volume(share, grid.affine), scan).data
    whole = resample_to_scan(Volume(probability, grid.affine), scan).data
    data = np.where(part >= MIN_VOXEL_SHARE, whole / np.maximum(part, MIN_VOXEL_SHARE), 0)
    return Volume(np.clip(data, 0, 1).astype(np.float32), scan.affine)
