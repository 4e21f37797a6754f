"""TransRate: mutual information of features and labels by coding rates."""

import numpy as np

from core.transfer.scores import SCORES, require_signal


@SCORES.register("transrate", needs="features", source="Huang et al. 2022, eq. 4 and 5")
def transrate(features: np.ndarray, labels: np.ndarray, distortion: float = 1e-4) -> float:
    """TransRate: R(Z) - sum_c n_c/n R(Z_c), R the coding rate of centred features; at least about 0."""
    require_signal(features, labels)
    z = features - features.mean(axis=0)
    within = sum((labels == c).mean() * _coding_rate(z[labels == c], distortion) for c in range(labels.max() + 1))
    return float(_coding_rate(z, distortion) - within)


def _coding_rate(z: np.ndarray, distortion: float) -> float:
    """1/2 log det(I + ZZ' / (n distortion)), from singular values so that the smaller side decides the cost."""
    power = np.linalg.svd(z, compute_uv=False) ** 2
    return 0.5 * float(np.log1p(power / (len(z) * distortion)).sum())
