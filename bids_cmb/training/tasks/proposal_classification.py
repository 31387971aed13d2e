"""Every proposal of a first stage is to be told a microbleed or none, by its surround and place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np

from bids_cmb.anatomy.segmentation import Anatomy, predict_anatomy
from bids_cmb.detection.proposals import (
    ANATOMY_FROM,
    ProposalRules,
    cut_patch,
    describe_places,
    find_proposals,
    mask_hidden,
    stack_channels,
)
from bids_cmb.imaging.preprocessing import Grid, dilate_brain, preprocess
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.inference import load_network, predict
from bids_cmb.provenance import fingerprint, sha256
from bids_cmb.training import data as training_data
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

ROOM = 2  # pixels to each side by which patches can be shifted
NEAR_MM = 1.5  # from a lesion's nearest voxel within which a proposal is that lesion
CLEAR_MM = 3.0  # from every lesion beyond which a proposal is none
MOST_OTHERS = 24  # mimics, and as many dark spots, of a scan that no first stage need propose
DISTANCE_NOISE = 0.1  # of the numbers that tell the place: 1 mm, or a tenth of a share
OWN = ("rules", "blind", "hidden")  # of a drawing, besides `training.data.PatchSampling`
LESION, HARD, OTHER = 0, 1, 2
SHARES = ("lesion", "hard", "other")  # of a batch


@dataclass(frozen=True, eq=False)
class Lineup:
    """The patches of one scan, `ROOM` pixels around each.

    Attributes:
        patches: As `detection.proposals.stack_channels` has them, float16 (N, X, Y, Z, 3).
        places: As `detection.proposals.describe_places` has them, float32 (N, features).
        kinds: `LESION`, `HARD` (a proposal that is none) or `OTHER` (any other dark place).
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
    """Load the networks whose mean proposes.

    Returns:
        ask: From an image on the recipe's grid to probabilities.
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

    def ask(image: np.ndarray) -> np.ndarray:
        return np.mean([predict(network, image) for network in networks], axis=0)

    return ask, [entry["sha256"] for entry in entries]


def read_lineup(
    paths: training_data.ScanFiles,
    recipe: Recipe,
    ask: FirstStage,
    digests: Sequence[str],
    kept: Path,
) -> Lineup:
    """Read the patches of a scan; those that were cut before are read from ``kept``.

    Raises:
        ValueError: If a file cannot be used.
        OSError: If something cannot be read or written.
    """
    options = recipe.drawing or {}
    key = fingerprint(
        networks=list(digests), grid=recipe.grid, shape=recipe.arguments["shape"],
        rules=options.get("rules", {}), room=ROOM, near=(NEAR_MM, CLEAR_MM, MOST_OTHERS),
        files=training_data.digest_files(paths),
    )  # fmt: skip
    path = kept / f"{key[:16]}.npz"
    return Lineup(
        **training_data.load_or_make_arrays(path, lambda: vars(_line_up(paths, recipe, ask)))
    )


def _line_up(paths: training_data.ScanFiles, recipe: Recipe, ask: FirstStage) -> Lineup:
    scan, brain = training_data.load_scan_and_brain(paths)
    fed = preprocess(scan, brain, Grid.from_card(recipe.grid))
    case = training_data.make_training_scan(paths, fed)
    probability = Volume(ask(fed.image.data), fed.image.affine)
    rules = ProposalRules.from_card((recipe.drawing or {}).get("rules", {}))
    proposals = find_proposals(probability, dilate_brain(fed.brain), rules)
    rng = np.random.default_rng(int(sha256(paths.image)[:8], 16))
    voxels = np.array([one.voxel for one in proposals], int).reshape(-1, 3)
    rows = _label(case, voxels, fed.image.spacing, rng)
    anatomy = _find_anatomy(scan)
    at = np.array([row[0] for row in rows], int).reshape(-1, 3)
    channels = stack_channels(fed, probability.data)
    shape = np.add(recipe.arguments["shape"], (2 * ROOM, 2 * ROOM, 0))
    return Lineup(
        np.array([cut_patch(channels, one, shape) for one in at]).reshape(-1, *shape, 3),
        describe_places(at, probability, fed.brain, anatomy),
        np.array([row[1] for row in rows], np.uint8),
        np.array([row[2] for row in rows], np.int16),
        probability.data[tuple(at.T)].astype(np.float32),
    )


def _find_anatomy(scan: Volume) -> Anatomy | None:
    try:
        return predict_anatomy(scan)
    except ValueError:
        return None


def _label(
    case: training_data.TrainingScan,
    proposals: np.ndarray,
    spacing: np.ndarray,
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, int, int]]:
    """Tell which places of a scan are shown, as what, and which lesion they are.

    A proposal near a lesion is that lesion; one at some distance is neither. The middle of a lesion
    is always shown.
    """
    rows = []
    others = [part[rng.integers(len(part))] for part in case.sampling_centres["mimic"]]
    dark = case.sampling_centres["dark"][0]
    others = [others[at] for at in rng.permutation(len(others))[:MOST_OTHERS]]
    others += [dark[at] for at in rng.permutation(len(dark))[:MOST_OTHERS]]
    others = np.array(others, int).reshape(-1, 3)
    nearest = np.full(len(proposals), np.inf)
    apart_others = np.full(len(others), np.inf)
    for number, voxels in enumerate(case.sampling_centres["lesion"]):
        away = _distances(proposals, voxels, spacing)
        nearest = np.minimum(nearest, away)
        apart_others = np.minimum(apart_others, _distances(others, voxels, spacing))
        if case.labels[tuple(voxels[0])] != training_data.LESION:
            continue
        rows += [(voxel, LESION, number) for voxel in proposals[away <= NEAR_MM]]
        middle = voxels[np.linalg.norm((voxels - voxels.mean(0)) * spacing, axis=1).argmin()]
        rows.append((middle.astype(int), LESION, number))
    rows += [(voxel, HARD, -1) for voxel in proposals[nearest > CLEAR_MM]]
    rows += [(voxel, OTHER, -1) for voxel in others[apart_others > CLEAR_MM]]
    return rows


def _distances(places: np.ndarray, voxels: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance in mm of each place (N, 3) to the nearest of voxels (M, 3).

    Three quarters of a slice count for nothing: a lesion shows in the neighbouring slice too.
    """
    if not len(places):
        return np.zeros(0)
    apart = np.abs(places[:, None] - voxels[None].astype(float)) * spacing
    apart[..., 2] = np.maximum(apart[..., 2] - 0.75 * spacing[2], 0)
    return np.linalg.norm(apart, axis=-1).min(axis=1)


# --- What is shown and told -----------------------------------------------------------------------


def _teach(recipe: Recipe, sources: Sources, seed: int) -> tuple[BatchFunction, str]:  # noqa: ARG001
    check_no_label_maps(sources, "proposals")
    ask, digests = load_first_stage(recipe, sources)
    first = next(path for role, path in sorted(sources.pretrained.items()) if "proposal" in role)
    read = training_data.run_in_threads(
        lambda paths: read_lineup(paths, recipe, ask, digests, Path(first).parent / "proposed"),
        sources.scans,
        sources.loading.threads,
    )
    pools = [_pool(read, kind) for kind in (LESION, HARD, OTHER)]
    if not len(pools[LESION][0]) or not len(pools[HARD][0]):
        raise ValueError(
            f"{recipe.name} learns from microbleeds and from proposals that are none; found "
            f"{len(pools[LESION][0])} and {len(pools[HARD][0])} in {len(read)} scans."
        )
    given = dict(recipe.drawing or {})
    blind = given.get("blind", 0.0)
    shown, listed = mask_hidden(given.get("hidden", ()))
    drawing = make_patch_sampling(
        {key: value for key, value in given.items() if key not in OWN},
        shape=tuple(recipe.arguments["shape"]),
    )
    shares = np.array([drawing.shares.get(name, 0.0) for name in SHARES])
    shares = shares * [len(pool[0]) > 0 for pool in pools]
    pools = [(places, np.cumsum(weights)) for places, weights in pools]
    draw = partial(_draw, read, pools, shares / shares.sum(), drawing, blind)

    def teach(rng: np.random.Generator) -> Batch:
        patches, places, truths = zip(*(draw(rng) for _ in range(recipe.batch)), strict=True)
        seen = np.stack(patches) * shown, np.stack(places) * listed
        return seen, np.array(truths, np.float32)[:, None]

    lesions = sum(len(np.unique(one.lesions[one.lesions >= 0])) for one in read)
    told = f"{len(read)} scans with {lesions} lesions, {len(pools[HARD][0])} false proposals"
    return teach, told


def _pool(read: Sequence[Lineup], kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Scan and row of every patch of a kind, (N, 2), and how likely each is drawn, (N,).

    However many patches a lesion has, it is drawn as if it had one. What the first stage thinks of
    a place must not change how often it is drawn: the network is shown that too, and would learn
    the drawing instead of the truth.
    """
    places, weights = [], []
    for at, one in enumerate(read):
        rows = np.flatnonzero(one.kinds == kind)
        places.append(np.column_stack([np.full(len(rows), at), rows]))
        if kind == LESION:
            _, which, counts = np.unique(one.lesions[rows], return_inverse=True, return_counts=True)
            weights.append(1 / counts[which] if len(rows) else np.zeros(0))
        else:
            weights.append(np.ones(len(rows)))
    weight = np.concatenate(weights) if weights else np.zeros(0)
    return np.concatenate(places), weight / max(weight.sum(), 1e-9)


def _draw(
    read: Sequence[Lineup], pools: Sequence[tuple[np.ndarray, np.ndarray]], shares: np.ndarray,
    drawing: training_data.PatchSampling, blind: float, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, bool]:  # fmt: skip
    """One patch, its place, and whether it is a microbleed, varied."""
    kind = rng.choice(len(SHARES), p=shares)
    places, sums = pools[kind]
    scan, row = places[np.searchsorted(sums, rng.random()).clip(0, len(places) - 1)]
    lineup = read[scan]
    shift = rng.integers(0, 2 * ROOM + 1, 2)
    width, height, _ = drawing.shape
    patch = lineup.patches[row][shift[0] : shift[0] + width, shift[1] : shift[1] + height]
    patch = training_data.flip_randomly(patch.astype(np.float32), rng, swaps=drawing.swaps)
    patch = np.concatenate(
        [training_data.augment_intensity(patch[..., :1], drawing, rng), patch[..., 1:]], axis=-1
    )
    place = lineup.places[row].copy()
    if rng.random() < blind:
        place[ANATOMY_FROM:] = 0
    elif place[ANATOMY_FROM]:
        noise = rng.normal(0, DISTANCE_NOISE, len(place) - ANATOMY_FROM - 1)
        place[ANATOMY_FROM + 1 :] += noise.astype(np.float32) * (place[ANATOMY_FROM + 1 :] != 0)
    return patch, place, kind == LESION


def _loss(recipe: Recipe) -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=True, **(recipe.loss or {}))


TASK = Task(_teach, _loss)
