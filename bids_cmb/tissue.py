"""Grey or white: what the tissue about a lesion is, seen on finer voxels than those of the anatomy.

The anatomy network's voxels are 2 mm wide, cortex hardly more. A second, small network looks at a
patch about each lesion on voxels as fine as 1 mm in the slice, the first one's opinion beside the
image. It decides between cortex and white matter, and between nothing else: where that is not the
question, the first one's word stands.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bids_cmb.anatomy import FLUID, FLUID_OUTSIDE, OUTSIDE, Anatomy, Place, brain_of
from bids_cmb.cards import ANATOMY, card, weights_file
from bids_cmb.networks import STEPS, Models, load_patcher
from bids_cmb.preprocessing import Grid, cut, preprocess
from bids_cmb.volume import Volume, resample

MEMBER = "tissue"  # of the anatomy's card
SHAPE = (64, 64, 8)  # voxels of a patch
AT_ONCE = 16  # patches
BRIGHTEST = 3.0  # brain medians
PAIRS = (
    ("cerebral white matter", "cerebral cortex"),
    ("cerebellar white matter", "cerebellar cortex"),
)
KINDS = ("no tissue", *PAIRS[0], *PAIRS[1], "other tissue")


def kinds_of(classes: Sequence[dict]) -> np.ndarray:
    """Which of `KINDS` each class of the anatomy network is, uint8."""
    return np.array([_kind(one) for one in classes], np.uint8)


def _kind(one: dict) -> int:
    if one["name"] in KINDS:
        return KINDS.index(one["name"])
    nothing = one["name"] in (OUTSIDE, FLUID_OUTSIDE) or one["left"] in FLUID
    return 0 if nothing else KINDS.index("other tissue")


def summed(anatomy: Anatomy, kinds: np.ndarray) -> list[Volume]:
    """The anatomy network's chances of each of `KINDS` but the first, in 255ths, on its grid.

    Args:
        anatomy: With its ``chances``.
        kinds: As `kinds_of` gives them.
    """
    sums = (
        anatomy.chances[..., kinds == kind].sum(axis=-1, dtype=np.float32)
        for kind in range(1, len(KINDS))
    )
    return [Volume(one, anatomy.structures.affine) for one in sums]


def opinion(
    chances: Sequence[Volume], affine: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """What the anatomy network thinks of the voxels of a finer grid.

    Args:
        chances: As `summed` gives them.
        affine: Of the grid, (4, 4).
        shape: Of the grid.

    Returns:
        In 255ths, uint8 (X, Y, Z, 5); 0 where the network did not look.
    """
    moved = [resample(one, affine, shape).data for one in chances]
    return np.clip(np.rint(np.stack(moved, axis=-1)), 0, STEPS).astype(np.uint8)


def shown(image: np.ndarray, told: np.ndarray) -> np.ndarray:
    """What the network is fed: image and opinion, float32 (..., 6).

    Args:
        image: In brain medians, (...).
        told: As `opinion` gives it, (..., 5).
    """
    bright = np.clip(image.astype(np.float32), 0, BRIGHTEST)[..., None]
    return np.concatenate([bright, told.astype(np.float32) / STEPS], axis=-1)


def finer(
    image: Volume, anatomy: Anatomy, centres: Sequence[Sequence[float]], places: Sequence[Place],
    territories: Sequence[str | None], models: Models | None = None,
) -> list[Place]:  # fmt: skip
    """The places of lesions, grey and white matter told apart anew.

    Args:
        image: The scan, as it came.
        anatomy: Of the scan.
        centres: Of the lesions, world mm, (N, 3).
        places: As `anatomy.places` gives them, one for each centre.
        territories: Of the lesions, as `regions.locate` gives them. Of deep ones nothing is asked:
            there is no cortex in the depth.
        models: Where the network lies, and how exact it shall be.

    Returns:
        As they were where the card has no such network, the anatomy is the user's own, or its brain
        has no voxel on the network's grid or no brightness.

    Raises:
        ValueError: If the network cannot be loaded.
    """
    models = models or Models()
    said = card(ANATOMY, models.folder)
    member = next((one for one in said["members"] if one["name"] == MEMBER), None)
    partner = {name: pair for pair in PAIRS for name in pair}
    asked = [
        at
        for at, (place, territory) in enumerate(zip(places, territories, strict=True))
        if place.structure in partner and territory != "deep"
    ]
    if member is None or anatomy.chances is None or not asked:
        return list(places)
    path = weights_file(ANATOMY, member, models.folder)
    ask = load_patcher(member, path, precision=models.precision)
    grid = Grid.from_card(member["grid"])
    try:
        fed = preprocess(image, brain_of(anatomy, image), grid).image
    except ValueError:  # no brain left on that grid, or none to scale by: no reason to lose a scan
        return list(places)
    chances, found = summed(anatomy, kinds_of(said["classes"])), list(places)
    for first in range(0, len(asked), AT_ONCE):
        group = asked[first : first + AT_ONCE]
        answers = ask(np.stack([_patch(fed, chances, centres[at]) for at in group]))
        middle = answers[(slice(None), *(side // 2 for side in SHAPE))]  # (group, KINDS)
        for at, logits in zip(group, middle, strict=True):
            pair = partner[places[at].structure]
            white, grey = (logits[KINDS.index(name)] for name in pair)
            found[at] = replace(places[at], structure=pair[0] if white >= grey else pair[1])
    return found


def _patch(fed: Volume, chances: Sequence[Volume], centre: Sequence[float]) -> np.ndarray:
    """What the network is fed about a place, (*SHAPE, 6); the place is in the middle voxel."""
    at = np.floor(fed.index(np.asarray(centre, float)) + 0.5).astype(int)
    start = at - np.array(SHAPE) // 2
    affine = fed.affine.copy()
    affine[:3, 3] = fed.world(start)
    return shown(cut(fed.data, start, np.array(SHAPE)), opinion(chances, affine, SHAPE))
