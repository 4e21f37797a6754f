"""Consensus merging: keep only what at least k tasks use, by their TALL masks."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from core.merge.operators import OPERATORS, Block, Group, Parameter


@OPERATORS.register(
    "consensus",
    kind="element",
    parameters={
        "weight": Parameter(float, 1.0, "model", "factor of the model's delta"),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
        "k": Parameter(int, 2, description="how many tasks must use a weight for it to stay", low=0),
        "tall_lambda": Parameter(float, 0.4, description="strictness of the TALL masks", low=0),
    },
    source="Wang et al., Localizing Task Information for Improved Model Merging and Compression, ICML 2024, Eq. 4, 6",
)
def consensus(group: Group) -> Callable[[Block], np.ndarray]:
    """The summed deltas where at least k tasks use them by their TALL masks (Consensus merging).

    ``base + lambda · consensus_delta(weight_i · delta_i)``.
    """
    weights, scale = group.values("weight"), group.shared["lambda"]

    def block(x: Block) -> np.ndarray:
        deltas = [w * d for w, d in zip(weights, x.deltas, strict=True)]
        return x.base + scale * consensus_delta(deltas, group.shared["k"], group.shared["tall_lambda"])

    return block


def tall_mask(delta: NDArray, merged: NDArray, tall_lambda: float = 0.4) -> NDArray[np.bool_]:
    """Where a task uses the merged vector (Eq. 4): ``|delta| > lambda · |merged - delta|``."""
    return np.abs(delta) > tall_lambda * np.abs(merged - delta)


def consensus_delta(deltas: Sequence[NDArray], k: int = 2, tall_lambda: float = 0.4) -> NDArray:
    """The summed task vector where at least ``k`` tasks use it, zero elsewhere.

    Wang et al., Localizing Task Information for Improved Model Merging and Compression, ICML 2024, Eq. 4 and 6:
    ``m_i = [|delta_i| > lambda |delta_sum - delta_i|]``, ``delta = [sum_i m_i >= k] · delta_sum``. k = 2 removes
    weights that no task (catastrophic) or a single task (selfish) uses; k = 0 is task arithmetic.
    """
    total = sum(deltas)
    used = sum(tall_mask(delta, total, tall_lambda).astype(np.int64) for delta in deltas)
    return np.where(used >= k, total, 0.0)
