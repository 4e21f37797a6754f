"""TSV-M: task singular vectors, compressed, concatenated and whitened."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.merge.linalg import Matrix, eigh, polar, product, svd
from core.merge.operators import OPERATORS, Group, Parameter

# A Gram matrix squares the condition: below this ratio of eigenvalues its square root loses more than 1e-10, and the
# singular value decomposition itself (five times slower) is taken.
WELL_CONDITIONED = 1e-6


@OPERATORS.register(
    "tsv_m",
    kind="whole",
    matrices_only=True,
    parameters={
        "weight": Parameter(float, 1.0, "model", "factor of the model's component"),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
    },
    source="Gargiulo et al., Task Singular Vectors: Reducing Task Interference in Model Merging, CVPR 2025, Alg. 1",
)
def tsv_m(group: Group) -> Matrix:
    """Top 1/T singular triples of every task, concatenated and whitened (TSV-M).

    ``base + lambda · sum_i weight_i · component_i`` with the components of :func:`tsv_components`; weights act on the
    finished components, so the decomposition does not depend on them.
    """
    components = tsv_components([group.delta(i) for i in range(len(group.sources))])
    merged = sum(p["weight"] * c for p, c in zip(group.per_model, components, strict=True))
    return group.base + group.shared["lambda"] * merged


def tsv_components(deltas: Sequence[NDArray]) -> list[Matrix]:
    """Each task's share of the TSV-M delta: float64 arrays of the tensor's shape that sum to it.

    Gargiulo et al., Task Singular Vectors, CVPR 2025, Alg. 1. With ``U_i S_i V_i`` the top ``k = min(m, n) // T``
    singular triples of task ``i`` (at least one), ``U = [U_1 .. U_T]``, ``V = [V_1; ..; V_T]`` and their polar factors
    ``U⊥``, ``V⊥`` (the orthogonal matrices nearest to them), the merged delta is ``U⊥ diag(S_1 .. S_T) V⊥``. It is a
    sum over tasks of ``U⊥_i S_i V⊥_i``: compute the components once and any weighting of the tasks is a linear
    combination of them. Tensors that are not matrices are averaged (component: ``delta / T``).

    Memory: float64 copies of one task's matrix and its factors, plus two ``(m + n) x k·T`` factor pairs and the
    components. Costs ``T + 2`` eigendecompositions, or singular value decompositions where those are not accurate.
    """
    tasks = len(deltas)
    shape = np.shape(deltas[0])
    if len(shape) != 2:
        return [np.asarray(delta, dtype=np.float64) / tasks for delta in deltas]
    triples = [largest_triples(np.asarray(delta, dtype=np.float64), max(1, min(shape) // tasks)) for delta in deltas]
    left = orthonormal(np.concatenate([u for u, _, _ in triples], axis=1))
    right = orthonormal(np.concatenate([vt for _, _, vt in triples], axis=0).T).T
    ends = np.cumsum([s.size for _, s, _ in triples])
    return [
        product(left[:, end - s.size : end] * s, right[end - s.size : end])
        for end, (_, s, _) in zip(ends, triples, strict=True)
    ]


def largest_triples(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix, Matrix]:
    """The ``rank`` largest singular triples as :func:`svd` gives them, through the smaller Gram matrix."""
    if matrix.shape[0] < matrix.shape[1]:
        u, s, vt = largest_triples(matrix.T, rank)
        return vt.T, s, u.T
    values, vectors = eigh(product(matrix.T, matrix))
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    if values[-1] <= WELL_CONDITIONED * values[0]:
        return svd(matrix, rank)
    s = np.sqrt(values)
    return product(matrix, vectors) / s, s, vectors.T


def orthonormal(columns: Matrix) -> Matrix:
    """The nearest matrix with orthonormal columns to a tall one: ``C (C' C)^(-1/2)``, as :func:`polar` gives it."""
    values, vectors = eigh(product(columns.T, columns))
    if not values.size or values[0] <= WELL_CONDITIONED * values[-1]:
        return polar(columns)
    return product(columns, vectors / np.sqrt(values), vectors.T)
