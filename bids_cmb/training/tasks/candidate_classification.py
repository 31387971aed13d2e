"""Classify candidates of the box detector as microbleed or false positive."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from bids_cmb.detection.boxes import Suspect
from bids_cmb.detection.cascade import Rules, find_suspects, patch, sees_phase
from bids_cmb.imaging.preprocessing import Grid, preprocess
from bids_cmb.networks.inference import entry_patcher
from bids_cmb.training import data as cases
from bids_cmb.training.recipe import Batch, Recipe, Sources, Task, Teach, drawing_of, read_given


@dataclass(frozen=True, eq=False)
class Lineup:
    """Who is suspected in a scan.

    Attributes:
        case: The scan.
        right: Voxels that a microbleed's patch may be drawn around, for each a list (N, 3).
        wrong: Voxels of suspects that are none, (N, 3).
    """

    case: cases.Case
    right: list[np.ndarray]
    wrong: np.ndarray


def line_up(
    case: cases.Case, suspects: Sequence[Suspect], spacing: Sequence[float], near: float
) -> Lineup:
    """Tell the suspects of a scan apart; those near an unsure lesion are neither.

    Args:
        case: The scan.
        suspects: In it.
        spacing: mm of a voxel, (3,).
        near: mm from a lesion's nearest voxel within which a suspect is that lesion.
    """
    places = np.array([one.centre for one in suspects]).reshape(-1, 3)
    taken, right = np.zeros(len(places), bool), []
    for voxels in case.centres["lesion"]:
        apart = (places[:, None] - voxels[None].astype(float)) * spacing
        mine = (np.linalg.norm(apart, axis=-1).min(axis=1) <= near) if len(places) else taken
        taken |= mine
        if case.truth[tuple(voxels[0])] == cases.LESION:
            right.append(np.concatenate([places[mine], voxels.mean(axis=0)[None]]))
    return Lineup(case, right, places[~taken])


def _teach(recipe: Recipe, sources: Sources, seed: int) -> tuple[Teach, str]:  # noqa: ARG001
    if "boxes" not in sources.given:
        raise ValueError(
            "Patches are learnt after a network for boxes: --pretrained boxes=OUT/NAME.json; found "
            f"{', '.join(sources.given) or 'none'}."
        )
    path = sources.given["boxes"]
    entry = read_given(path, recipe)
    options = dict(recipe.drawing)
    rules, near = Rules(**options.pop("rules")), options.pop("near_mm")
    shift = np.array(options.pop("shift"))
    drawing = drawing_of(options, shape=tuple(recipe.arguments["shape"]))
    ask, grid = entry_patcher(entry, path), Grid.from_card(recipe.grid)
    known = []
    for one in sources.scans:
        scan = cases.read_scan(one)
        fed = preprocess(*scan, grid)
        phase = cases.phase_on(one, *scan, grid) if sees_phase(entry) else None
        suspects = find_suspects(ask, entry, fed, rules, phase)
        known.append(line_up(cases.case_of(one, fed), suspects, fed.image.spacing, near))
    right = [(one, place) for one in known for place in one.right]
    wrong = [(one, place) for one in known for place in one.wrong]
    others = [(one, place) for one in known for place in one.case.centres["mimic"]]
    if not right or not wrong:
        raise ValueError(
            f"{path}: patches need suspects that are microbleeds and some that are none; "
            f"found {len(right)} and {len(wrong)}."
        )

    def teach(rng: np.random.Generator) -> Batch:
        truths = (np.arange(recipe.batch) % 2).astype(np.float32)  # as many of each
        shares = drawing.shares
        images = []
        for truth in truths:
            if truth:
                one, places = right[rng.integers(len(right))]
                place = places[rng.integers(len(places))]
            elif others and rng.random() < shares.get("mimic", 0):
                one, places = others[rng.integers(len(others))]
                place = places[rng.integers(len(places))]
            else:
                one, place = wrong[rng.integers(len(wrong))]
            images.append(_draw(one.case, place + rng.uniform(-shift, shift), drawing, rng))
        return np.stack(images), truths[:, None]

    told = f"{len(known)} scans with {len(right)} lesions and {len(wrong)} false suspects"
    return teach, told


def _draw(
    case: cases.Case, place: np.ndarray, drawing: cases.Drawing, rng: np.random.Generator
) -> np.ndarray:
    """A patch around a place, varied."""
    cut = patch(case.image, place, drawing.shape)
    return cases.varied(cases.turned(cut, rng, swaps=drawing.swaps), drawing, rng)


TASK = Task(
    _teach, lambda recipe: keras.losses.BinaryCrossentropy(from_logits=True, **(recipe.loss or {}))
)
