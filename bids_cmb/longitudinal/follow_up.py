"""Follow the lesions of a series of visits: alignment, identities, evidence, changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from bids_cmb.imaging.volume import map_points
from bids_cmb.lesions.table import get_position
from bids_cmb.longitudinal.alignment import Alignment, align, identify
from bids_cmb.longitudinal.evidence import (
    ABSENT,
    FAINT,
    LOST,
    NEW,
    NOT_COMPARABLE,
    PERSISTENT,
    SEEN,
    UNCERTAIN,
    EvidenceRule,
    Place,
    Reading,
    locate_place,
    read_evidence,
    tolerance_mm,
)
from bids_cmb.longitudinal.identities import Identity, identify_lesions
from bids_cmb.longitudinal.visits import Series, Visit, VisitImages, load_images

CHANGES = (NEW, PERSISTENT, LOST, UNCERTAIN, NOT_COMPARABLE)
ARIA_H_CLASSES = ((10, "severe"), (5, "moderate"), (1, "mild"), (0, "none"))  # new microbleeds from


@dataclass(frozen=True, eq=False)
class FollowedLesion:
    """A lesion and what shows of it at each visit.

    Attributes:
        identity: Its indices in the tables, and its position in the reference scan.
        readings: Of each aligned visit, by number of the visit.
        course: What became of it over all visits, one of `CHANGES`.
    """

    identity: Identity
    readings: dict[int, Reading]
    course: str

    @property
    def first_seen(self) -> int:
        """The number of the first visit that it was seen at."""
        return min(self.identity.indices)

    @property
    def last_seen(self) -> int:
        """The number of the last one."""
        return max(self.identity.indices)

    def compare(self, first: int, second: int) -> str | None:
        """Compare two visits; None if it was seen at neither, or one was not aligned."""
        return compare_readings(self.readings, first, second)


@dataclass(frozen=True, eq=False)
class FollowUp:
    """The lesions of a participant over its visits.

    Attributes:
        series: The visits.
        alignments: Of each visit to the reference.
        reference: The number of the visit that the others are laid over.
        lesions: In the order in which they were seen first.
        rule: Numbers of the evidence rule.
        images: Of the aligned visits, by number.
    """

    series: Series
    alignments: tuple[Alignment, ...]
    reference: int
    lesions: list[FollowedLesion]
    rule: EvidenceRule
    images: dict[int, VisitImages]

    @property
    def aligned(self) -> list[int]:
        """The numbers of the visits that were laid over the reference."""
        return list_aligned(self.alignments)

    def transform(self, first: int, second: int) -> np.ndarray:
        """Compute the transform from one visit's world to another's, mm, (4, 4)."""
        return compose(self.alignments, first, second)

    @property
    def problems(self) -> list[str]:
        """Sentences on the visits that were refused."""
        reference = self.series.visits[self.reference].name
        return [
            f"sub-{self.series.subject}: {visit.name} is not compared with {reference}: "
            f"{each.problem.rstrip('.')}{'' if each.problem.endswith('?') else '.'}"
            for visit, each in zip(self.series.visits, self.alignments, strict=True)
            if each.problem
        ]


def follow(series: Series, rule: EvidenceRule | None = None) -> FollowUp:
    """Follow the lesions of a series.

    Args:
        series: Two visits or more.
        rule: Numbers of the evidence rule; the documented ones without.

    Raises:
        ValueError: If a file cannot be used; the sentence names it.
        OSError: If one cannot be read.
    """
    rule = rule or EvidenceRule()
    images = {number: load_images(visit) for number, visit in enumerate(series.visits)}
    reference, alignments = align_visits([images[number] for number in sorted(images)])
    aligned = list_aligned(alignments)
    lesions = [
        _follow_lesion(identity, series.visits, images, alignments, rule, others)
        for identity, others in _identify(series.visits, alignments, aligned, rule)
    ]
    kept = {number: images[number] for number in aligned}
    return FollowUp(series, tuple(alignments), reference, lesions, rule, kept)


def align_visits(images: Sequence[VisitImages]) -> tuple[int, list[Alignment]]:
    """Lay every visit over the reference: the first one that any other can be laid over.

    Returns:
        The number of the reference, and the alignment of each visit.
    """
    alternatives: list[tuple[int, list[Alignment]]] = []
    for reference, fixed in enumerate(images[:-1] or images):
        alignments = [
            identify()
            if number == reference
            else align(moving.image, moving.brain, fixed.image, fixed.brain)
            for number, moving in enumerate(images)
        ]
        alternatives.append((reference, alignments))
        if len(list_aligned(alignments)) > 1:
            return alternatives[-1]
    return alternatives[0]


def list_aligned(alignments: Sequence[Alignment]) -> list[int]:
    """List the numbers of the visits that were laid over the reference."""
    return [number for number, each in enumerate(alignments) if not each.problem]


def compose(alignments: Sequence[Alignment], first: int, second: int) -> np.ndarray:
    """Compose the transform from one visit's world to another's, mm, (4, 4)."""
    return np.linalg.inv(alignments[second].to_reference) @ alignments[first].to_reference


def _identify(
    visits: Sequence[Visit],
    alignments: Sequence[Alignment],
    aligned: Sequence[int],
    rule: EvidenceRule,
) -> list[tuple[Identity, dict[int, set[int]]]]:
    """Identify the lesions of the aligned visits; with each, the indices of all others by visit."""
    positions, indices = [], []
    for number, visit in enumerate(visits):
        rows = visit.lesions if number in aligned else []
        points = np.array([get_position(row) for row in rows]).reshape(-1, 3)
        positions.append(map_points(alignments[number].to_reference, points))
        indices.append([int(row["index"]) for row in rows])
    tolerances = [
        max(
            [tolerance_mm(visits[other], visit, rule) for other in aligned if other < number] or [1]
        )
        for number, visit in enumerate(visits)
    ]
    identities = identify_lesions(positions, indices, tolerances)
    return [
        (
            identity,
            {
                number: set(listed) - {identity.indices.get(number)}
                for number, listed in enumerate(indices)
            },
        )
        for identity in identities
    ]


def _follow_lesion(
    identity: Identity,
    visits: Sequence[Visit],
    images: dict[int, VisitImages],
    alignments: Sequence[Alignment],
    rule: EvidenceRule,
    others: dict[int, set[int]],
) -> FollowedLesion:
    places = {
        number: locate_place(images[number], visits[number].find_lesion(index))
        for number, index in identity.indices.items()
    }
    readings: dict[int, Reading] = {}
    for number, visit in enumerate(visits):
        if alignments[number].problem:
            continue
        if number in places:
            readings[number] = _read_own(visit, identity.indices[number], places[number])
            continue
        nearest = min(places, key=lambda seen: (abs(seen - number), seen))
        readings[number] = read_evidence(
            places[nearest],
            compose(alignments, nearest, number),
            images[number],
            (visits[nearest], visit),
            rule,
            others[number],
        )
    return FollowedLesion(identity, readings, judge_course(readings))


def _read_own(visit: Visit, index: int, place: Place) -> Reading:
    probability = float(visit.find_lesion(index)["probability_max"])
    return Reading(SEEN, probability, place.contrast, 1.0)


def compare_readings(readings: dict[int, Reading], first: int, second: int) -> str | None:
    """Compare what shows of a lesion at two visits.

    Args:
        readings: Of each visit, by number.
        first: Number of the earlier visit.
        second: Of the later one.

    Returns:
        One of `CHANGES`; None if it was seen at neither, or there is no reading of one.
    """
    if first not in readings or second not in readings:
        return None
    before, after = readings[first].state, readings[second].state
    if SEEN not in (before, after):
        return None
    if NOT_COMPARABLE in (before, after):
        return NOT_COMPARABLE
    if {before, after} <= {SEEN, FAINT}:
        return PERSISTENT
    return UNCERTAIN if UNCERTAIN in (before, after) else _name_change(readings, first, second)


def _name_change(readings: dict[int, Reading], first: int, second: int) -> str:
    """Name the change of a lesion that is absent at one of two visits and was found at the other.

    Microbleeds stay: one that comes back is doubtful at all of its visits.
    """
    shown = [number for number, reading in readings.items() if reading.state in (SEEN, FAINT)]
    if readings[first].state == ABSENT:
        return UNCERTAIN if min(shown) < first else NEW
    return UNCERTAIN if max(shown) > second else LOST


def judge_course(readings: dict[int, Reading]) -> str:
    """Judge what became of a lesion over all visits, one of `CHANGES`.

    New if it is clearly absent at first and shows at the last visit; not seen again if it is the
    other way round; persistent if it shows throughout. A visit that is not comparable does not
    count, and without any other to compare with the lesion is not comparable.
    """
    states = [readings[number].state for number in sorted(readings)]
    known = [state for state in states if state != NOT_COMPARABLE]
    if len(known) < 2:
        return NOT_COMPARABLE
    shows = [state in (SEEN, FAINT) for state in known]
    if all(shows):
        return PERSISTENT
    if UNCERTAIN in known:
        return UNCERTAIN
    changes = sum(a != b for a, b in pairwise(shows))
    if changes > 1:
        return UNCERTAIN
    return NEW if shows[-1] else LOST


def classify_aria_h(n_new: int) -> str:
    """Classify a number of new microbleeds: mild 1 to 4, moderate 5 to 9, severe 10 and more.

    Source:
        The classes of ARIA-H microhaemorrhages in the labels of anti-amyloid antibodies.
    """
    return next(name for least, name in ARIA_H_CLASSES if n_new >= least)


def list_pairs(follow_up: FollowUp) -> list[tuple[int, int]]:
    """List the pairs of visits, consecutive ones and all others."""
    return list(combinations(range(len(follow_up.series.visits)), 2))
