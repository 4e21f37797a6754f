"""Model Stock: how far to go from the base towards the average of the experts."""

from collections.abc import Callable
from itertools import combinations

import numpy as np

from core.merge.mixing import Linear, gram
from core.merge.operators import OPERATORS, Block, Group, Parameter


@OPERATORS.register(
    "model_stock",
    kind="element",
    base="required",
    min_models=2,
    rows=True,
    parameters={"filter_wise": Parameter(bool, False, description="one ratio for every row instead of every tensor")},
    source="Jang et al. 2024, Model Stock, https://arxiv.org/abs/2403.19522",
)
def model_stock(group: Group) -> Linear | Callable[[Block], np.ndarray]:
    """t mean(x_i) + (1-t) base with t = K cos / ((K-1) cos + 1), cos the mean pairwise cosine of the deltas (eq. 7)."""
    k = len(group.sources)
    if not group.shared["filter_wise"] or len(group.shape) < 2:
        t = float(_ratio(gram(group, deltas=True)[:, :, None], k)[0])
        return Linear(group, [t / k] * k + [1.0 - t], with_base=True)

    def block(x: Block) -> np.ndarray:
        deltas = np.stack([d.reshape(-1, group.columns) for d in x.deltas])
        t = _ratio(np.einsum("irc,jrc->ijr", deltas, deltas), k)[:, None]
        average = sum(x.tensors) / k
        return (t * average.reshape(-1, group.columns) + (1.0 - t) * x.base.reshape(-1, group.columns)).reshape(-1)

    return block


def _ratio(products: np.ndarray, k: int) -> np.ndarray:
    """t for every vector from the deltas' inner products ``[k, k, vectors]``; 0 where it would be singular."""
    norms = np.sqrt(np.einsum("iir->ir", products))
    cosines = [
        np.clip(products[i, j] / np.maximum(norms[i] * norms[j], 1e-6), -1.0, 1.0)
        for i, j in combinations(range(k), 2)
    ]  # fmt: skip
    cosine = np.mean(cosines, axis=0)
    denominator = 1.0 + (k - 1) * cosine
    singular = np.abs(denominator) < 1e-6
    return np.where(singular, 0.0, k * cosine / np.where(singular, 1.0, denominator))
