"""KnOTS: align adapters' deltas in one shared basis by SVD, then merge there."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.merge.linalg import Matrix, product, svd
from core.merge.operators import OPERATORS, Group, Parameter


@OPERATORS.register(
    "knots",
    kind="whole",
    matrices_only=True,
    parameters={
        "weight": Parameter(float, 1.0, "model", "factor of the model's delta"),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
        "density": Parameter(float, 1.0, "model", "share of coordinates kept, largest first", low=0, high=1),
    },
    source="Stoica et al., Model Merging with SVD to Tie the Knots, ICLR 2025, Eq. 3-5",
)
def knots(group: Group) -> Matrix:
    """TIES in the basis that one SVD gives to all deltas together, for adapters (KnOTS-TIES).

    ``base + lambda · knots_delta(delta_i, weight_i, density_i)``.
    """
    deltas = [group.delta(i) for i in range(len(group.sources))]
    merged = knots_delta(deltas, group.values("weight"), group.values("density"))
    return group.base + group.shared["lambda"] * merged


def knots_delta(deltas: Sequence[NDArray], weights: Sequence[float], densities: Sequence[float]) -> Matrix:
    """Merged delta of one tensor: TIES on each task's coordinates in the basis shared by all.

    Stoica et al., Model Merging with SVD to Tie the Knots, ICLR 2025, Eq. 3-5 (KnOTS-TIES):
    ``U S [V_1 .. V_T] = svd([delta_1 .. delta_T])`` along the inputs, coordinates ``S V_i``. Of each, the ``density``
    share of largest magnitude is kept; the sign of the weighted sum is elected (zero counts as +), the agreeing entries
    are averaged and the result is mapped back by ``U``. Meant for low-rank deltas: one SVD of ``(m, T·n)``.
    Tensors that are not matrices get the weighted mean.
    """
    deltas = [np.asarray(delta, dtype=np.float64) for delta in deltas]
    if deltas[0].ndim != 2:
        return sum(w * d for w, d in zip(weights, deltas, strict=True)) / len(deltas)
    u, s, vt = svd(np.concatenate(deltas, axis=1))
    coordinates = np.split(s[:, None] * vt, len(deltas), axis=1)
    kept = np.stack(
        [w * keep_largest(c, density) for w, c, density in zip(weights, coordinates, densities, strict=True)]
    )
    sign = np.where(kept.sum(axis=0) >= 0, 1.0, -1.0)
    agreeing = np.where(kept * sign > 0, kept, 0.0)
    count = np.maximum(np.count_nonzero(agreeing, axis=0), 1)
    return product(u, agreeing.sum(axis=0) / count)


def keep_largest(values: NDArray, density: float) -> NDArray:
    """Zero all but the ``int(density · size)`` largest magnitudes (at least one); ties keep the lowest index."""
    keep = max(1, int(density * values.size))
    if keep >= values.size:
        return values
    order = np.argsort(-np.abs(values), axis=None, kind="stable")[:keep]
    out = np.zeros_like(values)
    out.flat[order] = values.flat[order]
    return out
