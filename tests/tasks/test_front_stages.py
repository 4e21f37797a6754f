"""The Pareto front in the stages: inside the budget, after forms of an earlier stage, chosen from without a search."""

import json

import numpy as np
import pytest

from core.merge.emfto import EmftoConfig
from core.merge.front import Front
from core.merge.recipe import load_recipe
from core.merge.solver import SolverConfig
from tasks import assemble, build_subproblems, choose_recipe, evolve_recipes
from tasks.stage import Artifact, Output
from tests import tiny_experts as te

NOWHERE = Artifact(name="base", path="", sha256="")
SEARCH = EmftoConfig(solver=SolverConfig(finalists=2, population=6), forms_share=0.2, form_candidates=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return te.world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def run(world, tmp_path, monkeypatch):
    """Calls a stage's body on the tiny experts: (stage, name of the folder, configuration, inputs) -> artifact."""
    monkeypatch.setattr(build_subproblems, "problem_of", lambda *_: te.problem(world))

    def call(stage, name, config, **inputs):
        out = Output(tmp_path / name)
        out.folder.mkdir()
        stage.body(out, config, **inputs)
        (out.folder / "facts.json").write_text(json.dumps(out.facts))
        return Artifact(name=name, path=str(out.folder), sha256="")

    return call


def test_a_front_is_paid_from_the_budget_and_chosen_from_without_a_search(run):
    config = build_subproblems.EvolveConfig(search=SEARCH, budget=3200, front=3)
    forms = run(build_subproblems.build_subproblems, "forms", config, base=NOWHERE, experts={})
    known = {"base": NOWHERE, "experts": {}, "subproblems": forms}
    evolved = run(evolve_recipes.evolve_recipes, "evolved", config, **known)
    spent = json.loads((evolved.folder / "facts.json").read_text())["budget"]["task_examples"]
    assert spent <= 3200
    outcome = json.loads((evolved.folder / evolve_recipes.OUTCOME).read_text())
    assert outcome["spent"] == spent

    front = Front.load(evolved.folder / evolve_recipes.FRONT)
    listed = json.loads((evolved.folder / evolve_recipes.CHOICES).read_text())
    assert len(listed) == len(front.recipes) >= 1
    for task in front.tasks:
        preference = choose_recipe.ChooseConfig(preference={task: 20.0})
        chosen = run(choose_recipe.choose_recipe, f"for-{task}", preference, evolved=evolved)
        place = front.pick({task: 20.0})
        assert front.scores[place, front.tasks.index(task)] == pytest.approx(
            front.scores[:, front.tasks.index(task)].max(), abs=0.1
        )
        assert load_recipe(chosen.folder / evolve_recipes.RECIPE) == load_recipe(listed[place])
    assert np.isfinite(front.scores).all()


def test_a_front_that_the_budget_does_not_pay_is_refused_before_the_search(run):
    config = build_subproblems.EvolveConfig(search=SEARCH, budget=3200, front=300)
    with pytest.raises(ValueError, match=r"a front of 300 points takes .* raise the budget, or ask for fewer points"):
        run(build_subproblems.build_subproblems, "forms", config, base=NOWHERE, experts={})


@pytest.mark.parametrize("stage", [build_subproblems.build_subproblems, evolve_recipes.evolve_recipes])
def test_an_expert_that_is_always_wrong_is_refused_by_name_before_the_search(world, run, monkeypatch, stage):
    hopeless = te.problem(world)
    hopeless.fitness.objectives["plot"].reference = 1e-6  # as merge_problem sets it
    monkeypatch.setattr(assemble, "merge_problem", lambda *_: hopeless)
    monkeypatch.setattr(assemble, "experts_of", lambda _: [])
    monkeypatch.setattr(assemble, "are_adapters", lambda _: False)
    monkeypatch.setattr(build_subproblems, "problem_of", assemble.problem_of)
    config = build_subproblems.EvolveConfig(search=SEARCH, budget=3200)
    with pytest.raises(ValueError, match=r"the expert of 'plot' got none of its 60 validation examples right"):
        run(stage, "refused", config, base=NOWHERE, experts={})
