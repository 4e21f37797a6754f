"""Sub-networks of a given transformer: which layers stay, and how many heads and feed-forward neurons each keeps.

The space is described by numbers alone; :func:`core.models.cut.cut` takes the weights from the model itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import networkx as nx
import numpy as np

from core.nas.spaces import CLS, END, SPACES, Space, check_integers, check_tuple


@dataclass(frozen=True)
class StudentShape:
    """For each layer of the original: None where it is dropped, else ``(heads, neurons)``."""

    layers: tuple[tuple[int, int] | None, ...]


@SPACES.register("transformer-student")
class TransformerStudent(Space):
    """Sub-networks of an encoder or decoder: kept layers, heads and feed-forward neurons of each.

    Args:
        layers: layers of the original.
        heads: allowed head counts, ascending; the last is the original's.
        neurons: allowed feed-forward widths, ascending; the last is the original's.
        width: hidden size.
        kv_heads: key-value heads of the original (None: as many as heads).
        gated: whether the feed-forward part has two rising maps (Llama) or one (BERT).
        vocabulary_size: rows of the token embedding, counted in ``params``.
        head_size: width of a head (None: ``width`` shared out among the heads).
        embedding: width of the token embedding (None: ``width``); where it is another, a map joins the two.

    The defaults are MiniLM-L6's numbers with thirds of heads and quarters of neurons.
    """

    name, kind, genotype = "transformer-student", "other", StudentShape

    def __init__(
        self,
        layers: int = 6,
        heads: Sequence[int] = (4, 8, 12),
        neurons: Sequence[int] = (384, 768, 1536),
        width: int = 384,
        kv_heads: int | None = None,
        gated: bool = False,
        vocabulary_size: int = 30_522,
        head_size: int | None = None,
        embedding: int | None = None,
    ):
        for what, values in (("heads", heads), ("neurons", neurons)):
            check_integers(tuple(values), what)
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise ValueError(f"{what} must be ascending positive numbers, got {list(values)}")
        check_integers((layers, width, vocabulary_size), "layers, width and vocabulary_size")
        check_integers(tuple(v for v in (kv_heads, head_size, embedding) if v is not None), "sizes of the original")
        if layers < 1 or width < 1:
            raise ValueError(f"layers and width must be at least 1, got {layers} and {width}")
        self.layers, self.heads, self.neurons, self.width = layers, tuple(heads), tuple(neurons), width
        self.kv_heads, self.gated, self.vocabulary_size = kv_heads or self.heads[-1], gated, vocabulary_size
        self.head_size, self.embedding = head_size or width // self.heads[-1], embedding or width
        self.vocabulary = (CLS, END, "drop", *(f"heads{h}" for h in self.heads), *(f"neurons{n}" for n in self.neurons))
        self.token_length = 2 * layers + 2
        self.size = (len(self.heads) * len(self.neurons) + 1) ** layers - 1

    @classmethod
    def of(cls, config: Any, shares: Sequence[float] = (1 / 3, 2 / 3, 1), widths: Sequence[float] = (0.25, 0.5, 1)):
        """The space of a model configuration: head counts and widths as shares of the original's.

        Heads of a grouped-query model come in whole groups.
        """
        from core.models.cut import FAMILIES, shape_of

        layers, heads, groups, width, neurons = shape_of(config)
        step = heads // groups
        return cls(
            layers,
            sorted({max(1, round(share * groups)) * step for share in shares}),
            sorted({max(1, round(share * neurons)) for share in widths}),
            width,
            groups,
            config.model_type in FAMILIES and len(FAMILIES[config.model_type].rising) == 2,
            config.vocab_size,
            getattr(config, "head_dim", None),
            getattr(config, "embedding_size", None),
        )

    def check(self, g: StudentShape) -> None:
        self.own(g)
        check_tuple(g.layers, "layers of a transformer-student")
        for number, layer in enumerate(g.layers):
            if layer is not None:
                check_integers(layer, f"layer {number} of a transformer-student, (heads, neurons) or None,")
        if len(g.layers) != self.layers:
            raise ValueError(f"the original has {self.layers} layers, the genotype describes {len(g.layers)}")
        for number, layer in enumerate(g.layers):
            if layer is not None and (len(layer) != 2 or layer[0] not in self.heads or layer[1] not in self.neurons):
                raise ValueError(
                    f"layer {number} is {layer}; allowed: None, or heads of {self.heads} with neurons of {self.neurons}"
                )
        if not any(g.layers):
            raise ValueError("a student keeps at least one layer")

    def key(self, g: StudentShape) -> str:
        return self.format(g)

    def canonical(self, g: StudentShape) -> StudentShape:
        return g

    def cuts(self, g: StudentShape) -> list:
        """What :func:`core.models.cut.cut` needs: one :class:`core.models.cut.LayerCut` a kept layer."""
        from core.models.cut import LayerCut

        return [LayerCut(i, *layer) for i, layer in enumerate(g.layers) if layer is not None]

    def whole(self) -> StudentShape:
        """The original itself."""
        return StudentShape(((self.heads[-1], self.neurons[-1]),) * self.layers)

    def enumerate(self) -> Iterator[StudentShape]:
        choices = (None, *product(self.heads, self.neurons))
        return (StudentShape(layers) for layers in product(choices, repeat=self.layers) if any(layers))

    def sample(self, rng: np.random.Generator) -> StudentShape:
        kept = rng.choice(self.layers, int(rng.integers(1, self.layers + 1)), replace=False)
        layers = [
            (int(rng.choice(self.heads)), int(rng.choice(self.neurons))) if i in kept else None
            for i in range(self.layers)
        ]
        return StudentShape(tuple(layers))

    def _edits(self, g: StudentShape) -> Iterator[StudentShape]:
        for i, layer in enumerate(g.layers):
            if layer is None:
                options = [(h, n) for h in self.heads for n in self.neurons]
            else:
                options = [None, *((h, layer[1]) for h in self.heads), *((layer[0], n) for n in self.neurons)]
            for option in options:
                child = StudentShape((*g.layers[:i], option, *g.layers[i + 1 :]))
                if option != layer and any(child.layers):
                    yield child

    def neighbours(self, g: StudentShape) -> list[StudentShape]:
        return list(self._edits(g))

    def mutate(self, g: StudentShape, rng: np.random.Generator) -> StudentShape:
        edits = list(self._edits(g))
        return edits[int(rng.integers(len(edits)))]

    def encode(self, g: StudentShape) -> np.ndarray:
        """CLS, two tokens a layer (heads, neurons; twice "drop" for a dropped one), END."""
        names: list[str] = []
        for layer in g.layers:
            names += ["drop", "drop"] if layer is None else [f"heads{layer[0]}", f"neurons{layer[1]}"]
        return np.array([0, *(self.token_of[name] for name in names), 1])

    def decode(self, tokens: Sequence[int]) -> StudentShape:
        names = self._spelled(tokens)
        layers: list[tuple[int, int] | None] = []
        for number, (a, b) in enumerate(zip(names[::2], names[1::2])):
            if a.startswith("heads") and b.startswith("neurons"):
                layers.append((int(a[5:]), int(b[7:])))
            elif a == b == "drop":
                layers.append(None)
            else:
                raise ValueError(f"layer {number} of a {self.name} is 'drop drop' or heads and neurons, got {a} {b}")
        g = StudentShape(tuple(layers))
        self.check(g)
        return g

    def parse(self, text: str) -> StudentShape:
        """``12x1536 - 4x384 ...``: heads x neurons of each layer, ``-`` for a dropped one."""
        layers: list[tuple[int, int] | None] = []
        for word in self._text(text).split():
            heads, cross, neurons = word.partition("x")
            if word != "-" and not (cross and heads.isdecimal() and neurons.isdecimal() and len(word) < 20):
                raise ValueError(f"a {self.name} layer is written 12x1536 or -, got {word!r}")
            layers.append(None if word == "-" else (int(heads), int(neurons)))
        g = StudentShape(tuple(layers))
        self.check(g)
        return g

    def format(self, g: StudentShape) -> str:
        return " ".join("-" if layer is None else f"{layer[0]}x{layer[1]}" for layer in g.layers)

    def size_features(self, g: StudentShape) -> dict[str, float]:
        """Weights (token embedding included, norms and biases not) and multiply-adds a token (attention scores not)."""
        kv = self.kv_heads / self.heads[-1]
        weights = sum(
            self.width * (2 * layer[0] * self.head_size * (1 + kv) + (3 if self.gated else 2) * layer[1])
            for layer in g.layers
            if layer is not None
        )
        joined = self.embedding * self.width if self.embedding != self.width else 0
        return {
            "params": float(weights + joined + self.vocabulary_size * self.embedding),
            "flops": float(weights + joined),
        }

    def graph(self, g: StudentShape) -> nx.DiGraph:
        """A chain: attention and feed-forward part of each kept layer, each with its residual skip.

        Nodes carry ``share``: heads or neurons kept, of the original's.
        """
        graph = nx.DiGraph()
        graph.add_node("input", op="input")
        last = "input"
        for i, layer in enumerate(g.layers):
            if layer is not None:
                parts = (("attention", layer[0] / self.heads[-1]), ("feedforward", layer[1] / self.neurons[-1]))
                for op, share in parts:
                    block, join = f"{op}{i}", f"{op}{i}+"
                    graph.add_node(block, op=op, share=share)
                    graph.add_node(join, op="sum")
                    graph.add_edges_from([(last, block), (block, join), (last, join)])
                    last = join
        graph.add_node("output", op="output")
        graph.add_edge(last, "output")
        return graph
