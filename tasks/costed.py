"""What a stage cost: noted beside its result while it runs, and read as rows of the effect report."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from core.evaluate.rows import Row
from core.transfer.cost import metered
from core.transfer.effect import ENERGY_SOURCE
from core.transfer.energy import ENERGY
from tasks.stage import Artifact, Output

SUMMED, LARGEST = ("seconds", ENERGY), "peak_memory_mb"


def costed(body: Callable) -> Callable:
    """Note seconds, memory and energy of a stage's body among its facts.

    What the body finds in a cache of its own, and what a killed run had done before, is not in them. Stages that run
    side by side in one process count each other's memory and CPU time.
    """

    @functools.wraps(body)
    def measured(out: Output, config: Any, **inputs: Any) -> None:
        with metered() as cost:
            body(out, config, **inputs)
        out.facts["cost"] = {k: getattr(cost, k) for k in (*SUMMED, LARGEST, ENERGY_SOURCE)}

    return measured


def cost_rows(method: str, parts: Iterable[Artifact]) -> list[Row]:
    """What all stages together took that led to a method; nothing where one of them was not measured.

    Seconds and energy add up, of peak memory (MB on top of what the process had) the largest counts.
    """
    costs = [a.facts().get("cost") for a in parts]
    if not costs or not all(costs):
        return []
    values = {k: sum(c[k] for c in costs) for k in SUMMED} | {LARGEST: max(c[LARGEST] for c in costs)}
    how = {ENERGY: {ENERGY_SOURCE: "; ".join(sorted({c[ENERGY_SOURCE] for c in costs}))}}
    return [Row(method=method, metric=k, value=v, settings=how.get(k, {})) for k, v in values.items()]
