"""GBC: how far classes, seen as Gaussians, overlap."""

import numpy as np

from core.transfer.scores import SCORES, require_signal


@SCORES.register("gbc", needs="features", source="Pandy et al. 2022, eq. 3 and 4")
def gbc(features: np.ndarray, labels: np.ndarray, components: int = 64) -> float:
    """GBC: minus the sum over class pairs of the Bhattacharyya coefficient, spherical Gaussians on 64 components.

    Between -classes (classes - 1) for full overlap and 0 for none.
    """
    require_signal(features, labels)
    x = features - features.mean(axis=0)
    left, singular, _ = np.linalg.svd(x, full_matrices=False)
    x = left[:, :components] * singular[:components]
    groups = [x[labels == c] for c in range(labels.max() + 1)]
    means = np.stack([g.mean(axis=0) for g in groups])
    # A class of one example has no spread of its own: the floor keeps its coefficient finite.
    floor = 1e-6 * x.var(axis=0).mean()
    variance = np.array([max(g.var(axis=0).mean(), floor) for g in groups])
    average = (variance[:, None] + variance[None]) / 2
    distance = ((means[:, None] - means[None]) ** 2).sum(axis=-1) / (8 * average)
    distance += x.shape[1] / 2 * np.log(average / np.sqrt(variance[:, None] * variance[None]))
    overlap = np.exp(-distance)
    return -float(overlap.sum() - np.trace(overlap))
