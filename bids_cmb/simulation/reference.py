"""What is true of a simulated scan: labels and tables of microbleeds and of all that looks alike.

The label of a microbleed is defined on the image, against the twin without microbleeds.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from bids_cmb.bids.tables import columns
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import TOUCHING, find_lesions
from bids_cmb.lesions.table import lesion_row
from bids_cmb.simulation import physics
from bids_cmb.simulation.acquisition import Effect, Scene, Views
from bids_cmb.simulation.sources import MICROBLEED

# Voxels that lose this share of a lesion's deepest loss are the lesion. Where the deepest loss is
# small, a reader might doubt it, or not see it at all.
HALF_DEPTH, DEFINITE, POSSIBLE = 0.45, 0.25, 0.18
TRUTH = {
    "region": {"Description": "Region that the microbleed was put into."},
    "territory": {
        "Description": "Territory of the region.",
        "Levels": {"lobar": "Lobar.", "deep": "Deep.", "infratentorial": "Infratentorial."},
    },
    "moment_ppm_mm3": {
        "Description": "Strength of the source: susceptibility times cubed radius.",
        "Units": "ppm*mm^3",
        "Format": "number",
    },
    "loss": {
        "Description": "Deepest loss of signal against the twin without microbleeds, 0 to 1, "
        "before noise.",
        "Format": "number",
    },
}
CERTAINTY = {
    "Description": "How well the microbleed can be seen.",
    "Levels": {
        "definite": "Deepest loss of at least 0.25.",
        "possible": "Deepest loss of 0.18 to 0.25: neither finding nor missing it is an error.",
        "unseen": "Less: it is not in the label map.",
    },
}
INCLUDED = {
    "Description": "Whether it has to be found.",
    "Levels": {"yes": "Definite.", "no": "Possible or unseen."},
}
MIMICS = {
    "index": {"Description": "Value in the label map of the same name.", "Format": "integer"},
    "name": {"Description": "Its name, unique within the scan."},
    "kind": {"Description": "What it is; no microbleed."},
    **{
        f"{axis}_mm": {"Description": f"Middle, scanner space, {axis} (RAS+).", "Units": "mm"}
        for axis in "xyz"
    },
    "moment_ppm_mm3": TRUTH["moment_ppm_mm3"],
    "extent_mm": {"Description": "Largest extent along an axis of the world.", "Units": "mm"},
    "loss": {"Description": "Deepest loss of signal that it causes alone, 0 to 1."},
}


def lesion_columns() -> dict[str, dict]:
    """The app's columns of lesions, those that truth alone can fill last."""
    return {**columns("lesion"), "certainty": CERTAINTY, "included": INCLUDED, **TRUTH}


def lesion_truth(
    rows: list[dict],
    effects: Sequence[Effect],
    seen: tuple[Scene, Views, np.ndarray],
    measured_on: tuple[Volume, Volume],
) -> tuple[Volume, list[dict]]:
    """Microbleeds as they are seen, and a row for each, those that cannot be seen last.

    Args:
        rows: Of `simulation.sources.truth_rows`.
        effects: What every body does to the scan.
        seen: The scene, its views, and where the scan is not blank.
        measured_on: Scan and brain mask.

    Returns:
        labels: uint16, on the grid of the scan.
        table: In the columns of `lesion_columns`.
    """
    scene, views, kept = seen
    labels, depths = _lesion_labels(effects, np.where(kept, views.loss, 0), scene)
    known = [row for row in rows if row["kind"] == MICROBLEED]
    return labels, _lesion_table(labels, depths, known, *measured_on)


def _lesion_labels(
    effects: Sequence[Effect], loss: np.ndarray, scene: Scene
) -> tuple[Volume, dict[int, float]]:
    """Microbleeds as they are seen: uint16 by body's order, and the deepest loss of each body."""
    owner, bodies = _owners([effect for effect in effects if effect.lesion], scene)
    labels, depths, count = np.zeros(scene.grid.shape, np.uint16), {}, 0
    for at, (body, box) in enumerate(bodies, start=1):
        own = np.where(owner[box] == at, loss[box], 0)
        depths[body] = float(own.max(initial=0))
        if depths[body] >= POSSIBLE:
            pieces, _ = ndimage.label(own > HALF_DEPTH * depths[body], structure=TOUCHING)
            deepest = pieces.flat[own.argmax()]
            count += 1
            labels[box][pieces == deepest] = count
    return Volume(labels, scene.grid.affine), depths


def _owners(
    effects: Sequence[Effect], scene: Scene
) -> tuple[np.ndarray, list[tuple[int, tuple[slice, ...]]]]:
    """Which effect costs each voxel most, by number from 1; and the body and box of each."""
    strongest = np.zeros(scene.grid.shape, np.float32)
    owner = np.zeros(scene.grid.shape, np.uint16)
    bodies = []
    for at, effect in enumerate(effects, start=1):
        index, lost = _own_loss(effect, scene)
        where = tuple(index.T)
        stronger = lost > strongest[where]
        where = tuple(index[stronger].T)
        strongest[where], owner[where] = lost[stronger], at
        low, high = index.min(axis=0), index.max(axis=0) + 1
        bodies.append((effect.body, tuple(map(slice, low, high))))
    return owner, bodies


def _own_loss(effect: Effect, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of the scan (N, 3) and what the effect alone costs each, 0 to 1."""
    shown = np.abs(effect.factor)
    if scene.protocol.contrast == "swi":
        shown = physics.swi(shown, np.angle(effect.factor), handed=1)
    fine = np.column_stack(np.unravel_index(effect.voxels, scene.sampling.shape))
    flat = np.ravel_multi_index((fine // scene.finer).T, scene.grid.shape)
    voxels, at = np.unique(flat, return_inverse=True)
    lost = np.bincount(at, 1 - shown) / np.bincount(at)
    return np.column_stack(np.unravel_index(voxels, scene.grid.shape)), lost


def mimic_truth(
    rows: list[dict], effects: Sequence[Effect], scene: Scene, kept: np.ndarray
) -> tuple[Volume, list[dict]]:
    """Everything else that is dark: uint16 labels, and a row for each that can be seen."""
    known = {row["body"]: row for row in rows}
    labels = np.zeros(scene.grid.shape, np.uint16)
    strongest = np.zeros(scene.grid.shape, np.float32)
    table = []
    for effect in effects:
        if effect.lesion:
            continue
        index, lost = _own_loss(effect, scene)
        lost = np.where(kept[tuple(index.T)], lost, 0)
        deepest = float(lost.max(initial=0))
        if deepest < POSSIBLE:
            continue
        within = lost > np.maximum(HALF_DEPTH * deepest, strongest[tuple(index.T)])
        where = tuple(index[within].T)
        number = len(table) + 1
        labels[where], strongest[where] = number, lost[within]
        table.append(
            {"index": number, "name": f"MIM{number:03d}", **_mimic_row(known[effect.body], deepest)}
        )
    return Volume(labels, scene.grid.affine), table


def _mimic_row(row: dict, deepest: float) -> dict:
    kept = ("kind", "x_mm", "y_mm", "z_mm", "moment_ppm_mm3", "extent_mm")
    return {**{key: row[key] for key in kept}, "loss": round(deepest, 3)}


def _lesion_table(
    labels: Volume, depths: dict[int, float], known: list[dict], image: Volume, brain: Volume
) -> list[dict]:
    """Microbleeds in the app's own columns; the unseen ones follow those in the label map."""
    seen = [row for row in known if depths.get(row["body"], 0) >= POSSIBLE]
    rows = measured_rows(labels, image, brain)
    table, unseen = [], []
    for row in known:
        depth = depths.get(row["body"], 0.0)
        extra = {
            "region": row["region"], "territory": row["territory"],
            "moment_ppm_mm3": row["moment_ppm_mm3"], "loss": round(depth, 3),
        }  # fmt: skip
        if row in seen and (index := 1 + seen.index(row)) in rows:
            sure = "definite" if depth >= DEFINITE else "possible"
            included = "yes" if depth >= DEFINITE else "no"
            table.append({**rows[index], "certainty": sure, "included": included, **extra})
        else:
            place = {name: row[name] for name in ("x_mm", "y_mm", "z_mm")}
            unseen.append({**place, "certainty": "unseen", "included": "no", **extra})
    empty = dict.fromkeys([*columns("lesion"), *TRUTH])
    numbered = enumerate(unseen, start=len(table) + 1)
    table += [{**row, "index": at, "name": f"CMB{at:03d}", "mapping": 7} for at, row in numbered]
    return [{**empty, **row} for row in table]


def measured_rows(labels: Volume, image: Volume, brain: Volume) -> dict[int, dict]:
    """Every label's row as the app measures it, by label; labels that touch are kept apart."""
    rows: dict[int, dict] = {}
    for layer in _layers(labels.data):
        chances = Volume(np.isin(labels.data, layer).astype(np.float32), labels.affine)
        found, lesions = find_lesions(chances, image, brain, threshold=0.5, definite=0.5)
        boxes = ndimage.find_objects(found.data)
        for lesion in lesions:
            box = boxes[lesion.index - 1]
            index = int(labels.data[box][found.data[box] == lesion.index][0])
            row = lesion_row(replace(lesion, index=index))
            rows[index] = {
                **row,
                "probability_mean": None,
                "probability_max": None,
                "probability_sd": None,
            }
    return rows


def _layers(labels: np.ndarray) -> list[list[int]]:
    """Labels in groups within which none touch."""
    layers: list[tuple[list[int], set[int]]] = []
    for at, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        wide = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        near = ndimage.binary_dilation(labels[wide] == at, structure=TOUCHING)
        beside = set(np.unique(labels[wide][near]).tolist()) - {0, at}
        group, taken = next((one for one in layers if at not in one[1]), ([], set()))
        if not group:
            layers.append((group, taken))
        group.append(at)
        taken.update(beside)
    return [group for group, _ in layers]
