"""How a search is scored: among chosen components, by medians, with start and finalists in float32."""

import json

import pytest
import torch

from core.merge.candidate import InMemoryModel
from core.merge.choices import with_choices
from core.merge.emfto import EmftoConfig
from core.merge.exact_finalists import ExactFinalists
from core.merge.problem import ProblemConfig
from core.merge.recipe import load_recipe
from core.merge.solver import SolverConfig
from tasks import assemble, build_subproblems, evolve_recipes
from tasks.stage import Artifact, Output
from tests import tiny_experts as te

NOWHERE = Artifact(name="base", path="", sha256="")
CONFIG = build_subproblems.EvolveConfig(search=EmftoConfig(solver=SolverConfig(finalists=2)), budget=5000)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return te.world(tmp_path_factory.mktemp("world"))


def halved(world):
    """The tiny problem as a machine with bfloat16 has it."""
    problem = te.problem(world)
    model = problem.fitness.model
    problem.fitness.model = InMemoryModel(model.model, problem.raw, problem.space.groups, torch.bfloat16)
    return problem


@pytest.fixture
def known(world, monkeypatch):
    """The tiny problem in the precision that is asked for, whatever base and experts are named."""

    def problem(base, experts, config, fitness=None, choices=()):
        made = te.problem(world) if config.precision == "float32" else halved(world)
        return with_choices(made, choices, world.cache) if choices else made

    monkeypatch.setattr(build_subproblems, "problem_of", problem)
    monkeypatch.setattr(assemble, "problem_of", problem)


def test_in_bfloat16_the_start_and_the_finalists_are_float32s(known):
    problem, fitness = build_subproblems.scored(CONFIG, NOWHERE, {})
    assert problem.fitness.model.dtype == torch.bfloat16
    assert isinstance(fitness, ExactFinalists)
    assert fitness.exact.model.dtype == torch.float32


def test_in_float32_nothing_is_scored_by_a_twin(known):
    exact = CONFIG.model_copy(update={"problem": ProblemConfig(precision="float32"), "medians": 3})
    problem, fitness = build_subproblems.scored(exact, NOWHERE, {})
    assert fitness is problem.fitness
    assert fitness.blocks == 3


def test_without_memory_for_a_twin_the_search_goes_on_and_says_so(known, monkeypatch, caplog):
    monkeypatch.setattr(assemble, "free_memory", lambda device: 1000)
    problem, fitness = build_subproblems.scored(CONFIG, NOWHERE, {})
    assert fitness is problem.fitness
    assert "finalists are scored in bfloat16" in caplog.text


def test_a_search_among_components_writes_what_each_expert_took(known, tmp_path):
    names = ("raw", "tsv_m", "ties@0.5")
    config = CONFIG.model_copy(update={"method": "choices", "choices": names})
    out = Output(tmp_path / "out")
    out.folder.mkdir()
    evolve_recipes.evolve_recipes.body(out, config, base=NOWHERE, experts={})
    outcome = json.loads((out.folder / evolve_recipes.OUTCOME).read_text())
    assert len(outcome["choices"]) == len(outcome["experts"]) == 3
    assert {taken.split(" × ")[1] for row in outcome["choices"] for taken in row} <= set(names)
    assert outcome["spent"] <= 5000
    recipe = load_recipe(out.folder / evolve_recipes.RECIPE)
    assert recipe.merge_method == "components"
