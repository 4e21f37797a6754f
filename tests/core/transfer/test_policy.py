"""A policy finds the measure that separates what strategies are best at, and is not moved by what is unknown."""

import numpy as np
import pytest

from core.transfer.policy import FEWEST, Policy


def data(n=40, seed=0):
    """The second measure decides: below 0 the first strategy is best, above it the third."""
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(n, 3))
    low = places[:, 1] < 0
    within = np.stack([low, rng.uniform(size=n) < 0.3, ~low], axis=1).astype(float)
    return places, within, np.arange(n) % 5


def test_votes_follow_the_measure_that_decides():
    policy = Policy(*data())
    low, high = policy.votes(np.array([9.0, -1.0, 9.0])), policy.votes(np.array([-9.0, 1.0, -9.0]))
    assert low.argmax() == 0
    assert high.argmax() == 2
    assert low[0] > 0.9 < high[2]
    assert low.sum() == pytest.approx(1)


def test_same_experiences_same_votes():
    place = np.array([0.0, 0.1, 0.0])
    np.testing.assert_array_equal(Policy(*data()).votes(place), Policy(*data()).votes(place))


def test_a_strategy_that_was_seldom_run_counts_as_its_mean():
    places, within, groups = data()
    within[::2, 0] = np.nan
    votes = Policy(places, within, groups).votes(np.array([0.0, -1.0, 0.0]))
    assert votes.argmax() == 0


def test_unknown_measures_are_on_the_side_of_large_ones():
    policy = Policy(*data())
    unknown, high = (policy.votes(np.array([0.0, x, 0.0])) for x in (np.nan, 5.0))
    np.testing.assert_array_equal(unknown, high)


def test_too_few_situations_for_a_split_name_the_best_of_all():
    n = 2 * FEWEST - 1
    within = np.tile([0.0, 1.0], (n, 1))
    assert Policy(np.arange(n, dtype=float)[:, None], within, np.arange(n)).votes(np.array([0.0]))[1] == 1
