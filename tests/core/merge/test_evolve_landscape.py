"""Searches on the artificial landscape: it behaves like a merge, and every search improves on its start."""

import numpy as np
import pytest

from core.merge.baselines import SEARCHES
from core.merge.emfto import EmftoConfig
from core.merge.landscape import artificial_problem
from core.merge.solver import SolverConfig, tune_static
from core.transfer.budget import Budget

CONFIG = EmftoConfig(form_candidates=2, solver=SolverConfig(finalists=2))


def run(method, seed=0, budget=5000):
    fitness, space = artificial_problem(4, "global", seed, size=100, batch=16)
    spent = Budget("task_examples", budget)
    outcome = SEARCHES.get(method)(fitness, space, spent, CONFIG, list(range(4)), seed=seed)
    return fitness.landscape, outcome, spent


def test_experts_saturate_and_interfere():
    fitness, _ = artificial_problem(5, "blocks:3", 0)
    land = fitness.landscape
    alone = np.zeros((5, 3))
    assert (land.individual() > 0.3).all()
    alone[2] = 1.0
    assert land.margins(alone)[2] > land.margins(0 * alone)[2]
    assert land.truth(np.full((5, 3), 9.0)) < land.truth(np.ones((5, 3)))


def test_mini_batches_estimate_the_truth():
    fitness, space = artificial_problem(4, "global", 1, size=4000, batch=4000)
    recipe = np.full(space.shape, 1.2)
    assert 100 * fitness.full(recipe).mean == pytest.approx(fitness.landscape.truth(recipe), abs=3)


@pytest.mark.parametrize("method", [s.name for s in SEARCHES if s.facts.get("space") != "choices"])
def test_every_search_spends_its_budget_and_is_seeded(method):
    landscape, outcome, budget = run(method)
    assert 0.8 * 5000 < budget.spent == outcome.spent <= 5000
    assert outcome.validation.mean >= outcome.start_validation.mean
    again = run(method)[1]
    np.testing.assert_array_equal(outcome.coefficients, again.coefficients)
    assert np.isfinite(landscape.truth(outcome.coefficients))


def test_searches_gain_over_the_static_start_on_average():
    for method in ("emfto", "cold_cma"):
        gains = [land.truth(o.coefficients) - land.truth(o.start) for land, o, _ in (run(method, s) for s in range(8))]
        assert np.mean(gains) > 0.3, method


def tuned(seed, budget, **settings):
    fitness, space = artificial_problem(4, "global", seed, size=200, batch=8)
    spent = Budget("task_examples", budget)
    start, answer = tune_static(fitness, space, spent, SolverConfig(**settings))
    assert answer.cost == fitness.validation_size
    return fitness.landscape.truth(start), spent.spent - answer.cost


def test_the_static_start_is_tuned_on_more_examples_where_the_budget_allows():
    few = [tuned(s, 50_000, start_share=0.0) for s in range(12)]
    many = [tuned(s, 50_000) for s in range(12)]
    scales, price = 6, 4 * 8
    assert {cost for _, cost in few} == {scales * price}  # one mini-batch a scale
    assert {cost for _, cost in many} == {(scales * 1 + 3 * 2 + 2 * 4) * price}  # six, three, two, one
    assert np.mean([score for score, _ in many]) > np.mean([score for score, _ in few])


def test_a_scale_without_a_score_is_not_the_start():
    fitness, space = artificial_problem(4, "global", 0, size=100, batch=16)
    honest = fitness.landscape.margins
    fitness.landscape.margins = lambda a: honest(a) * (np.nan if a.max() > 0.9 else 1.0)
    start, _ = tune_static(fitness, space, Budget("task_examples", 5000), SolverConfig())
    assert start.max() <= 0.9
    fitness.landscape.margins = lambda a: honest(a) * np.nan
    with pytest.raises(ValueError, match="every one of them gave NaN"):
        tune_static(fitness, space, Budget("task_examples", 5000), SolverConfig())
