"""Regularized evolution (Real et al., AAAI 2019, Algorithm 1): tournament among the young, the oldest dies."""

from collections.abc import Sequence
from typing import TypeVar

from core.evolve.frame import OperatorOptimizer
from core.evolve.optimizers import OPTIMIZERS
from core.evolve.protocol import Told
from core.evolve.space import Space

C = TypeVar("C")


@OPTIMIZERS.register("regularized_evolution", space="operators")
class RegularizedEvolution(OperatorOptimizer[C]):
    """Ageing evolution: mutate the best of a random tournament, drop the oldest member."""

    def __init__(self, space: Space[C], seed: int = 0, population: int = 50, tournament: int = 10, unique: bool = True):
        if not 1 <= tournament <= population:
            raise ValueError(f"tournament must be between 1 and the population {population}, got {tournament}")
        super().__init__(space, seed, batch=1, unique=unique)
        self.population, self.tournament = population, tournament

    def propose(self) -> C:
        if len(self.members) < self.population:
            return self.space.sample(self.rng)
        picked = self.rng.choice(len(self.members), size=self.tournament, replace=False)
        parent = max((self.members[i] for i in picked), key=lambda m: m.score)
        return self.space.mutate(parent.candidate, self.rng)

    def learn(self, results: Sequence[Told[C]]) -> None:
        self.members = [*self.members, *results][-self.population :]
