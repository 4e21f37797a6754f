"""NAS-Bench-201: a cell of four nodes, one of five operations on each of its six edges (Dong & Yang, ICLR 2020).

The official benchmark trained each of the 5^6 = 15,625 labelled cells on its own, also those that compute the same
function, so the key keeps all of them apart: it is the official architecture string. Nodes cannot be renamed without
changing that string (relabelling is the identity).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import networkx as nx
import numpy as np

from core.nas.spaces import CLS, END, SPACES, Space, check_integers, op_index

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # (from, to) in the order of the official string
GENERIC = (None, "skip", "conv1x1", "conv3x3", "avgpool3x3")
POWERS = 5 ** np.arange(5, -1, -1)

# CIFAR-10 macro: stem, 3 stages of 5 cells at 16/32/64 channels, 2 residual blocks, head. A convolution on an edge adds
# 5 * (k*k * (16^2 + 32^2 + 64^2) + batch normalisation) weights. The FLOPs equal every official record; the weights do
# so but for the few records whose published count is that of another cell.
PARAMS = (73_306.0, 28_000.0, 243_040.0)  # base, each nor_conv_1x1, each nor_conv_3x3
FLOPS = (7.78305e6, 3.93216e6, 35.38944e6)


@dataclass(frozen=True)
class NB201Cell:
    """Six operation numbers (index into :data:`OPERATIONS`) on the edges 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2."""

    ops: tuple[int, ...]


@SPACES.register("nb201", source="Dong & Yang 2020")
class NB201(Space):
    """NAS-Bench-201: five operations on six edges, 15,625 cells."""

    name, kind, genotype = "nb201", "op_on_edge", NB201Cell
    vocabulary = (CLS, END, *OPERATIONS)
    token_length = 8
    size = 15_625

    def check(self, g: NB201Cell) -> None:
        self.own(g)
        check_integers(g.ops, "operations of an nb201 cell")
        if len(g.ops) != 6:
            raise ValueError(f"an nb201 cell has 6 edges, got {len(g.ops)} operations: {g.ops}")
        for op in g.ops:
            if not 0 <= op < 5:
                raise ValueError(f"unknown operation {op!r} of nb201; allowed: 0..4 = {', '.join(OPERATIONS)}")

    def key(self, g: NB201Cell) -> str:
        return self.format(g)

    def canonical(self, g: NB201Cell) -> NB201Cell:
        return g

    def code(self, g: NB201Cell) -> int:
        """Position of ``g`` in :meth:`enumerate`: its operations read as a number in base 5."""
        return int(np.dot(g.ops, POWERS))

    def enumerate(self) -> Iterator[NB201Cell]:
        return (NB201Cell(ops) for ops in product(range(5), repeat=6))

    def sample(self, rng: np.random.Generator) -> NB201Cell:
        return NB201Cell(tuple(int(o) for o in rng.integers(0, 5, 6)))

    def neighbours(self, g: NB201Cell) -> list[NB201Cell]:
        return [
            NB201Cell((*g.ops[:edge], op, *g.ops[edge + 1 :]))
            for edge in range(6)
            for op in range(5)
            if op != g.ops[edge]
        ]

    def mutate(self, g: NB201Cell, rng: np.random.Generator) -> NB201Cell:
        edge = int(rng.integers(6))
        op = int(g.ops[edge] + rng.integers(1, 5)) % 5
        return NB201Cell((*g.ops[:edge], op, *g.ops[edge + 1 :]))

    def encode(self, g: NB201Cell) -> np.ndarray:
        return np.array([0, *(op + 2 for op in g.ops), 1])

    def decode(self, tokens: Sequence[int]) -> NB201Cell:
        return NB201Cell(tuple(OPERATIONS.index(name) for name in self._spelled(tokens)))

    def parse(self, text: str) -> NB201Cell:
        """The official string ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``, or its six digits."""
        text = self._text(text)
        if len(text) == 6 and text.isdecimal():
            cell = NB201Cell(tuple(int(c) for c in text))
            self.check(cell)
            return cell
        groups = text.split("+")
        if len(groups) != 3:
            raise ValueError(f"an nb201 cell has 3 nodes joined by '+' (|op~0|+|op~0|op~1|+...), got {text!r}")
        ops = []
        for node, group in enumerate(groups, 1):
            parts = group.strip("|").split("|")
            if len(parts) != node or not (group.startswith("|") and group.endswith("|")):
                raise ValueError(
                    f"node {node} of an nb201 cell has {node} inputs '|op~0|...|', got {group!r} in {text!r}"
                )
            for source, part in enumerate(parts):
                op, _, number = part.partition("~")
                if number != str(source):
                    raise ValueError(f"input {source} of node {node} must end in ~{source}, got {part!r} in {text!r}")
                ops.append(op_index(op, OPERATIONS, self.name))
        return NB201Cell(tuple(ops))

    def format(self, g: NB201Cell) -> str:
        o = [OPERATIONS[i] for i in g.ops]
        return f"|{o[0]}~0|+|{o[1]}~0|{o[2]}~1|+|{o[3]}~0|{o[4]}~1|{o[5]}~2|"

    def size_features(self, g: NB201Cell) -> dict[str, float]:
        """Weights and multiply-adds of the CIFAR-10 network (closed form, equal to the official records)."""
        ones, threes = g.ops.count(2), g.ops.count(3)
        params, flops = (base + one * ones + three * threes for base, one, three in (PARAMS, FLOPS))
        return {"params": params, "flops": flops}

    def graph(self, g: NB201Cell) -> nx.DiGraph:
        graph = nx.DiGraph()
        for node, op in enumerate(("input", "sum", "sum", "output")):
            graph.add_node(node, op=op)
        for position, ((source, target), op) in enumerate(zip(EDGES, g.ops), 4):
            if GENERIC[op] is not None:
                graph.add_node(position, op=GENERIC[op])
                graph.add_edge(source, position)
                graph.add_edge(position, target)
        return graph
