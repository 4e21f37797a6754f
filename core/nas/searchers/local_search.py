"""Local search: walk to the first better neighbour, restart where there is none (White et al., UAI 2021)."""

from collections.abc import Sequence

from core.evolve.frame import OperatorOptimizer
from core.evolve.protocol import Told
from core.nas.arena import Arena
from core.nas.searchers import SEARCHERS, Knowledge
from core.nas.spaces import Genotype


@SEARCHERS.register("local_search", uses="nothing", source="White et al. 2021")
class LocalSearch(OperatorOptimizer[Genotype]):
    """First-improvement hill climbing from the best of a few random cells."""

    def __init__(self, arena: Arena, seed: int, knowledge: Knowledge, start: int = 5):
        super().__init__(arena, seed, batch=1)
        self.start = start

    def propose(self) -> Genotype:
        if len(self.members) < self.start:
            return self.space.sample(self.rng)
        here = max(self.members, key=lambda m: m.score).candidate
        fresh = [n for n in self.space.neighbours(here) if self.space.key(n) not in self.seen]
        if not fresh:
            self.members = []  # a local optimum: begin again elsewhere
            return self.space.sample(self.rng)
        return fresh[int(self.rng.integers(len(fresh)))]

    def learn(self, results: Sequence[Told[Genotype]]) -> None:
        self.members += results
