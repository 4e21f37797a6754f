"""Measured similarity of two data sets as a source sees them, and of the source's view with the target's labels."""

from collections.abc import Sequence

import numpy as np

from core.data.examples import fold

LARGEST = 500  # examples a side; kernels and folds stay cheap


def mmd(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Squared maximum mean discrepancy of embeddings (n, D) and (m, D); unbiased, so near 0 for equal distributions.

    Gaussian kernel with the median distance as bandwidth (Gretton et al. 2012, eq. 3).
    """
    x, y = _drawn(a, b, seed)
    both = np.concatenate([x, y])
    squared = np.maximum((both**2).sum(1)[:, None] + (both**2).sum(1)[None] - 2 * both @ both.T, 0)
    scale = np.median(squared[np.triu_indices(len(both), 1)])
    if scale == 0:
        return 0.0
    k, n, m = np.exp(-squared / scale), len(x), len(y)
    within_x = (k[:n, :n].sum() - np.trace(k[:n, :n])) / (n * (n - 1))
    within_y = (k[n:, n:].sum() - np.trace(k[n:, n:])) / (m * (m - 1))
    return float(within_x + within_y - 2 * k[:n, n:].mean())


def proxy_a_distance(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """2 (1 - 2 error) of a linear classifier that tells the two sets apart, in [0, 2] (Ben-David et al. 2007)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = _drawn(a, b, seed)
    both, side = np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)])
    folds = StratifiedKFold(min(5, len(x), len(y)), shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    told = cross_val_predict(model, both, side, cv=folds)
    error = np.mean([np.mean(told[side == s] != s) for s in (0, 1)])
    return float(np.clip(2 * (1 - 2 * error), 0, 2))


def label_overlap(a: Sequence[str], b: Sequence[str]) -> float:
    """Jaccard overlap of two sets of label names, folded; 1 for the same names, 0 for none in common."""
    x, y = {fold(n) for n in a}, {fold(n) for n in b}
    return len(x & y) / len(x | y) if x | y else 0.0


def agreement(features: np.ndarray, labels: np.ndarray) -> float:
    """How far the source's view already separates the target's classes, in [0, 1].

    Leave-one-out accuracy of the nearest class prototype (cosine), rescaled so that 0 is the largest class's share.
    """
    chance = np.bincount(labels).max() / len(labels)
    right = prototype_accuracy(features, labels)
    return float(max(0.0, (right - chance) / (1 - chance))) if chance < 1 else 0.0


def prototype_accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Leave-one-out accuracy of the nearest class prototype on centred unit features."""
    x = features - features.mean(axis=0)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    classes, y = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), x.shape[1]))
    np.add.at(sums, y, x)
    norms = np.linalg.norm(sums, axis=1)
    near = x @ sums.T / np.maximum(norms, 1e-12)
    own = sums[y] - x
    near[np.arange(len(y)), y] = (x * own).sum(1) / np.maximum(np.linalg.norm(own, axis=1), 1e-12)
    return float((near.argmax(axis=1) == y).mean())


def _drawn(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"need two embeddings (n, D) of the same width with two rows each, got {a.shape} and {b.shape}"
        )
    rng = np.random.default_rng(seed)
    return tuple(
        x[rng.choice(len(x), LARGEST, replace=False)].astype(np.float64) if len(x) > LARGEST else x.astype(np.float64)
        for x in (a, b)
    )
