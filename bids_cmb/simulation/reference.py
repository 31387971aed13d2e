"""Ground truth of a simulated scan: labels and tables of microbleeds and mimics.

The label of a microbleed is defined on the image, against the twin without microbleeds.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from bids_cmb.bids.tables import read_columns
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import CONNECTIVITY_26, DetectionMap, Thresholds, find_lesions
from bids_cmb.lesions.table import make_lesion_row
from bids_cmb.simulation.acquisition import AcquisitionModel
from bids_cmb.simulation.kspace import make_swi
from bids_cmb.simulation.readout import AcquiredImages
from bids_cmb.simulation.source_effects import Effect
from bids_cmb.simulation.sources import MICROBLEED

# Voxels that lose this share of a lesion's deepest loss are the lesion. Where the deepest loss is
# small, a reader might doubt it, or not see it at all.
LESION_LOSS_SHARE, MIN_DEFINITE_LOSS, MIN_VISIBLE_LOSS = 0.45, 0.25, 0.18
TRUTH_COLUMNS = {
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
    "identity": {
        "Description": "Number of the microbleed, the same in every session of its participant.",
        "Format": "integer",
    },
}
CERTAINTY_COLUMN = {
    "Description": "How well the microbleed can be seen.",
    "Levels": {
        "definite": "Deepest loss of at least 0.25.",
        "possible": "Deepest loss of 0.18 to 0.25: neither finding nor missing it is an error.",
        "unseen": "Less: it is not in the label map.",
    },
}
INCLUDED_COLUMN = {
    "Description": "Whether it has to be found.",
    "Levels": {"yes": "Definite.", "no": "Possible or unseen."},
}
MIMIC_COLUMNS = {
    "index": {"Description": "Value in the label map of the same name.", "Format": "integer"},
    "name": {"Description": "Its name, unique within the scan."},
    "kind": {"Description": "What it is; no microbleed."},
    **{
        f"{axis}_mm": {"Description": f"Middle, scanner space, {axis} (RAS+).", "Units": "mm"}
        for axis in "xyz"
    },
    "moment_ppm_mm3": TRUTH_COLUMNS["moment_ppm_mm3"],
    "extent_mm": {"Description": "Largest extent along an axis of the world.", "Units": "mm"},
    "loss": {"Description": "Deepest loss of signal that it causes alone, 0 to 1."},
}


def get_lesion_columns() -> dict[str, dict]:
    """Return the app's columns of lesions, those that only ground truth can fill last."""
    return {
        **read_columns("lesion"),
        "certainty": CERTAINTY_COLUMN,
        "included": INCLUDED_COLUMN,
        **TRUTH_COLUMNS,
    }


def label_lesions(
    rows: list[dict],
    effects: Sequence[Effect],
    acquired: tuple[AcquisitionModel, AcquiredImages, np.ndarray],
    reader_view: tuple[Volume, Volume],
) -> tuple[Volume, list[dict]]:
    """Label the visible microbleeds, and tabulate all of them, the invisible ones last.

    Args:
        rows: From `simulation.sources.describe_objects`.
        effects: Of every object on the scan.
        acquired: The acquisition, its images, and where the scan is not blank.
        reader_view: Scan and brain mask.

    Returns:
        labels: uint16, on the grid of the scan.
        table: In the columns of `get_lesion_columns`.
    """
    acquisition, images, visible = acquired
    labels, depths = _label_visible(effects, np.where(visible, images.loss, 0), acquisition)
    known = [row for row in rows if row["kind"] == MICROBLEED]
    return labels, _tabulate_lesions(labels, depths, known, *reader_view)


def _label_visible(
    effects: Sequence[Effect], loss: np.ndarray, acquisition: AcquisitionModel
) -> tuple[Volume, dict[int, float]]:
    """Label the visible microbleeds, uint16, and return the deepest loss of each object."""
    owner, bodies = _assign_owners([effect for effect in effects if effect.is_lesion], acquisition)
    labels, depths, count = np.zeros(acquisition.grid.shape, np.uint16), {}, 0
    for number, (body, box) in enumerate(bodies, start=1):
        own_loss = np.where(owner[box] == number, loss[box], 0)
        depths[body] = float(own_loss.max(initial=0))
        if depths[body] >= MIN_VISIBLE_LOSS:
            pieces, _ = ndimage.label(
                own_loss > LESION_LOSS_SHARE * depths[body], structure=CONNECTIVITY_26
            )
            deepest = pieces.flat[own_loss.argmax()]
            count += 1
            labels[box][pieces == deepest] = count
    return Volume(labels, acquisition.grid.affine), depths


def _assign_owners(
    effects: Sequence[Effect], acquisition: AcquisitionModel
) -> tuple[np.ndarray, list[tuple[int, tuple[slice, ...]]]]:
    """Find which effect costs each voxel most, by number from 1; and object and box of each."""
    strongest = np.zeros(acquisition.grid.shape, np.float32)
    owner = np.zeros(acquisition.grid.shape, np.uint16)
    bodies = []
    for number, effect in enumerate(effects, start=1):
        index, lost = _compute_loss(effect, acquisition)
        where = tuple(index.T)
        stronger = lost > strongest[where]
        where = tuple(index[stronger].T)
        strongest[where], owner[where] = lost[stronger], number
        low, high = index.min(axis=0), index.max(axis=0) + 1
        bodies.append((effect.object_id, tuple(map(slice, low, high))))
    return owner, bodies


def _compute_loss(effect: Effect, acquisition: AcquisitionModel) -> tuple[np.ndarray, np.ndarray]:
    """Compute the loss of one effect alone: voxels of the scan (N, 3) and losses, 0 to 1."""
    magnitude = np.abs(effect.factor)
    if acquisition.protocol.contrast == "swi":
        magnitude = make_swi(magnitude, np.angle(effect.factor), phase_sign=1)
    fine = np.column_stack(np.unravel_index(effect.voxels, acquisition.sampling.shape))
    flat = np.ravel_multi_index((fine // acquisition.oversampling).T, acquisition.grid.shape)
    voxels, inverse = np.unique(flat, return_inverse=True)
    lost = np.bincount(inverse, 1 - magnitude) / np.bincount(inverse)
    return np.column_stack(np.unravel_index(voxels, acquisition.grid.shape)), lost


def label_mimics(
    rows: list[dict], effects: Sequence[Effect], acquisition: AcquisitionModel, visible: np.ndarray
) -> tuple[Volume, list[dict]]:
    """Label everything else that is dark, uint16, and tabulate what is visible of it."""
    known = {row["object_id"]: row for row in rows}
    labels = np.zeros(acquisition.grid.shape, np.uint16)
    strongest = np.zeros(acquisition.grid.shape, np.float32)
    table = []
    for effect in effects:
        if effect.is_lesion:
            continue
        index, lost = _compute_loss(effect, acquisition)
        lost = np.where(visible[tuple(index.T)], lost, 0)
        deepest = float(lost.max(initial=0))
        if deepest < MIN_VISIBLE_LOSS:
            continue
        within = lost > np.maximum(LESION_LOSS_SHARE * deepest, strongest[tuple(index.T)])
        where = tuple(index[within].T)
        number = len(table) + 1
        labels[where], strongest[where] = number, lost[within]
        table.append(
            {
                "index": number,
                "name": f"MIM{number:03d}",
                **_describe_mimic(known[effect.object_id], deepest),
            }
        )
    return Volume(labels, acquisition.grid.affine), table


def _describe_mimic(row: dict, deepest: float) -> dict:
    kept = ("kind", "x_mm", "y_mm", "z_mm", "moment_ppm_mm3", "extent_mm")
    return {**{key: row[key] for key in kept}, "loss": round(deepest, 3)}


def _tabulate_lesions(
    labels: Volume, depths: dict[int, float], known: list[dict], image: Volume, brain: Volume
) -> list[dict]:
    """Tabulate microbleeds in the app's columns; the invisible ones follow the labelled ones."""
    seen = [row for row in known if depths.get(row["object_id"], 0) >= MIN_VISIBLE_LOSS]
    rows = measure_labels(labels, image, brain)
    table, unseen = [], []
    for row in known:
        depth = depths.get(row["object_id"], 0.0)
        extra = {
            "region": row["region"], "territory": row["territory"],
            "moment_ppm_mm3": row["moment_ppm_mm3"], "loss": round(depth, 3),
            "identity": row["object_id"],
        }  # fmt: skip
        if row in seen and (index := 1 + seen.index(row)) in rows:
            certainty = "definite" if depth >= MIN_DEFINITE_LOSS else "possible"
            included = "yes" if depth >= MIN_DEFINITE_LOSS else "no"
            table.append({**rows[index], "certainty": certainty, "included": included, **extra})
        else:
            place = {name: row[name] for name in ("x_mm", "y_mm", "z_mm")}
            unseen.append({**place, "certainty": "unseen", "included": "no", **extra})
    empty = dict.fromkeys([*read_columns("lesion"), *TRUTH_COLUMNS])
    numbered = enumerate(unseen, start=len(table) + 1)
    table += [
        {**row, "index": number, "name": f"CMB{number:03d}", "mapping": 7}
        for number, row in numbered
    ]
    return [{**empty, **row} for row in table]


def measure_labels(labels: Volume, image: Volume, brain: Volume) -> dict[int, dict]:
    """Measure every label as the app does, by label; labels that touch are kept apart.

    Args:
        labels: uint16 or so, 0 is background.
        image: The scan.
        brain: bool.

    Returns:
        A row of the lesion table for each label.
    """
    rows: dict[int, dict] = {}
    for layer in _group_separate_labels(labels.data):
        chances = Volume(np.isin(labels.data, layer).astype(np.float32), labels.affine)
        labelled, lesions = find_lesions(
            DetectionMap(chances), image, brain, Thresholds(0.5, definite=0.5)
        )
        boxes = ndimage.find_objects(labelled.data)
        for lesion in lesions:
            box = boxes[lesion.index - 1]
            index = int(labels.data[box][labelled.data[box] == lesion.index][0])
            row = make_lesion_row(replace(lesion, index=index))
            rows[index] = {
                **row,
                "probability_mean": None,
                "probability_max": None,
                "probability_sd": None,
            }
    return rows


def _group_separate_labels(labels: np.ndarray) -> list[list[int]]:
    """Group labels so that none touch within a group."""
    layers: list[tuple[list[int], set[int]]] = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        wide = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        near = ndimage.binary_dilation(labels[wide] == label, structure=CONNECTIVITY_26)
        beside = set(np.unique(labels[wide][near]).tolist()) - {0, label}
        group, taken = next((layer for layer in layers if label not in layer[1]), ([], set()))
        if not group:
            layers.append((group, taken))
        group.append(label)
        taken.update(beside)
    return [group for group, _ in layers]
