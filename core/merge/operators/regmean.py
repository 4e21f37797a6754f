"""RegMean: the linear layer that best answers, on every task's inputs, like that task's own layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.merge.linalg import Matrix, one_thread, solve_right
from core.merge.operators import OPERATORS, Group, Parameter
from core.merge.statistics import check_coverage, check_statistics, read_statistic


def _check(_shared: Mapping[str, Any], per_model: Sequence[Mapping[str, Any]]) -> None:
    for parameters in per_model:
        check_statistics(parameters["statistics"], "gram")


@OPERATORS.register(
    "regmean",
    kind="whole",
    base="optional",
    matrices_only=True,
    parameters={
        "statistics": Parameter(str, scope="model", description="file of Gram matrices", file=True),
        "weight": Parameter(float, 1.0, "model", "factor of the model's Gram matrix", low=0),
        "off_diagonal": Parameter(float, 0.9, description="factor of off-diagonal Gram entries", low=0, high=1),
    },
    check=_check,
    covers=check_coverage,
    source="Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023, Eq. 2-3",
)
def regmean(group: Group) -> Matrix:
    """Least squares over every task's layer inputs, from saved Gram matrices (RegMean).

    ``W = (sum_i W_i G_i)(sum_i G_i)^-1`` with ``G_i = weight_i · X_i'X_i``, off-diagonal entries scaled by
    ``off_diagonal``, for weights stored ``(outputs, inputs)``. Where no task's inputs reach (the null space of the sum)
    and for tensors without Gram matrix the result is the plain mean. A base model is not used.

    Memory: the models' tensors in float64 and two ``inputs x inputs`` matrices.
    """
    mean = sum(group.tensors) / len(group.tensors)
    grams = [read_statistic(p["statistics"], n) for p, n in zip(group.per_model, group.source_names, strict=True)]
    if mean.ndim != 2 or any(gram is None for gram in grams):
        return mean
    total = np.zeros((mean.shape[1],) * 2)
    pulls = np.zeros_like(mean)
    with one_thread():
        for tensor, gram, parameters in zip(group.tensors, grams, group.per_model, strict=True):
            if gram.shape != total.shape:
                raise ValueError(f"Gram matrix of {group.name!r} is {gram.shape}, expected {total.shape}")
            scaled = parameters["weight"] * np.where(np.eye(len(gram)) == 1, 1.0, group.shared["off_diagonal"]) * gram
            total += scaled
            pulls += (tensor - mean) @ scaled
    return mean + solve_right(pulls, total)
