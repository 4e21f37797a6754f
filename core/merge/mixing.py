"""What is done with one block: a weighted sum, or the base plus mixed deltas. Native kernel and numpy twin."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.merge import kernels
from core.merge.kernels import MaskSpec
from core.merge.operators import Block, Group
from core.merge.selection import ALL, BAND, LANES, RANK, Mask, keys, lane_sums, total

CONSENSUS, AGREEING, UNWEIGHTED_SIGN = 1, 2, 4


class Linear:
    """result = sum w_i x_i / divisor, in the order of the models (float64).

    Args:
        group: the tensor; with ``with_base`` the base is one more model, the last.
        weights: one a model.
        divisor: 1 for none.
    """

    def __init__(self, group: Group, weights: Sequence[float], divisor: float = 1.0, with_base: bool = False):
        self.group, self.weights, self.divisor, self.with_base = group, [float(w) for w in weights], divisor, with_base

    def __call__(self, block: Block) -> np.ndarray:
        vectors = [*block.tensors, *([block.base] if self.with_base else [])]
        result = self.weights[0] * vectors[0]
        for w, x in zip(self.weights[1:], vectors[1:]):
            result += w * x
        return result / self.divisor if self.divisor != 1.0 else result

    def native(self, out: kernels.Tensor) -> bool:
        """Run the whole tensor natively into ``out``; False when the sources do not allow it."""
        sources = [*self.group.sources, *([self.group.base_source] if self.with_base else [])]
        masks = [Mask(ALL, weight=w) for w in self.weights]
        return _apply(self.group, sources, len(sources), False, masks, self.divisor, 1.0, 0, out)


class DeltaMix:
    """result = base + lambda * mix of the masked, rescaled, weighted deltas (float64).

    Args:
        masks: one a model, with weight and scale.
        consensus: keep at each element only the weighted deltas whose sign is that of their sum (zero counts as +).
        agreeing: with consensus, divide by the sum of the weights that agree (where it is not zero).
        divisor: without consensus, divide by this.
        lambda_: factor on the mix.
        unweighted_sign: with consensus, elect the sign before the weights and divide by at least 1e-6 (SCE).
    """

    def __init__(
        self,
        group: Group,
        masks: Sequence[Mask],
        *,
        consensus: bool = False,
        agreeing: bool = False,
        divisor: float = 1.0,
        lambda_: float = 1.0,
        unweighted_sign: bool = False,
    ):
        self.group, self.masks, self.divisor, self.lambda_ = group, list(masks), divisor, lambda_
        self.consensus, self.agreeing, self.unweighted_sign = consensus, agreeing, unweighted_sign
        self._ties: list[list[int]] = []

    def __call__(self, block: Block) -> np.ndarray:
        if block.start == 0:
            self._ties = [[m.low_ties, m.high_ties] for m in self.masks]
        deltas = [self._sparse(i, block, d) for i, d in enumerate(block.deltas)]
        mix = self._consensus(deltas) if self.consensus else self._sum(deltas)
        return block.base + (mix * self.lambda_ if self.lambda_ != 1.0 else mix)

    def _sparse(self, i: int, block: Block, d: np.ndarray) -> np.ndarray:
        m = self.masks[i]
        if m.mode != ALL:
            key = keys(d) if m.mode == RANK else d
            d = np.where(m.keep(key, block.start, self._ties[i]), d, 0.0)
        return d * m.scale if m.scale != 1.0 else d

    def _sum(self, deltas: list[np.ndarray]) -> np.ndarray:
        mix = np.zeros_like(deltas[0])
        for m, d in zip(self.masks, deltas):
            mix += d * m.weight
        return mix / self.divisor if self.divisor != 1.0 else mix

    def _consensus(self, deltas: list[np.ndarray]) -> np.ndarray:
        if not self.unweighted_sign:
            deltas = [d * m.weight for d, m in zip(deltas, self.masks)]
        elected = np.zeros_like(deltas[0])
        for d in deltas:
            elected += d
        mix, weight = np.zeros_like(elected), np.zeros_like(elected)
        for d, m in zip(deltas, self.masks):
            agree = np.where(elected >= 0.0, d > 0.0, d < 0.0).astype(np.float64)
            mix += agree * (d * (m.weight if self.unweighted_sign else 1.0))
            weight += agree * m.weight
        if self.unweighted_sign:
            return mix / np.maximum(weight, 1e-6)
        return mix / np.where(weight == 0.0, 1.0, weight) if self.agreeing else mix

    def native(self, out: kernels.Tensor) -> bool:
        """Run the whole tensor natively into ``out``; False when the sources do not allow it."""
        flags = CONSENSUS * self.consensus + AGREEING * self.agreeing + UNWEIGHTED_SIGN * self.unweighted_sign
        sources = [*self.group.sources, self.group.base_source]
        n = len(self.group.sources)
        return _apply(self.group, sources, n, True, self.masks, self.divisor, self.lambda_, flags, out)


def gram(group: Group, deltas: bool, with_base: bool = False) -> np.ndarray:
    """Inner products ``[m, m]`` of the models' flat tensors, or of their deltas, in float64.

    Args:
        deltas: subtract the base first.
        with_base: without ``deltas``, take the base as one more vector, the last.
    """
    sources = [*group.sources, *([group.base_source] if deltas or with_base else [])]
    m = len(sources) - deltas
    native = kernels.library()
    array = kernels.inputs(sources) if native is not None else None
    if array is not None:
        out = np.zeros((m, m))
        kernels.check(native.merge_gram(m, int(deltas), array, group.size, out.ctypes.data), group, True)
        return out
    lanes = np.zeros((m, m, LANES))
    for block in group.blocks():
        vectors = block.deltas if deltas else [*block.tensors, *([block.base] if with_base else [])]
        for i in range(m):
            for j in range(i + 1):
                lanes[i, j] = lane_sums(lanes[i, j], vectors[i] * vectors[j])
    lower = np.array([[total(lanes[max(i, j), min(i, j)]) for j in range(m)] for i in range(m)])
    return lower.reshape(m, m)


def _apply(group: Group, sources: Sequence[Any], m: int, with_base: bool, masks, divisor, lambda_, flags, out) -> bool:
    native = kernels.library()
    array = kernels.inputs(sources) if native is not None else None
    if array is None:
        return False
    specs = (MaskSpec * len(masks))(*[mask.spec() for mask in masks])
    drawn = [i for i, mask in enumerate(masks) if mask.draw is not None]
    band = max(1, BAND // group.columns) * group.columns if drawn else max(group.size, 1)
    for start in range(0, group.size, band):
        stop = min(start + band, group.size)
        bits = [masks[i].draw(start, stop) for i in drawn]
        for i, b in zip(drawn, bits):
            specs[i].bits = b.ctypes.data
        code = native.merge_apply(
            m, int(with_base), array, specs, divisor, lambda_, flags, ctypes.byref(out), start, stop
        )
        kernels.check(code, group, with_base or m > len(group.sources))
    return True
