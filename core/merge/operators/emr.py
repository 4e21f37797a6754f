"""EMR-merging: elect a unified task vector; masks and rescalers give each task its own model back."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from core.merge.operators import OPERATORS, Block, Group, Parameter


@OPERATORS.register(
    "emr",
    kind="element",
    parameters={
        "weight": Parameter(float, 1.0, "model", "factor of the model's delta"),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
    },
    source="Huang et al., EMR-Merging: Tuning-Free High-Performance Model Merging, NeurIPS 2024, Eq. 1-2",
)
def emr(group: Group) -> Callable[[Block], np.ndarray]:
    """Elected sign times the largest agreeing change: the unified model of EMR-merging.

    ``base + lambda · emr_delta(weight_i · delta_i)``; :mod:`core.merge.masks` gives the tasks their own models back.
    """
    weights, scale = group.values("weight"), group.shared["lambda"]

    def block(x: Block) -> np.ndarray:
        deltas = [w * d for w, d in zip(weights, x.deltas, strict=True)]
        return x.base + scale * emr_delta(deltas)

    return block


def emr_delta(deltas: Sequence[NDArray]) -> NDArray:
    """The unified task vector: per element the elected sign times the largest agreeing magnitude.

    Huang et al., EMR-Merging: Tuning-Free High-Performance Model Merging, NeurIPS 2024, Sec. 3.2: elected sign
    ``g = sign(sum_i delta_i)`` (an exact zero counts as minus, as in the authors' code), ``eps = max_i |delta_i|`` over
    the tasks whose sign is ``g`` (zero if none), result ``g · eps``.
    """
    total = sum(deltas)
    sign = np.where(total > 0, 1.0, -1.0)
    agreeing = [np.where(delta * sign > 0, np.abs(delta), 0.0) for delta in deltas]
    return sign * np.max(agreeing, axis=0)


def emr_mask(delta: NDArray, unified: NDArray) -> NDArray[np.bool_]:
    """Where a task's sign agrees with the unified vector (Eq. 3): ``delta · unified > 0``."""
    return np.sign(delta) * np.sign(unified) > 0
