"""The thesis' forms: lone, up from pairs, granularities in turn; and what they start the full problem with."""

import numpy as np
import pytest

from core.merge.baselines import SEARCHES
from core.merge.emfto import EmftoConfig
from core.merge.forms import Form, Solved
from core.merge.landscape import artificial_problem
from core.merge.lone_forms import first_distribution, next_form, solve_lone
from core.merge.relation import RelationGraph
from core.merge.solver import SolverConfig, tune_static
from core.transfer.budget import Budget

CONFIG = EmftoConfig(solver=SolverConfig(finalists=2))
OWNERS = [0, 1, 2, 3]


def graph(space, fitness):
    return RelationGraph(space.experts, fitness.tasks, list(space.experts))


def solved(form, space, gain):
    return Solved(form, form.expand(np.ones((form.level, space.shape[1])), np.zeros(space.shape)), gain, 0.0, 1.0)


def test_every_pair_comes_before_larger_sets_and_granularities_take_turns():
    fitness, space = artificial_problem(4, "blocks:3", 0)
    learned, rng = graph(space, fitness), np.random.default_rng(0)
    forms = []
    for _ in range(40):
        forms.append(next_form(learned, OWNERS, rng))
        learned.update(solved(forms[-1], space, 0.1))
    levels = [f.level for f in forms]
    pairs = {f.models for f in forms[: levels.index(3)]}
    assert len(pairs) == 6
    assert levels == sorted(levels)
    assert {f.kind for f in forms} == {"lone"}
    assert [f.granularity for f in forms[:4]] == ["global", "", "global", ""]
    assert all(len(f.tasks) == f.level for f in forms)


def test_a_lone_form_leaves_the_others_out_and_counts_its_examples():
    fitness, space = artificial_problem(4, "blocks:3", 0)
    start, _ = tune_static(fitness, space, Budget("task_examples", 20_000), CONFIG.solver)
    form = Form((1, 3), tuple(fitness.tasks[i] for i in (1, 3)), "lone", granularity="global")
    found = solve_lone(form, fitness, space, start, CONFIG, np.random.default_rng(0))
    assert not found.coefficients[[0, 2]].any()
    assert (found.coefficients[[1, 3]] == found.coefficients[[1, 3], :1]).all()
    assert found.cost == CONFIG.form_candidates * sum(fitness.sizes[t] for t in form.tasks)
    fine = solve_lone(Form((1, 3), form.tasks, "lone"), fitness, space, start, CONFIG, np.random.default_rng(3))
    assert np.isfinite(fine.score)


def test_forms_decide_mean_and_correlation_of_the_search():
    fitness, space = artificial_problem(4, "blocks:3", 0)
    learned = graph(space, fitness)
    friends, foes = (Form(m, (fitness.tasks[m[0]],), "lone") for m in ((0, 1), (2, 3)))
    for form, gain in ((friends, 0.6), (foes, -0.6)):
        learned.update(solved(form, space, gain))
    mean, correlation = first_distribution(learned, space, np.full(space.shape, 0.5))
    np.testing.assert_array_equal(mean, np.ones(space.shape))
    assert correlation.shape == (12, 12)
    assert np.linalg.eigvalsh(correlation).min() > 0
    assert correlation[0, 3] > 0 > correlation[6, 9]  # experts 0 and 1 move together, 2 and 3 against each other


@pytest.mark.parametrize("granularity", ["global", "blocks:3"])
def test_the_search_stays_within_its_budget(granularity, tmp_path):
    outcomes = []
    for checkpoint in (None, tmp_path, tmp_path):  # the third goes on from the finished second
        fitness, space = artificial_problem(4, granularity, 0)
        budget = Budget("task_examples", 12_000)
        found = SEARCHES.get("lone_forms")(fitness, space, budget, CONFIG, OWNERS, seed=2, checkpoint=checkpoint)
        assert found.spent == budget.spent <= 12_000
        assert 0 < found.facts["spent_forms"] <= 0.25 * 12_000
        assert found.validation.mean >= found.start_validation.mean
        outcomes.append(found)
    for other in outcomes[1:]:
        np.testing.assert_array_equal(outcomes[0].coefficients, other.coefficients)
