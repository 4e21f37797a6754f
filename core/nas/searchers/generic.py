"""The optimizers of core.evolve on architectures: random, GA, regularized evolution."""

from typing import Any

from core.evolve.optimizers import OPTIMIZERS
from core.nas.arena import Arena
from core.nas.searchers import SEARCHERS, Knowledge


@SEARCHERS.register("random", "Independent random cells", uses="nothing")
def random_search(arena: Arena, seed: int, knowledge: Knowledge) -> Any:
    """Independent random cells."""
    return OPTIMIZERS.get("random")(arena, seed)


@SEARCHERS.register("ga", "Genetic algorithm at the paper's settings", uses="nothing", source="Hou et al. 2025")
def genetic(arena: Arena, seed: int, knowledge: Knowledge, population: int = 20) -> Any:
    """Population 20, crossover and mutation probability .5, binary tournament."""
    return OPTIMIZERS.get("ga")(arena, seed, population=population, crossover=0.5, mutation=0.5)


@SEARCHERS.register("rea", "Regularized evolution", uses="nothing", source="Real et al. 2019")
def regularized(arena: Arena, seed: int, knowledge: Knowledge, population: int = 10, tournament: int = 5) -> Any:
    """Ageing evolution; population and tournament small, as budgets of 10 to 150 queries want it."""
    return OPTIMIZERS.get("regularized_evolution")(arena, seed, population=population, tournament=tournament)
