"""KnOTS: align adapters' deltas in one shared basis by SVD, then merge there."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from core.merge.linalg import Matrix, eigh, one_thread, product
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
    are averaged and the result is mapped back by ``U``. Tensors that are not matrices get the weighted mean.

    The basis comes from the Gram matrix of the shorter side (numerically zero directions are dropped), so the cost is
    one eigendecomposition of ``min(m, T·n)`` and memory two float64 copies of the deltas.
    """
    deltas = [np.asarray(delta, dtype=np.float64) for delta in deltas]
    if deltas[0].ndim != 2:
        return sum(w * d for w, d in zip(weights, deltas, strict=True)) / len(deltas)
    coordinates, back = _shared_basis(deltas)
    kept = [w * keep_largest(c, d) for w, c, d in zip(weights, coordinates, densities, strict=True)]
    positive = sum(kept) >= 0
    total, count = np.zeros_like(kept[0]), np.zeros_like(kept[0])
    for part in kept:
        agrees = np.where(positive, part > 0, part < 0)
        total += np.where(agrees, part, 0.0)
        count += agrees
    return back(total / np.maximum(count, 1))


def _shared_basis(deltas: Sequence[Matrix]) -> tuple[list[Matrix], Callable[[Matrix], Matrix]]:
    """Coordinates ``S V_i (r, n)`` of every delta, and the map ``U ·`` from coordinates to deltas."""
    (m, n), tasks = deltas[0].shape, len(deltas)
    with one_thread():
        if m <= n * tasks:
            u, _ = _eigenvectors(sum(d @ d.T for d in deltas), n * tasks)
            return [u.T @ d for d in deltas], lambda merged: product(u, merged)
        v, s = _eigenvectors(np.block([[a.T @ b for b in deltas] for a in deltas]), m)
        parts = np.split(v, tasks)  # U = sum_i delta_i V_i' / S

    def back(merged: Matrix) -> Matrix:
        return sum(product(d, part @ (merged / s[:, None])) for d, part in zip(deltas, parts, strict=True))

    return [s[:, None] * part.T for part in parts], back


def _eigenvectors(gram: Matrix, longer: int) -> tuple[Matrix, Matrix]:
    """Eigenvectors (columns, largest first) and roots of the numerically non-zero eigenvalues."""
    values, vectors = eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > max(values[0], 0.0) * longer * np.finfo(np.float64).eps
    return vectors[:, keep], np.sqrt(values[keep])


def keep_largest(values: NDArray, density: float) -> NDArray:
    """Zero all but the ``int(density · size)`` largest magnitudes (at least one); ties keep the lowest index."""
    keep = max(1, int(density * values.size))
    if keep >= values.size:
        return values
    order = np.argsort(-np.abs(values), axis=None, kind="stable")[:keep]
    out = np.zeros_like(values)
    out.flat[order] = values.flat[order]
    return out
