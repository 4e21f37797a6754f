"""Transferability scores: how well will a source suit a target, before any fine-tuning. Arrays in, float out.

A score is a function ``(x, labels) -> float`` where larger promises more. ``x`` is the source's *features* of the
target examples (n, D) or the source classifier's *probabilities* (n, Z), as its fact ``needs`` says. Scores of several
sources on the same examples may be compared; their absolute values mean little.
"""

from collections.abc import Callable, Sequence

import numpy as np

from core.registry import Registry

Score = Callable[[np.ndarray, np.ndarray], float]
SCORES: Registry[Score] = Registry("transferability score", "core.transfer.scores")


class Undefined(ValueError):
    """The score has no value for these inputs (constant features, one class); the message says why."""


def transferability(
    name: str, x: np.ndarray, labels: Sequence[int] | np.ndarray, kind: str = "classification"
) -> float | None:
    """The score called ``name``; None where it is undefined, never NaN.

    Args:
        x: (n, D) features, or (n, Z) source probabilities, of the target's training examples.
        labels: (n,) target labels of any hashable kind; for regression numbers.
        kind: of the target. For regression a score has a value where its fact ``numbers`` names how (a class a number
            would make noise look as good as a feature that equals them), for generation none has.

    Raises:
        ValueError: unknown score, shapes that do not fit, values that are not finite, rows that are no distribution.
    """
    entry = SCORES.entry(name)
    score = entry.value if kind == "classification" else entry.facts.get("numbers") if kind == "regression" else None
    if score is None:
        return None
    x, y = _checked(x, labels, entry.facts["needs"])
    try:
        value = float(score(x, y if kind == "classification" else np.asarray(labels, dtype=np.float64)))
    except Undefined:
        return None
    return value if np.isfinite(value) else None


def undefined_because(x: np.ndarray, labels: Sequence[int] | np.ndarray) -> str | None:
    """Why no score can be computed from ``x``: a sentence, or None when scores are defined."""
    x, y = np.asarray(x), np.asarray(labels)
    if len(np.unique(y)) < 2:
        return "the target has one class"
    if len(x) and not np.ptp(x, axis=0).any():
        return "the features are constant"
    return None


def _checked(x: np.ndarray, labels: Sequence[int] | np.ndarray, needs: str) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x, dtype=np.float64)
    y = np.asarray(labels)
    if x.ndim != 2 or y.shape != (len(x),) or not x.size:
        raise ValueError(f"a score needs x (n, D) and n labels, got shapes {x.shape} and {y.shape}")
    if not np.isfinite(x).all():
        raise ValueError("x holds values that are not finite")
    if needs == "probabilities" and (x.min() < -1e-6 or np.abs(x.sum(axis=1) - 1).max() > 1e-3):
        raise ValueError("this score needs the source classifier's probabilities: rows in [0, 1] that sum to 1")
    return x, np.unique(y, return_inverse=True)[1]


def require_signal(x: np.ndarray, y: np.ndarray) -> None:
    """Raise :class:`Undefined` where no score from features has a value."""
    reason = undefined_because(x, y)
    if reason:
        raise Undefined(f"undefined: {reason}")
