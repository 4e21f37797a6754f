"""The paired permutation test: against enumeration and scipy, its smallest p, its level and its power among many."""

import numpy as np
import pytest
from scipy.stats import permutation_test

from core.evaluate.sign_flips import DRAWN, EXACT, least_pairs, step_down_p


def test_one_comparison_has_the_p_of_the_exact_paired_test():
    d = np.random.default_rng(0).normal(0.8, 1, 9)
    exact = permutation_test((d, np.zeros(9)), lambda a, b: np.mean(a - b), permutation_type="samples")
    assert step_down_p(d[:, None]) == [pytest.approx(exact.pvalue)]


@pytest.mark.parametrize(("alpha", "pairs"), [(0.05, 6), (0.01, 8), (0.002, 10), (0.5, 2)])
def test_the_least_pairs_can_just_give_that_p(alpha, pairs):
    assert least_pairs(alpha) == pairs
    assert step_down_p(np.arange(1.0, pairs + 1)[:, None])[0] <= alpha
    assert step_down_p(np.arange(1.0, pairs)[:, None])[0] > alpha


def test_a_clear_difference_keeps_its_p_among_many_that_scatter():
    rng = np.random.default_rng(1)
    clear = -40 + rng.normal(0, 3, (8, 1))
    p = step_down_p(np.hstack([rng.normal(0, 2, (8, 20)), clear]))
    assert p[-1] == 2**-7
    assert min(p[:-1]) > 0.05


def test_absent_pairs_and_more_pairs_than_are_looked_at_one_by_one():
    rng = np.random.default_rng(2)
    d = rng.normal(0, 1, (EXACT + 8, 3))
    d[:, 0] += 4
    d[:6, 1] = np.nan
    p = step_down_p(d)
    assert p[0] == 1 / DRAWN
    assert min(p[1:]) > 0.05
    assert p == step_down_p(d, seed=0)


def test_the_family_wise_error_is_kept_with_and_without_a_true_difference():
    rng, wrong, hidden = np.random.default_rng(3), 0, 0
    for _ in range(300):
        d = rng.normal(0, 1, (10, 5)) + rng.normal(0, 1, (10, 1))  # methods measured on the same pairs
        wrong += min(step_down_p(d)) <= 0.05
        d[:, 0] += 30
        p = step_down_p(d)
        hidden += p[0] > 0.05
        wrong += min(p[1:]) <= 0.05
    assert wrong / 600 <= 0.07
    assert hidden == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((0, 2)), r"got shape \(0, 2\)"),
        (np.ones(4), r"got shape \(4,\)"),
        (np.array([[1.0, 0.0]]), "leave it out"),
    ],
)
def test_what_cannot_be_tested_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        step_down_p(given)
