"""Arcee Fusion: take over only the updates of outlying importance."""

from collections.abc import Callable

import numpy as np

from core.merge.operators import OPERATORS, Block, Group
from core.merge.selection import histogram_cuts, keys


@OPERATORS.register(
    "arcee_fusion",
    kind="selection",
    base="required",
    max_models=1,
    rows=True,
    source="https://arcee.ai, mergekit's arcee_fusion",
)
def arcee_fusion(group: Group) -> Callable[[Block], np.ndarray]:
    """base + delta where the importance is at least median + 1.5 (q3 - q1), importance = abs(delta) KL(row).

    KL(row) is the divergence between the softmax of the model's row and of the base's (each + 1e-8). Quartiles are
    exact (the sorted importance at index int(q (n-1))), not sampled.
    """
    n = group.size
    if n == 0:
        return lambda block: block.base
    ranks = [n - int(q * (n - 1)) for q in (0.25, 0.5, 0.75)]

    def block_keys(x: Block) -> list[np.ndarray]:
        return [keys(_importance(x))] * 3

    cuts = histogram_cuts(group, block_keys, 3, [lambda nonzero, r=r: r for r in ranks], rows=True)
    q1, median, q3 = (float(np.uint32(key).view(np.float32)) for key, _ in cuts)
    threshold = median + 1.5 * (q3 - q1)

    def block(x: Block) -> np.ndarray:
        return x.base + np.where(_importance(x) >= threshold, x.deltas[0], 0.0)

    return block


def _importance(x: Block) -> np.ndarray:
    """abs(delta) times the row's divergence; a vector is one row."""
    columns = x.group.columns
    p, q = (_softmax(v.reshape(-1, columns)) + 1e-8 for v in (x.tensors[0], x.base))
    divergence = (p * np.log(p / q)).sum(axis=1, keepdims=True)
    return (np.abs(x.deltas[0]).reshape(-1, columns) * divergence).reshape(-1)


def _softmax(rows: np.ndarray) -> np.ndarray:
    e = np.exp(rows - rows.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
