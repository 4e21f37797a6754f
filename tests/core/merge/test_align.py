"""Aligned heads: a turned embedding is read again, noise is not, and searches score with them."""

import numpy as np
import pytest

from core.merge.align import STRENGTHS, Head, align
from tests import tiny_experts as te


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return te.world(tmp_path_factory.mktemp("world"))


def embeddings(n=300, width=12, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    head = Head(rng.normal(size=(classes, width)), rng.normal(size=classes))
    x = rng.normal(size=(n, width)) * np.linspace(2, 0.3, width)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return x, head, turn, rng


def agreement(logits, wanted):
    return float((logits.argmax(1) == wanted.argmax(1)).mean())


def test_a_turned_and_moved_embedding_answers_as_before():
    x, head, turn, rng = embeddings()
    wanted, moved = head.logits(x), x @ turn + rng.normal(size=12)
    assert agreement(head.logits(moved), wanted) < 0.7
    found = align(moved[:200], wanted[:200], head)
    assert found.strength == STRENGTHS[0]
    assert agreement(found.head.logits(moved[200:]), wanted[200:]) > 0.95
    assert agreement(found.held_out, wanted[:200]) > 0.95


def test_an_embedding_that_did_not_move_keeps_its_head_but_for_the_level():
    x, head, _, _ = embeddings()
    found = align(x, head.logits(x) + 5.0, head)
    np.testing.assert_allclose(found.head.weight, head.weight, atol=1e-4)
    np.testing.assert_allclose(found.head.bias, head.bias + 5.0, atol=1e-3)


def test_few_texts_that_say_little_are_believed_little():
    x, head, _, rng = embeddings()
    noisy = x + rng.normal(size=x.shape) * 0.3
    few, many = (align(noisy[:n], head.logits(x)[:n], head) for n in (16, 300))
    assert few.strength > many.strength
    assert np.linalg.norm(few.head.weight - head.weight) < np.linalg.norm(head.weight) / 2


def test_a_text_is_judged_by_a_fit_without_it():
    x, head, _, rng = embeddings(n=60, width=12)
    wanted = head.logits(rng.normal(size=(60, 12)))  # nothing to learn
    found = align(x, wanted, head)
    own = ((found.head.logits(x) - wanted) ** 2).mean()
    assert ((found.held_out - wanted) ** 2).mean() > own


def test_too_few_texts_and_broken_embeddings():
    x, head, _, _ = embeddings(n=10)
    with pytest.raises(ValueError, match="3 texts to align a head on; at least 4"):
        align(x[:3], head.logits(x[:3]), head)
    x[2, 1] = np.nan
    broken = align(x, np.zeros((10, 3)), head)
    assert np.isnan(broken.held_out).all()
    assert broken.head is head


def test_searches_score_with_the_heads_of_their_start(world):
    made = te.problem(world)
    fitness, own, start = made.fitness, made.fitness.own, np.full(made.space.shape, 0.4)
    some = {t: np.arange(20) for t in fitness.tasks}
    plain = fitness.forward(start, some)
    answer = fitness.set_control(start)
    heads = fitness.heads(start)
    for task, objective in fitness.objectives.items():
        np.testing.assert_array_equal(objective.weight, heads[task].weight)
        assert not np.array_equal(objective.weight, own[task].weight)
    again = fitness.evaluate(start, 0)
    np.testing.assert_allclose(again.score, [fitness.control[t].mean() for t in fitness.tasks], atol=1e-6)
    for task, scored in fitness.forward(start, some).items():
        assert not np.allclose(scored.soft, plain[task].soft)
    assert answer.cost == fitness.validation_size
    assert fitness.full(start).mean == answer.mean  # the mini-batches' heads do not leak into whole scores


def test_alignment_raises_the_score_of_a_plain_average(world):
    aligned, plain = te.problem(world), te.problem(world)
    plain.fitness.targets = {}
    recipe = np.full(aligned.space.shape, 1 / 3)
    assert aligned.fitness.full(recipe).mean > plain.fitness.full(recipe).mean


def test_a_broken_candidate_fails_and_the_next_does_not(world):
    made = te.problem(world)
    assert np.isnan(made.fitness.full(np.full(made.space.shape, np.nan)).mean)
    assert np.isfinite(made.fitness.full(np.full(made.space.shape, 0.3)).mean)
