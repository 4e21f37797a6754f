"""The Pareto front over tasks: what is kept, what it costs, and how a preference chooses from it."""

import numpy as np
import pytest

from core.merge.emfto import EmftoConfig, emfto
from core.merge.front import Front, pareto_front, preferences, unbeaten
from core.merge.landscape import artificial_problem
from core.merge.solver import Outcome, SolverConfig
from core.transfer.budget import Budget


def test_only_what_nothing_else_equals_or_beats_on_every_task_is_kept():
    scores = np.array([[0.9, 0.5], [0.5, 0.9], [0.5, 0.5], [0.9, 0.4], [0.9, 0.5], [np.nan, 1.0]])
    assert unbeaten(scores) == [0, 1]


def test_preferences_emphasise_each_task_and_sum_to_one():
    made = preferences(3, 7, seed=1)
    np.testing.assert_allclose(made.sum(axis=1), 1)
    assert made[:3].argmax(axis=1).tolist() == [0, 1, 2]
    assert preferences(8, 2).shape == (2, 8)


@pytest.fixture(scope="module")
def searched():
    fitness, space = artificial_problem(4, "global", 0)
    budget = Budget("task_examples", 20_000)
    outcome = emfto(fitness, space, budget, EmftoConfig(solver=SolverConfig(finalists=2)), list(range(4)))
    budget.limit += 12 * fitness.validation_size
    return fitness, space, budget, outcome


def test_a_front_trades_tasks_against_each_other_and_counts_its_cost(searched):
    fitness, space, budget, outcome = searched
    before = budget.spent
    equal = outcome.facts["response"].weights.copy()
    front = pareto_front(outcome, fitness, space, budget, 12)
    assert budget.spent - before == 12 * fitness.validation_size
    assert len(front.recipes) >= 2
    assert unbeaten(front.scores) == list(range(len(front.scores)))
    np.testing.assert_array_equal(outcome.facts["response"].weights, equal)
    # the formula itself, without sampling noise, says the same: each end is better at the task it was picked for
    ends = [front.pick({t: 50.0}) for t in fitness.tasks[:2]]
    margins = np.array([fitness.landscape.margins(front.recipes[i])[:2] for i in ends])
    assert margins[0, 0] > margins[1, 0]
    assert margins[1, 1] > margins[0, 1]


def test_a_preference_picks_and_a_wrong_one_is_refused(tmp_path):
    front = Front(("a", "b"), np.zeros((2, 3, 1)), np.array([[0.9, 0.5], [0.5, 0.8]]))
    front.save(tmp_path / "front.ckpt")
    read = Front.load(tmp_path / "front.ckpt")
    assert [read.pick({}), read.pick({"b": 5}), read.pick({"a": 0})] == [0, 1, 1]
    for preference, message in (
        ({"aa": 1}, "names task 'aa', did you mean 'a'?"),
        ({"a": -1}, "weight -1; give 0 or more"),
        ({"a": 0, "b": 0}, "every task the weight 0"),
    ):
        with pytest.raises(ValueError, match=message):
            read.pick(preference)


def test_a_search_without_a_response_model_has_no_front(searched):
    fitness, space, budget, outcome = searched
    plain = Outcome(outcome.coefficients, outcome.validation, outcome.start, outcome.start_validation, 0.0)
    with pytest.raises(ValueError, match="needs a search with a response model"):
        pareto_front(plain, fitness, space, budget, 2)
