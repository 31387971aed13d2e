"""Classify proposals of a first stage as microbleed or false positive, by surround and place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np

from bids_cmb.anatomy.scan_anatomy import extract_brain_mask, segment_with_network
from bids_cmb.anatomy.segmentation import Anatomy
from bids_cmb.detection.proposals import (
    ANATOMY_FROM,
    ProposalRules,
    cut_patch,
    describe_places,
    find_proposals,
    mask_hidden,
    stack_channels,
)
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.inference import predict
from bids_cmb.networks.loading import ModelOptions, load_network
from bids_cmb.provenance import fingerprint, sha256
from bids_cmb.training.patches import PatchSampling, augment_intensity, flip_randomly
from bids_cmb.training.recipe import (
    Batch,
    BatchFunction,
    Recipe,
    Sources,
    Task,
    check_no_label_maps,
    load_pretrained_entry,
    make_patch_sampling,
)
from bids_cmb.training.reference_labels import LESION
from bids_cmb.training.scan_files import ScanFiles, digest_files
from bids_cmb.training.scan_loading import (
    TrainingScan,
    load_or_make_arrays,
    load_scan_and_brain,
    make_training_scan,
    run_in_threads,
)

MAX_SHIFT_PIXELS = 2  # to each side, by which patches can be shifted
MAX_LESION_DISTANCE_MM = 1.5  # of a proposal from the nearest voxel of its lesion
MIN_NEGATIVE_DISTANCE_MM = 3.0  # of a negative from every lesion
MAX_OTHERS = 24  # mimics, and as many dark spots, of a scan, proposed or not
PLACE_NOISE = 0.1  # of the numbers of a place: 1 mm, or a tenth of a share
TASK_OPTIONS = (
    "rules",
    "blind",
    "hidden",
)  # in ``drawing``, besides `training.patches.PatchSampling`
LESION_PROPOSAL, HARD_NEGATIVE, OTHER_NEGATIVE = 0, 1, 2
SHARES = ("lesion", "hard", "other")  # of a batch


@dataclass(frozen=True, eq=False)
class ProposalSet:
    """The patches of one scan, `MAX_SHIFT_PIXELS` wider on each side.

    Attributes:
        patches: As `detection.proposals.stack_channels` has them, float16 (N, X, Y, Z, 3).
        places: As `detection.proposals.describe_places` has them, float32 (N, features).
        kinds: `LESION_PROPOSAL`, `HARD_NEGATIVE` (a proposal that is none) or `OTHER_NEGATIVE` (any
            other dark place).
        lesions: Which lesion of the scan it is, from 0; -1 for those that are none.
        proposed: Probability of the first stage, (N,).
    """

    patches: np.ndarray
    places: np.ndarray
    kinds: np.ndarray
    lesions: np.ndarray
    proposed: np.ndarray


FirstStage = Callable[[np.ndarray], np.ndarray]


def load_first_stage(recipe: Recipe, sources: Sources) -> tuple[FirstStage, list[str]]:
    """Load the networks of the first stage.

    Returns:
        predict_mean: Their mean, from an image on the recipe's grid to probabilities.
        digests: SHA-256 of the weights.

    Raises:
        ValueError: If none is given, or one sees another grid.
        OSError: If an entry cannot be read.
    """
    paths = [Path(path) for role, path in sorted(sources.pretrained.items()) if "proposal" in role]
    if not paths:
        raise ValueError(
            f"{recipe.name} learns after a network that proposes: give it "
            f"--pretrained proposal-1=OUT/proposal-1.json; "
            f"found {', '.join(sources.pretrained) or 'none'}."
        )
    entries = [load_pretrained_entry(path, recipe) for path in paths]
    networks = [
        load_network(entry, path.with_name(Path(entry["weights"]).name))
        for entry, path in zip(entries, paths, strict=True)
    ]

    def predict_mean(image: np.ndarray) -> np.ndarray:
        return np.mean([predict(network, image) for network in networks], axis=0)

    return predict_mean, [entry["sha256"] for entry in entries]


def load_or_make_proposals(
    paths: ScanFiles,
    recipe: Recipe,
    predict_mean: FirstStage,
    digests: Sequence[str],
    cache_folder: Path,
) -> ProposalSet:
    """Make the patches of a scan, or load them from the cache folder.

    Raises:
        ValueError: If a file cannot be used.
        OSError: If something cannot be read or written.
    """
    options = recipe.drawing or {}
    key = fingerprint(
        networks=list(digests), grid=recipe.grid, shape=recipe.arguments["shape"],
        rules=options.get("rules", {}), room=MAX_SHIFT_PIXELS,
        near=(MAX_LESION_DISTANCE_MM, MIN_NEGATIVE_DISTANCE_MM, MAX_OTHERS), brain="segmented",
        files=digest_files(paths),
    )  # fmt: skip
    path = cache_folder / f"{key[:16]}.npz"
    return ProposalSet(
        **load_or_make_arrays(path, lambda: vars(_make_proposals(paths, recipe, predict_mean)))
    )


def _make_proposals(paths: ScanFiles, recipe: Recipe, predict_mean: FirstStage) -> ProposalSet:
    scan, reference = load_scan_and_brain(paths)
    anatomy, brain = _segment(scan, reference)
    fed = preprocess(scan, brain, Grid.from_card(recipe.grid))
    training_scan = make_training_scan(paths, fed)
    probability = Volume(predict_mean(fed.image.data), fed.image.affine)
    rules = ProposalRules.from_card((recipe.drawing or {}).get("rules", {}))
    proposals = find_proposals(probability, fed.brain, rules)
    rng = np.random.default_rng(int(sha256(paths.image)[:8], 16))
    voxels = np.array([proposal.voxel for proposal in proposals], int).reshape(-1, 3)
    rows = _assign_labels(training_scan, voxels, fed.image.spacing, rng)
    voxels_of_patches = np.array([row[0] for row in rows], int).reshape(-1, 3)
    channels = stack_channels(fed, probability.data)
    shape = np.add(recipe.arguments["shape"], (2 * MAX_SHIFT_PIXELS, 2 * MAX_SHIFT_PIXELS, 0))
    return ProposalSet(
        np.array([cut_patch(channels, voxel, shape) for voxel in voxels_of_patches]).reshape(
            -1, *shape, 3
        ),
        describe_places(voxels_of_patches, probability, fed.brain, anatomy),
        np.array([row[1] for row in rows], np.uint8),
        np.array([row[2] for row in rows], np.int16),
        probability.data[tuple(voxels_of_patches.T)].astype(np.float32),
    )


def _segment(scan: Volume, reference: Volume) -> tuple[Anatomy | None, Volume]:
    """Segment head and brain as the app does: its false alarms beyond the brain are learnt too.

    Where it recognises no head or no brain, the reference mask of the brain stays.
    """
    result = segment_with_network(scan, ModelOptions())
    if result.head is None:
        return None, reference
    try:
        return result.head, extract_brain_mask(scan, result).mask
    except ValueError:
        return result.head, reference


def _assign_labels(
    training_scan: TrainingScan,
    proposals: np.ndarray,
    spacing: np.ndarray,
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, int, int]]:
    """Assign places of a scan to kinds and lesions.

    A proposal near a lesion is that lesion; one at some distance is neither. The center of a lesion
    is always among the places.
    """
    rows = []
    others = [part[rng.integers(len(part))] for part in training_scan.sampling_centres["mimic"]]
    dark = training_scan.sampling_centres["dark"][0]
    others = [others[index] for index in rng.permutation(len(others))[:MAX_OTHERS]]
    others += [dark[index] for index in rng.permutation(len(dark))[:MAX_OTHERS]]
    others = np.array(others, int).reshape(-1, 3)
    nearest = np.full(len(proposals), np.inf)
    apart_others = np.full(len(others), np.inf)
    for number, voxels in enumerate(training_scan.sampling_centres["lesion"]):
        distances = _measure_distances(proposals, voxels, spacing)
        nearest = np.minimum(nearest, distances)
        apart_others = np.minimum(apart_others, _measure_distances(others, voxels, spacing))
        if training_scan.labels[tuple(voxels[0])] != LESION:
            continue
        rows += [
            (voxel, LESION_PROPOSAL, number)
            for voxel in proposals[distances <= MAX_LESION_DISTANCE_MM]
        ]
        middle = voxels[np.linalg.norm((voxels - voxels.mean(0)) * spacing, axis=1).argmin()]
        rows.append((middle.astype(int), LESION_PROPOSAL, number))
    rows += [(voxel, HARD_NEGATIVE, -1) for voxel in proposals[nearest > MIN_NEGATIVE_DISTANCE_MM]]
    rows += [
        (voxel, OTHER_NEGATIVE, -1) for voxel in others[apart_others > MIN_NEGATIVE_DISTANCE_MM]
    ]
    return rows


def _measure_distances(places: np.ndarray, voxels: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Measure the distance in mm of each place (N, 3) to the nearest of voxels (M, 3).

    Three quarters of a slice are not counted: a lesion is visible in the neighbouring slice too.
    """
    if not len(places):
        return np.zeros(0)
    apart = np.abs(places[:, None] - voxels[None].astype(float)) * spacing
    apart[..., 2] = np.maximum(apart[..., 2] - 0.75 * spacing[2], 0)
    return np.linalg.norm(apart, axis=-1).min(axis=1)


# --- Batches --------------------------------------------------------------------------------------


def _make_batches(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:  # noqa: ARG001
    check_no_label_maps(sources, "proposals")
    predict_mean, digests = load_first_stage(recipe, sources)
    first = next(path for role, path in sorted(sources.pretrained.items()) if "proposal" in role)
    proposal_sets = run_in_threads(
        lambda paths: load_or_make_proposals(
            paths, recipe, predict_mean, digests, Path(first).parent / "proposed"
        ),
        sources.scans,
        sources.loading.threads,
    )
    pools = [
        _make_pool(proposal_sets, kind) for kind in (LESION_PROPOSAL, HARD_NEGATIVE, OTHER_NEGATIVE)
    ]
    if not len(pools[LESION_PROPOSAL][0]) or not len(pools[HARD_NEGATIVE][0]):
        raise ValueError(
            f"{recipe.name} learns from microbleeds and from proposals that are none; found "
            f"{len(pools[LESION_PROPOSAL][0])} and {len(pools[HARD_NEGATIVE][0])} in "
            f"{len(proposal_sets)} scans."
        )
    options = dict(recipe.drawing or {})
    blind = options.get("blind", 0.0)
    shown, listed = mask_hidden(options.get("hidden", ()))
    sampling = make_patch_sampling(
        {key: value for key, value in options.items() if key not in TASK_OPTIONS},
        shape=tuple(recipe.arguments["shape"]),
    )
    shares = np.array([sampling.shares.get(name, 0.0) for name in SHARES])
    shares = shares * [len(pool[0]) > 0 for pool in pools]
    pools = [(places, np.cumsum(weights)) for places, weights in pools]
    sample_patch = partial(
        _sample_patch, proposal_sets, pools, shares / shares.sum(), sampling, blind
    )

    def sample(rng: np.random.Generator) -> Batch:
        patches, places, truths = zip(
            *(sample_patch(rng) for _ in range(recipe.batch)), strict=True
        )
        inputs = np.stack(patches) * shown, np.stack(places) * listed
        return inputs, np.array(truths, np.float32)[:, None]

    lesions = sum(
        len(np.unique(proposal_set.lesions[proposal_set.lesions >= 0]))
        for proposal_set in proposal_sets
    )
    description = (
        f"{len(proposal_sets)} scans with {lesions} lesions, "
        f"{len(pools[HARD_NEGATIVE][0])} false proposals"
    )
    return sample, description


def _make_pool(proposal_sets: Sequence[ProposalSet], kind: int) -> tuple[np.ndarray, np.ndarray]:
    """List scan and row of every patch of a kind, (N, 2), and the probability to sample it, (N,).

    Every lesion has the same probability, however many patches it has. The probability of the first
    stage has no influence: it is an input of the network too, which would learn the sampling
    instead of the truth.
    """
    places, weights = [], []
    for index, proposal_set in enumerate(proposal_sets):
        rows = np.flatnonzero(proposal_set.kinds == kind)
        places.append(np.column_stack([np.full(len(rows), index), rows]))
        if kind == LESION_PROPOSAL:
            _, which, counts = np.unique(
                proposal_set.lesions[rows], return_inverse=True, return_counts=True
            )
            weights.append(1 / counts[which] if len(rows) else np.zeros(0))
        else:
            weights.append(np.ones(len(rows)))
    weight = np.concatenate(weights) if weights else np.zeros(0)
    return np.concatenate(places), weight / max(weight.sum(), 1e-9)


def _sample_patch(
    proposal_sets: Sequence[ProposalSet], pools: Sequence[tuple[np.ndarray, np.ndarray]],
    shares: np.ndarray, sampling: PatchSampling, blind: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, bool]:  # fmt: skip
    """Sample and augment a patch; return it, its place, and whether it is a microbleed."""
    kind = rng.choice(len(SHARES), p=shares)
    places, sums = pools[kind]
    scan, row = places[np.searchsorted(sums, rng.random()).clip(0, len(places) - 1)]
    proposal_set = proposal_sets[scan]
    shift = rng.integers(0, 2 * MAX_SHIFT_PIXELS + 1, 2)
    width, height, _ = sampling.shape
    patch = proposal_set.patches[row][shift[0] : shift[0] + width, shift[1] : shift[1] + height]
    patch = flip_randomly(patch.astype(np.float32), rng, swaps=sampling.swaps)
    patch = np.concatenate(
        [augment_intensity(patch[..., :1], sampling, rng), patch[..., 1:]], axis=-1
    )
    place = proposal_set.places[row].copy()
    if rng.random() < blind:
        place[ANATOMY_FROM:] = 0
    elif place[ANATOMY_FROM]:
        noise = rng.normal(0, PLACE_NOISE, len(place) - ANATOMY_FROM - 1)
        place[ANATOMY_FROM + 1 :] += noise.astype(np.float32) * (place[ANATOMY_FROM + 1 :] != 0)
    return patch, place, kind == LESION_PROPOSAL


def _make_loss(recipe: Recipe) -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=True, **(recipe.loss or {}))


TASK = Task(_make_batches, _make_loss)
