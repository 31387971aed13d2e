"""Agreement of counts against published numbers and an identity."""

import numpy as np
import pytest

from bids_cmb.metrics.agreement import intraclass_correlation, weighted_kappa


def test_the_icc_is_that_of_shrout_and_fleiss():
    # Their table 2: six targets, four judges; table 4 gives ICC(2,1) = .29.
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert intraclass_correlation(np.array(ratings)) == pytest.approx(0.29, abs=0.005)


def test_a_rater_who_always_counts_two_more_agrees_less():
    counts = np.array([0, 1, 5, 9])
    assert intraclass_correlation(np.stack([counts, counts], axis=1)) == 1
    # Variance of the counts / (the same + half of 2 squared), by the expected mean squares.
    between = np.var(counts, ddof=1)
    expected = between / (between + 2**2 / 2)
    shifted = intraclass_correlation(np.stack([counts, counts + 2], axis=1))
    assert shifted == pytest.approx(expected)


def test_an_icc_of_one_scan_or_of_equal_counts_is_not_defined():
    assert np.isnan(intraclass_correlation(np.array([[3, 4]])))
    assert np.isnan(intraclass_correlation(np.zeros((5, 2))))


def test_kappa_of_two_classes_is_cohens_own():
    # The textbook's two readers of 50 grants: 20 both yes, 15 both no, 5 and 10 apart; kappa .40.
    first = [1] * 20 + [1] * 5 + [0] * 10 + [0] * 15
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert weighted_kappa(first, second, classes=2) == pytest.approx(0.4)


def test_kappa_with_quadratic_weights_is_that_of_a_known_example():
    # scikit-learn's own test case for weights="quadratic"
    first = [0] * 46 + [1] * 44 + [2] * 10
    second = [0] * 50 + [1] * 40 + [2] * 10
    assert weighted_kappa(first, second, classes=3) == pytest.approx(0.9541, abs=5e-5)


def test_quadratic_kappa_is_the_concordance_of_the_class_numbers(rng):
    first, second = rng.integers(0, 5, (2, 80))
    covariance = np.cov(first, second, bias=True)
    concordance = (
        2 * covariance[0, 1]
        / (covariance[0, 0] + covariance[1, 1] + (first.mean() - second.mean()) ** 2)
    )  # fmt: skip
    assert weighted_kappa(first, second, classes=5) == pytest.approx(concordance)


def test_kappa_of_a_single_class_is_not_defined():
    assert np.isnan(weighted_kappa([0, 0], [0, 0], classes=5))
