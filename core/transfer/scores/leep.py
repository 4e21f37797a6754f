"""LEEP and its feature-only form N-LEEP: log-likelihood of the target labels given the source's soft assignment."""

import numpy as np

from core.transfer.scores import SCORES, Undefined, require_signal


@SCORES.register("leep", needs="probabilities", source="Nguyen et al. 2020, eq. 2")
def leep(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """LEEP: mean log sum_z P(y|z) theta(x)_z; at most 0."""
    classes = labels.max() + 1
    if classes < 2:
        raise Undefined("undefined: the target has one class")
    joint = np.zeros((classes, probabilities.shape[1]))
    np.add.at(joint, labels, probabilities / len(labels))
    conditional = joint / np.maximum(joint.sum(axis=0, keepdims=True), np.finfo(float).tiny)
    expected = (probabilities * conditional[labels]).sum(axis=1)
    return float(np.log(np.maximum(expected, np.finfo(float).tiny)).mean())


@SCORES.register("n-leep", needs="features", source="Li et al. 2021, section 3")
def n_leep(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """N-LEEP: LEEP on the posteriors of a Gaussian mixture over principal components holding 80 % of the variance.

    The mixture has five components a class as published, fewer where that would leave under four examples each.
    """
    require_signal(features, labels)
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    reduced = PCA(n_components=0.8, svd_solver="full").fit_transform(features)
    components = int(np.clip(len(labels) // 4, 1, 5 * (labels.max() + 1)))
    mixture = GaussianMixture(components, covariance_type="diag", reg_covar=1e-4 * reduced.var(), random_state=seed)
    return leep(mixture.fit(reduced).predict_proba(reduced), labels)
