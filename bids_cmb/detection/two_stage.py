"""The design `two-stage`: U-Nets propose, a classifier decides.

The mean of the U-Nets gives every voxel a probability; its peaks are the proposals. Classifiers are
shown the surround of each, and where in the head it lies; the mean of their log-odds is its chance.
A proposal's extent are the voxels about its peak of at least half the peak's probability, so that
two lesions of a cluster stay two.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy import ndimage
from scipy.special import expit, logit

from bids_cmb.anatomy.segmentation import Anatomy
from bids_cmb.detection.outputs import Evidence
from bids_cmb.detection.proposals import (
    ANATOMY_FROM,
    CLIP,
    EXTENT_MM,
    HALF,
    Proposal,
    Rules,
    cut_patch,
    describe_places,
    find_proposals,
    mask_hidden,
    stack_channels,
)
from bids_cmb.imaging.preprocessing import (
    Grid,
    Preprocessed,
    dilate_brain,
    preprocess,
    resample_to_scan,
)
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.inference import ModelOptions, load_network, load_patch_model, predict
from bids_cmb.networks.model_cards import locate_weights

PATCHES_AT_ONCE = 32
OPINION_MM = 2.5  # from a proposal's peak within which another detector speaks of it
OPINION_LEAST = 1e-4  # probability, a step of what detectors give
PROPOSE, DECIDE = "unet", "classifier"  # the builders of the two stages
WIDE = ndimage.generate_binary_structure(3, 3)


def two_stage(
    image: Volume,
    brain: Volume,
    card: Mapping,
    models: ModelOptions,
    anatomy: Anatomy | None = None,
    opinion: Volume | None = None,
) -> tuple[Volume, Evidence]:
    """Find proposals, judge each, and paint its chance into its extent.

    Args:
        image: T2*-weighted magnitude or SWI, as it came.
        brain: True inside the brain, on the grid of ``image``.
        card: Its members are U-Nets and, for the second stage, classifiers, all of one grid;
            without classifiers, the first stage's probability is the chance. ``flips`` of a member
            are axes that its input is turned around along, for each further look; ``blind`` of a
            classifier is the share of what it says without being shown the anatomy, 0 to 1.
        models: Where weights are, and how to compute.
        anatomy: What lies where in the head, for the classifiers.
        opinion: Probability of microbleed by another detector, on the grid of ``image``, if the
            card has a ``second_opinion``.

    Returns:
        Chance, 0 to 1, float32, on the grid of ``image``; and which proposal each voxel belongs to.

    Raises:
        ValueError: If a member is missing or sees another grid, or weights are not those of the
            card.
    """
    fed, probability, proposals = propose(image, brain, card, models)
    chances = decide(fed, probability, proposals, card, models, anatomy)
    if opinion is not None and proposals:
        positions = probability.world(np.array([one.voxel for one in proposals]))
        weight = card.get("second_opinion_weight", 0.0)
        chances = add_opinion(chances, read_opinion(opinion, positions), weight)
    return paint(image, probability, proposals, chances)


def propose(
    image: Volume, brain: Volume, card: Mapping, models: ModelOptions
) -> tuple[Preprocessed, Volume, list[Proposal]]:
    """Run the first stage.

    Returns:
        The scan on the networks' grid, the first stage's probability there, and its peaks, the
        likeliest first.
    """
    members = _members(card, PROPOSE)
    if not members:
        raise ValueError(f"{card['name']}: the first of two stages needs a U-Net; found none.")
    grids = {Grid.from_card(member["grid"]) for member in card["members"]}
    if len(grids) != 1:
        raise ValueError(
            f"{card['name']}: all networks of two stages must see one grid; found {len(grids)}."
        )
    fed = preprocess(image, brain, grids.pop())
    inside = dilate_brain(fed.brain)
    seen = [
        predict(load_network(member, _path(card, member, models), precision=models.precision),
               fed.image.data, inside)
        for member in members
    ]  # fmt: skip
    probability = Volume(np.mean(seen, axis=0, dtype=np.float32), fed.image.affine)
    rules = Rules.from_card(card.get("parameters", {}))
    return fed, probability, find_proposals(probability, inside, rules)


def decide(
    fed: Preprocessed, probability: Volume, proposals: Sequence[Proposal], card: Mapping,
    models: ModelOptions, anatomy: Anatomy | None = None,
) -> np.ndarray:  # fmt: skip
    """Run the second stage.

    Returns:
        The chance of each proposal, float32 (N,), 0 to 1, before any calibration: of the mean
        log-odds of the classifiers and, times ``first_stage_weight`` of the card, of the first
        stage.
    """
    members = _members(card, DECIDE)
    if not proposals or not members:
        return np.array([one.probability for one in proposals], np.float32)
    voxels = [one.voxel for one in proposals]
    channels = stack_channels(fed, probability.data)
    places = describe_places(voxels, probability, fed.brain, anatomy)
    logits = np.zeros(len(voxels))
    for member in members:
        ask = load_patch_model(member, _path(card, member, models), precision=models.precision)
        shape = member["arguments"]["shape"]
        for first in range(0, len(voxels), PATCHES_AT_ONCE):
            group = slice(first, first + PATCHES_AT_ONCE)
            patches = np.stack([cut_patch(channels, voxel, shape) for voxel in voxels[group]])
            for axes, shown, listed, share in _looks(member):
                turned = np.flip(patches, [axis + 1 for axis in axes]).astype(np.float32)
                logits[group] += share * ask(turned * shown, places[group] * listed)[:, 0]
    first = [one.probability for one in proposals]
    return combine(logits / len(members), first, card.get("first_stage_weight", 0.0))


def _looks(
    member: Mapping,
) -> Iterator[tuple[tuple[int, ...], np.ndarray, np.ndarray, float]]:
    """Give axes turned around, channels and features shown, and the share of each look."""
    turns = [(), *map(tuple, member.get("flips", ()))]
    blind = member.get("blind", 0.0)
    shown, listed = mask_hidden(member.get("hidden", ()))
    unplaced = listed * (np.arange(len(listed)) < ANATOMY_FROM)
    for axes in turns:
        for features, share in ((listed, 1 - blind), (unplaced, blind)):
            if share > 0:
                yield axes, shown, features, share / len(turns)


def combine(
    logits: np.ndarray, other: Sequence[float], weight: float, *, least: float = CLIP
) -> np.ndarray:
    """Add the log-odds of somebody else, weighted.

    Args:
        logits: Log-odds of each proposal, (N,).
        other: Probability of each by somebody else, such as the first stage, (N,).
        weight: By which the log-odds of the other are added.
        least: Probability of the other below which, and above 1 less which, its log-odds say no
            more.

    Returns:
        Chances, float32 (N,).
    """
    odds = logit(np.clip(np.asarray(other, float), least, 1 - least))
    return expit(logits + weight * odds).astype(np.float32)


def add_opinion(chances: np.ndarray, opinion: np.ndarray, weight: float) -> np.ndarray:
    """Add the log-odds of a second opinion, as `read_opinion` gives it, to chances, (N,)."""
    logits = logit(np.clip(chances, CLIP, 1 - CLIP))
    return combine(logits, opinion, weight, least=OPINION_LEAST)


def read_opinion(opinion: Volume, positions: np.ndarray) -> np.ndarray:
    """Read the highest probability within `OPINION_MM` of each position.

    Args:
        opinion: Probability, on the grid of the scan.
        positions: World mm, (N, 3).

    Returns:
        float (N,); 0 where no voxel is that near.
    """
    reach = np.ceil(OPINION_MM / opinion.spacing).astype(int)
    highest = np.zeros(len(positions))
    for number, position in enumerate(positions):
        middle = np.rint(opinion.index(position[None])[0]).astype(int)
        start = np.maximum(middle - reach, 0)
        values = opinion.data[tuple(map(slice, start, np.maximum(middle + reach + 1, 0)))]
        index = np.stack(np.indices(values.shape), axis=-1) + start
        away = np.linalg.norm(opinion.world(index.reshape(-1, 3)) - position, axis=1)
        highest[number] = values.ravel()[away <= OPINION_MM].max(initial=0.0)
    return highest


def paint(
    image: Volume, probability: Volume, proposals: Sequence[Proposal], chances: np.ndarray
) -> tuple[Volume, Evidence]:
    """Paint the chance of each proposal into its extent on the grid of the scan.

    Its extent are the voxels within `EXTENT_MM` of its peak that hang together with it, are nearer
    to it than to any other peak, and have at least half its probability; the nearest voxel at
    least.
    """
    chance = np.zeros(image.shape, np.float32)
    labels = np.zeros(image.shape, np.uint16)
    if not len(proposals):
        return Volume(chance, image.affine), Evidence(instances=Volume(labels, image.affine))
    soft = resample_to_scan(probability, image).data
    peaks = probability.world(np.array([one.voxel for one in proposals]))
    reach = np.ceil(EXTENT_MM / image.spacing).astype(int) + 1
    for number, (place, value) in enumerate(zip(peaks, chances, strict=True), start=1):
        middle = np.clip(np.rint(image.index(place)).astype(int), 0, np.array(image.shape) - 1)
        start = np.maximum(middle - reach, 0)
        box = tuple(map(slice, start, middle + reach + 1))
        index = np.stack(np.indices(soft[box].shape), axis=-1) + start
        world = image.world(index.reshape(-1, 3))
        away = np.linalg.norm(world - place, axis=1)
        others = peaks[np.linalg.norm(peaks - place, axis=1) < 2 * EXTENT_MM]
        nearest = np.linalg.norm(world[:, None] - others[None], axis=-1).min(axis=1)
        mine = ((away <= EXTENT_MM) & (away <= nearest + 1e-6)).reshape(soft[box].shape)
        here = tuple(middle - start)
        peak = max(soft[box][here], HALF * proposals[number - 1].probability)  # it lies in between
        mine &= soft[box] >= HALF * peak
        mine[here] = True
        pieces, _ = ndimage.label(mine, structure=WIDE)
        mine = (pieces == pieces[here]) & (labels[box] == 0)
        labels[box][mine] = number
        chance[box][mine] = value
    return Volume(chance, image.affine), Evidence(instances=Volume(labels, image.affine))


def _members(card: Mapping, builder: str) -> list[Mapping]:
    return [member for member in card["members"] if member["builder"] == builder]


def _path(card: Mapping, member: Mapping, models: ModelOptions):
    return locate_weights(card["name"], member, models.folder)
