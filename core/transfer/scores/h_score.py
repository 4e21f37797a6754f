"""H-score: how much of the feature variance lies between class means, after whitening."""

import numpy as np

from core.transfer.scores import SCORES, require_signal


@SCORES.register("h-score", needs="features", source="Bao et al. 2019, eq. 1")
def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """H-score: tr(pinv(cov f) cov(E[f|y])); between 0 and classes - 1, at its maximum for any n <= D (it overfits)."""
    require_signal(features, labels)
    x = features - features.mean(axis=0)
    between = _class_means(x, labels)
    _, singular, right = np.linalg.svd(x, full_matrices=False)
    kept = singular > singular[0] * max(x.shape) * np.finfo(float).eps
    whitened = between @ right[kept].T / singular[kept] * np.sqrt(len(x))
    return float((whitened**2).sum() / len(x))


@SCORES.register("h-score-regularised", needs="features", source="Ibrahim et al. 2021, eq. 6")
def h_score_regularised(features: np.ndarray, labels: np.ndarray) -> float:
    """Regularised H-score: (1 - a) tr(cov_a^-1 cov(E[f|y])) with the Ledoit-Wolf shrinkage a; stable for n < D."""
    require_signal(features, labels)
    from sklearn.covariance import ledoit_wolf_shrinkage

    x = features - features.mean(axis=0)
    shrinkage = ledoit_wolf_shrinkage(x, assume_centered=True)
    between = _class_means(x, labels)
    ridge = shrinkage * (x**2).sum() / x.size
    _, singular, right = np.linalg.svd(x, full_matrices=False)
    kept = singular > singular[0] * max(x.shape) * np.finfo(float).eps
    variance = (1 - shrinkage) * singular[kept] ** 2 / len(x) + ridge
    # Class means lie in the row space of x, so only its directions count; what is none of them is rounding.
    return float((1 - shrinkage) * ((between @ right[kept].T) ** 2 / variance).sum() / len(x))


def _class_means(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each row replaced by the mean of its class."""
    means = np.zeros((labels.max() + 1, x.shape[1]))
    np.add.at(means, labels, x)
    return (means / np.bincount(labels)[:, None])[labels]
