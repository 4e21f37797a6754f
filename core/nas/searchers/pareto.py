"""Accuracy and size together: the guided search asks where the Pareto front should gain most hypervolume.

The size of a cell is known without a query, so only the accuracy is uncertain, and the expected hypervolume improvement
is an integral over the front's steps: for a cell of size c, the expected improvement over the best answer among cells
at most as large as s, summed over all sizes s >= c.
"""

from collections.abc import Collection, Sequence

import numpy as np
from scipy.stats import norm

from core.nas.arena import Arena
from core.nas.experts import SIZES, size_expert, source_expert
from core.nas.predictors.gaussian import Hypothesis
from core.nas.searchers import SEARCHERS, Knowledge
from core.nas.searchers.guided import GuidedSearch, size_hypotheses
from core.nas.searchers.transfer import NONE, SLOPE


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


@SEARCHERS.register("pareto", "Accuracy and size: expected hypervolume improvement", uses="source")
class ParetoSearch(GuidedSearch):
    """Expected hypervolume improvement over (accuracy, smallness), with sources as experts.

    Args:
        cost: ``params`` or ``flops``; measured by its normal score in the population, so the axis has no unit.
    """

    def __init__(self, arena: Arena, seed: int, knowledge: Knowledge, cost: str = "params", initial: int = 10):
        if cost not in SIZES:
            raise ValueError(f"cost is one of {', '.join(SIZES)}, got {cost!r}")
        sources = [source_expert(s, arena) for s in knowledge.sources]
        share = (1 - NONE) / max(1, len(sources))
        hypotheses = [Hypothesis(NONE), *(Hypothesis(share, {e.name: SLOPE}) for e in sources)]
        hypotheses += size_hypotheses(knowledge, 0.4)
        experts = [*sources, *(size_expert(name, arena) for name in SIZES)]
        unaided = [e.name for e in sources]
        super().__init__(arena, seed, experts, hypotheses, initial=initial, noisy=knowledge.noisy, unaided=unaided)
        self.cost = cost

    def _acquisition(self, rows: np.ndarray, without: Collection[str] = ()) -> np.ndarray:
        asked, _, _ = self._condition()
        mean_asked, _ = self.process.predict(self.field.opinions(asked), self.field.square(asked, asked), without)
        mean, deviation = self.process.predict(self.field.opinions(rows), self.field.square(asked, rows), without)
        size = self.field.scores[self.cost]
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
