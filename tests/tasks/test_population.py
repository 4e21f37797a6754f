"""A generation scored on workers chooses, counts and learns exactly what it does one candidate at a time."""

import numpy as np
import pytest

from core.merge.baselines import plain_search
from core.merge.choice_search import choices
from core.merge.choices import with_choices
from core.merge.emfto import EmftoConfig, emfto
from core.merge.language import LanguageFitness
from core.merge.objectives import Scored
from core.merge.population import PopulationFitness
from core.merge.problem import ProblemConfig
from core.merge.solver import SolverConfig
from core.transfer.budget import Budget
from tasks import population
from tasks.runner import Here
from tasks.stage import Artifact
from tests import tiny_experts as te

SOLVER = SolverConfig(finalists=2, population=6)
OWNERS = [0, 1, 2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return te.world(tmp_path_factory.mktemp("world"))


class Elsewhere:
    """Stands for workers: they have a problem of their own and get nothing but what is sent."""

    def __init__(self):
        self.sent: list[int] = []

    def map(self, function, items, shared=None):
        self.sent.append(len(items))
        return [function(shared, item) for item in reversed(list(items))][::-1]


@pytest.mark.parametrize("method", ["cma", "emfto", "choices"])
def test_the_search_is_the_same(world, monkeypatch, method):
    def problem():
        made = te.problem(world)
        return with_choices(made, ("raw", "tsv_m"), world.cache) if method == "choices" else made

    opened = problem()
    monkeypatch.setattr(population, "_opened", lambda place: opened)
    nowhere = Artifact(name="base", path="", sha256="")
    place = population.ProblemPlace(base=nowhere, experts={}, config=ProblemConfig())

    def run(executor):
        budget = Budget("task_examples", 2600)
        own = problem()
        fitness, space = population.on_workers(own.fitness, place, executor), own.space
        if method == "choices":
            return choices(fitness, space, budget, EmftoConfig(solver=SOLVER), OWNERS, seed=1), budget, fitness
        if method == "cma":
            return plain_search("cma", fitness, space, budget, SOLVER, seed=1), budget, fitness
        config = EmftoConfig(solver=SOLVER, forms_share=0.2, form_candidates=2)
        return emfto(fitness, space, budget, config, OWNERS, seed=1), budget, fitness

    here, spent_here, _ = run(Here())
    workers = Elsewhere()
    there, spent_there, fitness = run(workers)
    assert isinstance(fitness, PopulationFitness)
    np.testing.assert_array_equal(there.coefficients, here.coefficients)
    assert spent_there.counts == spent_here.counts
    assert len(there.answers) == len(here.answers) > 12
    for (recipe, answer), (expected, told) in zip(there.answers, here.answers, strict=True):
        np.testing.assert_array_equal(recipe, expected)
        np.testing.assert_array_equal(answer.score, told.score)
        assert (answer.cost, answer.stopped) == (told.cost, told.stopped)
    assert max(workers.sent) >= 6, "a whole generation goes out at once"
    assert len(workers.sent) < len(here.answers) / 3, "not one by one"
    assert fitness.clock.merging > 0


def test_this_process_needs_no_detour(world):
    own = te.problem(world).fitness
    place = population.ProblemPlace(base=Artifact(name="b", path="", sha256=""), experts={}, config=ProblemConfig())
    assert population.on_workers(own, place, Here()) is own


class Asked:
    """A task of a language model: hits are asked for only where they decide."""

    reference, size = 1.0, 8

    def __init__(self):
        self.asked = []

    def judge(self, model, indices, hits=True):
        self.asked.append(hits)
        return Scored(np.ones(len(indices)) if hits else np.full(len(indices), np.nan), np.full(len(indices), 0.25))


def test_a_language_model_is_scored_as_one_beside_its_workers():
    class Model:
        def write(self, coefficients):
            return coefficients

    task, place = (
        Asked(),
        population.ProblemPlace(base=Artifact(name="b", path="", sha256=""), experts={}, config=ProblemConfig()),
    )
    fitness = population.on_workers(LanguageFitness(Model(), {"t": task}, batch=4), place, Elsewhere())
    assert isinstance(fitness, PopulationFitness)
    assert fitness.evaluate(np.zeros((1, 1)), 0).mean == 0.25, "by smooth values, nothing is written"
    assert fitness.full(np.zeros((1, 1))).mean == 1.0, "finalists by hits"
    assert task.asked == [False, True]
