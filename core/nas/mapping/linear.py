"""The paper's map: least squares over pairs of equal rank, in closed form."""

import numpy as np

from core.nas.mapping import MAPPINGS, Map, check_pairs

RIDGE = 1e-5


@MAPPINGS.register("linear", source="Hou et al. 2025; Feng et al. 2019")
def linear(source: np.ndarray, target: np.ndarray, seed: int = 0) -> Map:
    """W = P (Q + lambda I)^-1 with P = target source', Q = source source' and a bias row (denoising autoencoder)."""
    check_pairs(source, target)
    q = np.concatenate([source, np.ones((len(source), 1))], axis=1).astype(np.float64)
    weights = np.linalg.solve(q.T @ q + RIDGE * np.eye(q.shape[1]), q.T @ target.astype(np.float64))

    def apply(z: np.ndarray) -> np.ndarray:
        return np.asarray(z, dtype=np.float64) @ weights[:-1] + weights[-1]

    return apply
