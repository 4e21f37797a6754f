"""A genetic algorithm on the space's own crossover and mutation, with elitist (mu + lambda) survival."""

from collections.abc import Sequence
from typing import TypeVar

from core.evolve.frame import OperatorOptimizer
from core.evolve.optimizers import OPTIMIZERS
from core.evolve.protocol import Told
from core.evolve.space import Space

C = TypeVar("C")


@OPTIMIZERS.register("ga", space="operators")
class GeneticAlgorithm(OperatorOptimizer[C]):
    """Binary tournament, crossover and mutation; the best ``population`` of parents and children survive."""

    def __init__(
        self,
        space: Space[C],
        seed: int = 0,
        population: int = 20,
        crossover: float = 0.5,
        mutation: float = 0.5,
        unique: bool = True,
    ):
        for name, p in (("crossover", crossover), ("mutation", mutation)):
            if not 0 <= p <= 1:
                raise ValueError(f"{name} is a probability, got {p}")
        if population < 2:
            raise ValueError(f"population must be at least 2, got {population}")
        super().__init__(space, seed, batch=population, unique=unique)
        self.population, self.p_crossover, self.p_mutation = population, crossover, mutation

    def propose(self) -> C:
        if len(self.members) < self.population:
            return self.space.sample(self.rng)
        child = self._parent()
        crossed = self.rng.random() < self.p_crossover
        if crossed:
            child = self.space.crossover(child, self._parent(), self.rng)
        if not crossed or self.rng.random() < self.p_mutation:
            child = self.space.mutate(child, self.rng)
        return child

    def _parent(self) -> C:
        i, j = self.rng.integers(len(self.members), size=2)
        return max(self.members[i], self.members[j], key=lambda m: m.score).candidate

    def learn(self, results: Sequence[Told[C]]) -> None:
        # sorted() is stable: among equals the older member stays
        self.members = sorted([*self.members, *results], key=lambda m: -m.score)[: self.population]
