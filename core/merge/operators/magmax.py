"""MagMax: of each weight, the change of largest magnitude."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from core.merge.operators import OPERATORS, Block, Group, Parameter


@OPERATORS.register(
    "magmax",
    kind="element",
    parameters={
        "weight": Parameter(float, 1.0, "model", "factor of the model's delta"),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
    },
    source="Marczak et al., MagMax: Leveraging Model Merging for Seamless Continual Learning, ECCV 2024, Eq. 3",
)
def magmax(group: Group) -> Callable[[Block], np.ndarray]:
    """Of each weight the change of largest magnitude; a tie goes to the first model (MagMax).

    ``base + lambda · magmax_delta(weight_i · delta_i)``.
    """
    weights, scale = group.values("weight"), group.shared["lambda"]

    def block(x: Block) -> np.ndarray:
        deltas = [w * d for w, d in zip(weights, x.deltas, strict=True)]
        return x.base + scale * magmax_delta(deltas)

    return block


def magmax_delta(deltas: Sequence[NDArray]) -> NDArray:
    """Element-wise the delta of largest magnitude; a tie goes to the first model.

    Marczak et al., MagMax: Leveraging Model Merging for Seamless Continual Learning, ECCV 2024, Eq. 3. (The authors'
    code gives ties to the last model.)
    """
    best = np.array(deltas[0], copy=True)
    for delta in deltas[1:]:
        np.copyto(best, delta, where=np.abs(delta) > np.abs(best))
    return best
