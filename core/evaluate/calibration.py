"""Calibration: does a stated probability mean what it says?"""

from collections.abc import Sequence

import numpy as np


def reliability(probabilities: np.ndarray, labels: Sequence[int] | np.ndarray, bins: int = 15) -> np.ndarray:
    """Reliability table of the top-class confidence over equally wide bins.

    Args:
        probabilities: (n, classes), rows sum to 1.
        labels: (n,) class indices.
        bins: number of bins over (0, 1].

    Returns:
        (bins, 3): count, mean confidence, accuracy (the last two 0 in empty bins).
    """
    p, y = check_probabilities(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    confidence, right = p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64)
    where = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(where, minlength=bins).astype(np.float64)
    divisor = np.maximum(count, 1)
    sums = [np.bincount(where, weights=v, minlength=bins) / divisor for v in (confidence, right)]
    return np.stack([count, *sums], axis=1)


def ece(probabilities: np.ndarray, labels: Sequence[int] | np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: mean |accuracy - confidence| over bins, weighted by their counts.

    Source: Guo et al. 2017, eq. 3.
    """
    count, confidence, accuracy = reliability(probabilities, labels, bins).T
    return float((count / count.sum()) @ np.abs(accuracy - confidence))


def brier(probabilities: np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """Brier score in [0, 2]: mean over examples of the squared distance to the one-hot label (Brier 1950)."""
    p, y = check_probabilities(probabilities, labels)
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1).mean())


def check_probabilities(probabilities: np.ndarray, labels: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as float64 (n, classes) and labels as int (n,).

    Raises:
        ValueError: other shapes, values outside [0, 1], rows that do not sum to 1, labels that are no class index.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(labels)
    if p.ndim != 2 or not len(p) or y.shape != (len(p),):
        raise ValueError(f"need probabilities (n, classes) and n labels, got shapes {p.shape} and {y.shape}")
    if not np.isfinite(p).all() or p.min() < -1e-6 or np.abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("each row of probabilities must lie in [0, 1] and sum to 1; apply a softmax to logits first")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"labels must be class indices 0..{p.shape[1] - 1} of the {p.shape[1]} columns")
    return p, y.astype(np.int64)
