"""Where what detectors leave behind lies in a scan's pictures: boxes about lesions, gates.

The pictures have the scan's own axes, in-plane axes first, the first of them turned: the
participant's right is on the left.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bids_cmb.bids.tables import POSITION_COLUMNS
from bids_cmb.detection.outputs import SIDES
from bids_cmb.imaging.volume import Volume

NEAR_MM = 1.0  # a lesion's centre may lie so far outside its box
PLANES = ((0, 1), (0, 2), (1, 2))  # the pictures of a lesion: axes across and up
ENDS = (("left", "right"), ("back", "front"), ("bottom", "top"))
Rows = Sequence[Mapping[str, object]]


def overlays(
    seen: Volume,
    places: Mapping[int, np.ndarray],
    evidence: Mapping[str, Rows],
    *,
    reach: float,
) -> dict[str, object]:
    """What the page draws of the detectors' evidence.

    Args:
        seen: The scan, its axes in the order of the pictures, the first not yet turned.
        places: Lesions' centres in the pictures, voxels, by index.
        evidence: Rows of the tables ``boxes`` and ``gate``, where there are any.
        reach: mm that the pictures of a lesion show to either side of its middle voxel.

    Returns:
        ``boxes``: for each lesion that lies in one, see `box_about`; ``gate``: for each detector
        with a gate, see `strip`. Each only where there is such a table.
    """
    told = {}
    if "boxes" in evidence:
        boxes = [(place_in(seen, row), row) for row in evidence["boxes"]]
        held = {i: box_about(at, boxes, seen.spacing, reach) for i, at in places.items()}
        told["boxes"] = {i: box for i, box in held.items() if box}
    if "gate" in evidence:
        names = dict.fromkeys(row["detector"] for row in evidence["gate"])
        told["gate"] = [
            strip(seen, [row for row in evidence["gate"] if row["detector"] == name], places)
            for name in names
        ]
    return told


def place_in(seen: Volume, row: Mapping[str, object]) -> np.ndarray:
    """Where the place of a row lies in the pictures, voxels (3,), not rounded."""
    at = seen.index(np.array([float(row[axis]) for axis in POSITION_COLUMNS]))
    return np.array([seen.shape[0] - 1 - at[0], at[1], at[2]])


def box_about(
    at: np.ndarray,
    boxes: Sequence[tuple[np.ndarray, Mapping]],
    spacing: np.ndarray,
    reach: float,
) -> dict[str, object] | None:
    """Of the boxes that hold a lesion's centre, the one whose middle is nearest to it.

    Args:
        at: The centre, voxels.
        boxes: Their middles, voxels, and their rows.
        spacing: mm.
        reach: As `overlays` has it.

    Returns:
        ``sides`` in mm, ``detector``, ``confidence`` and ``probability``; and as ``drawn`` left,
        top, width and height in each plane of `PLANES`, in percent of the picture. None if no box
        holds the centre.
    """
    holding = []
    for middle, row in boxes:
        sides = np.array([float(row[side]) for side in SIDES])
        if (abs(middle - at) * spacing <= sides / 2 + NEAR_MM).all():
            holding.append((middle, sides, row))
    if not holding:
        return None
    middle, sides, row = min(
        holding, key=lambda one: float(np.linalg.norm((one[0] - at) * spacing))
    )
    away, percent = (middle - np.rint(at)) * spacing, 100 / (2 * reach)
    drawn = []
    for across, up in PLANES:
        left, top = away[across] - sides[across] / 2, -away[up] - sides[up] / 2
        shown = [50 + left * percent, 50 + top * percent]
        shown += [sides[across] * percent, sides[up] * percent]
        drawn.append([round(float(part), 1) for part in shown])
    return {
        "detector": row["detector"],
        "sides": sides.round(1).tolist(),
        "confidence": float(row["confidence"]),
        "probability": float(row["probability"]),
        "drawn": drawn,
    }


def strip(seen: Volume, rows: Rows, places: Mapping[int, np.ndarray]) -> dict[str, object]:
    """A gate along the slices.

    Returns:
        ``detector``, ``threshold``; ``slices``, each its place in mm from the first of the pictures
        and its probability; ``lesions``, each its index and place; ``ends``, what lies there.
    """
    mm = float(seen.spacing[2])
    return {
        "detector": rows[0]["detector"],
        "threshold": float(rows[0]["threshold"]),
        "ends": ENDS[int(np.argmax(abs(seen.affine[:3, 2])))],
        "slices": [
            [round(float(place_in(seen, row)[2]) * mm, 2), float(row["probability"])]
            for row in rows
        ],
        "lesions": [[index, round(float(at[2]) * mm, 2)] for index, at in places.items()],
    }
