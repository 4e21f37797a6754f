"""A user's function as fitness: every call is charged as what it scores, and what it must not give is named."""

import numpy as np
import pytest

from core.merge.baselines import SEARCHES
from core.merge.emfto import EmftoConfig
from core.merge.own_fitness import load_function, place_of, scored_by
from core.merge.solver import SolverConfig
from core.transfer.budget import Budget
from tests import tiny_experts as te

SEARCH = EmftoConfig(solver=SolverConfig(finalists=1, population=4, racing_parts=1), forms_share=0.1)


class Counted:
    """Hits of the expert "good" on its validation texts; counts its calls."""

    def __init__(self, world):
        self.calls, self.task = 0, world.objectives()["good"]

    def __call__(self, model, tokenizer):
        self.calls += 1
        assert tokenizer is model.tokenizer
        return self.task.score(model, np.arange(self.task.size))


@pytest.mark.parametrize("search", ["emfto", "cold_cma"])
def test_the_budget_counts_every_example_that_the_function_scores(world, search):
    problem, score = te.problem(world), Counted(world)
    own = scored_by(problem, "mine.py:score", score, problem.fitness.model.model.tokenizer)
    assert score.calls == 3, "each expert by itself is the reference"
    assert own.fitness.objectives["mine.py:score"].reference > 0.9
    budget = Budget("task_examples", 30 * 60)
    outcome = SEARCHES.get(search)(own.fitness, own.space, budget, SEARCH, own.owners, seed=0)
    assert budget.spent == 60 * (score.calls - 3)
    assert 20 * 60 < budget.spent <= 30 * 60
    assert outcome.validation.mean > 0.9
    alone = problem.fitness.model.vectors.names.index("good")
    assert outcome.coefficients[alone].mean() > 0.1


def test_scores_that_are_none_are_named(world):
    problem = te.problem(world)

    def refused(function, message):
        with pytest.raises(ValueError, match=message):
            scored_by(problem, "mine.py:score", function, None)

    refused(lambda *_: np.array([0.5, 2.0]), r"one score in \[0, 1\] .* from 0.5 to 2")
    refused(lambda *_: 0.7, r"got shape \(\)")
    refused(lambda *_: [], r"got shape \(0,\)")
    refused(lambda *_: np.zeros(4), "gives every expert 0")
    sizes = iter((3, 4, 3))
    refused(lambda *_: np.ones(next(sizes)), r"gave \[3, 4\] scores for different models")


def test_a_function_is_found_in_a_file_or_a_module(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(model, tokenizer):\n    return [model]\n")
    assert load_function(f"{file}:score")(1, None) == [1]
    assert place_of(f"{file}:score") == (file, "score")
    assert load_function("core.merge.align:align").__name__ == "align"
    for name, message in [
        ("score", "give module:function"),
        (f"{file}:no", "has no function 'no'"),
        (f"{tmp_path}/none.py:score", "does not exist"),
        ("no_such_module:score", "no module 'no_such_module'"),
        ("no_such.module:score", "no module 'no_such.module'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_function(name)
