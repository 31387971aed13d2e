"""Identities: which lesions of several scans are one and the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.distance import cdist

from bids_cmb.metrics.matching import MAX_DISTANCE_MM, match_one_to_one


@dataclass
class Identity:
    """A lesion over time.

    Attributes:
        position: Where it was seen last, world mm of the reference scan, (3,).
        indices: Its index in each visit's table of lesions, by number of the visit from 0.
    """

    position: np.ndarray
    indices: dict[int, int] = field(default_factory=dict)


def match_lesions(
    first: np.ndarray, second: np.ndarray, tolerance_mm: float
) -> list[tuple[int, int]]:
    """Match lesions of two scans one to one: as many as can be, then those nearest to each other.

    Args:
        first: Positions in a common space, mm, (N, 3).
        second: Likewise, (M, 3).
        tolerance_mm: Largest distance of a pair.

    Returns:
        Numbers of the partners.
    """
    if not (len(first) and len(second)):
        return []
    distance = cdist(first, second) * (MAX_DISTANCE_MM / tolerance_mm)
    partners = match_one_to_one(distance).partner
    return [(number, int(partner)) for number, partner in enumerate(partners) if partner >= 0]


def identify_lesions(
    positions: Sequence[np.ndarray], indices: Sequence[Sequence[int]], tolerances: Sequence[float]
) -> list[Identity]:
    """Give the lesions of several visits their identities, visit by visit.

    A lesion that one visit lacks is recognized again at a later one.

    Args:
        positions: Of the lesions of each visit in the common space, mm, (N, 3).
        indices: Of the same lesions in the table of their visit.
        tolerances: Largest distance, mm, between a lesion of each visit and of an earlier one.

    Returns:
        Identities in the order in which they were seen first.
    """
    identities: list[Identity] = []
    for visit, (points, numbers) in enumerate(zip(positions, indices, strict=True)):
        known = np.array([identity.position for identity in identities]).reshape(-1, 3)
        matched = {
            second: identities[first]
            for first, second in match_lesions(known, points, tolerances[visit])
        }
        for number, (point, index) in enumerate(zip(points, numbers, strict=True)):
            identity = matched.get(number)
            if identity is None:
                identity = Identity(point)
                identities.append(identity)
            identity.position = point
            identity.indices[visit] = index
    return identities
