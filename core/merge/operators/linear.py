"""Weighted average and passthrough."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.merge.mixing import Linear
from core.merge.operators import OPERATORS, Group, Parameter


def _sum_not_zero(shared: Mapping[str, Any], each: Sequence[Mapping[str, Any]]) -> None:
    weights = [p["weight"] for p in each]
    if shared["normalize"] and abs(sum(weights)) < 1e-8:
        raise ValueError(
            f"the weights {weights} sum to zero and normalize is true; change them or set normalize: false"
        )


@OPERATORS.register(
    "linear",
    kind="element",
    base="ignored",
    parameters={
        "weight": Parameter(float, scope="input", description="weight of the model"),
        "normalize": Parameter(bool, True, description="divide by the sum of the weights"),
    },
    check=_sum_not_zero,
    source="Wortsman et al. 2022, Model soups, https://arxiv.org/abs/2203.05482",
)
def linear(group: Group) -> Linear:
    """Weighted average: sum w_i x_i / sum w_i, or without normalize sum w_i x_i (Wortsman et al. 2022)."""
    weights = [float(w) for w in group.values("weight")]
    return Linear(group, weights, sum(weights) if group.shared["normalize"] else 1.0)


@OPERATORS.register(
    "passthrough",
    kind="element",
    base="ignored",
    max_models=1,
    parameters={"scale": Parameter(float, None, scope="input", description="factor on the tensor; none copies it")},
    source="layer stacking ('frankenmerge'), no formula",
)
def passthrough(group: Group) -> Linear:
    """The one model's tensor, times ``scale`` when given."""
    scale = group.per_model[0]["scale"]
    return Linear(group, [1.0 if scale is None else scale])
