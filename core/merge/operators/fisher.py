"""Fisher merging: each weight averaged by how much each model's likelihood depends on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.merge.operators import OPERATORS, Group, Parameter
from core.merge.statistics import check_coverage, check_statistics, read_norm, read_statistic


def _check(_shared: Mapping[str, Any], per_model: Sequence[Mapping[str, Any]]) -> None:
    for parameters in per_model:
        check_statistics(parameters["statistics"], "fisher")


@OPERATORS.register(
    "fisher",
    kind="whole",
    base="optional",
    parameters={
        "statistics": Parameter(str, scope="model", description="file of Fisher diagonals", file=True),
        "weight": Parameter(float, 1.0, "model", "factor of the model's Fisher diagonal", low=0),
        "floor": Parameter(float, 1e-6, description="least Fisher value, so that unused weights are averaged", low=0),
        "normalize_fisher": Parameter(bool, True, description="divide a model's diagonal by its norm over all tensors"),
    },
    check=_check,
    covers=check_coverage,
    source="Matena & Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022, Eq. 5",
)
def fisher(group: Group) -> np.ndarray:
    """Average weighted by saved Fisher diagonals.

    ``w = sum_i weight_i F_i w_i / sum_i weight_i F_i`` with ``F_i`` at least ``floor``; models whose likelihoods are
    sharper by orders of magnitude do not drown the others when each diagonal is divided by its norm first. Tensors
    without Fisher diagonal, and elements where all are zero, get the plain mean. A base model is not used.

    Memory: the models' tensors and diagonals in float64.
    """
    mean = sum(group.tensors) / len(group.tensors)
    diagonals = [read_statistic(p["statistics"], n) for p, n in zip(group.per_model, group.source_names, strict=True)]
    if any(d is None for d in diagonals):
        return mean
    weighted, total = np.zeros_like(mean), np.zeros_like(mean)
    for tensor, diagonal, parameters in zip(group.tensors, diagonals, group.per_model, strict=True):
        if diagonal.shape != mean.shape:
            raise ValueError(f"Fisher diagonal of {group.name!r} is {diagonal.shape}, expected {mean.shape}")
        norm = read_norm(parameters["statistics"]) if group.shared["normalize_fisher"] else 1.0
        diagonal = parameters["weight"] * np.maximum(diagonal / (norm or 1.0), group.shared["floor"])
        weighted += diagonal * (tensor - mean)
        total += diagonal
    return mean + np.divide(weighted, total, out=np.zeros_like(mean), where=total > 0)
