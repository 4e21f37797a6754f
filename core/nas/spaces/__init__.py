"""Search spaces: what an architecture is, when it is valid, and when two are the same.

A space is one file with one registered class. Its genotypes are small frozen dataclasses of its own, so a genotype of
another space is told apart by type. A space knows nothing about accuracy; that is the oracle's part.

Spaces of one name differ by their settings (the sub-networks of two transformers, say). So what works on a space is
handed the object, and what is stored of it is stored under :attr:`Space.full_name`.
"""

import json
import operator
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
SHOWN = 200  # characters of a wrong value in a message


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
        return {name: getattr(self, name) for name in setting_names(type(self))}

    @cached_property
    def full_name(self) -> str:
        """The name, and every setting that is not the default one: what tells this space from all others.

        ``nb201``; ``transformer-student(layers=4, width=312)``.
        """
        if not self.settings:
            return self.name
        try:
            usual = type(self)().settings
        except TypeError:  # a space of a plug-in that has no default settings
            usual = {}
        own = {n: value for n, value in self.settings.items() if n not in usual or value != usual[n]}
        told = ", ".join(f"{n}={json.dumps(value)}" for n, value in own.items())
        return f"{self.name}({told})" if told else self.name

    def __eq__(self, other: Any) -> bool:
        return self.full_name == other.full_name if isinstance(other, Space) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.full_name)

    def own(self, g: Any) -> None:
        """Raise ValueError for a genotype of another space, told by its type alone (:meth:`check` looks inside)."""
        if not isinstance(g, self.genotype):
            kind = self.genotype.__name__
            raise ValueError(f"genotype of another space: {self.name} takes {kind}, got {shown(g)}")

    def _text(self, text: Any) -> str:
        """``text`` without blanks around it. Raises ValueError for what is no text."""
        if not isinstance(text, str):
            raise ValueError(f"{self.name} reads a genotype from text, got {shown(text)}")
        return text.strip()

    @cached_property
    def token_of(self) -> dict[str, int]:
        """Token name -> token."""
        return {name: i for i, name in enumerate(self.vocabulary)}

    def _spelled(self, tokens: Sequence[int]) -> list[str]:
        """Names of the tokens between CLS and END. Raises ValueError on wrong length, range or frame."""
        try:
            values = [operator.index(t) for t in tokens]
        except TypeError:
            raise ValueError(f"{self.name} has sequences of whole numbers as tokens, got {shown(tokens)}") from None
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


def check_tuple(values: Any, what: str) -> None:
    """Raise ValueError unless ``values`` is a tuple: a genotype is hashed, which a list cannot be."""
    if not isinstance(values, tuple):
        raise ValueError(f"{what} must be a tuple, got {shown(values)}")


def check_integers(values: Any, what: str) -> None:
    """Raise ValueError unless ``values`` is a tuple of integers; ``True`` and ``1.0`` are none, they are written
    otherwise and would be another key."""
    check_tuple(values, what)
    for place, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"{what} must be integers, got {shown(value)} at place {place}")


def setting_names(space: type[Space]) -> list[str]:
    """Names of the settings that a space's class takes."""
    kinds = signature(space.__init__).parameters
    return [n for n, p in kinds.items() if n != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def get_space(name: str, **settings: Any) -> Space:
    """The space called ``name``.

    Raises:
        ValueError: no such space, a setting that it does not have, or a value that the setting cannot be.
    """
    space = SPACES.get(name)
    known = setting_names(space)
    for setting in settings:
        if setting not in known:
            allowed = f"Allowed: {', '.join(known)}" if known else f"{name} has none"
            raise ValueError(f"space {name} has no setting {setting!r}{nearest(setting, known)} {allowed}")
    try:
        return space(**settings)
    except TypeError as error:
        raise ValueError(f"space {name} cannot have the settings {shown(settings)}: {error}") from None


def shown(value: Any) -> str:
    """Type and value for a message, on one line."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text[:SHOWN]}{'...' if len(text) > SHOWN else ''}"
