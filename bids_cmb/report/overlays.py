"""Overlays on a scan's pictures: the detectors' boxes and gate responses.

The pictures have the axes of the scan, in-plane axes first, the first of them reversed: the
participant's right is on the left.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bids_cmb.bids.tables import POSITION_COLUMNS
from bids_cmb.detection.outputs import SIDE_COLUMNS
from bids_cmb.imaging.volume import Volume

BOX_TOLERANCE_MM = 1.0  # a lesion's centre may be so far outside its box
PLANES = ((0, 1), (0, 2), (1, 2))  # the pictures of a lesion: axes across and up
AXIS_ENDS = (("left", "right"), ("back", "front"), ("bottom", "top"))
Rows = Sequence[Mapping[str, object]]


def make_overlays(
    image: Volume,
    centres: Mapping[int, np.ndarray],
    evidence: Mapping[str, Rows],
    *,
    reach_mm: float,
) -> dict[str, object]:
    """Make the overlays of the detectors' evidence.

    Args:
        image: The scan, its axes in the order of the pictures, the first not yet reversed.
        centres: Of the lesions in the pictures, voxels, by index.
        evidence: Rows of the tables ``boxes`` and ``gate``, where there are any.
        reach_mm: That the pictures of a lesion show to either side of its middle voxel.

    Returns:
        ``boxes``: for each lesion in a box, see `find_box`; ``gate``: for each detector with a
        gate, see `make_gate_strip`. Each only where there is such a table.
    """
    made = {}
    if "boxes" in evidence:
        boxes = [(locate_in_picture(image, row), row) for row in evidence["boxes"]]
        nearest = {
            i: find_box(centre, boxes, image.spacing, reach_mm) for i, centre in centres.items()
        }
        made["boxes"] = {i: box for i, box in nearest.items() if box}
    if "gate" in evidence:
        names = dict.fromkeys(row["detector"] for row in evidence["gate"])
        made["gate"] = [
            make_gate_strip(
                image, [row for row in evidence["gate"] if row["detector"] == name], centres
            )
            for name in names
        ]
    return made


def locate_in_picture(image: Volume, row: Mapping[str, object]) -> np.ndarray:
    """Locate the position of a row in the pictures, voxels (3,), not rounded."""
    voxel = image.index(np.array([float(row[axis]) for axis in POSITION_COLUMNS]))
    return np.array([image.shape[0] - 1 - voxel[0], voxel[1], voxel[2]])


def find_box(
    centre: np.ndarray,
    boxes: Sequence[tuple[np.ndarray, Mapping]],
    spacing: np.ndarray,
    reach_mm: float,
) -> dict[str, object] | None:
    """Find the box around a lesion: of those that hold its centre, the nearest.

    Args:
        centre: Of the lesion, voxels.
        boxes: Their middles, voxels, and their rows.
        spacing: mm.
        reach_mm: As `make_overlays` takes it.

    Returns:
        ``sides`` in mm, ``detector``, ``confidence`` and ``probability``; and as ``drawn`` left,
        top, width and height in each plane of `PLANES`, in percent of the picture. None if no box
        holds the centre.
    """
    holding = []
    for middle, row in boxes:
        sides = np.array([float(row[side]) for side in SIDE_COLUMNS])
        if (abs(middle - centre) * spacing <= sides / 2 + BOX_TOLERANCE_MM).all():
            holding.append((middle, sides, row))
    if not holding:
        return None
    middle, sides, row = min(
        holding, key=lambda candidate: float(np.linalg.norm((candidate[0] - centre) * spacing))
    )
    offset, percent = (middle - np.rint(centre)) * spacing, 100 / (2 * reach_mm)
    drawn = []
    for across, up in PLANES:
        left, top = offset[across] - sides[across] / 2, -offset[up] - sides[up] / 2
        rectangle = [50 + left * percent, 50 + top * percent]
        rectangle += [sides[across] * percent, sides[up] * percent]
        drawn.append([round(float(value), 1) for value in rectangle])
    return {
        "detector": row["detector"],
        "sides": sides.round(1).tolist(),
        "confidence": float(row["confidence"]),
        "probability": float(row["probability"]),
        "drawn": drawn,
    }


def make_gate_strip(
    image: Volume, rows: Rows, centres: Mapping[int, np.ndarray]
) -> dict[str, object]:
    """Make the strip of a gate along the slices.

    Returns:
        ``detector``, ``threshold``; ``slices``, each its position in mm from the first of the
        pictures and its probability; ``lesions``, each its index and position; ``ends``, the names
        of both ends.
    """
    mm = float(image.spacing[2])
    return {
        "detector": rows[0]["detector"],
        "threshold": float(rows[0]["threshold"]),
        "ends": AXIS_ENDS[int(np.argmax(abs(image.affine[:3, 2])))],
        "slices": [
            [round(float(locate_in_picture(image, row)[2]) * mm, 2), float(row["probability"])]
            for row in rows
        ],
        "lesions": [[index, round(float(centre[2]) * mm, 2)] for index, centre in centres.items()],
    }
