"""What a detector leaves behind besides its chances, so that a reader sees why it said so."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from bids_cmb.bids.tables import POSITION_COLUMNS, round_or_none
from bids_cmb.imaging.volume import Volume

SIDES = ("in_plane_extent_1_mm", "in_plane_extent_2_mm", "through_plane_extent_mm")
Place = tuple[float, float, float]


@dataclass(frozen=True)
class Box:
    """A box around what a detector took for a candidate.

    Attributes:
        detector: Whose.
        centre: World mm.
        sides: mm along the scan's own axes: two in the plane of its slices, and through them.
        slices: In how many slices of the detector's grid it was seen.
        confidence: Of the surest of them, 0 to 1.
        probability: That it is a microbleed, by the detector's last word, 0 to 1.
    """

    detector: str
    centre: Place
    sides: Place
    slices: int
    confidence: float
    probability: float


@dataclass(frozen=True)
class Opening:
    """How far a detector's gate opens in one slice of its grid.

    Attributes:
        detector: Whose.
        place: World mm, the middle of where it opens farthest.
        probability: There, 0 to 1.
        threshold: From which on the gate is open.
    """

    detector: str
    place: Place
    probability: float
    threshold: float


@dataclass(frozen=True)
class Evidence:
    """What detectors leave behind of one scan: empty for most of them.

    Attributes:
        boxes: Around candidates.
        openings: Of a gate.
        instances: Which candidate each voxel belongs to, from 1, on the scan's grid, 0 elsewhere;
            None of detectors that tell nothing but chances.
    """

    boxes: tuple[Box, ...] = ()
    openings: tuple[Opening, ...] = ()
    instances: Volume | None = field(default=None, compare=False)


def together(parts: Iterable[Evidence]) -> Evidence:
    """The evidence of several detectors as one, in their order; instances are the first one's."""
    parts = tuple(parts)
    instances = (part.instances for part in parts if part.instances is not None)
    return Evidence(
        tuple(box for part in parts for box in part.boxes),
        tuple(opening for part in parts for opening in part.openings),
        next(instances, None),
    )


def evidence_rows(evidence: Evidence) -> dict[str, list[dict]]:
    """What detectors leave behind as tables: ``boxes`` and ``gate``, where there are any."""
    boxes = [
        {
            "detector": one.detector,
            **_place(one.centre),
            **{name: round_or_none(side, 2) for name, side in zip(SIDES, one.sides, strict=True)},
            "slices": one.slices,
            "confidence": round_or_none(one.confidence, 4),
            "probability": round_or_none(one.probability, 4),
        }
        for one in evidence.boxes
    ]
    gate = [
        {
            "detector": one.detector,
            **_place(one.place),
            "probability": round_or_none(one.probability, 4),
            "threshold": one.threshold,
        }
        for one in evidence.openings
    ]
    return {name: rows for name, rows in (("boxes", boxes), ("gate", gate)) if rows}


def _place(at: Iterable[float]) -> dict[str, object]:
    return {name: round_or_none(part, 2) for name, part in zip(POSITION_COLUMNS, at, strict=True)}
