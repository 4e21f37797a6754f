"""NAS-Bench-Graph: graph networks of four operations hung on a tree (Qin et al., NeurIPS 2022).

Each of four nodes takes one input: the raw features (0) or an earlier node. Every leaf feeds the output. Architectures
that compute the same network are one: nodes may be renamed, a skip that others read from is no operation, nor is one
that leads to the output alone or straight from the raw features. Under these rules 26,206 architectures remain, those
of the published tables.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import networkx as nx
import numpy as np

from core.nas.spaces import CLS, END, OPS, SPACES, Space, check_integers, op_index

OPERATIONS = ("gat", "gcn", "gin", "cheb", "sage", "arma", "graph", "fc", "skip")
GENERIC = ("gat", "gcn", "gin", "cheb", "sage", "arma", "kgnn", "linear", "skip")
SKIP = 8
TREES = (  # the benchmark's nine trees, in the order of its numbering
    (0, 0, 0, 0),
    (0, 0, 0, 1),
    (0, 0, 1, 1),
    (0, 0, 1, 2),
    (0, 0, 1, 3),
    (0, 1, 1, 1),
    (0, 1, 1, 2),
    (0, 1, 2, 2),
    (0, 1, 2, 3),
)

Tree = tuple  # (operation, (sub-trees, sorted))


@dataclass(frozen=True)
class GraphCell:
    """``links[i]``: input of node i + 1 (0 is the raw features); ``ops[i]``: its operation number."""

    links: tuple[int, ...]
    ops: tuple[int, ...]


@SPACES.register("nasbench-graph", source="Qin et al. 2022")
class NASBenchGraph(Space):
    """NAS-Bench-Graph: four graph operations on a tree, 26,206 architectures."""

    name, kind, genotype = "nasbench-graph", "op_on_node", GraphCell
    vocabulary = (CLS, END, "no_edge", "edge", *OPERATIONS)
    token_length = 21
    size = 26_206

    def check(self, g: GraphCell) -> None:
        self.own(g)
        check_integers(g.links, "links of a nasbench-graph cell")
        check_integers(g.ops, "operations of a nasbench-graph cell")
        if len(g.links) != 4 or len(g.ops) != 4:
            raise ValueError(f"a nasbench-graph cell has 4 links and 4 operations, got {g.links} and {g.ops}")
        for node, link in enumerate(g.links, 1):
            if link not in range(node):
                raise ValueError(f"cyclic or unsorted nasbench-graph cell: node {node} reads 0..{node - 1}, got {link}")
        for op in g.ops:
            if op not in range(len(OPERATIONS)):
                raise ValueError(f"unknown operation {op!r} of nasbench-graph; allowed: 0..8 = {', '.join(OPERATIONS)}")
        if not _forest(g):
            raise ValueError("a nasbench-graph cell of skips alone computes nothing; give one other operation")

    def key(self, g: GraphCell) -> str:
        return self.format(self.canonical(g))

    def canonical(self, g: GraphCell) -> GraphCell:
        return _canonical(g)

    def relabel(self, g: GraphCell, rng: np.random.Generator) -> GraphCell:
        order: list[int] = []  # old nodes in their new order; a node may come once its input is there
        while len(order) < 4:
            ready = [n for n in range(1, 5) if n not in order and (g.links[n - 1] == 0 or g.links[n - 1] in order)]
            order.append(int(rng.choice(ready)))
        place = {0: 0} | {old: new for new, old in enumerate(order, 1)}
        return GraphCell(tuple(place[g.links[n - 1]] for n in order), tuple(g.ops[n - 1] for n in order))

    def enumerate(self) -> Iterator[GraphCell]:
        seen = set()
        for links, ops in product(TREES, product(range(len(OPERATIONS)), repeat=4)):
            if ops != (SKIP,) * 4:
                g = _canonical(GraphCell(links, ops))
                if g not in seen:
                    seen.add(g)
                    yield g

    def sample(self, rng: np.random.Generator) -> GraphCell:
        while True:
            links = tuple(int(rng.integers(node)) for node in range(1, 5))
            g = GraphCell(links, tuple(int(o) for o in rng.integers(0, len(OPERATIONS), 4)))
            if _forest(g):
                return g

    def neighbours(self, g: GraphCell) -> list[GraphCell]:
        found = {self.canonical(g): g}
        for child in self._edits(self.canonical(g)):
            found.setdefault(self.canonical(child), child)
        return list(found.values())[1:]

    def mutate(self, g: GraphCell, rng: np.random.Generator) -> GraphCell:
        edits, own = list(self._edits(g)), self.canonical(g)
        for i in rng.permutation(len(edits)):
            if self.canonical(edits[i]) != own:
                return edits[i]
        raise ValueError(f"nasbench-graph cell {self.format(g)} has no neighbour")

    def _edits(self, g: GraphCell) -> Iterator[GraphCell]:
        for i in range(4):
            for op in range(len(OPERATIONS)):
                if op != g.ops[i]:
                    child = GraphCell(g.links, (*g.ops[:i], op, *g.ops[i + 1 :]))
                    if _forest(child):
                        yield child
            for link in range(i + 1):
                if link != g.links[i]:
                    yield GraphCell((*g.links[:i], link, *g.links[i + 1 :]), g.ops)

    def encode(self, g: GraphCell) -> np.ndarray:
        """CLS, upper triangle of (raw input, four nodes, output), four operations, END."""
        edges = _edges(g)
        bits = [3 if (i, j) in edges else 2 for i in range(6) for j in range(i + 1, 6)]
        return np.array([0, *bits, *(4 + op for op in g.ops), 1])

    def decode(self, tokens: Sequence[int]) -> GraphCell:
        names = self._spelled(tokens)
        if not set(names[:15]) <= {"no_edge", "edge"} or not set(names[15:]) <= set(OPERATIONS):
            raise ValueError(f"nasbench-graph sequences hold 15 edges, then 4 operations, got {' '.join(names)}")
        pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
        edges = {pair for pair, name in zip(pairs, names) if name == "edge"}
        inputs = [[i for i in range(node) if (i, node) in edges] for node in range(1, 5)]
        if any(len(i) != 1 for i in inputs):
            raise ValueError(f"each node of a nasbench-graph cell reads exactly one input, got {inputs}")
        g = GraphCell(tuple(i[0] for i in inputs), tuple(OPERATIONS.index(n) for n in names[15:]))
        self.check(g)
        if _edges(g) != edges:
            raise ValueError("exactly the leaves of a nasbench-graph cell feed its output")
        return g

    def parse(self, text: str) -> GraphCell:
        """``0,1,2,1 gcn,gin,fc,cheb``: links, then operations."""
        links, _, names = self._text(text).partition(" ")
        parts = links.split(",")
        if len(parts) != 4 or not all(p.isdecimal() and len(p) == 1 for p in parts):
            raise ValueError(f"a nasbench-graph cell is written '0,1,2,1 gcn,gin,fc,cheb', got {text!r}")
        ops = tuple(op_index(name, OPERATIONS, self.name) for name in names.strip().split(","))
        g = GraphCell(tuple(map(int, parts)), ops)
        self.check(g)
        return g

    def format(self, g: GraphCell) -> str:
        return f"{','.join(map(str, g.links))} {','.join(OPERATIONS[o] for o in g.ops)}"

    def size_features(self, g: GraphCell) -> dict[str, float]:
        """Weights and multiply-adds a node at width 128 throughout.

        The benchmark's widths differ by data set: the oracle's column ``params`` has the true count of each.
        """
        unit = 128 * 128
        ops = [OPS[GENERIC[op]] for op in self.canonical(g).ops]
        return {"params": unit * sum(op.weight for op in ops), "flops": unit * sum(op.macs for op in ops)}

    def graph(self, g: GraphCell) -> nx.DiGraph:
        g, graph = self.canonical(g), nx.DiGraph()  # a skip without effect stands where the canonical form has it
        for node, op in enumerate(("input", *(GENERIC[o] for o in g.ops), "output")):
            graph.add_node(node, op=op)
        graph.add_edges_from(sorted(_edges(g)))
        return graph

    def from_number(self, number: int) -> GraphCell:
        """The cell that the published tables call ``number`` (tree, then four decimal digits of operations)."""
        tree, digits = divmod(int(number), 10**4)
        ops = tuple(int(c) for c in f"{digits:04d}")
        if not 0 <= tree < len(TREES):
            raise ValueError(f"a nasbench-graph number is 0..{len(TREES) - 1} followed by four digits, got {number}")
        g = GraphCell(TREES[tree], ops)
        self.check(g)
        return g


def _edges(g: GraphCell) -> set[tuple[int, int]]:
    inner = {(link, node) for node, link in enumerate(g.links, 1)}
    return inner | {(node, 5) for node in range(1, 5) if node not in g.links}


def _forest(g: GraphCell) -> tuple[Tree, ...]:
    """The sorted trees below the raw features once skips that do nothing are gone."""
    children: dict[int, list[int]] = {node: [] for node in range(5)}
    for node, link in enumerate(g.links, 1):
        children[link].append(node)

    def below(node: int, raw: bool) -> tuple[Tree, ...]:
        """Sub-trees that read ``node`` when its own skips are contracted; ``raw``: still the raw features."""
        pending, trees, ends = list(children[node]), [], 0
        while pending:
            child = pending.pop()
            if g.ops[child - 1] != SKIP:
                trees.append((g.ops[child - 1], below(child, False)))
            elif children[child]:
                pending += children[child]
            else:
                ends += 1
        if raw or (ends == 1 and not trees):
            ends = 0  # nothing but the node itself leads on
        return tuple(sorted([*trees, *[(SKIP, ())] * ends]))

    return below(0, True)


@lru_cache(maxsize=100_000)
def _canonical(g: GraphCell) -> GraphCell:
    """Contracted skips first, as a chain from the raw features, then the remaining trees in depth-first order."""
    links: list[int] = []
    ops: list[int] = []

    def place(trees: tuple[Tree, ...], under: int) -> None:
        for op, below in trees:
            links.append(under)
            ops.append(op)
            place(below, len(links))

    forest = _forest(g)
    spare = 4 - _count(forest)
    links, ops = list(range(spare)), [SKIP] * spare
    place(forest, spare)
    return GraphCell(tuple(links), tuple(ops))


def _count(trees: tuple[Tree, ...]) -> int:
    return sum(1 + _count(below) for _, below in trees)
