"""Which found lesion is which true one: by hand, and against a search of all possibilities."""

from itertools import permutations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bids_cmb.metrics.matching import (
    RULES,
    match_one_to_one,
    match_overlap,
    match_valdo,
)


def apart(found, truth):
    """Distances between points at these mm along one axis."""
    return np.abs(np.subtract.outer(np.array(found, float), np.array(truth, float)))


def told(match):
    return match.partner.tolist(), match.missed.tolist()


@pytest.mark.parametrize(
    ("what", "found", "truth", "valdo", "one_to_one"),
    [
        ("touching lesions, each with its own found one",
         [0.4, 1.8], [0, 2], ([0, 1], [False, False]), ([0, 1], [False, False])),
        ("one found between two true ones counts for the nearer",
         [1.2], [0, 2], ([1], [True, False]), ([1], [True, False])),
        ("two found at one true: the nearer hits, the other is a false alarm",
         [-3, 1], [0], ([-1, 0], [False]), ([-1, 0], [False])),
        ("two found equally near: by VALDO both hit, of partners there is one",
         [-1, 1], [0], ([0, 0], [False]), ([0, -1], [False])),
        ("two found nearest to the same of two: only one-to-one gives each its own",
         [0.5, 1.5], [1, 5], ([0, 0], [False, True]), ([0, 1], [False, False])),
        ("no truth: all false alarms", [0, 9], [], ([-1, -1], []), ([-1, -1], [])),
        ("nothing found: all missed", [], [0, 9], ([], [True, True]), ([], [True, True])),
        ("neither", [], [], ([], []), ([], [])),
        ("exactly 5 mm apart: no pair by VALDO, a pair one-to-one",
         [5], [0], ([-1], [True]), ([0], [False])),
        ("a hand's breadth apart: no pair", [80], [0], ([-1], [True]), ([-1], [True])),
    ],
)  # fmt: skip
def test_pairs_are_those_counted_by_hand(what, found, truth, valdo, one_to_one):
    distance = apart(found, truth)
    assert told(match_valdo(distance)) == valdo, what
    match = match_one_to_one(distance)
    assert match.missed.tolist() == one_to_one[1], what
    assert sorted(match.partner) == sorted(one_to_one[0]), what  # of equals either may be partner
    assert match.hits == sum(partner >= 0 for partner in one_to_one[0])


@pytest.mark.parametrize(
    ("what", "shared", "partner", "missed", "hits"),
    [
        ("touching lesions", [[3, 0], [0, 3]], [0, 1], [False, False], 2),
        ("one found over two true: both are found", [[1, 4]], [1], [False, False], 2),
        ("two found in one true: no false alarm, one hit", [[1], [2]], [0, 0], [False], 1),
        ("no truth", np.zeros((2, 0)), [-1, -1], [], 0),
        ("nothing found", np.zeros((0, 2)), [], [True, True], 0),
        ("side by side", [[0]], [-1], [True], 0),
    ],
)
def test_overlaps_are_those_counted_by_hand(what, shared, partner, missed, hits):
    match = match_overlap(np.array(shared, float))
    assert (told(match), match.hits) == ((partner, missed), hits), what


def test_one_to_one_finds_as_many_partners_as_can_be():
    # The nearest pair (1, 1.5) alone would leave both others without; two longer pairs are better.
    assert told(match_one_to_one(apart([1, 6], [-3.5, 1.5]))) == ([0, 1], [False, False])


def by_hand_valdo(distance):
    """Partners by the words of the challenge, one found lesion after the other."""
    picks = {}
    for f, row in enumerate(distance.tolist()):
        near = min(row, default=9)
        if near < 5:
            picks.setdefault(row.index(near), []).append((near, f))
    return {f: t for t, rivals in picks.items() for mm, f in rivals if mm == min(rivals)[0]}


def best_of_all(distance):
    """Most pairs within 5 mm, then the least distance, of every possible pairing."""
    found, true = distance.shape
    if found > true:
        pairs, mm = best_of_all(distance.T)
        return pairs, mm
    ways = []
    for columns in permutations(range(true), found):
        near = [mm for f, t in enumerate(columns) if (mm := distance[f, t]) <= 5]
        ways.append((-len(near), sum(near)))
    pairs, mm = min(ways)
    return -pairs, mm


def test_both_rules_agree_with_a_search_of_all_possibilities(rng):
    for _ in range(200):
        found, truth = (rng.uniform(0, 12, (n, 3)) for n in rng.integers(0, 6, 2))
        distance = cdist(found, truth)
        valdo = match_valdo(distance)
        assert {f: t for f, t in enumerate(valdo.partner.tolist()) if t >= 0} == by_hand_valdo(
            distance
        )
        match = match_one_to_one(distance)
        pairs = [(f, t) for f, t in enumerate(match.partner) if t >= 0]
        most, least = best_of_all(distance)
        assert len(pairs) == match.hits == most
        assert sum(distance[pair] for pair in pairs) == pytest.approx(least)


def test_every_lesion_has_one_fate(rng):
    for rule in RULES.values():
        between = rng.uniform(0, 9, (7, 5))
        match = rule(between, np.arange(5) < 2)
        assert not (match.ignored & (match.partner < 0)).any()
        assert set(match.partner[match.ignored]) <= {0, 1}
        assert set(match.partner[~match.ignored]) <= {-1, 2, 3, 4}
        assert not match.missed[:2].any()


@pytest.mark.parametrize("name", ["valdo", "one-to-one"])
def test_which_lesions_are_sure_changes_no_partner(name, rng):
    for _ in range(50):
        found, truth = (rng.uniform(0, 12, (n, 3)) for n in rng.integers(1, 7, 2))
        distance, unsure = cdist(found, truth), rng.uniform(size=len(truth)) < 0.5
        alike, apart_ = RULES[name](distance), RULES[name](distance, unsure)
        assert apart_.partner.tolist() == alike.partner.tolist()
        assert apart_.ignored.tolist() == [t >= 0 and bool(unsure[t]) for t in alike.partner]
        assert apart_.missed.tolist() == (alike.missed & ~unsure).tolist()


def test_an_unsure_lesion_is_no_miss_and_what_is_found_there_no_false_alarm():
    unsure = np.array([False, True])
    match = match_valdo(apart([0.5, 20, 60], [0, 21]), unsure)
    assert match.partner.tolist() == [0, 1, -1]
    assert match.ignored.tolist() == [False, True, False]
    assert (match.missed.tolist(), match.hits) == ([False, False], 1)
    alone = match_valdo(apart([], [0, 21]), unsure)
    assert alone.missed.tolist() == [True, False]


@pytest.mark.parametrize("rule", [match_valdo, match_one_to_one])
def test_what_lies_on_a_possible_lesion_is_no_hit_on_a_definite_one_beside_it(rule):
    match = rule(apart([2.5], [0, 2.5]), np.array([False, True]))
    assert (match.hits, match.ignored.tolist()) == (0, [True])
    assert match.missed.tolist() == [True, False]


def test_what_touches_a_definite_and_a_possible_lesion_is_a_hit():
    shared, unsure = np.array([[1.0, 9.0], [0.0, 3.0]]), np.array([False, True])
    match = match_overlap(shared, unsure)
    assert (match.hits, match.ignored.tolist()) == (1, [False, True])
    assert match.partner.tolist() == [0, 1]
    assert not match.missed.any()


def test_a_second_found_lesion_at_an_unsure_one_follows_the_rule():
    unsure = np.array([True])
    assert match_valdo(apart([1, 2], [0]), unsure).ignored.tolist() == [True, False]
    touching = match_overlap(np.array([[1.0], [2.0]]), unsure)
    assert touching.ignored.tolist() == [True, True]


def test_a_tie_stays_one_on_an_oblique_grid(rng):
    """Two found lesions one voxel to either side of a true one, wherever the scanner's axes lie."""
    for _ in range(50):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] * [0.45, 0.45, 4]
        middle = np.array([311, 207, 13])
        places = (middle + [[0, 0, 0], [-1, 0, 0], [1, 0, 0]]) @ turn.T + rng.uniform(-99, 99, 3)
        match = match_valdo(cdist(places[1:], places[:1]))
        assert (match.hits, match.partner.tolist()) == (2, [0, 0])
