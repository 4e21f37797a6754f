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
    """``opinion(raw [n, f], ranks [n, f]) -> [n]``, larger meaning better."""

    name: str
    arena: Arena
    opinion: Callable[[np.ndarray, np.ndarray], np.ndarray]

    @cached_property
    def values(self) -> np.ndarray:
        """Opinions about the population, ``[cells]``."""
        return np.asarray(self.opinion(self.arena.raw, self.arena.ranks), dtype=float)

    @cached_property
    def scores(self) -> np.ndarray:
        """Normal scores of the population, ``[cells]``; equal opinions share one."""
        return norm.ppf((rankdata(self.values) - 0.5) / len(self.values))

    def of(self, raw: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Normal scores of other cells, read against the population, ``[n]``."""
        values, ordered = self.opinion(raw, ranks), self._ordered
        share = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
        return norm.ppf((share + 0.5) / (len(ordered) + 1))

    @cached_property
    def _ordered(self) -> np.ndarray:
        return np.sort(self.values)


def size_expert(name: str, arena: Arena) -> Expert:
    """Larger is better: ``params`` or ``flops``."""
    if name not in arena.experts:
        column = {"params": -2, "flops": -1}[name]
        arena.experts[name] = Expert(name, arena, lambda raw, ranks: raw[:, column])
    return arena.experts[name]


def source_expert(source: Source, arena: Arena) -> Expert:
    """What ``source`` says about the cells of ``arena``; made once for an arena and a source, then shared."""
    made = arena.experts.get(source.key)
    if made is None:
        made = arena.experts[source.key] = Expert(source.name, arena, source.predictor.predict)
    return made
