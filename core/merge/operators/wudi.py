"""WUDI-merging: the merged vector whose interference with every task's own directions is least."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.merge.linalg import Matrix, one_thread, solve_right, to_device, to_host
from core.merge.operators import OPERATORS, Group, Parameter

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@OPERATORS.register(
    "wudi",
    kind="whole",
    matrices_only=True,
    parameters={
        "weight": Parameter(float, 1.0, "model", "factor of the model's delta"),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
        "iterations": Parameter(int, 300, description="Adam steps; 0 solves the quadratic exactly", low=0),
        "learning_rate": Parameter(float, 1e-5, description="of Adam", low=0),
    },
    source="Cheng et al., Whoever Started the Interference Should End It, ICML 2025, Alg. 1",
)
def wudi(group: Group) -> Matrix:
    """The delta that interferes least with every task's own directions (WUDI).

    ``base + lambda · wudi_delta(weight_i · delta_i)``; with ``iterations = 0`` the weights act on the finished
    components of :func:`wudi_components` (the same where no weight is zero: the objective is free of scale).
    """
    if group.shared["iterations"] == 0:
        components = wudi_components([group.delta(i) for i in range(len(group.sources))])
        merged = sum(p["weight"] * c for p, c in zip(group.per_model, components, strict=True))
    else:
        merged = wudi_delta(group.weighted_deltas(), group.shared["iterations"], group.shared["learning_rate"])
    return group.base + group.shared["lambda"] * merged


def wudi_delta(deltas: Sequence[NDArray], iterations: int = 300, learning_rate: float = 1e-5) -> Matrix:
    """Merged delta of one tensor.

    Cheng et al., Whoever Started the Interference Should End It, ICML 2025, Eq. 9 and Alg. 1: minimise
    ``L(d) = sum_i ||(d - delta_i) delta_i'||_F^2 / ||delta_i||_F^2`` with Adam from ``d = sum_i delta_i``. L is a
    quadratic: with ``G = sum_i w_i delta_i' delta_i`` and ``B = sum_i w_i delta_i delta_i' delta_i``,
    ``w_i = 1 / ||delta_i||_F^2``, its gradient is ``2 (d G - B)``, so a step costs one product whatever the number of
    tasks, and ``iterations = 0`` asks for the exact minimiser of least norm, ``B G⁺``. Tensors that are not matrices
    are averaged.

    Memory: six float64 copies of the matrix and one ``n x n`` Gram matrix.
    """
    deltas = [np.asarray(delta, dtype=np.float64) for delta in deltas]
    if deltas[0].ndim != 2:
        return sum(deltas) / len(deltas)
    with one_thread():
        gram = np.zeros((deltas[0].shape[1],) * 2)
        target = np.zeros_like(deltas[0])
        for delta in deltas:
            norm = np.square(delta).sum()
            if norm > 0:
                own = delta.T @ delta / norm
                gram += own
                target += delta @ own
        if iterations == 0:
            return solve_right(target, gram)
        return _adam(sum(deltas), gram, target, iterations, learning_rate)


def wudi_components(deltas: Sequence[NDArray]) -> list[Matrix]:
    """Each task's share of the exact WUDI delta (``iterations = 0``): float64 arrays that sum to it.

    ``w_i delta_i delta_i' delta_i G⁺``: with the weighting ``G`` fixed once, any weighting of the tasks is a linear
    combination, as for TSV-M's components. Tensors that are not matrices: ``delta / T``.
    """
    deltas = [np.asarray(delta, dtype=np.float64) for delta in deltas]
    if deltas[0].ndim != 2:
        return [delta / len(deltas) for delta in deltas]
    with one_thread():
        norms = [np.square(delta).sum() for delta in deltas]
        own = [d.T @ d / norm if norm > 0 else d.T @ d for d, norm in zip(deltas, norms, strict=True)]
        inverse = solve_right(np.eye(deltas[0].shape[1]), sum(own))
        return [d @ (gram @ inverse) for d, gram in zip(deltas, own, strict=True)]


def _adam(start: Matrix, gram: Matrix, target: Matrix, iterations: int, learning_rate: float) -> Matrix:
    """Kingma & Ba 2015, Alg. 1, on the gradient ``2 (d · gram - target)``; on the device if all three fit there."""
    placed = [to_device(start), to_device(gram), to_device(target)]
    if all(not isinstance(matrix, np.ndarray) for matrix in placed):
        start, gram, target = placed
    merged = start + 0
    first, second = merged * 0, merged * 0
    for step in range(1, iterations + 1):
        gradient = 2 * (merged @ gram - target)
        first += (1 - BETA1) * (gradient - first)
        second += (1 - BETA2) * (gradient * gradient - second)
        scale = (second / (1 - BETA2**step)) ** 0.5 + EPSILON
        merged -= learning_rate / (1 - BETA1**step) * first / scale
    return to_host(merged)
