"""AdaMerging: task arithmetic with coefficients learnt from unlabelled inputs."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.merge.adamerging import read_coefficients
from core.merge.operators import OPERATORS, Block, Group, Parameter


def _read(path: str) -> dict[str, list[float]]:
    return _read_version(path, Path(path).stat().st_mtime_ns if Path(path).exists() else 0)


@lru_cache(maxsize=2)
def _read_version(path: str, _modified: int) -> dict[str, list[float]]:
    return read_coefficients(path)


def _check(shared: Mapping[str, Any], per_model: Sequence[Mapping[str, Any]]) -> None:
    counts = {len(values) for values in _read(shared["coefficients"]).values()}
    if counts != {len(per_model)}:
        raise ValueError(
            f"{shared['coefficients']} has coefficients for {sorted(counts)} experts, not {len(per_model)}"
        )


@OPERATORS.register(
    "adamerging",
    kind="element",
    parameters={
        "coefficients": Parameter(str, description="file of learnt coefficients", file=True),
        "weight": Parameter(float, 1.0, "model", "further factor of the model's delta"),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
    },
    check=_check,
    source="Yang et al., AdaMerging: Adaptive Model Merging for Multi-Task Learning, ICLR 2024, Eq. 4-6",
)
def adamerging(group: Group) -> Callable[[Block], np.ndarray]:
    """Task arithmetic with a coefficient per expert and tensor, learnt from unlabelled inputs beforehand.

    ``base + lambda · sum_i weight_i · c_i[tensor] · delta_i`` with the file of :mod:`core.merge.adamerging`. Tensors
    without coefficients stay as in the base.
    """
    learnt = _read(group.shared["coefficients"]).get(group.name, [0.0] * len(group.sources))
    factors = group.shared["lambda"] * group.values("weight") * np.array(learnt)

    def block(x: Block) -> np.ndarray:
        return x.base + sum(f * d for f, d in zip(factors, x.deltas, strict=True))

    return block
