"""The optimizers of core.evolve on architectures: random, GA, regularized evolution."""

from typing import Any

from core.evolve.frame import TRIES
from core.evolve.optimizers import OPTIMIZERS
from core.evolve.optimizers.ga import GeneticAlgorithm
from core.evolve.optimizers.regularized_evolution import RegularizedEvolution
from core.nas.arena import Arena
from core.nas.searchers import SEARCHERS, Knowledge
from core.nas.spaces import Genotype


class _Unstuck:
    """In a sparse pool all neighbours of a population may be asked: then random cells fill the batch."""

    def ask(self, n: int = 1) -> list[Genotype]:
        asked = super().ask(n)
        while len(asked) < n:
            fresh = self._new(lambda: self.space.sample(self.rng), TRIES)
            if not fresh:
                break
            asked += fresh
        return asked


class PoolGenetic(_Unstuck, GeneticAlgorithm[Genotype]):
    """The genetic algorithm, with random cells where it is stuck."""


class PoolEvolution(_Unstuck, RegularizedEvolution[Genotype]):
    """Regularized evolution, with random cells where it is stuck."""


@SEARCHERS.register("random", "Independent random cells", uses="nothing")
def random_search(arena: Arena, seed: int, knowledge: Knowledge) -> Any:
    """Independent random cells."""
    return OPTIMIZERS.get("random")(arena, seed)


@SEARCHERS.register("ga", "Genetic algorithm at the paper's settings", uses="nothing", source="Hou et al. 2025")
def genetic(arena: Arena, seed: int, knowledge: Knowledge, population: int = 20) -> Any:
    """Population 20, crossover and mutation probability .5, binary tournament."""
    return PoolGenetic(arena, seed, population=population, crossover=0.5, mutation=0.5)


@SEARCHERS.register("rea", "Regularized evolution", uses="nothing", source="Real et al. 2019")
def regularized(arena: Arena, seed: int, knowledge: Knowledge, population: int = 10, tournament: int = 5) -> Any:
    """Ageing evolution; population and tournament small, as budgets of 10 to 150 queries want it."""
    return PoolEvolution(arena, seed, population=population, tournament=tournament)
