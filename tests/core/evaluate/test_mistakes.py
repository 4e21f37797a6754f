"""Quoted mistakes: only wrong ones, the most confident first, texts and pairs as they are."""

import numpy as np
import pytest

from core.data.examples import Examples
from core.evaluate.mistakes import LONGEST, most_confident

LABELS = ("no", "yes")


def test_only_mistakes_the_most_confident_first():
    examples = Examples(["a", "b", "c", "d"], None, [0, 0, 1, 1])
    probabilities = np.array([[0.4, 0.6], [0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
    found = most_confident(examples, probabilities, LABELS)
    assert [(m.text, m.label, m.predicted, m.probability) for m in found] == [
        ("c", "yes", "no", 0.8),
        ("a", "no", "yes", 0.6),
        ("d", "yes", "no", 0.6),
    ]
    assert [m.text for m in most_confident(examples, probabilities, LABELS, 1)] == ["c"]


def test_pairs_are_quoted_together_and_long_texts_cut():
    examples = Examples(["x" * (LONGEST + 1)], ["second"], [0])
    (mistake,) = most_confident(examples, np.array([[0.2, 0.8]]), LABELS)
    assert mistake.text == f"{'x' * LONGEST} ... | second"


def test_what_does_not_fit_is_refused():
    examples = Examples(["a"], None, [0])
    with pytest.raises(ValueError, match=r"shape \(1, 3\) for 1 examples of 2 classes"):
        most_confident(examples, np.ones((1, 3)), LABELS)
    images = Examples([], None, [0], np.zeros((1, 1, 2, 2), np.float32))
    with pytest.raises(ValueError, match="only examples with texts"):
        most_confident(images, np.array([[0.2, 0.8]]), LABELS)
