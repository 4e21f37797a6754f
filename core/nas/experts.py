"""Opinions about a target that cost no query: what a source says, and how large a cell is.

An expert's score of a cell is the normal quantile of its rank in the target's population, so all experts speak one
language: 0 is average, 2 the top 2 %.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import norm, rankdata

from core.nas.arena import Arena
from core.nas.source import Source

SIZES = ("params", "flops")


@dataclass(frozen=True)
class Expert:
    """``opinion(raw [n, f], ranks [n, f]) -> [n, views]``, larger meaning better; views are joined by their ranks in
    the population."""

    name: str
    arena: Arena
    opinion: Callable[[np.ndarray, np.ndarray], np.ndarray]

    @cached_property
    def ordered(self) -> np.ndarray:
        """Opinions about the population, each view sorted, ``[cells, views]``."""
        return np.sort(self.opinion(self.arena.raw, self.arena.ranks), axis=0)

    def values(self, raw: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Mean over views of a cell's rank in the population, ``[n]`` in 0..1; ties count half."""
        views = self.opinion(raw, ranks)
        total = np.zeros(len(views))
        for k in range(views.shape[1]):
            column = self.ordered[:, k]
            total += np.searchsorted(column, views[:, k], "left") + np.searchsorted(column, views[:, k], "right")
        return total / (2 * len(self.ordered) * views.shape[1])

    @cached_property
    def population(self) -> np.ndarray:
        """:meth:`values` of the population, ``[cells]``."""
        return self.values(self.arena.raw, self.arena.ranks)

    @cached_property
    def scores(self) -> np.ndarray:
        """Normal scores of the population, ``[cells]``; equal opinions share one."""
        return norm.ppf((rankdata(self.population) - 0.5) / len(self.population))

    def of(self, raw: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Normal scores of other cells, read against the population, ``[n]``."""
        values, ordered = self.values(raw, ranks), self._ranked
        share = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
        return norm.ppf((share + 0.5) / (len(ordered) + 1))

    @cached_property
    def _ranked(self) -> np.ndarray:
        return np.sort(self.population)


def size_expert(name: str, arena: Arena) -> Expert:
    """Larger is better: ``params`` or ``flops``."""
    if name not in arena.experts:
        column = {"params": -2, "flops": -1}[name]
        arena.experts[name] = Expert(name, arena, lambda raw, ranks: raw[:, column, None])
    return arena.experts[name]


def source_expert(source: Source, arena: Arena) -> Expert:
    """What ``source`` says about the cells of ``arena``; made once for an arena and a source, then shared."""
    made = arena.experts.get(source.key)
    if made is None:
        made = arena.experts[source.key] = Expert(source.name, arena, source.predictor.predict)
    return made
