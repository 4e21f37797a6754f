"""Iso-C: isotropic merging in the common subspace."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.merge.linalg import Matrix, product, svd
from core.merge.operators import OPERATORS, Group, Parameter


@OPERATORS.register(
    "iso_c",
    kind="whole",
    matrices_only=True,
    parameters={
        "weight": Parameter(float, 1.0, "model", "factor of the model's component"),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
    },
    source="Marczak et al., No Task Left Behind: Isotropic Model Merging, ICML 2025, Alg. 1",
)
def iso_c(group: Group) -> Matrix:
    """The summed deltas with all singular values set to their mean (Iso-C).

    ``base + lambda · sum_i weight_i · component_i`` with the components of :func:`iso_components`, which sum to
    :func:`iso_c_delta`; weights act on the finished components, so the decomposition does not depend on them.
    """
    deltas = [group.delta(i) for i in range(len(group.sources))]
    weights = group.values("weight")
    if len(set(weights)) == 1:
        merged = weights[0] * iso_c_delta(deltas)
    else:
        merged = sum(w * c for w, c in zip(weights, iso_components(deltas), strict=True))
    return group.base + group.shared["lambda"] * merged


def iso_c_delta(deltas: Sequence[NDArray]) -> Matrix:
    """Merged delta of one tensor: the sum of the deltas with every singular value set to their mean.

    Marczak et al., No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces, ICML 2025,
    Alg. 1: ``U S V = svd(sum_i delta_i)``, result ``mean(S) · U V``. The mean is over the non-zero values (the rank).
    Tensors that are not matrices are averaged. The result is linear in nothing (neither in a delta nor in a common
    scale of some of them), so unlike TSV-M there are no per-task components to recombine.

    Memory: three float64 copies of the matrix besides the inputs.
    """
    shape = np.shape(deltas[0])
    total = sum(np.asarray(delta, dtype=np.float64) for delta in deltas)
    if len(shape) != 2:
        return total / len(deltas)
    u, s, vt = svd(total)
    return s.mean() * product(u, vt) if s.size else total


def iso_components(deltas: Sequence[NDArray]) -> list[Matrix]:
    """Each task's share of the Iso-C delta: float64 arrays of the tensor's shape that sum to it.

    Ours: direction ``k`` of ``U S V = svd(sum_i delta_i)`` is credited to the tasks by their energy in it,
    ``e_ik = |u_k' delta_i|^2 + |delta_i v_k|^2``: component ``i`` is ``mean(S) · U diag(e_i / sum_j e_j) V``. Computed
    once, any weighting of the tasks is a linear combination. Tensors that are not matrices: ``delta / T``.
    """
    deltas = [np.asarray(delta, dtype=np.float64) for delta in deltas]
    if deltas[0].ndim != 2:
        return [delta / len(deltas) for delta in deltas]
    u, s, vt = svd(sum(deltas))
    if not s.size:
        return [np.zeros_like(delta) for delta in deltas]
    energy = np.stack(
        [np.square(product(u.T, d)).sum(axis=1) + np.square(product(d, vt.T)).sum(axis=0) for d in deltas]
    )
    share = s.mean() * energy / energy.sum(axis=0)
    return [product(u * part, vt) for part in share]
