"""Intervals cover, tests agree with their definitions, bad input is named."""

import numpy as np
import pytest
from scipy.stats import binomtest

from core.evaluate.statistics import (
    Interval,
    bootstrap_mean,
    hierarchical_bootstrap,
    holm,
    mcnemar,
    paired_wilcoxon,
    percentile_harm,
)


def test_bootstrap_interval_is_close_to_the_normal_one_and_seeded():
    x = np.random.default_rng(0).normal(3, 2, 400)
    got = bootstrap_mean(x, seed=1)
    half = 1.96 * x.std() / 20
    assert got.mean == pytest.approx(x.mean())
    assert got.low == pytest.approx(x.mean() - half, abs=0.05)
    assert got.high == pytest.approx(x.mean() + half, abs=0.05)
    np.random.seed(5)
    assert bootstrap_mean(x, seed=1) == got
    assert bootstrap_mean(x, seed=2) != got


def test_one_value_has_no_interval():
    assert bootstrap_mean([2.0]) == Interval(2.0, None, None)
    assert str(Interval(2.0, None, None)) == "2"


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(200):
        i = bootstrap_mean(rng.normal(size=60), level=0.9, resamples=400)
        inside += i.low <= 0 <= i.high
    assert 0.82 <= inside / 200 <= 0.96


def test_hierarchical_interval_is_wider_than_the_pooled_one_when_groups_differ():
    rng = np.random.default_rng(0)
    groups = {seed: rng.normal(loc, 0.1, 50) for seed, loc in enumerate([0, 1, 2, 3])}
    pooled = bootstrap_mean(np.concatenate(list(groups.values())))
    nested = hierarchical_bootstrap(groups)
    assert nested.mean == pytest.approx(pooled.mean)
    assert nested.high - nested.low > 1.5 * (pooled.high - pooled.low)
    assert hierarchical_bootstrap([[1.0]]) == Interval(1.0, None, None)


def test_groups_weigh_the_same_whatever_their_size():
    assert hierarchical_bootstrap([[0.0] * 100, [1.0] * 2]).mean == 0.5


def test_wilcoxon():
    a, b = np.arange(10.0) + 1, np.arange(10.0)
    assert paired_wilcoxon(a, b, "greater") < 0.01
    assert paired_wilcoxon(a, b, "less") > 0.99
    assert paired_wilcoxon(a, a) == 1.0


def test_mcnemar_is_the_exact_binomial_test_on_disagreements():
    a = np.array([1] * 40 + [1] * 9 + [0] * 2 + [0] * 10, dtype=bool)
    b = np.array([1] * 40 + [0] * 9 + [1] * 2 + [0] * 10, dtype=bool)
    assert mcnemar(a, b) == pytest.approx(binomtest(2, 11).pvalue)
    assert mcnemar(a, a) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_harm_is_five_percent_by_chance():
    rng = np.random.default_rng(0)
    without = rng.normal(size=4000)
    assert percentile_harm(rng.normal(size=4000), without) == pytest.approx(0.05, abs=0.015)
    assert percentile_harm(without - 100, without) == 1.0
    assert percentile_harm(without + 100, without) == 0.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap_mean([]), "non-empty"),
        (lambda: bootstrap_mean([1.0, float("nan")]), "finite"),
        (lambda: bootstrap_mean([1.0, 2.0], level=2), "level"),
        (lambda: paired_wilcoxon([1.0], [1.0, 2.0]), "equally long"),
        (lambda: holm([2.0]), r"\[0, 1\]"),
        (lambda: percentile_harm([1.0], [1.0], 0), "percentile"),
        (lambda: hierarchical_bootstrap([]), "no groups"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
