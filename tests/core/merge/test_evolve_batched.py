"""Candidates scored in one forward answer, cost and steer a search as they do one by one."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core.merge import batched, problem
from core.merge.baselines import plain_search
from core.merge.basis import in_basis
from core.merge.batched import Batched, candidate_bytes, together
from core.merge.candidate import InMemoryModel
from core.merge.emfto import EmftoConfig, emfto
from core.merge.experts import load_expert
from core.merge.fitness import Fitness, Racing, race
from core.merge.objectives import FunctionObjective, mixed_batches
from core.merge.population import PopulationFitness
from core.merge.problem import ProblemConfig
from core.merge.recipe_space import RecipeSpace, SpaceConfig
from core.merge.solver import SolverConfig
from core.transfer.budget import Budget

SOLVER = SolverConfig(finalists=2, population=6, step=1.0, racing_z=1.0)  # wide steps, so that the race drops some
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ROUND, PARTS = 2, 3


@pytest.fixture
def made(world):
    """Fitness and space of the tiny experts; ``attention`` and ``device`` can be asked for."""

    def make(attention="sdpa", device="cpu", granularity="layers"):
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        vectors = in_basis(world.vectors, "raw", world.cache)
        space = RecipeSpace(vectors, SpaceConfig(basis="raw", granularity=granularity))
        encoder = world.encoder().to(device)
        encoder.backbone.set_attn_implementation(attention)
        return Fitness(InMemoryModel(encoder, vectors, space.groups), world.objectives(), batch=15, seed=3), space

    return make


def recipes(space, count):
    return list(np.random.default_rng(0).uniform(-0.5, 1.5, (count, *space.shape)))


def one_by_one(fitness, candidates):
    return [list(parts) for parts in fitness.in_pieces(candidates, ROUND, PARTS)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("granularity", ["global", "kinds", "layers"])
def test_scores_are_those_of_one_by_one(made, attention, granularity, device):
    fitness, space = made(attention, device, granularity)
    candidates = recipes(space, 5)
    expected = one_by_one(fitness, candidates)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an operation without a candidates' axis would be looped over, with a warning
        found = one_by_one(together(fitness, 8), candidates)
    assert len(found) == len(expected) == 5
    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine) == len(theirs) == PARTS
        for piece, other in zip(mine, theirs, strict=True):
            assert piece.keys() == other.keys() == set(fitness.tasks)
            for task in piece:
                np.testing.assert_allclose(piece[task].soft, other[task].soft, atol=1e-4)
                assert (piece[task].correct == other[task].correct).mean() > 0.9
    assert fitness.clock.candidates == 10
    assert 0 < fitness.clock.merging_share < 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["cma", "emfto"])
def test_the_search_is_the_same(made, method, device):
    def run(most):
        fitness, space = made(device=device)
        fitness, budget = together(fitness, most), Budget("task_examples", 2600)
        if method == "cma":
            return plain_search("cma", fitness, space, budget, SOLVER, seed=1), budget
        config = EmftoConfig(solver=SOLVER, forms_share=0.2, form_candidates=2)
        return emfto(fitness, space, budget, config, [0, 1, 2], seed=1), budget

    (alone, spent_alone), (found, spent) = run(1), run(4)
    assert spent.counts == spent_alone.counts
    assert len(found.answers) == len(alone.answers) > 12
    assert any(a.stopped for _, a in found.answers), "the race decides something here"
    for (recipe, answer), (expected, told) in zip(found.answers, alone.answers, strict=True):
        np.testing.assert_allclose(recipe, expected, atol=2e-4)
        np.testing.assert_allclose(answer.score, told.score, atol=2e-3)
        assert (answer.cost, answer.stopped) == (told.cost, told.stopped)
    np.testing.assert_allclose(found.coefficients, alone.coefficients, atol=2e-4)


def test_a_failed_candidate_fails_alone(made):
    fitness, space = made()
    candidates = recipes(space, 4)
    candidates[1] = np.full(space.shape, np.nan)
    rule = Racing(parts=PARTS, keep=2)
    found, expected = race(together(fitness, 4), candidates, 0, rule), race(fitness, candidates, 0, rule)
    assert [np.isnan(a.mean) for a in found] == [False, True, False, False]
    assert [a.cost for a in found] == [a.cost for a in expected]
    for i in (0, 2, 3):
        np.testing.assert_allclose(found[i].score, expected[i].score, atol=1e-5)


@pytest.mark.parametrize(
    ("most", "affordable", "chunks"),
    [(8, 100.0, [7]), (8, 3.5, [3, 3, 1]), (2, 100.0, [2, 2, 2, 1]), (8, 0.5, [1] * 7)],
)
def test_memory_limits_how_many_go_together(made, monkeypatch, most, affordable, chunks):
    fitness, space = made()
    batches = mixed_batches(fitness.objectives, fitness.pieces(ROUND, 1)[0], "cpu")
    one, taken = candidate_bytes(fitness.model, batches), []
    assert one > 8 * fitness.model.vectors.size

    def stacked(model, candidates, real=batched.merge_stacked):
        taken.append(len(candidates))
        return real(model, candidates)

    monkeypatch.setattr(batched, "merge_stacked", stacked)
    bounded = PopulationFitness.of(fitness, Batched(most, int(affordable * one)))
    candidates = recipes(space, 7)
    answers = race(bounded, candidates, ROUND, None)
    assert taken == chunks
    for answer, expected in zip(answers, race(fitness, candidates, ROUND, None), strict=True):
        np.testing.assert_allclose(answer.score, expected.score, atol=1e-5)


@pytest.mark.gpu
def test_a_device_holds_no_more_than_declared(made):
    fitness, space = made(device="cuda")
    batches = mixed_batches(fitness.objectives, fitness.pieces(ROUND, 1)[0], "cuda")
    one = candidate_bytes(fitness.model, batches)
    bounded = PopulationFitness.of(fitness, Batched(64, 40 * one))
    bounded.in_pieces(recipes(space, 2), ROUND, PARTS)  # the libraries' own workspaces, taken once, stay
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    bounded.in_pieces(recipes(space, 64), ROUND, PARTS)
    assert torch.cuda.max_memory_allocated() - before < 40 * one


def test_the_hardware_chooses(made, monkeypatch):
    fitness, _ = made()
    assert together(fitness) is fitness, "a processor gains nothing"
    assert together(fitness, 1) is fitness
    monkeypatch.setattr(batched, "free_memory", lambda device: 2**30)
    asked = together(fitness, 4)
    assert asked.generation == Batched(4, 2**29)
    assert (asked.tasks, asked.sizes, asked.clock) == (fitness.tasks, fitness.sizes, fitness.clock)
    elsewhere, _ = made()
    elsewhere.model.device = SimpleNamespace(type="cuda")
    assert together(elsewhere).generation.most > 1


def test_the_problem_says_how_many(world, monkeypatch):
    monkeypatch.setattr(problem, "objectives", lambda *arguments: world.objectives())
    experts = [load_expert(folder) for folder in world.folders.values()]

    def fitness(count):
        config = ProblemConfig(space=SpaceConfig(basis="raw", granularity="global"), together=count)
        return problem.merge_problem(world.base, experts, config, world.cache).fitness

    assert isinstance(fitness(None), PopulationFitness) == torch.cuda.is_available()
    assert fitness(4).generation.most == 4
    assert type(fitness(1)) is Fitness


def test_other_objectives_are_refused(made):
    fitness, _ = made()
    norm = FunctionObjective("norm", 15, lambda model, tokenizer: np.zeros(15))
    mixed = Fitness(fitness.model, {**fitness.objectives, "norm": norm}, batch=15)
    assert together(mixed) is mixed
    with pytest.raises(ValueError, match="'norm' is a FunctionObjective"):
        together(mixed, 4)
