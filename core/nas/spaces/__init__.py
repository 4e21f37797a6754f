"""Search spaces: what an architecture is, when it is valid, and when two are the same.

A space is one file with one registered class. Its genotypes are small frozen dataclasses of its own, so a genotype of
another space is told apart by type. A space knows nothing about accuracy; that is the oracle's part.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, ClassVar, Literal

import networkx as nx
import numpy as np

from core.registry import Registry, nearest

SPACES: Registry[type["Space"]] = Registry("search space", "core.nas.spaces")

Genotype = Hashable
CLS, END = "CLS", "END"


@dataclass(frozen=True)
class Op:
    """What an operation is, whatever the space calls it.

    ``family``: end, join, conv, pool, skip or pointwise. ``kernel``: receptive field of one application (1 looks at one
    position, 3 at its direct neighbours; a graph aggregator counts as 3). ``weight``: learnable weights in units of one
    channels-by-channels matrix. ``macs``: multiply-adds a position in the same unit.
    """

    family: Literal["end", "join", "conv", "pool", "skip", "pointwise"]
    kernel: int = 0
    weight: float = 0.0
    macs: float = 0.0


# The space-independent vocabulary of `Space.graph`. Depthwise parts of separable convolutions count k*k / 32 (their
# share at 32 channels); graph aggregators count their weight matrices at the settings of NAS-Bench-Graph.
OPS: dict[str, Op] = {
    "input": Op("end"),
    "output": Op("end"),
    "sum": Op("join"),
    "concat": Op("join"),
    "skip": Op("skip", 1),
    "maxpool3x3": Op("pool", 3),
    "avgpool3x3": Op("pool", 3),
    "conv1x1": Op("conv", 1, 1, 1),
    "conv3x3": Op("conv", 3, 9, 9),
    "sepconv3x3": Op("conv", 5, 2 + 18 / 32, 2 + 18 / 32),
    "sepconv5x5": Op("conv", 9, 2 + 50 / 32, 2 + 50 / 32),
    "dilconv3x3": Op("conv", 5, 1 + 9 / 32, 1 + 9 / 32),
    "dilconv5x5": Op("conv", 9, 1 + 25 / 32, 1 + 25 / 32),
    "gat": Op("conv", 3, 1, 1.1),
    "gcn": Op("conv", 3, 1, 1),
    "gin": Op("conv", 3, 1, 1),
    "cheb": Op("conv", 5, 2, 2),
    "sage": Op("conv", 3, 2, 2),
    "arma": Op("conv", 3, 2, 2),
    "kgnn": Op("conv", 3, 2, 2),
    "linear": Op("pointwise", 1, 1, 1),
    "attention": Op("conv", 3, 4, 4),
    "feedforward": Op("pointwise", 1, 8, 8),
}


class Space(ABC):
    """A search space. Every method that takes a genotype expects a valid one except :meth:`check`.

    Class facts: ``name``; ``kind`` (operations sit on nodes, on edges, or neither); ``genotype`` (its dataclass);
    ``vocabulary`` (token names; a token is an index into it); ``token_length`` (fixed length, CLS and END included);
    ``size`` (number of distinct keys, None when not enumerable).
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["op_on_node", "op_on_edge", "other"]]
    genotype: ClassVar[type]
    vocabulary: tuple[str, ...]
    token_length: int
    size: int | None = None

    @abstractmethod
    def check(self, g: Any) -> None:
        """Raise ValueError naming the violated rule unless ``g`` is a valid genotype of this space."""

    @abstractmethod
    def key(self, g: Genotype) -> str:
        """Canonical key: equal for genotypes that describe the same architecture, different otherwise."""

    @abstractmethod
    def canonical(self, g: Genotype) -> Genotype:
        """The representative that all genotypes with the same :meth:`key` share."""

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> Genotype:
        """A random valid genotype."""

    @abstractmethod
    def neighbours(self, g: Genotype) -> list[Genotype]:
        """All genotypes one edit away from ``canonical(g)``, one for each key, ``g`` itself left out.

        So the same architecture has the same neighbours, however it is described; the order is deterministic.
        """

    @abstractmethod
    def mutate(self, g: Genotype, rng: np.random.Generator) -> Genotype:
        """A random genotype one edit away, with another key than ``g``."""

    @abstractmethod
    def encode(self, g: Genotype) -> np.ndarray:
        """Tokens, int64 ``[token_length]``."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> Genotype:
        """The genotype that ``tokens`` spell. Raises ValueError when they spell none."""

    @abstractmethod
    def parse(self, text: str) -> Genotype:
        """Read what :meth:`format` (or the space's official notation) wrote; ValueError names the broken rule."""

    @abstractmethod
    def format(self, g: Genotype) -> str:
        """One line of text that :meth:`parse` reads back to an equal genotype."""

    @abstractmethod
    def size_features(self, g: Genotype) -> dict[str, float]:
        """``{"params": ..., "flops": ...}`` of the network built from ``g``, in the space's own published macro."""

    @abstractmethod
    def graph(self, g: Genotype) -> nx.DiGraph:
        """Data-flow graph; each node has ``op`` (a name of :data:`OPS`), and ``cell`` where there are several cells.

        Operations that a space puts on edges become nodes between ``sum`` or ``concat`` nodes.
        """

    def relabel(self, g: Genotype, rng: np.random.Generator) -> Genotype:
        """Another description of the same architecture (equal key) where the space has one, else ``g``."""
        return g

    def enumerate(self) -> Iterator[Genotype]:
        """Every architecture once (canonical genotypes). Raises ValueError for a space too large for that."""
        raise ValueError(f"space {self.name!r} is too large to enumerate; use sample(rng)")

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Single-point crossover of token sequences; cut points are tried in random order, ``a`` if none is valid."""
        left, right = self.encode(a), self.encode(b)
        for cut in rng.permutation(np.arange(2, self.token_length - 1)):
            child = np.concatenate([left[:cut], right[cut:]])
            if not (np.array_equal(child, left) or np.array_equal(child, right)):
                try:
                    return self.decode(child)
                except ValueError:
                    continue
        return a

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor, kept as attributes of the same names (as scikit-learn's estimators keep them).

        ``get_space(space.name, **space.settings)`` is the same space.
        """
        kinds = signature(type(self).__init__).parameters
        named = [
            name for name, p in kinds.items() if name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        return {name: getattr(self, name) for name in named}

    def _own(self, g: Any) -> None:
        if not isinstance(g, self.genotype):
            raise ValueError(
                f"genotype of another space: {self.name} takes {self.genotype.__name__}, got {type(g).__name__} {g!r}"
            )

    @cached_property
    def token_of(self) -> dict[str, int]:
        """Token name -> token."""
        return {name: i for i, name in enumerate(self.vocabulary)}

    def _spelled(self, tokens: Sequence[int]) -> list[str]:
        """Names of the tokens between CLS and END. Raises ValueError on wrong length, range or frame."""
        values = [int(t) for t in tokens]
        if len(values) != self.token_length:
            raise ValueError(f"{self.name} has sequences of {self.token_length} tokens, got {len(values)}")
        if not all(0 <= t < len(self.vocabulary) for t in values):
            raise ValueError(f"{self.name} has tokens 0..{len(self.vocabulary) - 1}, got {values}")
        names = [self.vocabulary[t] for t in values]
        if names[0] != CLS or names[-1] != END or CLS in names[1:] or END in names[:-1]:
            raise ValueError(f"{self.name} sequences are CLS ... END, got {' '.join(names)}")
        return names[1:-1]


def op_index(name: str, allowed: Sequence[str], space: str) -> int:
    """Index of operation ``name``. Raises ValueError with the nearest allowed operation."""
    if name not in allowed:
        raise ValueError(f"unknown operation {name!r} of {space}{nearest(name, allowed)} Allowed: {', '.join(allowed)}")
    return list(allowed).index(name)


def get_space(name: str, **settings: Any) -> Space:
    """The space called ``name`` (settings only where the space has some)."""
    return SPACES.get(name)(**settings)
