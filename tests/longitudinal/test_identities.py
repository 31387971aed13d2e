"""Lesions of several scans are one where they lie at one place, whatever their order."""

import numpy as np
import pytest

from bids_cmb.longitudinal.identities import identify_lesions, match_lesions


def test_near_lesions_are_matched_one_to_one_and_as_many_as_can_be():
    first = np.array([[0.0, 0, 0], [3, 0, 0]])
    second = np.array([[2.0, 0, 0], [40, 0, 0], [4.5, 0, 0]])
    assert sorted(match_lesions(first, second, 3.0)) == [(0, 0), (1, 2)]


@pytest.mark.parametrize(("tolerance", "pairs"), [(2.9, []), (3.1, [(0, 0)])])
def test_no_pair_lies_further_apart_than_the_tolerance(tolerance, pairs):
    assert match_lesions(np.array([[0.0, 0, 3]]), np.zeros((1, 3)), tolerance) == pairs


def test_a_lesion_that_one_visit_lacks_is_the_same_at_the_next():
    here, there = [10.0, 0, 0], [0.0, 20, 0]
    positions = [np.array([here, there]), np.array([there]), np.array([there, here])]
    identities = identify_lesions(positions, [[1, 2], [1], [1, 2]], [1, 2, 2])
    assert [identity.indices for identity in identities] == [{0: 1, 2: 2}, {0: 2, 1: 1, 2: 1}]


def test_a_visit_without_lesions_is_no_obstacle():
    nothing = np.zeros((0, 3))
    identities = identify_lesions([nothing, np.ones((1, 3)), nothing], [[], [4], []], [1, 2, 2])
    assert [identity.indices for identity in identities] == [{1: 4}]
