"""Iso-CTS: isotropic merging in common and task-specific subspaces."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.merge.linalg import Matrix, polar, product, svd
from core.merge.operators import OPERATORS, Group, Parameter


@OPERATORS.register(
    "iso_cts",
    kind="whole",
    matrices_only=True,
    parameters={
        "weight": Parameter(float, 1.0, "model", "factor of the model's delta"),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
        "common_space": Parameter(float, 0.8, description="share of the directions common to all", low=0, high=1),
    },
    source="Marczak et al., No Task Left Behind: Isotropic Model Merging, ICML 2025, Alg. 2",
)
def iso_cts(group: Group) -> Matrix:
    """Common directions plus each task's own, all singular values set to their mean (Iso-CTS).

    ``base + lambda · iso_cts_delta(weight_i · delta_i)``.
    """
    merged = iso_cts_delta(group.weighted_deltas(), group.shared["common_space"])
    return group.base + group.shared["lambda"] * merged


def iso_cts_delta(deltas: Sequence[NDArray], common_space: float = 0.8) -> Matrix:
    """Merged delta of one tensor: shared directions, completed by directions of single tasks, all of equal length.

    Marczak et al., ICML 2025, Alg. 2. With ``r = min(m, n)`` and ``k`` the common dimensions, ``U_c S_c V_c`` are the
    top ``k`` triples of ``sum_i delta_i``; each task gives the top ``(r - k) / T`` triples of
    ``delta_i - U_c U_c' delta_i``; all are concatenated, both factors replaced by their polar factors, and all
    singular values by their mean. Tensors that are not matrices are averaged.

    Args:
        common_space: share of ``r`` for the common dimensions, in [0, 1]; rounded so that the rest divides by ``T``.
    """
    shape = np.shape(deltas[0])
    deltas = [np.asarray(delta, dtype=np.float64) for delta in deltas]
    if len(shape) != 2:
        return sum(deltas) / len(deltas)
    each = specific_dimensions(min(shape), len(deltas), common_space)
    u, s, vt = svd(sum(deltas), min(shape) - each * len(deltas))
    triples = [(u, s, vt)]
    if each:
        triples += [svd(delta - product(u, u.T, delta), each) for delta in deltas]
    left = polar(np.concatenate([u for u, _, _ in triples], axis=1))
    right = polar(np.concatenate([vt for _, _, vt in triples], axis=0))
    values = np.concatenate([s for _, s, _ in triples])
    return values.mean() * product(left, right) if values.size else np.zeros(shape)


def specific_dimensions(full: int, tasks: int, common_space: float) -> int:
    """Dimensions left to each of ``tasks`` out of ``full`` when a share ``common_space`` is common."""
    return min(round((full - int(full * common_space)) / tasks), full // tasks)
