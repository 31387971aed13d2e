"""The design `two-stage`: U-Nets propose, classifiers decide.

The mean of the U-Nets gives every voxel a probability; its peaks are the proposals. The input of
the classifiers is a patch around each peak and its location in the head; the mean of their log-odds
gives the proposal its probability. A proposal's extent are the voxels around its peak of at least
half the peak's probability, so that two lesions of a cluster stay two.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import expit, logit

from bids_cmb.anatomy.segmentation import Anatomy
from bids_cmb.detection.calibration import calibrate
from bids_cmb.detection.members import load_predictor, locate_member, split_batches
from bids_cmb.detection.outputs import DetectorOutputs
from bids_cmb.detection.proposals import (
    CLIP,
    EXTENT_MM,
    EXTENT_SHARE,
    Proposal,
    ProposalRules,
    cut_patch,
    describe_places,
    find_proposals,
    stack_channels,
)
from bids_cmb.detection.views import list_views, select_for_protocol
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import Preprocessed, preprocess
from bids_cmb.imaging.resampling import resample_like, resample_to_scan
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import keep_connected
from bids_cmb.networks.inference import predict
from bids_cmb.networks.loading import ModelOptions, load_network

PATCHES_PER_BATCH = 32
SAME_LESION_MM = 2.0  # in plane, between peaks in the same or neighbouring slices
OPINION_DISTANCE_MM = 2.5  # from a proposal's peak within which the second opinion counts for it
OPINION_LEAST = 1e-4  # probability, the step that detectors are rounded to
SecondOpinion = Callable[[np.ndarray], np.ndarray]  # from world mm (N, 3) to probability (N,)
FIRST_STAGE, SECOND_STAGE = "unet", "classifier"  # builders of their networks


def run_two_stage(
    image: Volume,
    brain: Volume,
    card: Mapping,
    models: ModelOptions,
    anatomy: Anatomy | None = None,
    give_opinion: SecondOpinion | None = None,
) -> tuple[Volume, DetectorOutputs]:
    """Propose lesions, classify each, and render its probability in its extent.

    Args:
        image: T2*-weighted magnitude or SWI, as acquired.
        brain: True inside the brain, on the grid of ``image``.
        card: Its members are U-Nets and, for the second stage, classifiers, all of one grid;
            without classifiers, the first stage's probability stands. ``flips`` of a member are
            axes along which its input is flipped for each further prediction (test-time
            augmentation), ``zooms`` factors by which slices are enlarged for further ones;
            ``exponents`` and ``blind`` of a classifier: see `views.list_views`.
            ``protocol_kinds`` of a member and ``views_for``: see `views.select_for_protocol`.
        models: Where weights are, and how to compute.
        anatomy: Of the scan, for the classifiers.
        give_opinion: Second opinion on proposals; see `ask_for_opinion`.

    Returns:
        Probability, 0 to 1, float32, on the grid of ``image``; and the number of the proposal that
        each voxel belongs to, as ``instances``.

    Raises:
        ValueError: If a member is missing or has another grid, or weights are not those of the
            card.
    """
    card = select_for_protocol(card, image.spacing)
    fed, first_stage, proposals = propose(image, brain, card, models)
    probabilities = decide(fed, first_stage, proposals, card, models, anatomy)
    voxels = np.array([proposal.voxel for proposal in proposals]).reshape(-1, 3)
    if give_opinion is not None and proposals:
        opinion = ask_for_opinion(probabilities, first_stage.world(voxels), card, give_opinion)
        weight = card.get("second_opinion_weight", 0.0)
        probabilities = add_opinion(probabilities, opinion, weight)
    kept = drop_doubles(probabilities, find_doubles(voxels, fed.image.spacing))
    chosen = [proposal for proposal, keep in zip(proposals, kept, strict=True) if keep]
    return render_proposals(image, first_stage, chosen, probabilities[kept])


def propose(
    image: Volume, brain: Volume, card: Mapping, models: ModelOptions
) -> tuple[Preprocessed, Volume, list[Proposal]]:
    """Run the first stage.

    Returns:
        The scan on the networks' grid, the first stage's probability there, and its peaks, the
        likeliest first.
    """
    members = _select_stage(card, FIRST_STAGE)
    if not members:
        raise ValueError(f"{card['name']}: the first of two stages needs a U-Net; found none.")
    grid = _find_common_grid(card)
    fed = preprocess(image, brain, grid)
    seen = {1: fed.image}  # by zoom
    predictions = []
    for member in members:
        path = locate_member(card, member, models)
        network = load_network(member, path, precision=models.precision)
        views = []
        for zoom in (1, *member.get("zooms", ())):
            if zoom not in seen:
                seen[zoom] = preprocess(image, brain, _refine_slices(grid, zoom)).image
            predicted = Volume(predict(network, seen[zoom].data), seen[zoom].affine)
            views.append(resample_like(predicted, fed.image).data)
        predictions.append(np.mean(views, axis=0, dtype=np.float32))
    probability = Volume(np.mean(predictions, axis=0, dtype=np.float32), fed.image.affine)
    rules = ProposalRules.from_card(card.get("parameters", {}))
    return fed, probability, find_proposals(probability, fed.brain, rules)


def _refine_slices(grid: Grid, zoom: float) -> Grid:
    """Make the pixels of slices, the first two axes of a grid, smaller by ``zoom``."""
    across, along, between = grid.spacing
    if across is None or along is None:
        raise ValueError(
            f"A network enlarges slices whose pixels have a size; found a grid of {grid.spacing}."
        )
    return replace(grid, spacing=(across / zoom, along / zoom, between))


def _find_common_grid(card: Mapping) -> Grid:
    """Find the grid of all networks; its sides are multiples of what each of them needs."""
    grids = [Grid.from_card(member["grid"]) for member in card["members"]]
    multiple = tuple(np.lcm.reduce([grid.multiple for grid in grids]).tolist())
    common = {replace(grid, multiple=multiple) for grid in grids}
    if len(common) != 1:
        raise ValueError(
            f"{card['name']}: all networks of two stages must see one grid; found {len(common)}."
        )
    return common.pop()


def decide(
    fed: Preprocessed, probability: Volume, proposals: Sequence[Proposal], card: Mapping,
    models: ModelOptions, anatomy: Anatomy | None = None,
) -> np.ndarray:  # fmt: skip
    """Run the second stage.

    Returns:
        The probability of each proposal, float32 (N,), 0 to 1, before any calibration: from the
        mean log-odds of the classifiers and, times ``first_stage_weight`` of the card, of the first
        stage.
    """
    members = _select_stage(card, SECOND_STAGE)
    first_stage = [proposal.probability for proposal in proposals]
    if not proposals or not members:
        return np.array(first_stage, np.float32)
    voxels = np.array([proposal.voxel for proposal in proposals])
    channels = stack_channels(fed, probability.data)
    places = describe_places(voxels, probability, fed.brain, anatomy)
    logits = np.zeros(len(voxels))
    for member in members:
        classify = load_predictor(card, member, models)
        shape, views = member["arguments"]["shape"], list(list_views(member))
        for batch in split_batches(np.arange(len(voxels)), PATCHES_PER_BATCH):
            patches = np.stack([cut_patch(channels, voxel, shape) for voxel in voxels[batch]])
            for view in views:
                output = classify(view.render(patches), places[batch] * view.features)
                logits[batch] += view.share * output[:, 0]
    return combine(logits / len(members), first_stage, card.get("first_stage_weight", 0.0))


def combine(
    logits: np.ndarray, other: Sequence[float], weight: float, *, least: float = CLIP
) -> np.ndarray:
    """Combine log-odds with those of another prediction, weighted.

    Args:
        logits: Log-odds of each proposal, (N,).
        other: Probability of each by another network, such as the first stage, (N,).
        weight: Of the log-odds of the other.
        least: Probability of the other that is clipped to this and 1 less this.

    Returns:
        Probabilities, float32 (N,).
    """
    odds = compute_logits(np.asarray(other, float), least)
    return expit(logits + weight * odds).astype(np.float32)


def compute_logits(probabilities: np.ndarray, least: float = CLIP) -> np.ndarray:
    """Compute the log-odds of probabilities, clipped to ``least`` and 1 less this, (N,)."""
    return logit(np.clip(probabilities, least, 1 - least))


def ask_for_opinion(
    probabilities: np.ndarray, positions: np.ndarray, card: Mapping, give_opinion: SecondOpinion
) -> np.ndarray:
    """Ask for the second opinion on the proposals that it can lift to an operating point.

    Args:
        probabilities: Of both stages, before any calibration, (N,).
        positions: World mm, (N, 3).
        card: As for `select_for_opinion`.
        give_opinion: Called with the positions of the selected ones.

    Returns:
        Its probabilities, (N,); 0, as if refused, of those that it was not asked about.
    """
    eligible = select_for_opinion(probabilities, card)
    opinion = np.zeros(len(probabilities))
    opinion[eligible] = give_opinion(positions[eligible])
    return opinion


def select_for_opinion(probabilities: np.ndarray, card: Mapping) -> np.ndarray:
    """Select the proposals that the best second opinion lifts to an operating point, bool (N,).

    Args:
        probabilities: Of the classifiers, before any calibration, (N,).
        card: All are selected if it has no operating points.
    """
    lowest = min((point["threshold"] for point in card.get("operating_points", ())), default=0.0)
    weight = card.get("second_opinion_weight", 0.0)
    best = add_opinion(probabilities, np.ones(len(probabilities)), weight)
    return calibrate(best, card.get("calibration")) >= lowest


def find_doubles(voxels: np.ndarray, spacing: np.ndarray) -> list[tuple[int, int]]:
    """Find pairs of proposals that are one lesion: it runs through two slices, and each has a peak.

    Args:
        voxels: Of the proposals on the network's grid, slices last, (N, 3).
        spacing: Of that grid, mm, (3,).

    Returns:
        Numbers of those in the same or in neighbouring slices that lie, in plane, no farther than
        `SAME_LESION_MM` apart.
    """
    apart = np.abs(voxels[:, None] - voxels)
    in_plane = np.hypot(apart[..., 0] * spacing[0], apart[..., 1] * spacing[1])
    same = np.triu((apart[..., 2] <= 1) & (in_plane <= SAME_LESION_MM), 1)
    return [(int(first), int(second)) for first, second in np.argwhere(same)]


def drop_doubles(probabilities: np.ndarray, doubles: Collection[tuple[int, int]]) -> np.ndarray:
    """Drop of each pair from `find_doubles` the less likely one, of equals the later; bool (N,).

    What was dropped drops nothing itself.
    """
    kept = np.ones(len(probabilities), bool)
    for number in np.argsort(-probabilities, kind="stable"):
        if kept[number]:
            others = [sum(pair) - number for pair in doubles if number in pair]
            kept[others] = False
    return kept


def add_opinion(probabilities: np.ndarray, opinion: np.ndarray, weight: float) -> np.ndarray:
    """Add the log-odds of a second opinion, (N,), from `read_opinion`, to probabilities, (N,)."""
    return combine(compute_logits(probabilities), opinion, weight, least=OPINION_LEAST)


def read_opinion(opinion: Volume, positions: np.ndarray) -> np.ndarray:
    """Read the highest probability within `OPINION_DISTANCE_MM` of each position.

    Args:
        opinion: Probability, on the grid of the scan.
        positions: World mm, (N, 3).

    Returns:
        float (N,); 0 where no voxel is that near.
    """
    highest = np.zeros(len(positions))
    for number, position in enumerate(positions):
        box, near = opinion.find_ball(position, OPINION_DISTANCE_MM)
        highest[number] = opinion.data[box][near].max(initial=0.0)
    return highest


def render_proposals(
    image: Volume,
    first_stage: Volume,
    proposals: Sequence[Proposal],
    probabilities: np.ndarray,
) -> tuple[Volume, DetectorOutputs]:
    """Render the probability of each proposal in its extent on the grid of the scan.

    Its extent are the voxels within `EXTENT_MM` of its peak that are connected to it, are nearer to
    it than to any other peak, and have at least half its probability in the first stage; the
    nearest voxel at least.

    Args:
        image: The scan.
        first_stage: Probability, on the networks' grid.
        proposals: Its peaks.
        probabilities: Of each, (N,).
    """
    rendered = np.zeros(image.shape, np.float32)
    labels = np.zeros(image.shape, np.uint16)
    if not len(proposals):
        return Volume(rendered, image.affine), DetectorOutputs(
            instances=Volume(labels, image.affine)
        )
    soft = resample_to_scan(first_stage, image).data
    peaks = first_stage.world(np.array([proposal.voxel for proposal in proposals]))
    reach = np.ceil(EXTENT_MM / image.spacing).astype(int) + 1
    for number, (peak, value) in enumerate(zip(peaks, probabilities, strict=True), start=1):
        middle = np.clip(np.rint(image.index(peak)).astype(int), 0, np.array(image.shape) - 1)
        start = np.maximum(middle - reach, 0)
        box = tuple(map(slice, start, middle + reach + 1))
        index = np.stack(np.indices(soft[box].shape), axis=-1) + start
        world = image.world(index.reshape(-1, 3))
        distance = np.linalg.norm(world - peak, axis=1)
        others = peaks[np.linalg.norm(peaks - peak, axis=1) < 2 * EXTENT_MM]
        nearest = np.linalg.norm(world[:, None] - others[None], axis=-1).min(axis=1)
        extent = (distance <= EXTENT_MM) & (distance <= nearest + 1e-6)
        voxel = tuple(middle - start)
        # The peak lies between voxels of the scan, where the resampled map is lower.
        highest = max(soft[box][voxel], EXTENT_SHARE * proposals[number - 1].probability)
        extent = extent.reshape(soft[box].shape) & (soft[box] >= EXTENT_SHARE * highest)
        extent[voxel] = True
        extent = keep_connected(extent, voxel) & (labels[box] == 0)
        labels[box][extent] = number
        rendered[box][extent] = value
    return Volume(rendered, image.affine), DetectorOutputs(instances=Volume(labels, image.affine))


def _select_stage(card: Mapping, builder: str) -> list[Mapping]:
    """Select the members of a stage by their builder."""
    return [member for member in card["members"] if member["builder"] == builder]
