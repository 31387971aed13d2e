"""Detector outputs besides the probability, which let a reader see what it rests on."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from bids_cmb.bids.tables import POSITION_COLUMNS, round_or_none
from bids_cmb.imaging.volume import Volume

SIDE_COLUMNS = ("in_plane_extent_1_mm", "in_plane_extent_2_mm", "through_plane_extent_mm")
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Box:
    """A box around a candidate of a detector.

    Attributes:
        detector: Its name.
        centre: World mm.
        sides: mm along the scan's own axes: two in the plane of its slices, and through them.
        slices: Number of slices of the detector's grid in which it was detected.
        confidence: The highest of them, 0 to 1.
        probability: That it is a microbleed, by the last stage of the detector, 0 to 1.
    """

    detector: str
    centre: Triple
    sides: Triple
    slices: int
    confidence: float
    probability: float


@dataclass(frozen=True)
class GateResponse:
    """The response of a detector's gate in one slice of its grid.

    Attributes:
        detector: Its name.
        position: World mm, the middle of where the response is highest.
        probability: There, 0 to 1.
        threshold: From which the gate is open.
    """

    detector: str
    position: Triple
    probability: float
    threshold: float


@dataclass(frozen=True)
class DetectorOutputs:
    """Outputs of detectors for one scan: empty for most of them.

    Attributes:
        boxes: Around candidates.
        gate_responses: Of a gate, one for each slice.
        instances: Number of the candidate that each voxel belongs to, from 1, on the scan's grid, 0
            elsewhere; None of detectors that give a probability only.
    """

    boxes: tuple[Box, ...] = ()
    gate_responses: tuple[GateResponse, ...] = ()
    instances: Volume | None = field(default=None, compare=False)


def merge_outputs(parts: Iterable[DetectorOutputs]) -> DetectorOutputs:
    """Merge the outputs of several detectors in their order; instances are those of the first."""
    parts = tuple(parts)
    instances = (part.instances for part in parts if part.instances is not None)
    return DetectorOutputs(
        tuple(box for part in parts for box in part.boxes),
        tuple(response for part in parts for response in part.gate_responses),
        next(instances, None),
    )


def tabulate_outputs(outputs: DetectorOutputs) -> dict[str, list[dict]]:
    """Tabulate outputs: rows of the tables ``boxes`` and ``gate``, where there are any."""
    boxes = [
        {
            "detector": box.detector,
            **_tabulate_position(box.centre),
            **{
                name: round_or_none(side, 2)
                for name, side in zip(SIDE_COLUMNS, box.sides, strict=True)
            },
            "slices": box.slices,
            "confidence": round_or_none(box.confidence, 4),
            "probability": round_or_none(box.probability, 4),
        }
        for box in outputs.boxes
    ]
    gate = [
        {
            "detector": response.detector,
            **_tabulate_position(response.position),
            "probability": round_or_none(response.probability, 4),
            "threshold": response.threshold,
        }
        for response in outputs.gate_responses
    ]
    return {name: rows for name, rows in (("boxes", boxes), ("gate", gate)) if rows}


def _tabulate_position(position: Triple) -> dict[str, object]:
    return {
        name: round_or_none(value, 2)
        for name, value in zip(POSITION_COLUMNS, position, strict=True)
    }
