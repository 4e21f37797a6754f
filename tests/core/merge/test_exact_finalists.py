"""Mini-batches in bfloat16, start and finalists in float32, at the same cost."""

import numpy as np
import pytest
import torch

from core.merge.basis import in_basis
from core.merge.candidate import InMemoryModel
from core.merge.emfto import EmftoConfig, emfto
from core.merge.exact_finalists import ExactFinalists
from core.merge.fitness import Fitness
from core.merge.problem import own_logits
from core.merge.recipe_space import RecipeSpace, SpaceConfig
from core.merge.solver import SolverConfig
from core.transfer.budget import Budget


def twins(world, align):
    vectors = in_basis(world.vectors, "raw", world.cache)
    space = RecipeSpace(vectors, SpaceConfig(basis="raw", granularity="layers"))
    targets = own_logits(InMemoryModel(world.encoder(), vectors, space.groups), world.objectives()) if align else {}
    made = [
        Fitness(InMemoryModel(world.encoder(), vectors, space.groups, d), world.objectives(), batch=15, targets=targets)
        for d in (torch.bfloat16, torch.float32)
    ]
    return (*made, space)


@pytest.mark.parametrize("align", [False, True])
def test_decisions_are_those_of_float32_and_mini_batches_those_of_bfloat16(world, align):
    fast, exact, space = twins(world, align)
    both, (fast_alone, exact_alone, _) = ExactFinalists(fast, exact), twins(world, align)
    recipe = np.full(space.shape, 0.4)
    other = space.coefficients(np.random.default_rng(0).uniform(0, 1, space.dimensions))
    assert both.set_control(recipe).cost == exact_alone.set_control(recipe).cost
    np.testing.assert_array_equal(both.full(other).hits, exact_alone.full(other).hits)
    np.testing.assert_array_equal(both.control["good"], exact_alone.control["good"])
    assert both.price == fast.price
    # the mini-batch is bfloat16's, judged against float32's control and with its heads
    fast_alone.control = exact_alone.control
    fast_alone.use({t: type(exact_alone.own[t])(o.weight, o.bias) for t, o in exact_alone.objectives.items() if align})
    np.testing.assert_array_equal(both.evaluate(other, 2).score, fast_alone.evaluate(other, 2).score)
    assert not np.array_equal(exact.evaluate(other, 2).score, both.evaluate(other, 2).score)


def test_a_search_on_it_spends_the_same_and_reports_float32(world):
    fast, exact, space = twins(world, align=False)
    budget, config = Budget("task_examples", 2600), EmftoConfig(solver=SolverConfig(finalists=2))
    outcome = emfto(ExactFinalists(fast, exact), space, budget, config, [0, 1, 2], seed=1)
    assert outcome.spent == budget.spent <= 2600
    np.testing.assert_array_equal(outcome.validation.score, exact.full(outcome.coefficients).score)
