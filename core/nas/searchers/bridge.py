"""The paper's search (BRIDGE, Hou et al. 2025): source elites through the latent map into a GA's population.

The target's latents are paired by a rank that costs no query (the source's own predictor on the target's cells); the
paper ranks them with a model trained on 4,000 target labels that it does not count.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from core.evolve.protocol import Told
from core.nas.arena import Arena
from core.nas.decoding import decoded_cells
from core.nas.experts import source_expert
from core.nas.mapping import MAPPINGS, Map
from core.nas.searchers import SEARCHERS, Knowledge
from core.nas.searchers.generic import PoolGenetic
from core.nas.source import Source
from core.nas.spaces import Genotype, Space

PAIRS = 1000


@SEARCHERS.register("bridge", uses="source", source="Hou et al. 2025")
class Bridge:
    """GA of population 20 whose first population, and ten cells every ten generations, come from the source's elites.

    Args:
        mapping: name of a latent mapping; every: generations between injections; each: cells of an injection.
    """

    def __init__(
        self, arena: Arena, seed: int, knowledge: Knowledge, mapping: str = "linear", every: int = 10, each: int = 10
    ):
        if not knowledge.sources:
            raise ValueError("searcher 'bridge' needs a source")
        self.space = self.arena = arena
        self.ga = PoolGenetic(arena, seed, population=20, crossover=0.5, mutation=0.5)
        self.every, self.each, self.generation, self.given = every, each, 0, 0
        source = knowledge.sources[0]
        self.transferred = transferred_cells(arena, source, knowledge, mapping, seed, 200)
        self.batch = 10

    def ask(self, n: int = 1) -> list[Genotype]:
        if self.generation % self.every == 0:
            size = 20 if self.generation == 0 else self.each
            self.ga.inject(self.transferred[self.given : self.given + size])
            self.given += size
        self.generation += 1
        return self.ga.ask(n)

    def tell(self, results: Sequence[Told[Genotype]]) -> None:
        self.ga.tell(results)

    def inject(self, candidates: Sequence[Genotype]) -> None:
        self.ga.inject(candidates)

    def state_dict(self) -> dict[str, Any]:
        return {"ga": self.ga.state_dict(), "generation": self.generation, "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ga.load_state_dict(state["ga"])
        self.generation, self.given = state["generation"], state["given"]


def transferred_cells(
    arena: Arena, source: Source, knowledge: Knowledge, mapping: str, seed: int, count: int
) -> list[Genotype]:
    """Source elites encoded, mapped, decoded: distinct cells of the arena, best elite first."""
    there, here = knowledge.latent(source.home, "bridge"), knowledge.latent(arena.space, "bridge")
    move = latent_map(arena, source, knowledge, mapping, seed)
    z = move(there.encode(source.home, source.elites[:count]))
    found: dict[str, Genotype] = {}
    for cell in decoded_cells(arena, here, z):
        if cell is not None:
            found.setdefault(arena.key(cell), cell)
    return list(found.values())


def latent_map(arena: Arena, source: Source, knowledge: Knowledge, mapping: str, seed: int) -> Map:
    """Pair a thousand latents of both spaces by rank and fit the mapping."""
    there, here = knowledge.latent(source.home, "bridge"), knowledge.latent(arena.space, "bridge")
    rng, origin = np.random.default_rng(seed), _origin(source.home)
    count = min(PAIRS, len(origin.cells), len(arena.cells))
    rows = rng.choice(len(origin.cells), count, replace=False)
    ours = rng.choice(len(arena.cells), count, replace=False)
    z_source = there.encode(origin.space, [origin.cells[i] for i in rows])
    z_target = here.encode(arena.space, [arena.cells[i] for i in ours])
    left = np.argsort(source_expert(source, origin).population[rows], kind="stable")
    right = np.argsort(source_expert(source, arena).population[ours], kind="stable")
    return MAPPINGS.get(mapping)(z_source[left], z_target[right], seed)


@cache
def _origin(space: Space) -> Arena:
    """Cells that the map is fitted on: the same for every seed, and their features take seconds."""
    return Arena(space, sample=PAIRS)
