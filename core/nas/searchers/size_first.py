"""Largest first: cells in order of their size, ties in random order. The baseline that shames many searches."""

from collections.abc import Sequence

import numpy as np

from core.evolve.frame import OperatorOptimizer
from core.evolve.protocol import Told
from core.nas.arena import Arena
from core.nas.searchers import SEARCHERS, Knowledge
from core.nas.spaces import Genotype


class SizeFirst(OperatorOptimizer[Genotype]):
    """Cells of the arena's population by falling size."""

    column = -2

    def __init__(self, arena: Arena, seed: int, knowledge: Knowledge):
        super().__init__(arena, seed, batch=1)
        self.asked = 0
        self._sort(seed)

    def _sort(self, seed: int) -> None:
        self.seed = seed
        ties = np.random.default_rng([seed, 1]).random(len(self.space.cells))
        self.order = np.lexsort((ties, -self.space.raw[:, self.column]))

    def propose(self) -> Genotype:
        row = self.order[self.asked % len(self.order)]
        self.asked += 1
        return self.space.cells[row]

    def learn(self, results: Sequence[Told[Genotype]]) -> None:
        """Nothing: the order is fixed."""

    def state_dict(self) -> dict:
        return super().state_dict() | {"asked": self.asked, "seed": self.seed}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.asked = state["asked"]
        self._sort(state["seed"])


@SEARCHERS.register("parameters_first", uses="sizes")
class ParametersFirst(SizeFirst):
    """Most parameters first, ties in random order."""

    column = -2


@SEARCHERS.register("flops_first", uses="sizes")
class FlopsFirst(SizeFirst):
    """Most multiply-adds first, ties in random order."""

    column = -1
