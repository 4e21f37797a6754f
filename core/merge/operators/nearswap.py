"""NearSwap: move towards the other model where the two are near."""

from collections.abc import Callable

import numpy as np

from core.merge.operators import OPERATORS, Block, Group, Parameter


@OPERATORS.register(
    "nearswap",
    kind="element",
    base="required",
    max_models=1,
    parameters={"t": Parameter(float, description="distance below which the other model's value is taken", low=0)},
    source="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
)
def nearswap(group: Group) -> Callable[[Block], np.ndarray]:
    """Interpolate with weight t / abs(base - model), at most 1: near values are swapped, far ones kept.

    w = clip(t / max(abs(a - b), 1e-6), 0, 1); result = w b + (1 - w) a, with a the base.
    """
    t = group.shared["t"]

    def block(x: Block) -> np.ndarray:
        a, b = x.base, x.tensors[0]
        weight = np.clip(t / np.maximum(np.abs(a - b), 1e-6), 0.0, 1.0)
        return weight * b + (1.0 - weight) * a

    return block
