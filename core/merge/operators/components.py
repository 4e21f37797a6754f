"""Every model by its own operator: weights of components, of which each model takes the kind that suits it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.merge.operators import OPERATORS, Group, Parameter


def _check(shared: Mapping[str, Any], each: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError for a kind of component that there is not, or of which nothing is kept."""
    from core.merge.components import component_named

    for p in each:
        component_named(p["basis"] if p["density"] > 0 else f"{p['basis']}@0")


@OPERATORS.register(
    "components",
    kind="whole",
    parameters={
        "weight": Parameter(float, 1.0, "model", "factor of the model's component"),
        "basis": Parameter(str, "raw", "model", "kind of the model's component: raw, tsv_m, iso_c, wudi or ties"),
        "density": Parameter(float, 1.0, "model", "share of the component that is kept", low=0, high=1),
        "lambda": Parameter(float, 1.0, description="factor of the merged delta"),
    },
    check=_check,
    source="This project, from the operators named by the bases (core/merge/components.py)",
)
def components(group: Group) -> NDArray:
    """Base plus weighted components, each model's of its own kind and density.

    ``base + lambda · sum_i weight_i · component_i`` with :func:`core.merge.components.components`: every kind is
    computed from all models' deltas, so a model's component does not depend on what the others take.

    An unknown basis and a density of 0 (give weight 0 instead) are refused with the recipe.
    """
    from core.merge.components import components as of_kind

    kinds = [(p["basis"], p["density"]) for p in group.per_model]
    deltas = [group.delta(i) for i in range(len(group.sources))]
    made = {kind: of_kind(deltas, *kind) for kind in dict.fromkeys(kinds)}
    weights = group.values("weight")
    merged = sum((w * made[kind][i] for i, (w, kind) in enumerate(zip(weights, kinds, strict=True))), np.float64(0))
    return group.base + group.shared["lambda"] * merged
