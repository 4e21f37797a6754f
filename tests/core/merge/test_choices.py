"""Recipes with choices: components, their space, the file they end in, and the search among them."""

import numpy as np
import pytest
from safetensors.torch import load_file

from core.merge.baselines import SEARCHES
from core.merge.choice_search import choice_start_cost, tune_components
from core.merge.choices import ChoiceSpace, component_vectors, with_choices
from core.merge.components import component_named, components, kept
from core.merge.emfto import EmftoConfig
from core.merge.engine import merge
from core.merge.memory import merge_tensors
from core.merge.plan import make_plan
from core.merge.recipe_space import SpaceConfig
from core.merge.solver import SolverConfig
from core.transfer.budget import Budget
from tests import tiny_experts as te

NAMES = ("tsv_m", "raw", "raw@0.3", "ties@0.5")
CONFIG = EmftoConfig(solver=SolverConfig(finalists=2))


@pytest.fixture
def deltas():
    return list(np.random.default_rng(0).normal(size=(3, 6, 8)))


def test_density_keeps_the_largest_magnitudes_as_they_are(deltas):
    part = kept(deltas[0], 0.25)
    assert (part != 0).sum() == 12
    assert np.abs(part[part != 0]).min() >= np.sort(np.abs(deltas[0]), axis=None)[-12]
    np.testing.assert_array_equal(part[part != 0], deltas[0][part != 0])
    assert (kept(np.ones((2, 4)), 0.5) == [[1, 1, 1, 1], [0, 0, 0, 0]]).all()  # of equal ones the earlier
    assert (kept(deltas[0], 1e-6) != 0).sum() == 1


@pytest.mark.parametrize("density", [1.0, 0.4])
def test_ties_components_sum_to_the_ties_operator(deltas, density):
    base = np.zeros((6, 8))
    models = [{"t": d} for d in deltas]
    each = [{"weight": 1.0, "density": density}] * 3
    merged = merge_tensors("ties", models, {"t": base}, per_model=each, out_dtype="float64")["t"]
    np.testing.assert_allclose(sum(components(deltas, "ties", density)), merged, atol=1e-12)


def test_the_operator_adds_each_models_own_component(deltas):
    models, base = [{"t": d + 1} for d in deltas], {"t": np.ones((6, 8))}
    each = [
        {"weight": 0.5, "basis": "tsv_m"},
        {"weight": 2.0, "basis": "raw", "density": 0.25},
        {"weight": -1.0, "basis": "ties", "density": 0.5},
    ]
    merged = merge_tensors("components", models, base, per_model=each, shared={"lambda": 2.0}, out_dtype="float64")
    exact = [d["t"] - 1 for d in models]
    wanted = 0.5 * components(exact, "tsv_m")[0] + 2 * kept(exact[1], 0.25) - components(exact, "ties", 0.5)[2]
    np.testing.assert_allclose(merged["t"], 1 + 2 * wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "message"),
    [("tsv", "did you mean 'tsv_m'"), ("raw@0", "above 0"), ("raw@2", "at most 1"), ("ties@x", "share kept")],
)
def test_components_that_are_none_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        component_named(name)


@pytest.mark.parametrize(
    ("given", "message"), [({"basis": "tsv"}, "did you mean 'tsv_m'"), ({"density": 0}, "above 0")]
)
def test_a_recipe_of_components_that_are_none_is_refused_in_its_plan(world, given, message):
    models = [{"model": str(f), "parameters": given} for f in world.folders.values()]
    with pytest.raises(ValueError, match=message):
        make_plan({"merge_method": "components", "base_model": str(world.base), "models": models})


def test_a_density_is_taken_as_it_is_written(deltas):
    each = [{"density": 0.14583334}] * 3  # of 48 elements 7, at six digits 6
    merged = merge_tensors("components", [{"t": d} for d in deltas], {"t": np.zeros((6, 8))}, per_model=each)
    assert (merged["t"] != 0).sum() == (sum(kept(d, 7 / 48 + 1e-9) for d in deltas) != 0).sum()


@pytest.mark.parametrize("names", [(), ("raw",), ("raw", "raw@1.0")])
def test_a_space_of_one_component_is_refused(world, names):
    with pytest.raises(ValueError, match="two or more different"):
        component_vectors(world.vectors, names, world.cache)


def test_a_space_of_shares_is_refused(world):
    with pytest.raises(ValueError, match="signed"):
        ChoiceSpace(world.vectors, SpaceConfig(form="simplex"), NAMES)


def some(world, seed=0):
    """A problem with choices, a search space of it and a recipe drawn from that."""
    problem = with_choices(te.problem(world), NAMES, world.cache)
    space = problem.space.scaled((1.2, 0.4, 0.6, 1.0))
    return problem, space, space.coefficients(space.mixed(0, 0.25).sample(np.random.default_rng(seed)))


def test_a_recipe_takes_one_component_an_expert_and_group(world):
    _, space, recipe = some(world)
    assert recipe.shape == (12, 2)
    assert ((recipe.reshape(3, 4, 2) != 0).sum(axis=1) == 1).all()
    numbers, chosen = space.parts(recipe)
    np.testing.assert_array_equal(space.matrix(numbers, chosen), recipe)
    assert len({*chosen.ravel()}) > 1
    assert (numbers >= space.config.lower).all()
    assert (numbers <= space.config.upper).all()
    assert space.described(recipe)[0][0].endswith(NAMES[chosen[0, 0]])
    one = space.mixed(1, 0.25).start
    np.testing.assert_array_equal(space.parts(space.coefficients(one))[0], np.full((3, 2), 0.4))


def test_the_engine_executes_the_recipe_to_the_weights_that_were_scored(world, tmp_path):
    problem, _, recipe = some(world)
    network = problem.fitness.model.write(recipe)
    for folder in ("one", "two"):
        merge(problem.recipe(recipe), tmp_path / folder)
    first, second = (load_file(tmp_path / f / "model.safetensors") for f in ("one", "two"))
    assert all(first[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in second.items())
    moved = 0
    for name, parameter in network.backbone.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), first[name].numpy(), atol=2e-6)
        moved += 1
    assert moved > 10


def test_scales_are_tuned_for_each_component_and_counted(world):
    problem = with_choices(te.problem(world), NAMES, world.cache)
    budget = Budget("task_examples", 10_000)
    space, best, start, answer = tune_components(problem.fitness, problem.space, budget)
    fitness = problem.fitness
    assert budget.spent == choice_start_cost(NAMES, fitness.price, fitness.validation_size)
    assert len(set(space.scales)) > 1
    assert (space.parts(start)[1] == best).all()
    np.testing.assert_allclose(fitness.full(start).score, answer.score)
    with pytest.raises(ValueError, match="task-examples, the budget leaves 100"):
        tune_components(problem.fitness, problem.space, Budget("task_examples", 100))


def search(world, budget=5000, **arguments):
    problem = with_choices(te.problem(world), NAMES, world.cache)
    spent = Budget("task_examples", budget)
    found = SEARCHES.get("choices")(problem.fitness, problem.space, spent, CONFIG, problem.owners, seed=1, **arguments)
    return found, spent


def test_the_search_stays_within_its_budget_and_never_below_its_start(world):
    found, budget = search(world)
    assert found.spent == budget.spent <= 5000
    assert found.validation.mean >= found.start_validation.mean
    assert len({tuple(r.ravel()) for r, _ in found.answers}) > 20


def test_killed_it_continues_identically(world, tmp_path, monkeypatch):
    from core.merge import full_search as module

    whole, _ = search(world)
    original, calls = module.Evaluator.__call__, []

    def dies(self, vectors):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, vectors)

    monkeypatch.setattr(module.Evaluator, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        search(world, checkpoint=tmp_path)
    monkeypatch.undo()
    resumed, budget = search(world, checkpoint=tmp_path)
    np.testing.assert_array_equal(resumed.coefficients, whole.coefficients)
    assert budget.spent == whole.spent


def test_a_problem_without_choices_is_refused(world):
    problem = te.problem(world)
    with pytest.raises(ValueError, match="needs a problem with choices"):
        SEARCHES.get("choices")(problem.fitness, problem.space, Budget("task_examples", 9000), CONFIG, problem.owners)
