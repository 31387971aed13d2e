"""Matching: which found lesions are which true ones, by three rules.

A rule reads a table of every found lesion (rows) against every true one (columns): the distance
between their centres in mm, or for `match_overlap` the volume in mm³ that they share.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

REACH = 5.0  # mm within which found and true are the same lesion


@dataclass(frozen=True, eq=False)
class Match:
    """Which found lesions are hits and which true ones were found.

    Attributes:
        partner: For every found lesion its true one, or -1 for none, shape (F,).
        missed: For every true lesion whether no found one took it, shape (T,).
        hits: True positives as the rule counts them.
        aside: Found lesions that are neither hit nor false alarm: their partner is a true lesion
            that a reader could not be sure of, shape (F,).
    """

    partner: np.ndarray
    missed: np.ndarray
    hits: int
    aside: np.ndarray


Rule = Callable[[np.ndarray], Match]


def match_valdo(distance: np.ndarray, *, reach: float = REACH) -> Match:
    """Pair found and true lesions by the rule of the VALDO challenge.

    Every found lesion picks its nearest true one (the first of equals) if that is nearer than
    ``reach``. Of several that picked the same one the nearest is a hit and the others are false
    alarms; if they are equally near, all the nearest are hits.

    Args:
        distance: Between centres, mm, shape (F, T).
        reach: mm.

    Source:
        Sudre et al. 2024, doi:10.1016/j.media.2023.103029.
    """
    partner, missed = _nothing(distance)
    if distance.size:
        picked, near = distance.argmin(axis=1), distance.min(axis=1)
        for k in np.unique(picked[near < reach]):
            rivals = np.flatnonzero((picked == k) & (near < reach))
            partner[rivals[near[rivals] == near[rivals].min()]] = k
            missed[k] = False
    return _matched(partner, missed, int((partner >= 0).sum()))


def match_one_to_one(distance: np.ndarray, *, reach: float = REACH) -> Match:
    """Pair as many found and true lesions as can be, then those nearest to each other.

    Args:
        distance: Between centres, mm, shape (F, T).
        reach: mm; pairs may be up to that far apart.
    """
    partner, missed = _nothing(distance)
    if distance.size:
        # One pair too far apart costs more than all near ones together: none of those is given up.
        too_far = reach * (min(distance.shape) + 1)
        rows, columns = linear_sum_assignment(np.where(distance <= reach, distance, too_far))
        paired = distance[rows, columns] <= reach
        partner[rows[paired]] = columns[paired]
        missed[columns[paired]] = False
    return _matched(partner, missed, int((partner >= 0).sum()))


def match_overlap(shared: np.ndarray) -> Match:
    """Pair lesions that share any volume.

    A true lesion is found if anything found touches it, and counts once however many do. One
    found lesion may find several. It is a false alarm only if it touches none.

    Args:
        shared: Volume in common, mm³, shape (F, T).

    Source:
        The definition of SHiVAi, github.com/pboutinaud/SHiVAi.
    """
    partner, missed = _nothing(shared)
    if shared.size:
        touching = shared > 0
        partner = np.where(touching.any(axis=1), shared.argmax(axis=1), -1)
        missed = ~touching.any(axis=0)
    return _matched(partner, missed, int((~missed).sum()))


RULES: dict[str, Rule] = {
    "valdo": match_valdo,
    "overlap": match_overlap,
    "one-to-one": match_one_to_one,
}


def match_sure_first(rule: Rule, between: np.ndarray, unsure: np.ndarray) -> Match:
    """Pair with the sure true lesions, then hold what is left against the unsure ones.

    A true lesion that no reader can be sure of (marked possible, or not visible on the image) is
    no miss if it is not found. What the same rule pairs with it, of the found lesions that are no
    hit on a sure one, is set aside: no hit and no false alarm.

    Args:
        rule: How to pair.
        between: What the rule reads, shape (F, T).
        unsure: Which of the true lesions are, shape (T,).
    """
    sure, doubtful = np.flatnonzero(~unsure), np.flatnonzero(unsure)
    first = rule(between[:, sure])
    left = np.flatnonzero(first.partner < 0)
    second = rule(between[np.ix_(left, doubtful)])

    partner, missed = _nothing(between)
    taken, again = first.partner >= 0, second.partner >= 0
    partner[taken] = sure[first.partner[taken]]
    partner[left[again]] = doubtful[second.partner[again]]
    missed[sure] = first.missed
    missed[doubtful] = False
    aside = np.zeros(len(partner), bool)
    aside[left[again]] = True
    return Match(partner, missed, first.hits, aside)


def _nothing(between: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """No partners and all missed."""
    found, true = between.shape
    return np.full(found, -1), np.ones(true, bool)


def _matched(partner: np.ndarray, missed: np.ndarray, hits: int) -> Match:
    return Match(partner, missed, hits, np.zeros(len(partner), bool))
