"""Every metric: a known value, its undefined case, and errors before anything is computed."""

import math

import numpy as np
import pytest

from core.evaluate import calibration
from core.evaluate.metrics import METRICS, higher_is_better, per_class, score

TRUE = [0, 0, 0, 1, 1, 2]
PRED = [0, 0, 1, 1, 2, 2]
PROBA = np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.3, 0.5, 0.2], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0, 0, 1.0]])
BY_HAND = {
    "accuracy": 4 / 6,
    "balanced_accuracy": (2 / 3 + 1 / 2 + 1) / 3,
    "precision_macro": (1 + 1 / 2 + 1 / 2) / 3,
    "recall_macro": (2 / 3 + 1 / 2 + 1) / 3,
    "f1_macro": (0.8 + 0.5 + 2 / 3) / 3,
    "precision_micro": 4 / 6,
    "recall_micro": 4 / 6,
    "f1_micro": 4 / 6,
    "mcc": (4 * 6 - (3 * 2 + 2 * 2 + 1 * 2)) / math.sqrt((36 - 12) * (36 - 14)),
    "log_loss": -np.mean(np.log([0.8, 0.6, 0.3, 0.8, 0.3, 1.0])),
    "perplexity": np.exp(-np.mean(np.log([0.8, 0.6, 0.3, 0.8, 0.3, 1.0]))),
    "auroc": (1 + 7 / 8 + 1) / 3,
    "brier": (0.06 + 0.24 + 0.78 + 0.06 + 0.78 + 0) / 6,
}


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_classification_values_by_hand(name):
    assert score(name, TRUE, PRED, PROBA) == pytest.approx(BY_HAND[name])


def test_binary_scores_are_of_the_positive_class():
    true, pred = [1, 1, 0, 0, 0], [1, 0, 1, 1, 0]
    assert score("precision", true, pred) == pytest.approx(1 / 3)
    assert score("recall", true, pred) == pytest.approx(1 / 2)
    assert score("f1", true, pred) == pytest.approx(0.4)
    assert score("f1", ["no", "yes"], ["no", "yes"]) == 1.0
    with pytest.raises(ValueError, match="f1_macro"):
        score("f1", TRUE, PRED)


def test_regression_values_by_hand():
    true, pred = [1.0, 2, 3, 4], [1.0, 2, 3, 6]
    assert score("mse", true, pred) == 1.0
    assert score("mae", true, pred) == 0.5
    assert score("r2", true, pred) == pytest.approx(1 - 4 / 5)
    assert score("spearman", true, pred) == pytest.approx(1.0)
    assert score("pearson", true, pred) == pytest.approx(np.corrcoef(true, pred)[0, 1])


def test_text_values():
    reference, answer = ["the cat sat on the mat", "hello world again now"], ["the cat sat on the mat", "Hello world"]
    assert score("exact_match", reference, [" The cat sat on  the mat", "x"]) == 0.5
    assert score("bleu", reference, reference) == pytest.approx(100)
    assert score("chrf", reference, reference) == pytest.approx(100)
    assert score("rouge_l", reference, answer) == pytest.approx((1 + 2 / 3) / 2)
    assert score("rouge_2", reference, reference) == 1.0
    assert score("wer", ["a b c d"], ["a x c"]) == pytest.approx(0.5)
    assert score("wer", [""], ["a"]) is None


def test_undefined_is_none_not_nan():
    one = np.array([[0.7, 0.3], [0.6, 0.4]])
    assert score("auroc", [0, 0], None, one) is None
    assert score("mcc", [1, 1], [0, 1]) is None
    assert score("mcc", [0, 1], [1, 1]) == 0.0
    assert score("r2", [2.0, 2.0], [1.0, 3.0]) is None
    for name in ("pearson", "spearman"):
        assert score(name, [1.0, 2.0], [3.0, 3.0]) is None
    got = per_class([0, 0, 1], [0, 0, 0])
    assert got[1] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1.0}


def test_ece_of_a_calibrated_and_an_overconfident_model():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20000)
    proba = np.stack([confidence, 1 - confidence], axis=1)
    right = (rng.uniform(size=20000) >= confidence).astype(int)
    assert calibration.ece(proba, right) < 0.02
    sure = np.tile([0.99, 0.01], (1000, 1))
    assert calibration.ece(sure, np.repeat([0, 1], 500)) == pytest.approx(0.49)
    table = calibration.reliability(proba, right, bins=10)
    assert table[:, 0].sum() == 20000
    assert table[:5, 0].sum() == 0


def test_predictions_come_from_probabilities_when_absent():
    assert score("accuracy", TRUE, None, PROBA) == score("accuracy", TRUE, PROBA.argmax(1))


@pytest.mark.parametrize("name", METRICS.names())
def test_contract(name):
    """Every metric: float in range, inputs unchanged, permutation does not matter, lengths are checked."""
    kind = METRICS.entry(name).facts["kind"]
    rng = np.random.default_rng(3)
    if kind == "text":
        true, pred, proba = np.array(["a b c d e", "f g h i j"] * 5), np.array(["a b c x e", "f g h i j"] * 5), None
    elif kind == "regression":
        true, pred, proba = rng.normal(size=10), rng.normal(size=10), None
    else:
        true, pred = np.array([0, 1] * 5), rng.integers(2, size=10)
        proba = rng.dirichlet([1, 1], size=10)
    before = [None if a is None else a.copy() for a in (true, pred, proba)]
    value = score(name, true, pred, proba)
    assert isinstance(value, float)
    assert isinstance(higher_is_better(name), bool)
    order = rng.permutation(10)
    again = score(name, true[order], pred[order], None if proba is None else proba[order])
    assert again == pytest.approx(value)
    for a, b in zip(before, (true, pred, proba)):
        assert a is None or (a == b).all()
    with pytest.raises(ValueError, match="entries"):
        score(name, true, pred[:5], None if proba is None else proba[:5])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: score("acuracy", [0], [0]), "did you mean 'accuracy'"),
        (lambda: score("accuracy", [], []), "non-empty"),
        (lambda: score("mse", ["x"], ["y"]), "numbers"),
        (lambda: score("mse", [1.0], [float("nan")]), "finite"),
        (lambda: score("ece", [0], [0]), "needs probabilities"),
        (lambda: score("ece", [0], None, np.array([[2.0, 3.0]])), "softmax"),
        (lambda: score("brier", [2], None, np.array([[0.5, 0.5]])), "class indices"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
