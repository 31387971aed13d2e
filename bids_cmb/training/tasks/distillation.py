"""A patch is to be told whether a microbleed lies in its middle: what teacher and student learn.

Patches lie about true lesions and about the spots of a candidate network, which is given. A spot
that touches a microbleed is one, one that touches an unsure lesion alone is left out, all others
are what merely looks like one. The student is also told what the teacher, given too, says of the
very patch it sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from scipy import ndimage

from bids_cmb.detection.distilled import SIDE, Ask, Seen, candidate_chance, find_spots, look
from bids_cmb.imaging.preprocessing import Grid, Preprocessed, preprocess
from bids_cmb.lesions.measure import TOUCHING
from bids_cmb.networks.inference import entry_patcher
from bids_cmb.provenance import fingerprint, sha256
from bids_cmb.training import data as cases
from bids_cmb.training.distillation import StudentLoss, TeacherLoss
from bids_cmb.training.recipe import (
    Batch,
    Recipe,
    Sources,
    Task,
    Teach,
    drawing_of,
    keep_arrays,
    read_given,
    refuse_label_maps,
)
from bids_cmb.training.tasks.candidate_detection import (
    AROUND_MM,
    shown,
    shown_patch,
    weights,
)

ROOM = 2  # voxels to each side by which patches can be shifted
OWN = (
    "threshold",
    "most",
    "negatives",
    "symmetry",
)  # of a drawing, besides `training.data.Drawing`
HEARD = 4  # added to the truth where the network is told what is there


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of one scan, with `ROOM` around each.

    Attributes:
        images: In brain medians, and symmetry, float16, (N, X, Y, Z, 2).
        marks: `cases.Case.truth`, and `HEARD` more where heard, uint8, (N, X, Y, Z).
        positive: Whether a microbleed lies in the middle, bool, (N,).
    """

    images: np.ndarray
    marks: np.ndarray
    positive: np.ndarray


# --- What is drawn from ---------------------------------------------------------------------------


def given_network(recipe: Recipe, sources: Sources, role: str) -> tuple[dict, Ask]:
    """A network that this one learns after: its entry, and how to ask it.

    Raises:
        ValueError: If none is given in that role, or it sees another grid.
        OSError: If its entry cannot be read.
    """
    if role not in sources.given:
        raise ValueError(
            f"{recipe.name} learns after another network: give it "
            f"--pretrained {role}=OUT/NAME.json; found {', '.join(sources.given) or 'none'}."
        )
    path = Path(sources.given[role])
    entry = read_given(path, recipe)
    coarse = keras.config.dtype_policy().compute_dtype == "bfloat16"  # as everything in training
    precision = "mixed" if coarse else "full"
    return entry, entry_patcher(entry, path, precision=precision)


def read_patches(
    paths: cases.Paths, entry: dict, ask: Ask, recipe: Recipe, kept: Path
) -> Patches:  # fmt: skip
    """Patches about the lesions and the spots of a scan; those that were found before are there.

    Args:
        paths: Of the scan.
        entry: Of the candidate network.
        ask: The candidate network.
        recipe: Of the network that learns; ``drawing`` with ``threshold`` and ``most`` spots as
            the card of the detector has them, and ``negatives``, at most, of a scan.
        kept: A folder, where patches are kept under what they depend on.

    Raises:
        ValueError: If a file cannot be used.
        OSError: If something cannot be read or written.
    """
    drawing = recipe.drawing or {}
    files = {name: path for name, path in vars(paths).items() if isinstance(path, Path)}
    key = fingerprint(
        network=entry["sha256"], grid=entry["grid"], room=ROOM,
        asked=[drawing[name] for name in OWN[:3]],
        files={name: sha256(path) for name, path in files.items()},
    )  # fmt: skip
    path = kept / f"{key[:16]}.npz"
    grid = Grid.from_card(entry["grid"])
    return Patches(**keep_arrays(path, lambda: vars(_patches(paths, grid, ask, drawing))))


def _patches(paths: cases.Paths, grid: Grid, ask: Ask, drawing: dict) -> Patches:
    fed, case, seen = _prepared(paths, grid)
    chance = candidate_chance(ask, seen)
    spots = find_spots(chance, threshold=drawing["threshold"], most=drawing["most"])
    near = ndimage.binary_dilation(case.truth == cases.LESION, TOUCHING)
    unsure = ndimage.binary_dilation(case.truth == cases.UNSURE, TOUCHING)
    hit = np.array([near[tuple(spot.voxels.T)].any() for spot in spots], bool)
    aside = np.array([unsure[tuple(spot.voxels.T)].any() for spot in spots], bool)
    centres = [spot.centre for spot in spots]
    lesions = [
        np.rint(voxels.mean(axis=0)).astype(int)
        for voxels in case.centres["lesion"]
        if case.truth[tuple(voxels[0])] == cases.LESION
    ]
    right = lesions + [at for at, yes in zip(centres, hit, strict=True) if yes]
    wrong = [at for at, no in zip(centres, ~hit & ~aside, strict=True) if no]
    # Sorted by chance: every so many-th, so that likely and unlikely ones are there.
    wrong = wrong[:: max(1, -(-len(wrong) // drawing["negatives"]))]
    image = np.stack([fed.image.data, seen.channels[..., 1]], axis=-1).astype(np.float16)
    marks = (case.truth + HEARD * case.heard).astype(np.uint8)
    shape = (SIDE + 2 * ROOM,) * 3
    boxes = [at - shape[0] // 2 for at in right + wrong]
    return Patches(
        np.array([cases.cut(image, at, shape) for at in boxes]).reshape(-1, *shape, 2),
        np.array([cases.cut(marks, at, shape) for at in boxes]).reshape(-1, *shape),
        np.arange(len(boxes)) < len(right),
    )


def _prepared(paths: cases.Paths, grid: Grid) -> tuple[Preprocessed, cases.Case, Seen]:
    fed = preprocess(*cases.read_scan(paths), grid)
    return fed, cases.case_of(paths, fed), look(fed)


# --- What is shown and told -----------------------------------------------------------------------


def _drawn(recipe: Recipe, sources: Sources):
    """What draws images (B, 24, 24, 24, 2), truths with weights (same, 2) and kinds (B,)."""
    refuse_label_maps(sources, "lesions")
    entry, ask = given_network(recipe, sources, "candidates")
    kept = Path(sources.given["candidates"]).parent / "seen"
    read = [read_patches(one, entry, ask, recipe, kept) for one in sources.scans]
    right, wrong = (_places(read, positive=positive) for positive in (True, False))
    if not len(right) or not len(wrong):
        raise ValueError(
            f"{recipe.name} learns from microbleeds and from what looks like them; "
            f"found {len(right)} and {len(wrong)} in {len(read)} scans."
        )
    given = dict(recipe.drawing or {})
    symmetric = given.get("symmetry", True)
    varied = {key: value for key, value in given.items() if key not in OWN}
    drawing = drawing_of(varied, shape=(SIDE,) * 3, shares={})
    around = AROUND_MM / np.array(Grid.from_card(recipe.grid).spacing, float)

    def draw(place: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        of, number = read[place[0]], place[1]
        box = tuple(slice(at, at + SIDE) for at in rng.integers(0, 2 * ROOM + 1, 3))
        marks = of.marks[number][box][..., None]
        stacked = np.concatenate(
            [of.images[number][box], marks >= HEARD, marks % HEARD], axis=-1, dtype=np.float32
        )
        stacked = cases.turned(stacked, rng, swaps=drawing.swaps)
        truth, heard = stacked[..., 3], stacked[..., 2] > 0
        known = np.stack([truth == cases.LESION, weights(truth, heard, around)], axis=-1)
        return shown_patch(stacked[..., :3], drawing, rng, symmetric=symmetric), known

    def batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kinds = np.arange(recipe.batch) % 2  # one for one, as published
        places = [(right if kind else wrong)[rng.integers(len((wrong, right)[kind]))]
                  for kind in kinds]  # fmt: skip
        images, known = zip(*[draw(place, rng) for place in places], strict=True)
        return np.stack(images), np.stack(known).astype(np.float32), kinds.astype(np.float32)

    told = f"{len(read)} scans, {len(right)} patches about microbleeds and {len(wrong)} others"
    return batch, told


def _places(read: Sequence[Patches], *, positive: bool) -> np.ndarray:
    """Of all patches of a kind the scan and the number, (N, 2)."""
    return np.array(
        [
            (at, number)
            for at, one in enumerate(read)
            for number in np.flatnonzero(one.positive == positive)
        ],
        int,
    ).reshape(-1, 2)


def _teacher(recipe: Recipe, sources: Sources, seed: int) -> tuple[Teach, str]:  # noqa: ARG001
    drawn, told = _drawn(recipe, sources)

    def teach(rng: np.random.Generator) -> Batch:
        images, known, kinds = drawn(rng)
        everywhere = np.broadcast_to(kinds[:, None, None, None, None], (*known.shape[:4], 1))
        return images, np.concatenate([known, everywhere], axis=-1)

    return teach, told


def _student(recipe: Recipe, sources: Sources, seed: int) -> tuple[Teach, str]:  # noqa: ARG001
    drawn, told = _drawn(recipe, sources)
    alone = not (recipe.loss or {}).get("alpha", 0.1)
    ask = None if alone else given_network(recipe, sources, "teacher")[1]

    def teach(rng: np.random.Generator) -> Batch:
        images, _, kinds = drawn(rng)
        said = np.zeros((len(kinds), 2), np.float32)
        if ask is not None:
            said = ask(images)[:, 0, 0, 0, 2:]
        return images, np.concatenate([kinds[:, None], said], axis=-1)

    return teach, f"{told}, {'no' if alone else 'a'} teacher"


TEACHER = Task(_teacher, lambda recipe: TeacherLoss(**(recipe.loss or {})), shown)
STUDENT = Task(_student, lambda recipe: StudentLoss(**(recipe.loss or {})))
