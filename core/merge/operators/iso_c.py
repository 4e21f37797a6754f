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
        "weight": Parameter(float, 1.0, "model", "factor of the model's delta"),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
    },
    source="Marczak et al., No Task Left Behind: Isotropic Model Merging, ICML 2025, Alg. 1",
)
def iso_c(group: Group) -> Matrix:
    """The summed deltas with all singular values set to their mean (Iso-C).

    ``base + lambda · iso_c_delta(weight_i · delta_i)``.
    """
    return group.base + group.shared["lambda"] * iso_c_delta(group.weighted_deltas())


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
