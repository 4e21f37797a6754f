"""Accuracy and cost together: the guided search asks where the Pareto front should gain most hypervolume.

The cost of a cell (its size, or its latency) is known without a query, so only the accuracy is uncertain, and the
expected hypervolume improvement is an integral over the front's steps: for a cell of cost c, the expected improvement
over the best answer among cells that cost at most s, summed over all costs s >= c.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm

from core.nas.arena import Arena
from core.nas.experts import SIZES, size_expert, source_expert
from core.nas.predictors.gaussian import Hypothesis
from core.nas.searchers import SEARCHERS, Knowledge
from core.nas.searchers.guided import GuidedSearch, size_hypotheses
from core.nas.searchers.transfer import NONE, SLOPE
from core.nas.spaces import Genotype

LATENCY = "latency"
COSTS = (*SIZES, LATENCY)


def front(values: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Places of the Pareto front (larger value, smaller cost), by rising cost; of equals the first.

    Raises:
        ValueError: lengths differ.
    """
    if len(values) != len(costs):
        raise ValueError(f"{len(values)} values have {len(costs)} costs")
    found: list[int] = []
    for i in sorted(range(len(values)), key=lambda i: (costs[i], -values[i], i)):
        if np.isfinite(values[i]) and (not found or values[i] > values[found[-1]]):
            found.append(i)
    return found


@SEARCHERS.register("pareto", "Accuracy and cost: expected hypervolume improvement", uses="source")
class ParetoSearch(GuidedSearch):
    """Expected hypervolume improvement over (accuracy, cheapness), with sources as experts.

    Args:
        cost: ``params``, ``flops`` or ``latency``; measured by its normal score in the population, so the axis has no
            unit.
        latency: seconds of cells, ``[cells]`` (:func:`core.nas.latency.latency_of`), where the cost is the latency.
    """

    def __init__(
        self,
        arena: Arena,
        seed: int,
        knowledge: Knowledge,
        cost: str = "params",
        initial: int = 10,
        latency: Callable[[Sequence[Genotype]], np.ndarray] | None = None,
    ):
        if cost not in COSTS:
            raise ValueError(f"cost is one of {', '.join(COSTS)}, got {cost!r}")
        if cost == LATENCY and latency is None:
            raise ValueError(
                "cost latency needs the latencies of cells; give latency=core.nas.latency.latency_of(oracle)"
            )
        sources = [source_expert(s, arena) for s in knowledge.sources]
        share = (1 - NONE) / max(1, len(sources))
        hypotheses = [Hypothesis(NONE), *(Hypothesis(share, {e.name: SLOPE}) for e in sources)]
        hypotheses += size_hypotheses(knowledge, 0.4)
        experts = [*sources, *(size_expert(name, arena) for name in SIZES)]
        unaided = [e.name for e in sources]
        super().__init__(arena, seed, experts, hypotheses, initial=initial, noisy=knowledge.noisy, unaided=unaided)
        self.cost, self.latency = cost, latency
        self.seconds = np.zeros(0)  # of the field's first cells

    def _cost(self) -> np.ndarray:
        """Normal scores of the field's costs in the population, ``[field]``."""
        if self.cost != LATENCY:
            return self.field.scores[self.cost]
        new = self.field.cells[len(self.seconds) :]
        if new:
            self.seconds = np.concatenate([self.seconds, self.latency(new)])
        population = np.sort(self.seconds[: len(self.arena.cells)])
        below = np.searchsorted(population, self.seconds, "left") + np.searchsorted(population, self.seconds, "right")
        return norm.ppf((below / 2 + 0.5) / (len(population) + 1))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"seconds": self.seconds.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.seconds = np.array(state.get("seconds", []))  # timed again, a cell is a little faster or slower

    def _acquisition(self, rows: np.ndarray, without: Collection[str] = ()) -> np.ndarray:
        asked, _, _ = self._condition()
        mean_asked, _ = self.process.predict(self.field.opinions(asked), self.field.square(asked, asked), without)
        mean, deviation = self.process.predict(self.field.opinions(rows), self.field.square(asked, rows), without)
        size = self._cost()
        steps = front(mean_asked, size[asked])
        edges = np.concatenate([size[asked][steps], [max(size.max(), size[asked].max()) + 0.5]])
        floor = mean_asked.min() - 1.0
        best = mean_asked[steps]
        gain = _improvement(mean, deviation, floor) * np.maximum(edges[0] - size[rows], 0)
        for left, right, level in zip(edges[:-1], edges[1:], best, strict=True):
            gain += _improvement(mean, deviation, level) * np.maximum(right - np.maximum(left, size[rows]), 0)
        return gain


def _improvement(mean: np.ndarray, deviation: np.ndarray, level: float) -> np.ndarray:
    z = (mean - level) / deviation
    return deviation * (z * norm.cdf(z) + norm.pdf(z))
