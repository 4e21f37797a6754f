"""The search loop: exact counting, identical continuation, transfer injection, failures."""

import math

import numpy as np
import pytest

from core.evolve.injection import Injection
from core.evolve.loop import Evaluation, search
from core.evolve.mixed import Mixed
from core.evolve.optimizers import OPTIMIZERS
from core.evolve.space import Box
from core.state import StateError
from core.transfer.budget import Budget

OPTIMUM = np.array([0.5, -0.5, 0.25])


def box():
    return Box(-np.ones(3), np.ones(3))


def space_of(name):
    """The box, with two choices beside it for an optimizer that makes choices."""
    return Mixed(box(), (2, 3)) if OPTIMIZERS.entry(name).facts["space"] == "mixed" else box()


def sphere(candidates):
    return [Evaluation(-float(((c[:3] - OPTIMUM) ** 2).sum()), cost=10) for c in candidates]


def facts(result):
    return [(t.candidate.tolist(), t.score, t.spent, t.injected) for t in result.trials]


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_budget_is_counted_exactly_and_never_exceeded(name):
    budget = Budget("task_examples", 455)
    result = search(OPTIMIZERS.get(name)(space_of(name)), sphere, budget, price=10)
    assert budget.spent == sum(t.cost for t in result.trials) == 450
    assert result.trials[-1].spent == 450
    assert result.best.score == max(t.score for t in result.trials)
    assert result.best_within(100).spent <= 100


def test_a_cheaper_answer_than_the_price_leaves_budget_for_more():
    budget = Budget("task_examples", 100)
    result = search(OPTIMIZERS.get("random")(box()), lambda cs: [Evaluation(0.0, cost=4) for _ in cs], budget, price=10)
    assert len(result.trials) == 23  # 92 spent, 8 left do not afford the price of 10
    assert budget.spent == 92


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_killed_and_rerun_continues_identically(name, tmp_path):
    def run(path=None, die_at=None):
        def die(generation, trials):
            if generation == die_at:
                raise Killed

        space = space_of(name)
        best = np.append(OPTIMUM, np.ones(space.dimensions - 3))
        injector = Injection(lambda n, g: [best * 0.9**i for i in range(n)], size=2, every=3)
        return search(
            OPTIMIZERS.get(name)(space, seed=2),
            sphere,
            Budget("task_examples", 900),
            price=10,
            checkpoint=path,
            on_generation=die,
            injector=injector,
            batch=5,
        )

    whole = run()
    path = tmp_path / "search.ckpt"
    for die_at in (3, 7):
        with pytest.raises(Killed):
            run(path, die_at)
    resumed = run(path)
    assert facts(resumed) == facts(whole)
    assert facts(run(path)) == facts(whole)  # a finished search is read, not run


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / "search.ckpt"
    arguments = {"price": 10, "checkpoint": path}
    search(OPTIMIZERS.get("cma")(box()), sphere, Budget("task_examples", 100), key="a", **arguments)
    with pytest.raises(StateError, match="another run"):
        search(OPTIMIZERS.get("cma")(box()), sphere, Budget("task_examples", 100), key="b", **arguments)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StateError, match="damaged"):
        search(OPTIMIZERS.get("cma")(box()), sphere, Budget("task_examples", 100), key="a", **arguments)


def test_nan_is_a_failed_candidate_and_the_run_goes_on():
    def some_fail(candidates):
        return [
            Evaluation(math.nan, 10, note="diverged") if c[0] > 0 else e for c, e in zip(candidates, sphere(candidates))
        ]

    result = search(OPTIMIZERS.get("cma")(box()), some_fail, Budget("task_examples", 600), price=10)
    failed = [t for t in result.trials if t.score == -math.inf]
    assert failed
    assert all(t.note == "diverged" for t in failed)
    assert math.isfinite(result.best.score)


def test_all_failed_gives_no_best():
    result = search(OPTIMIZERS.get("ga")(box()), lambda cs: [math.nan] * len(cs), Budget("evaluations", 30))
    assert result.best is None
    assert len(result.trials) == 30


def test_budget_below_one_candidate_is_refused_before_work():
    with pytest.raises(ValueError, match="one candidate costs up to 10"):
        search(OPTIMIZERS.get("random")(box()), sphere, Budget("task_examples", 9), price=10)


def test_an_evaluator_that_loses_a_candidate_is_named():
    with pytest.raises(ValueError, match="answered 1 of"):
        search(OPTIMIZERS.get("cma")(box()), lambda cs: [0.0], Budget("evaluations", 30))


def test_good_transfer_is_used_and_bad_transfer_is_throttled():
    def run(point):
        injector = Injection(lambda n, g: [point + 1e-3 * i + 1e-5 * g for i in range(n)], size=4, every=1)
        result = search(
            OPTIMIZERS.get("random")(box()), sphere, Budget("task_examples", 2000), price=10, batch=8, injector=injector
        )
        return injector, sum(t.injected for t in result.trials)

    good, used = run(OPTIMUM * 0.99)
    bad, wasted = run(-np.ones(3))
    assert used == 4 * 25
    assert min(good.gains) > 0
    assert wasted == 4 + 2 + 1  # halved each time, given up after three
    assert max(bad.gains) < 0


def test_generations_are_reported_in_order():
    seen = []
    search(
        OPTIMIZERS.get("cma")(box()),
        sphere,
        Budget("task_examples", 200),
        price=10,
        on_generation=lambda g, trials: seen.append((g, len(trials))),
        max_generations=2,
    )
    assert seen == [(1, 7), (2, 7)]
