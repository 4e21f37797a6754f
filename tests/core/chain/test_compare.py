import numpy as np
import pytest

from core.chain.compare import compare, total, verdict


def hits(rate, n, seed):
    return (np.random.default_rng(seed).random(n) < rate).astype(np.uint8)


def test_a_clear_difference_is_shown_and_none_is_not():
    good = {"a": hits(0.9, 300, 1), "b": hits(0.8, 300, 2)}
    bad = {"a": hits(0.7, 300, 3), "b": hits(0.7, 300, 4)}
    found = compare(good, bad)
    assert found.mean.low > 0
    assert found.p < 0.001
    assert verdict(found, "this", "that").startswith("this is better than that")
    assert verdict(compare(bad, good), "this", "that").startswith("this is worse than that")
    same = compare(good, good)
    assert (same.mean.mean, same.p) == (0, 1)
    assert verdict(same, "this", "that").startswith("no difference between this and that is shown")


def test_tasks_weigh_the_same_whatever_their_size():
    first = {"small": np.ones(20, np.uint8), "large": np.zeros(400, np.uint8)}
    second = {"small": np.zeros(20, np.uint8), "large": np.zeros(400, np.uint8)}
    found = compare(first, second)
    assert found.mean.mean == pytest.approx(50)
    assert found.tasks["small"][0].mean == 100
    assert found.tasks["large"][1] == 1


def test_only_the_same_items_can_be_compared():
    with pytest.raises(ValueError, match="same tasks"):
        compare({"a": np.ones(3)}, {"b": np.ones(3)})
    with pytest.raises(ValueError, match="task a: 3 items for one model, 4 for the other"):
        compare({"a": np.ones(3)}, {"a": np.ones(4)})


def test_budgets_add_up_by_unit():
    assert total([{"queries": 2, "train_steps": 5}, {"train_steps": 7}]) == {"queries": 2, "train_steps": 12}
