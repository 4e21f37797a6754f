"""Where a structure search takes place: a space, the cells it may propose, and what every cell looks like.

A closed arena holds all the cells that can be asked (an enumerated space, a pool); an open one holds a sample of the
space and grows. Features are computed once for all searches in it and cached on disk by content. The arena also is the
candidate-operator interface of :mod:`core.evolve`, so the generic optimizers run on it unchanged.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.hashing import code_version, content_key
from core.nas.features import Scale, raw_features
from core.nas.spaces import Genotype, Space
from core.state import Cache

SAMPLE = 4000
TRIES = 300
MODULES = ("core.nas.features",)


class Arena:
    """A target (or source) of structure search.

    Args:
        space: the search space.
        pool: the only cells that may be proposed; None for the whole space.
        sample: cells drawn as the population of a space that cannot be enumerated within 20,000.
        cache: where features are kept; None keeps them in memory.

    Raises:
        ValueError: an empty pool, or a genotype of another space in it.

    Attributes:
        cells, keys: the population; raw: float32 ``[cells, features]``; scale: how raw features are read here;
        closed: whether ``cells`` are all that can be asked.
    """

    def __init__(
        self, space: Space, pool: Sequence[Genotype] | None = None, sample: int = SAMPLE, cache: Cache | None = None
    ):
        self.space = space
        if pool is not None and len(pool) == 0:
            raise ValueError("the pool of an arena must hold at least one cell")
        small = space.size is not None and space.size <= 20_000
        self.closed = pool is not None or small
        if pool is not None:
            self.cells = list(pool)
            for cell in self.cells:
                space.own(cell)
        else:
            self.cells = list(space.enumerate()) if small else _draw(space, sample)
        self.keys = [space.key(c) for c in self.cells]
        self.row_of = {k: i for i, k in reversed(list(enumerate(self.keys)))}
        self.raw = _cached_features(space, self.cells, cache)
        self.scale = Scale.of(self.raw)
        self.ranks = self.scale.ranks(self.raw)
        self.points = self.scale.distances(self.raw)
        self.experts: dict[str, Any] = {}  # see core.nas.experts
        self._near: dict[str, list[int]] = {}
        self._tokens: np.ndarray | None = None

    # what core.evolve asks of a space
    def sample(self, rng: np.random.Generator) -> Genotype:
        if not self.closed:
            return self.space.sample(rng)
        return self.cells[int(rng.integers(len(self.cells)))]

    def mutate(self, candidate: Genotype, rng: np.random.Generator) -> Genotype:
        """A neighbour; in a closed arena one that can be asked, a random cell where there is none."""
        if not self.closed:
            return self.space.mutate(candidate, rng)
        near = self.near(candidate)
        return self.cells[near[int(rng.integers(len(near)))]] if near else self.sample(rng)

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """A child; in a closed arena a neighbour of a parent where the child cannot be asked."""
        child = self.space.crossover(a, b, rng)
        if not self.closed:
            return child
        row = self.row_of.get(self.space.key(child))
        return self.cells[row] if row is not None else self.mutate(a, rng)

    def key(self, candidate: Genotype) -> str:
        return self.space.key(candidate)

    def to_json(self, candidate: Genotype) -> Any:
        return self.space.format(candidate)

    def from_json(self, value: Any) -> Genotype:
        return self.space.parse(value)

    def near(self, candidate: Genotype) -> list[int]:
        """Rows of the candidate's neighbours that belong to the population (remembered)."""
        key = self.space.key(candidate)
        if key not in self._near:
            keys = (self.space.key(n) for n in self.space.neighbours(candidate))
            self._near[key] = [self.row_of[k] for k in keys if k in self.row_of]
        return self._near[key]

    def neighbours(self, candidate: Genotype) -> list[Genotype]:
        """All neighbours that can be asked."""
        if not self.closed:
            return self.space.neighbours(candidate)
        return [self.cells[i] for i in self.near(candidate)]

    @property
    def tokens(self) -> np.ndarray:
        """One-hot token sequences of the population, scaled to mean squared norm 1, float32 ``[cells, d]``."""
        if self._tokens is None:
            self._tokens = one_hot(self.space, self.cells)
        return self._tokens

    def content(self) -> str:
        """Hash of what the arena is: space, population, closed or open."""
        return content_key(self.space.name, self.space.settings, self.closed, sorted(self.keys))


def one_hot(space: Space, cells: Sequence[Genotype]) -> np.ndarray:
    """One-hot token sequences, float32 ``[n, length * vocabulary]``; two cells that share no token are at squared
    distance 2."""
    codes = np.stack([space.encode(c) for c in cells])[:, 1:-1]
    hot = np.eye(len(space.vocabulary), dtype=np.float32)[codes].reshape(len(cells), -1)
    return hot / np.sqrt(codes.shape[1], dtype=np.float32)


def _draw(space: Space, count: int) -> list[Genotype]:
    """Distinct random cells, the same for everybody."""
    rng, found = np.random.default_rng(0), {}
    for _ in range(count * 20):
        cell = space.sample(rng)
        found.setdefault(space.key(cell), cell)
        if len(found) == count:
            break
    return list(found.values())


def _cached_features(space: Space, cells: Sequence[Genotype], cache: Cache | None) -> np.ndarray:
    if cache is None:
        return raw_features(space, cells)
    texts = [space.format(c) for c in cells]
    key = content_key(space.name, space.settings, texts, code_version([*MODULES, type(space).__module__]))

    def build(folder: Path) -> None:
        np.save(folder / "raw.npy", raw_features(space, cells))

    return np.load(cache.compute("nas-features", key, build) / "raw.npy")
