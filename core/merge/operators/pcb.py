"""PCB-merging: parameter competition balancing, within a task and between tasks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.merge.operators import OPERATORS, Group, Parameter

CLAMPED_TAIL = 1e-4


@OPERATORS.register(
    "pcb",
    kind="whole",
    parameters={
        "weight": Parameter(float, 1.0, "model", "factor of the model's delta"),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
        "density": Parameter(float, 0.1, description="share of scores that stay above zero", low=0, high=1),
    },
    source="Du et al., Parameter Competition Balancing for Model Merging, NeurIPS 2024, Eq. 2-6",
)
def pcb(group: Group) -> NDArray[np.float64]:
    """Entries compete within their task (magnitude) and between tasks (agreement); winners are averaged (PCB).

    ``base + lambda · pcb_delta(weight_i · delta_i)``.
    """
    return group.base + group.shared["lambda"] * pcb_delta(group.weighted_deltas(), group.shared["density"])


def pcb_delta(deltas: Sequence[NDArray], density: float = 0.1) -> NDArray[np.float64]:
    """Merged delta of one tensor (float64, the tensor's shape).

    Du et al., Parameter Competition Balancing for Model Merging, NeurIPS 2024, Eq. 2-6 in the form of the authors'
    code, per tensor (theirs flattens the model). With ``T`` tasks and ``norm`` scaling a task's values to [0, 1]:

        c_i = |delta_i| clamped at its 1e-4 and 1 - 1e-4 quantiles
        b_i = exp(T · norm(c_i)^2) · tanh(delta_i · sum_j delta_j)      within a task, between tasks
        s_i = norm(b_i where it is among the top ``density`` share, else the threshold)
        delta = sum_i s_i · sign(delta_i) c_i / sum_i s_i

    Where every score of a task is equal there is no competition and its ``s_i`` is 1; where all ``s_i`` are zero so is
    the result. Memory: four float64 copies of the tensor per task.
    """
    tasks = len(deltas)
    total = sum(np.asarray(delta, dtype=np.float64) for delta in deltas)
    weighted, weights = np.zeros_like(total), np.zeros_like(total)
    for delta in deltas:
        delta = np.asarray(delta, dtype=np.float64)
        magnitude = np.abs(delta)
        magnitude = np.clip(magnitude, *_quantiles(magnitude, CLAMPED_TAIL, CLAMPED_TAIL))
        score = np.exp(tasks * _to_unit(magnitude, constant=0.0) ** 2) * np.tanh(delta * total)
        scale = _to_unit(np.clip(score, *_quantiles(score, 1 - density, 0.0)), constant=1.0)
        weighted += scale * np.sign(delta) * magnitude
        weights += scale
    return np.divide(weighted, weights, out=np.zeros_like(total), where=weights > 0)


def _quantiles(values: NDArray, low: float, high: float) -> tuple[float, float]:
    """Elements of the sorted values at the shares ``low`` from below and ``high`` from above."""
    count = values.size
    first = min(int(count * low), count - 1)
    last = max(int(count * (1 - high) - 1), first)
    found = np.partition(values, (first, last), axis=None)
    return found[first], found[last]


def _to_unit(values: NDArray, constant: float) -> NDArray:
    low, high = values.min(), values.max()
    return np.full_like(values, constant) if low == high else (values - low) / (high - low)
