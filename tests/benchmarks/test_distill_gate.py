"""The gate's bounds are judged on drawn dev sets of known answers."""

import numpy as np
import pytest

from benchmarks import distill_gate as bench
from core.data.few_shot import SEEDS
from core.distill.gate import GateConfig
from core.evaluate.rows import Row

LABELS = np.arange(1000) % 2


def answers(accuracy, seed):
    return np.random.default_rng(seed).random(1000) < accuracy


def test_a_better_student_is_rarely_given_up_and_a_worse_one_often():
    alone = answers(0.7, 0)
    better = bench.posteriors(alone | answers(0.4, 1), alone, LABELS, 16, 13)
    worse = bench.posteriors(alone & answers(0.6, 2), alone, LABELS, 16, 13)
    assert better.shape == (bench.DRAWS,)
    assert (better > 0.3).mean() > 0.99
    assert (worse > 0.3).mean() < 0.01


def test_equal_students_are_a_matter_of_luck():
    posterior = bench.posteriors(answers(0.7, 0), answers(0.7, 1), LABELS, 16, 13)
    assert 0.4 < (posterior > 0.5).mean() < 0.6


def rows(by_bound):
    """Every draw keeps by_bound[bound] at a bound of either decision, 0.8 at those not named."""
    return [
        Row(method="gate", metric=f"{decision} {b:g}", value=by_bound.get(b, 0.8), seed=seed, settings=settings)
        for decision in bench.DECISIONS
        for b in bench.BOUNDS
        for seed in SEEDS
        for settings in ({"task": t, "teacher": w, "k": bench.K} for t in bench.TASKS for w in ("mpnet", "smollm2"))
    ]


def test_a_bound_holds_where_no_other_keeps_more():
    config = GateConfig()
    assert all(g.holds for g in bench.goals(rows({config.skip_below: 0.81, config.keep_above: 0.81})))
    better = next(b for b in bench.BOUNDS if b not in (config.skip_below, config.keep_above))
    lost = bench.goals(rows({better: 0.83}))
    assert [g.value for g in lost] == pytest.approx([-3, -3])
    assert not any(g.holds for g in lost)


def test_no_goal_holds_without_all_rows():
    assert not any(g.holds for g in bench.goals([]))
    assert not any(g.holds for g in bench.goals([r for r in rows({}) if r.seed == 13]))


def test_smoke_rows_are_no_draw():
    small = [r.model_copy(update={"settings": r.settings | {"k": 4}, "value": 0.1}) for r in rows({})]
    assert [g.value for g in bench.goals(rows({}) + small)] == [0, 0]
    assert "No draw" in bench.page(small, None)


def test_the_bounds_in_force_are_among_those_tried():
    config = GateConfig()
    assert {config.skip_below, config.keep_above} <= set(bench.BOUNDS)
