"""Metrics by name, through scikit-learn, scipy, sacrebleu, rouge-score and jiwer.

A metric takes ``(y_true, y_pred, probabilities)`` and returns a float, or None where its value is undefined (AUROC with
one class, a correlation with a constant). ``probabilities`` is (n, classes) with columns in the order of the class
indices 0..classes-1; text metrics take strings.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from core.evaluate import calibration
from core.registry import Registry

Metric = Callable[[np.ndarray, np.ndarray | None, np.ndarray | None], float | None]
METRICS: Registry[Metric] = Registry("metric")


def score(
    metric: str,
    y_true: Sequence[Any] | np.ndarray,
    y_pred: Sequence[Any] | np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
) -> float | None:
    """The value of ``metric``; None where it is undefined.

    Args:
        y_true: n labels, numbers or reference texts.
        y_pred: n predictions of the same kind; taken from ``probabilities`` where absent.
        probabilities: (n, classes), for metrics of kind ``probability`` (``perplexity`` also takes (n,): the
            probability given to each true token).

    Raises:
        ValueError: unknown metric, lengths that differ, nothing to score, values that are not finite.
    """
    entry = METRICS.entry(metric)
    true = _column("y_true", y_true)
    proba = None if probabilities is None else np.asarray(probabilities, dtype=np.float64)
    if entry.facts["kind"] == "probability":
        if proba is None:
            raise ValueError(f"metric {metric!r} needs probabilities")
        pred = None
    elif y_pred is None:
        if proba is None or proba.ndim != 2:
            raise ValueError(f"metric {metric!r} needs predictions, or probabilities (n, classes)")
        pred = proba.argmax(axis=1)
    else:
        pred = _column("y_pred", y_pred)
    for name, other in (("y_pred", pred), ("probabilities", proba)):
        if other is not None and len(other) != len(true):
            raise ValueError(f"{name} has {len(other)} entries, y_true has {len(true)}")
    if entry.facts["kind"] == "regression":
        true, pred = _numbers("y_true", true), _numbers("y_pred", pred)
    value = entry.value(true, pred, proba)
    return None if value is None or not math.isfinite(value) else float(value)


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of ``metric`` is better."""
    return METRICS.entry(metric).facts["higher"]


def per_class(y_true: Sequence[Any], y_pred: Sequence[Any]) -> dict[Any, dict[str, float | None]]:
    """Precision, recall, F1 and support of every class; None where a class has no prediction or no example."""
    from sklearn.metrics import precision_recall_fscore_support

    true, pred = _column("y_true", y_true), _column("y_pred", y_pred)
    labels = np.unique(np.concatenate([true, pred]))
    values = precision_recall_fscore_support(true, pred, labels=labels, zero_division=np.nan)
    names = ("precision", "recall", "f1", "support")
    return {
        label.item(): {n: None if np.isnan(v[i]) else float(v[i]) for n, v in zip(names, values)}
        for i, label in enumerate(labels)
    }


# -- classification: labels ------------------------------------------------------------------------------------------


@METRICS.register("accuracy", kind="label", higher=True)
def accuracy(true, pred, _):
    """Share of examples answered right."""
    return float(np.mean(true == pred))


@METRICS.register("exact_match", kind="text", higher=True)
def exact_match(true, pred, _):
    """Share of answers equal to the reference after stripping, lower-casing and folding spaces."""
    return float(np.mean([_fold(a) == _fold(b) for a, b in zip(true, pred)]))


@METRICS.register("balanced_accuracy", kind="label", higher=True)
def balanced_accuracy(true, pred, _):
    """Mean recall over the classes that occur."""
    return float(np.mean([np.mean(pred[true == c] == c) for c in np.unique(true)]))


@METRICS.register("mcc", kind="label", higher=True)
def mcc(true, pred, _):
    """Matthews correlation; undefined with one true class, 0 for a constant prediction."""
    from sklearn.metrics import matthews_corrcoef

    return None if len(np.unique(true)) < 2 else matthews_corrcoef(true, pred)


def _register_averages() -> None:
    """precision, recall and f1: of the positive class (binary), macro and micro."""

    def make(function: str, average: str) -> Metric:
        def metric(true, pred, _):
            from sklearn import metrics

            options = {"average": average, "zero_division": 0}
            if average == "binary":
                classes = np.unique(np.concatenate([true, pred]))
                if len(classes) > 2:
                    short = function.removesuffix("_score")
                    raise ValueError(f"{short!r} is of two classes, {len(classes)} given; use {short}_macro or _micro")
                options["pos_label"] = classes[-1] if classes.dtype.kind in "US" else 1
            return getattr(metrics, function)(true, pred, **options)

        return metric

    for short in ("precision", "recall", "f1"):
        what = {
            "binary": "of the positive class (label 1)",
            "macro": "mean over classes",
            "micro": "over all decisions",
        }
        for average, words in what.items():
            name = short if average == "binary" else f"{short}_{average}"
            METRICS.register(name, f"{short.capitalize()}, {words}.", kind="label", higher=True)(
                make(f"{short}_score", average)
            )


_register_averages()


# -- classification: probabilities -----------------------------------------------------------------------------------


@METRICS.register("auroc", kind="probability", higher=True)
def auroc(true, _, proba):
    """Area under the ROC curve; one-versus-rest mean over the classes that occur; undefined with one class."""
    from sklearn.metrics import roc_auc_score

    p, y = calibration.check_probabilities(proba, true)
    present = np.unique(y)
    if len(present) < 2:
        return None
    if p.shape[1] == 2:
        return roc_auc_score(y, p[:, 1])
    return float(np.mean([roc_auc_score(y == c, p[:, c]) for c in present]))


@METRICS.register("ece", kind="probability", higher=False)
def ece(true, _, proba):
    """Expected calibration error, 15 bins."""
    return calibration.ece(proba, true)


@METRICS.register("brier", kind="probability", higher=False)
def brier(true, _, proba):
    """Brier score, sum over classes."""
    return calibration.brier(proba, true)


@METRICS.register("log_loss", kind="probability", higher=False)
def log_loss(true, _, proba):
    """Mean negative log-probability (nats) of the true class, probabilities clipped at 1e-12."""
    p, y = calibration.check_probabilities(proba, true)
    return float(-np.log(np.clip(p[np.arange(len(y)), y], 1e-12, 1)).mean())


@METRICS.register("perplexity", kind="probability", higher=False)
def perplexity(true, _, proba):
    """exp of the mean negative log-probability of the true tokens; probabilities (n,) or (n, vocabulary)."""
    if proba.ndim == 2:
        return math.exp(log_loss(true, None, proba))
    if (proba < 0).any() or (proba > 1).any():
        raise ValueError("probabilities of the true tokens must lie in [0, 1]")
    return math.exp(-np.log(np.clip(proba, 1e-12, 1)).mean())


# -- regression ------------------------------------------------------------------------------------------------------


@METRICS.register("mse", kind="regression", higher=False)
def mse(true, pred, _):
    """Mean squared error."""
    return float(np.mean((true - pred) ** 2))


@METRICS.register("mae", kind="regression", higher=False)
def mae(true, pred, _):
    """Mean absolute error."""
    return float(np.mean(np.abs(true - pred)))


@METRICS.register("r2", kind="regression", higher=True)
def r2(true, pred, _):
    """Share of variance explained; undefined for a constant target."""
    spread = np.sum((true - true.mean()) ** 2)
    return None if spread == 0 else float(1 - np.sum((true - pred) ** 2) / spread)


@METRICS.register("pearson", kind="regression", higher=True)
def pearson(true, pred, _):
    """Pearson correlation; undefined with a constant."""
    from scipy.stats import pearsonr

    return None if _constant(true, pred) else float(pearsonr(true, pred).statistic)


@METRICS.register("spearman", kind="regression", higher=True)
def spearman(true, pred, _):
    """Spearman rank correlation; undefined with a constant."""
    from scipy.stats import spearmanr

    return None if _constant(true, pred) else float(spearmanr(true, pred).statistic)


# -- text ------------------------------------------------------------------------------------------------------------


@METRICS.register("bleu", kind="text", higher=True)
def bleu(true, pred, _):
    """Corpus BLEU, 0 to 100 (sacrebleu, 13a tokens)."""
    from sacrebleu import corpus_bleu

    return corpus_bleu(list(map(str, pred)), [list(map(str, true))]).score


@METRICS.register("chrf", kind="text", higher=True)
def chrf(true, pred, _):
    """Corpus chrF, 0 to 100 (sacrebleu)."""
    from sacrebleu import corpus_chrf

    return corpus_chrf(list(map(str, pred)), [list(map(str, true))]).score


def _register_rouge() -> None:
    def make(kind: str) -> Metric:
        def rouge(true, pred, _):
            from rouge_score.rouge_scorer import RougeScorer

            scorer = RougeScorer([kind], use_stemmer=True)
            return float(np.mean([scorer.score(str(t), str(p))[kind].fmeasure for t, p in zip(true, pred)]))

        return rouge

    for name, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        summary = f"Mean {kind.upper()} F-measure (rouge-score, stemmed)."
        METRICS.register(name, summary, kind="text", higher=True)(make(kind))


_register_rouge()


@METRICS.register("wer", kind="text", higher=False)
def wer(true, pred, _):
    """Word error rate over the corpus (jiwer); undefined when no reference has a word."""
    import jiwer

    pairs = [(str(t), str(p)) for t, p in zip(true, pred) if str(t).strip()]
    return jiwer.wer([t for t, _ in pairs], [p for _, p in pairs]) if pairs else None


def _fold(text: Any) -> str:
    return " ".join(str(text).lower().split())


def _constant(*arrays: np.ndarray) -> bool:
    return any(len(a) < 2 or np.ptp(a) == 0 for a in arrays)


def _column(name: str, values: Any) -> np.ndarray:
    x = np.asarray(values)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"{name} must be a non-empty one-dimensional sequence, got shape {x.shape}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError(f"{name} holds values that are not finite")
    return x


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "iufb":
        raise ValueError(f"{name} must be numbers for a regression metric, got {values[0]!r}")
    return values.astype(np.float64)
