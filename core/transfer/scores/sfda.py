"""SFDA: regularised Fisher discriminant whose second fit is challenged by confidence-mixed features."""

import numpy as np

from core.transfer.scores import SCORES, require_signal


@SCORES.register("sfda", needs="features", source="Shao et al. 2022, eq. 3 to 7")
def sfda(features: np.ndarray, labels: np.ndarray) -> float:
    """SFDA: mean log-probability of the true class after self-challenging discriminant analysis; at most 0."""
    require_signal(features, labels)
    # Class means and scatters live in the span of the centred features: rotating there changes nothing, costs less.
    x = features - features.mean(axis=0)
    left, singular, _ = np.linalg.svd(x, full_matrices=False)
    kept = singular > singular[0] * max(x.shape) * np.finfo(float).eps
    width, x = features.shape[1], left[:, kept] * singular[kept]
    shrinkage = _shrinkage(x, labels)
    confidence = _softmax(_posterior(x, labels, shrinkage, width))
    own = confidence[np.arange(len(labels)), labels][:, None]
    mixed = own * x + (1 - own) * _mean_of_others(x, labels)
    posterior = _posterior(mixed, labels, shrinkage, width)
    return float(np.log(np.maximum(posterior[np.arange(len(labels)), labels], 1e-300)).mean())


def _within(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pooled within-class covariance."""
    residual = x - _means(x, labels)[labels]
    return residual.T @ residual / len(x)


def _shrinkage(x: np.ndarray, labels: np.ndarray) -> float:
    """exp(-5 s), s the largest eigenvalue of the within-class scatter: strong where classes are tight."""
    from scipy.linalg import eigvalsh

    within = _within(x, labels)
    largest = eigvalsh(within, subset_by_index=[len(within) - 1, len(within) - 1])[0]
    return float(np.clip(np.exp(-5 * largest), 1e-6, 1))


def _posterior(x: np.ndarray, labels: np.ndarray, shrinkage: float, width: int) -> np.ndarray:
    """Class probabilities (n, classes) of the shrunk discriminant fitted to the same x."""
    within = _within(x, labels)
    ridge = max(shrinkage * np.trace(within) / width, 1e-12)
    shrunk = (1 - shrinkage) * within + ridge * np.eye(len(within))
    means, prior = _means(x, labels), np.bincount(labels) / len(labels)
    coefficients = np.linalg.solve(shrunk, means.T)
    return _softmax(x @ coefficients - 0.5 * (means * coefficients.T).sum(axis=1) + np.log(prior))


def _mean_of_others(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each row the mean over all examples of other classes."""
    count = np.bincount(labels).astype(float)
    sums = _means(x, labels) * count[:, None]
    return ((x.sum(axis=0) - sums) / (len(x) - count)[:, None])[labels]


def _means(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    sums = np.zeros((labels.max() + 1, x.shape[1]))
    np.add.at(sums, labels, x)
    return sums / np.bincount(labels)[:, None]


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
