"""Forms, relation graph, response model, planner and the whole multi-form search, on tiny real experts."""

import json

import numpy as np
import pytest

from core.merge.baselines import SEARCHES
from core.merge.basis import in_basis
from core.merge.candidate import InMemoryModel
from core.merge.emfto import EmftoConfig, emfto
from core.merge.fitness import Fitness
from core.merge.forms import Form, Solved, all_forms, sensitive_tasks
from core.merge.planner import Planner
from core.merge.recipe_space import RecipeSpace, SpaceConfig
from core.merge.relation import RelationGraph
from core.merge.response import ResponseModel
from core.merge.solver import SolverConfig
from core.transfer.budget import Budget


def problem(world, granularity="global", seed=0):
    vectors = in_basis(world.vectors, "tsv_m", world.cache)
    space = RecipeSpace(vectors, SpaceConfig(basis="tsv_m", granularity=granularity))
    objectives = world.objectives()
    fitness = Fitness(InMemoryModel(world.encoder(), vectors, space.groups), objectives, batch=12, seed=seed)
    return fitness, space


CONFIG = EmftoConfig(forms_share=0.25, form_candidates=2, form_tasks=2, solver=SolverConfig(finalists=2))
OWNERS = [0, 1, 2]


def run(world, budget=2600, config=CONFIG, seed=0, **arguments):
    fitness, space = problem(world, seed=seed)
    spent = Budget("task_examples", budget)
    return emfto(fitness, space, spent, config, OWNERS, seed=seed, **arguments), spent


def test_runs_within_budget_and_never_below_its_start(world):
    outcome, budget = run(world)
    assert budget.spent == outcome.spent <= 2600
    assert outcome.validation.mean >= outcome.start_validation.mean
    assert outcome.facts["forms"] >= 3
    assert 0 < outcome.facts["spent_forms"] <= 0.25 * 2600
    assert outcome.coefficients.shape == (3, 1)


def test_same_seed_same_result(world):
    first, second = run(world)[0], run(world)[0]
    np.testing.assert_array_equal(first.coefficients, second.coefficients)
    assert [a.cost for _, a in first.answers] == [a.cost for _, a in second.answers]


def test_killed_in_either_phase_continues_identically(world, tmp_path, monkeypatch):
    whole, _ = run(world)
    import core.merge.emfto as module

    class Killed(Exception):
        pass

    original, count = module.solve_form, {"forms": 0}

    def dies(*arguments):
        count["forms"] += 1
        if count["forms"] == 3:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(module, "solve_form", dies)
    with pytest.raises(Killed):
        run(world, checkpoint=tmp_path)
    monkeypatch.undo()
    calls = {"n": 0}
    evaluate = module.Evaluator.__call__

    def dies_later(self, vectors):
        calls["n"] += 1
        if calls["n"] == 4:
            raise Killed
        return evaluate(self, vectors)

    monkeypatch.setattr(module.Evaluator, "__call__", dies_later)
    with pytest.raises(Killed):
        run(world, checkpoint=tmp_path)
    monkeypatch.undo()
    resumed, budget = run(world, checkpoint=tmp_path)
    np.testing.assert_array_equal(resumed.coefficients, whole.coefficients)
    assert budget.spent == whole.spent


@pytest.mark.parametrize(
    "change",
    [
        {"forms_share": 0.0},
        {"order": "random"},
        {"warm_covariance": False},
        {"warm_mean": False},
        {"inject": 0},
    ],
)
def test_every_control_runs(world, change):
    outcome, _ = run(world, config=CONFIG.model_copy(update=change))
    assert outcome.validation.mean >= outcome.start_validation.mean


@pytest.mark.parametrize("search", ["emfto", "cold_cma"])
def test_a_search_of_shares_keeps_their_sum(world, search):
    vectors = in_basis(world.vectors, "tsv_m", world.cache)
    space = RecipeSpace(vectors, SpaceConfig(basis="tsv_m", granularity="blocks:2", form="simplex", total=3.0))
    fitness = Fitness(InMemoryModel(world.encoder(), vectors, space.groups), world.objectives(), batch=12)
    budget, config = Budget("task_examples", 2600), CONFIG.model_copy(update={"forms_share": 0.0})
    outcome = SEARCHES.get(search)(fitness, space, budget, config, OWNERS, seed=0)
    tried = np.stack([recipe for recipe, _ in outcome.answers])
    np.testing.assert_allclose(tried.sum(axis=1), 3.0, atol=1e-3)
    assert (tried >= 0).all()
    assert len(np.unique(tried.reshape(len(tried), -1), axis=0)) > 10


def test_a_budget_below_one_evaluation_is_refused(world):
    with pytest.raises(ValueError, match="tuning the static start takes"):
        run(world, budget=100)
    with pytest.raises(ValueError, match="finalists take"):
        run(world, budget=700, config=CONFIG.model_copy(update={"forms_share": 0.0}))


def quadratic_data(model, rng, count, noise):
    linear = np.array([[0.4, -0.2, 0.0], [0.0, 0.3, -0.1], [0.0, 0.0, 0.2]])
    for _ in range(count):
        recipe = model.reference + rng.normal(0, 0.5, model.reference.shape)
        d = (recipe - model.reference).ravel()
        y = linear @ d - np.array([0.5, 0.4, 0.3]) * d**2
        model.add(recipe, model.tasks, np.array(y) + rng.normal(0, noise, 3), np.full(3, noise**2))
    model.fit()


def test_response_model_finds_the_optimum_of_a_noisy_quadratic():
    model = ResponseModel(np.ones((3, 1)), ["a", "b", "c"], [0, 1, 2])
    quadratic_data(model, np.random.default_rng(0), 60, 0.02)
    best = model.propose(-1, 4, 2.0)
    np.testing.assert_allclose(best.ravel(), [1 + 0.4, 1 + 0.125, 1 + 1 / 6], atol=0.12)
    deviation = model.predict(best)[1]
    assert deviation.max() < 0.05
    effects = model.interference()
    assert effects[1, 0] == pytest.approx(-0.2, abs=0.05)


def test_response_model_is_surer_with_more_data_and_ignores_nan():
    model = ResponseModel(np.ones((3, 2)), ["a", "b", "c"], [0, 1, 2])
    far = model.reference + 1.0
    model.add(far, ["a", "b"], np.array([np.nan, 0.1]), np.array([0.1, 0.1]))
    assert [len(d) for d in model.data] == [0, 1, 0]
    before = model.predict(far)[1]
    rng = np.random.default_rng(1)
    for _ in range(40):
        recipe = model.reference + rng.normal(0, 0.5, (3, 2))
        model.add(recipe, model.tasks, rng.normal(0, 0.01, 3), np.full(3, 1e-4))
    model.fit()
    assert (model.predict(far)[1] < before).all()
    correlation = model.covariance()
    assert np.linalg.eigvalsh(correlation).min() > 0
    np.testing.assert_allclose(np.diag(correlation), 1)


def test_response_model_continues_from_its_state():
    model = ResponseModel(np.ones((3, 1)), ["a", "b", "c"], [0, 1, 2])
    quadratic_data(model, np.random.default_rng(2), 20, 0.02)
    other = ResponseModel(np.zeros((3, 1)), ["a", "b", "c"], [0, 1, 2])
    other.load_state_dict(json.loads(json.dumps(model.state_dict())))
    np.testing.assert_array_equal(model.propose(-1, 4, 1.0), other.propose(-1, 4, 1.0))


def test_forms_keep_or_drop_the_context():
    context = np.array([[0.5], [0.6], [0.7]])
    moved = np.array([[1.0], [2.0]])
    np.testing.assert_array_equal(Form((0, 2), ("a",)).expand(moved, context).ravel(), [1.0, 0.6, 2.0])
    np.testing.assert_array_equal(Form((0, 2), ("a",), "lone").expand(moved, context).ravel(), [1.0, 0.0, 2.0])
    assert len(list(all_forms(8, 2, list(range(8)), [f"t{i}" for i in range(8)]))) == 28
    with pytest.raises(ValueError, match="in order"):
        Form((2, 0), ("a",))
    with pytest.raises(ValueError, match="at least one task"):
        Form((0,), ())


def test_sensitive_tasks_are_added_to_own_ones():
    effects = np.array([[0.5, 0.0, -0.4], [0.0, 0.5, 0.1], [0.0, 0.0, 0.5]])
    assert sensitive_tasks((0,), [0, 1, 2], ["a", "b", "c"], effects, 2) == ("a", "c")
    assert sensitive_tasks((0, 1), [0, 1, 2], ["a", "b", "c"], effects, 2) == ("a", "b")


def graph():
    return RelationGraph(["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"])


def solved(models, gain):
    form = Form(models, tuple("abc"[i] for i in models))
    return Solved(form, np.ones((3, 1)), 0.9 + gain, 0.9, 10.0, {})


def test_graph_learns_synergy_and_certainty():
    g = graph()
    for _ in range(3):
        g.update(solved((0, 1), 0.2))
        g.update(solved((1, 2), -0.2))
    s, u = g.matrix("synergy"), g.matrix("uncertainty")
    assert s[0, 1] > 0 > s[1, 2]
    assert s[0, 2] == 0
    assert u[0, 1] == pytest.approx(0.25)
    assert u[0, 2] == 1
    assert g.near_cliques(2)[0] == (0, 1)
    assert np.linalg.eigvalsh(g.correlation()).min() > 0
    assert g.correlation()[0, 1] > 0 > g.correlation()[1, 2]


def test_graph_is_saved_drawn_and_read_again(tmp_path):
    g = graph()
    g.update(solved((0, 1), 0.1))
    g.set_affinity(np.arange(9.0).reshape(3, 3))
    g.save(tmp_path / "graph.ckpt")
    again = RelationGraph.load(tmp_path / "graph.ckpt")
    np.testing.assert_array_equal(again.matrix("synergy"), g.matrix("synergy"))
    np.testing.assert_array_equal(again.affinity(), g.affinity())
    assert again.solved[0].form == g.solved[0].form
    g.draw(tmp_path / "graph.png")
    assert (tmp_path / "graph.png").stat().st_size > 5000


def test_answers_of_an_earlier_run_teach_a_new_one():
    model = ResponseModel(np.ones((3, 1)), ["a", "b", "c"], [0, 1, 2])
    before = model.predict(model.reference + 0.5)[1].copy()
    for k in range(10):
        model.borrow(np.array([[0.1 * k], [0.0], [0.0]]), {"a": (0.02 * k, 1e-4), "gone": (1.0, 1e-4)}, 4.0)
    model.fit()
    after = model.predict(model.reference + 0.5)[1]
    assert after[0, 0] < before[0, 0]
    assert model.interference()[0, 0] > 0.1
    assert [len(d) for d in model.data] == [10, 0, 0]


@pytest.mark.parametrize("order", ["planned", "random"])
def test_planner_sees_every_pair_before_the_level_rises(order):
    g, response = graph(), ResponseModel(np.ones((3, 1)), ["a", "b", "c"], OWNERS)
    planner = Planner(OWNERS, ["a", "b", "c"], -1, 3, order=order)
    pairs = set()
    for _ in range(40):
        form = planner.next(g, response, response.reference)
        if planner.level > 2:
            break
        pairs.add(form.models)
        g.update(solved(form.models, 0.0))
    assert pairs >= {(0, 1), (0, 2), (1, 2)}
    assert planner.level == 3
    with pytest.raises(ValueError, match="form order"):
        Planner(OWNERS, ["a", "b", "c"], -1, 3, order="best")


def test_an_earlier_graph_is_taken_over(world):
    first, _ = run(world)
    second, _ = run(world, source=first.facts["graph"], seed=1)
    assert second.validation.mean >= second.start_validation.mean
