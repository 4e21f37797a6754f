"""Measured similarity: equal sets are near, different ones far."""

import numpy as np
import pytest

from core.transfer.similarity import agreement, label_overlap, mmd, prototype_accuracy, proxy_a_distance


def test_equal_distributions_are_near_and_shifted_ones_far():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(200, 8)), rng.normal(size=(150, 8)), rng.normal(size=(200, 8)) + 2
    assert abs(mmd(a, b)) < 0.01
    assert mmd(a, c) > 0.2
    assert proxy_a_distance(a, b) < 0.4
    assert proxy_a_distance(a, c) > 1.8
    assert mmd(a, c) == mmd(a, c)
    assert mmd(np.ones((3, 2)), np.ones((3, 2))) == 0


def test_label_overlap_folds_names():
    assert label_overlap(["Positive", "negative"], ["negative", "positive"]) == 1
    assert label_overlap(["a", "b"], ["b", "c"]) == pytest.approx(1 / 3)
    assert label_overlap([], []) == 0


def test_agreement_is_0_for_noise_and_1_for_clusters():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    assert agreement(rng.normal(size=(300, 10)), y) < 0.12
    assert agreement(8 * np.eye(3)[y] + rng.normal(size=(300, 3)), y) > 0.97
    assert prototype_accuracy(8 * np.eye(3)[y] + rng.normal(size=(300, 3)), y) > 0.97


def test_leave_one_out_is_by_its_definition():
    """Each example against prototypes that do not contain it."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 5)), np.arange(20) % 2
    unit = x - x.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    right = 0
    for i in range(20):
        rest = np.arange(20) != i
        sums = [unit[rest & (y == c)].sum(axis=0) for c in (0, 1)]
        right += np.argmax([unit[i] @ s / np.linalg.norm(s) for s in sums]) == y[i]
    assert prototype_accuracy(x, y) == right / 20


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="same width"):
        mmd(np.zeros((3, 2)), np.zeros((3, 4)))
