"""Matching of detected to true lesions, by three rules.

A rule reads a table of every found lesion (rows) against every true one (columns): the distance
between their centres in mm, or for `match_overlap` the volume in mm³ that they share.

Every rule matches against all true lesions alike, certain and uncertain. What falls to an uncertain
one (marked possible, or not visible on the image) is ignored afterwards: no hit and no false
alarm, and an uncertain lesion that nothing found is no miss. So what lies on a possible microbleed
never counts as a hit on a definite one beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

MAX_DISTANCE_MM = 5.0  # mm within which found and true are the same lesion
# mm: distances no further apart are equal, on an oblique grid as on a straight one
ROUNDING_MM = 1e-4


@dataclass(frozen=True, eq=False)
class Match:
    """Which found lesions are hits and which true ones were found.

    Attributes:
        partner: For every found lesion its true one, or -1 for none, (F,).
        missed: For every true lesion whether no found one took it, (T,); never of uncertain ones.
        hits: True positives as the rule counts them, of the certain true lesions.
        ignored: Found lesions that are neither hit nor false alarm: their partner is an uncertain
            true lesion, (F,).
    """

    partner: np.ndarray
    missed: np.ndarray
    hits: int
    ignored: np.ndarray


Rule = Callable[[np.ndarray, np.ndarray | None], Match]


def match_valdo(distance: np.ndarray, uncertain: np.ndarray | None = None) -> Match:
    """Pair found and true lesions by the rule of the VALDO challenge.

    Every found lesion picks its nearest true one (the first of equals) if that is nearer than
    5 mm. Of several that picked the same one the nearest is a hit and the others are false
    alarms; if they are equally near, all the nearest are hits. A true lesion that none picked is
    a miss. The organisers' program takes the misses as true lesions minus hits, so that there two
    hits on one lesion hide the miss of another; without such ties both count the same.

    Args:
        distance: Between centres, mm, shape (F, T).
        uncertain: True lesions to ignore with what is matched to them, shape (T,); or None.

    Source:
        Sudre et al. 2024, doi:10.1016/j.media.2023.103029; github.com/WhereIsValdo/valdo-eval-2021.
    """
    partner, hits = _start_empty(distance)
    if distance.size:
        near = distance.min(axis=1)
        picked = (distance <= near[:, None] + ROUNDING_MM).argmax(axis=1)
        eligible = near < MAX_DISTANCE_MM - ROUNDING_MM
        for k in np.unique(picked[eligible]):
            rivals = np.flatnonzero((picked == k) & eligible)
            nearest = rivals[near[rivals] <= near[rivals].min() + ROUNDING_MM]
            partner[nearest] = k
            hits[k] = len(nearest)
    return _make_match(partner, hits, uncertain)


def match_one_to_one(distance: np.ndarray, uncertain: np.ndarray | None = None) -> Match:
    """Pair as many found and true lesions within 5 mm as can be, then those nearest to each other.

    Args:
        distance: Between centres, mm, shape (F, T).
        uncertain: True lesions to ignore with what is matched to them, shape (T,); or None.
    """
    partner, hits = _start_empty(distance)
    if distance.size:
        # One pair too far apart costs more than all near ones together: none of those is given up.
        near = distance <= MAX_DISTANCE_MM + ROUNDING_MM
        too_far = MAX_DISTANCE_MM * (min(distance.shape) + 1)
        rows, columns = linear_sum_assignment(np.where(near, distance, too_far))
        paired = near[rows, columns]
        partner[rows[paired]] = columns[paired]
        hits[columns[paired]] = 1
    return _make_match(partner, hits, uncertain)


def match_overlap(shared: np.ndarray, uncertain: np.ndarray | None = None) -> Match:
    """Pair lesions that share any volume.

    A true lesion is found if anything found touches it, and counts once however many do. One
    found lesion may find several; its partner is the one it shares most with, a sure one if it
    touches any. It is a false alarm only if it touches none.

    Args:
        shared: Volume in common, mm³, shape (F, T).
        uncertain: True lesions to ignore with what touches no other, shape (T,); or None.

    Source:
        The definition of SHiVAi, github.com/pboutinaud/SHiVAi.
    """
    partner, hits = _start_empty(shared)
    if shared.size:
        touching = shared > 0
        sure_first = touching * ~uncertain if uncertain is not None else touching
        of_any = np.where(sure_first.any(axis=1, keepdims=True), shared * sure_first, shared)
        partner = np.where(touching.any(axis=1), of_any.argmax(axis=1), -1)
        hits = touching.any(axis=0).astype(int)
    return _make_match(partner, hits, uncertain)


RULES: dict[str, Rule] = {
    "valdo": match_valdo,
    "overlap": match_overlap,
    "one-to-one": match_one_to_one,
}


def _start_empty(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start with no partners (F,) and no hits on any true lesion (T,)."""
    n_found, n_true = table.shape
    return np.full(n_found, -1), np.zeros(n_true, int)


def _make_match(partner: np.ndarray, hits: np.ndarray, uncertain: np.ndarray | None) -> Match:
    """Make the match, ignoring what fell to uncertain true lesions."""
    uncertain = np.zeros(len(hits), bool) if uncertain is None else uncertain
    ignored = np.isin(partner, np.flatnonzero(uncertain))
    return Match(partner, (hits == 0) & ~uncertain, int(hits[~uncertain].sum()), ignored)
