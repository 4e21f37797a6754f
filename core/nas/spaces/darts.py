"""DARTS: a normal and a reduction cell, four nodes each, two inputs a node, seven operations (Liu et al., ICLR 2019).

A node's inputs have no order, and interior nodes of a cell may be renamed while inputs still come before their node
(the output concatenates them all). The key is the smallest description under both.
"""

import ast
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any

import networkx as nx
import numpy as np

from core.nas.spaces import CLS, END, SPACES, Space, check_integers, check_tuple, op_index

OPERATIONS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
GENERIC = ("maxpool3x3", "avgpool3x3", "skip", "sepconv3x3", "sepconv5x5", "dilconv3x3", "dilconv5x5")
CELLS = ("normal", "reduce")
NODES = 4  # interior nodes are 2..5; 0 and 1 are the outputs of the two cells before, 6 is the concatenation
JOINED = (2, 3, 4, 5)
PAIRS = [(i, j) for i in range(7) for j in range(i + 1, 7)]

Edges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DartsCells:
    """Eight ``(input, operation)`` pairs a cell, two for each of the nodes 2, 3, 4, 5 in turn."""

    normal: Edges
    reduce: Edges


@SPACES.register("darts", source="Liu et al. 2019")
class Darts(Space):
    """DARTS: normal and reduction cell, 4 nodes with two inputs each, seven operations.

    Args:
        channels, layers: the network that :meth:`size_features` counts (8 layers of 32 channels as in NAS-Bench-301).
    """

    name, kind, genotype = "darts", "op_on_edge", DartsCells
    vocabulary = (CLS, END, "none", "concat", *OPERATIONS)
    token_length = 44

    def __init__(self, channels: int = 32, layers: int = 8):
        check_integers((channels, layers), "channels and layers of darts")
        if channels < 1 or layers < 1:
            raise ValueError(f"channels and layers of darts must be at least 1, got {channels} and {layers}")
        self.channels, self.layers = channels, layers

    def check(self, g: DartsCells) -> None:
        self.own(g)
        for label in CELLS:
            edges = getattr(g, label)
            check_tuple(edges, f"the {label} cell of darts")
            for edge in edges:
                check_integers(edge, f"a pair (input, operation) of the {label} cell of darts")
            if len(edges) != 2 * NODES or any(len(e) != 2 for e in edges):
                raise ValueError(f"the {label} cell has 8 (input, operation) pairs, got {edges}")
            for position, (source, op) in enumerate(edges):
                node = 2 + position // 2
                if op not in range(len(OPERATIONS)):
                    raise ValueError(f"unknown operation {op!r} of darts; allowed: 0..6 = {', '.join(OPERATIONS)}")
                if source not in range(node):
                    raise ValueError(f"cyclic {label} cell: node {node} takes inputs 0..{node - 1}, got {source}")
            for node, (a, b) in enumerate(zip(edges[::2], edges[1::2]), 2):
                if a[0] == b[0]:
                    raise ValueError(f"node {node} of the {label} cell takes two different inputs, got {a[0]} twice")

    def canonical(self, g: DartsCells) -> DartsCells:
        return DartsCells(_smallest(g.normal), _smallest(g.reduce))

    def key(self, g: DartsCells) -> str:
        return self.format(self.canonical(g))

    def relabel(self, g: DartsCells, rng: np.random.Generator) -> DartsCells:
        cells = []
        for label in CELLS:
            forms = list(_forms(getattr(g, label)))
            edges = list(forms[rng.integers(len(forms))])
            for i in range(0, 8, 2):
                if rng.random() < 0.5:
                    edges[i], edges[i + 1] = edges[i + 1], edges[i]
            cells.append(tuple(edges))
        return DartsCells(*cells)

    def sample(self, rng: np.random.Generator) -> DartsCells:
        cells = []
        for _ in CELLS:
            edges: list[tuple[int, int]] = []
            for node in range(2, 6):
                sources = sorted(int(s) for s in rng.choice(node, 2, replace=False))
                edges += [(s, int(rng.integers(len(OPERATIONS)))) for s in sources]
            cells.append(tuple(edges))
        return DartsCells(*cells)

    def neighbours(self, g: DartsCells) -> list[DartsCells]:
        found = {self.key(g): g}
        for child in self._edits(self.canonical(g)):
            found.setdefault(self.key(child), child)
        return list(found.values())[1:]

    def mutate(self, g: DartsCells, rng: np.random.Generator) -> DartsCells:
        edits, own = list(self._edits(g)), self.key(g)
        for i in rng.permutation(len(edits)):
            if self.key(edits[i]) != own:
                return edits[i]
        raise ValueError(f"darts cells {self.format(g)} have no neighbour")

    def _edits(self, g: DartsCells) -> Iterator[DartsCells]:
        for label in CELLS:
            edges = getattr(g, label)
            for i, (source, op) in enumerate(edges):
                other = edges[i ^ 1][0]
                changes = [(source, o) for o in range(len(OPERATIONS)) if o != op]
                changes += [(s, op) for s in range(2 + i // 2) if s not in (source, other)]
                for change in changes:
                    cell = (*edges[:i], change, *edges[i + 1 :])
                    yield DartsCells(cell, g.reduce) if label == "normal" else DartsCells(g.normal, cell)

    def crossover(self, a: DartsCells, b: DartsCells, rng: np.random.Generator) -> DartsCells:
        """Single-point crossover over the eight nodes (normal, then reduction); always valid."""
        left, right = (*_pairs(a.normal), *_pairs(a.reduce)), (*_pairs(b.normal), *_pairs(b.reduce))
        cut = int(rng.integers(1, 8))
        child = [edge for pair in (*left[:cut], *right[cut:]) for edge in pair]
        return DartsCells(tuple(child[:8]), tuple(child[8:]))

    def encode(self, g: DartsCells) -> np.ndarray:
        """CLS, upper triangle of the normal cell's 7 nodes, then of the reduction cell's, END."""
        tokens = [0]
        for label in CELLS:
            ops = {(s, 2 + i // 2): 4 + op for i, (s, op) in enumerate(getattr(g, label))}
            ops |= {(node, 6): 3 for node in range(2, 6)}
            tokens += [ops.get(pair, 2) for pair in PAIRS]
        return np.array([*tokens, 1])

    def decode(self, tokens: Sequence[int]) -> DartsCells:
        names = self._spelled(tokens)
        cells = []
        for label, part in zip(CELLS, (names[:21], names[21:])):
            at = dict(zip(PAIRS, part))
            if any((at[i, 6] == "concat") != (i >= 2) for i in range(6)) or at[0, 1] != "none":
                raise ValueError(f"the {label} cell joins nodes 2..5, and only them, to its output by concat")
            edges = []
            for node in range(2, 6):
                inputs = [(s, at[s, node]) for s in range(node) if at[s, node] != "none"]
                if len(inputs) != 2 or any(op == "concat" for _, op in inputs):
                    raise ValueError(f"node {node} of the {label} cell takes two operations, got {inputs}")
                edges += [(s, OPERATIONS.index(op)) for s, op in inputs]
            cells.append(tuple(edges))
        return DartsCells(*cells)

    def parse(self, text: str) -> DartsCells:
        """``normal | reduce`` of eight ``operation~input`` each, a pair of pair lists, or a printed DARTS Genotype."""
        text = self._text(text)
        if text.startswith("Genotype("):
            cells = _official(text)
        elif text.startswith(("(", "[")):
            cells = _literal(text)
        else:
            parts = text.split("|")
            if len(parts) != 2:
                raise ValueError(f"darts cells are written 'normal | reduce', got {text!r}")
            cells = [[_edge(word) for word in part.split()] for part in parts]
        try:
            g = DartsCells(*(tuple((operator.index(s), operator.index(o)) for s, o in cell) for cell in cells))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"darts cells are two lists of eight (input, operation) pairs, got {text!r}: {error}"
            ) from None
        self.check(g)
        return g

    def format(self, g: DartsCells) -> str:
        return " | ".join(" ".join(f"{OPERATIONS[op]}~{s}" for s, op in getattr(g, label)) for label in CELLS)

    def size_features(self, g: DartsCells) -> dict[str, float]:
        """Weights and multiply-adds of the CIFAR-10 network (stem of 3 x channels, reductions at 1/3 and 2/3 depth)."""
        c, side = self.channels, 32
        params, flops = 27 * 3 * c + 6 * c, 27.0 * 3 * c * side * side
        before, last, was_reduction = 3 * c, 3 * c, False
        for layer in range(self.layers):
            reduction = layer in (self.layers // 3, 2 * self.layers // 3)
            c = c * 2 if reduction else c
            weights, macs = _preprocess(before, last, c, side, was_reduction)
            inner_weights, inner_macs = _cell(g.reduce if reduction else g.normal, c, side, reduction)
            params, flops = params + weights + inner_weights, flops + macs + inner_macs
            before, last, was_reduction = last, NODES * c, reduction
            side = side // 2 if reduction else side
        return {"params": float(params + last * 10 + 10), "flops": float(flops + last * 10)}

    def graph(self, g: DartsCells) -> nx.DiGraph:
        graph = nx.DiGraph()
        for label in CELLS:
            for node, op in enumerate(("input", "input", "sum", "sum", "sum", "sum", "concat", "output")):
                graph.add_node((label, node), op=op, cell=label)
            for i, (source, op) in enumerate(getattr(g, label)):
                graph.add_node((label, 8 + i), op=GENERIC[op], cell=label)
                graph.add_edge((label, source), (label, 8 + i))
                graph.add_edge((label, 8 + i), (label, 2 + i // 2))
            graph.add_edges_from(((label, node), (label, 6)) for node in range(2, 6))
            graph.add_edge((label, 6), (label, 7))
        return graph


def _pairs(edges: Edges) -> list[Edges]:
    return [edges[i : i + 2] for i in range(0, len(edges), 2)]


def _forms(edges: Edges) -> Iterator[Edges]:
    """Every legal renaming of the four interior nodes, each node's inputs sorted."""
    for order in permutations(range(NODES)):  # order[k]: old node that becomes node k
        place = {0: 0, 1: 1} | {old + 2: new + 2 for new, old in enumerate(order)}
        form = []
        for new, old in enumerate(order):
            pair = sorted((place[s], op) for s, op in edges[2 * old : 2 * old + 2])
            if pair[1][0] >= new + 2:
                break
            form += pair
        else:
            yield tuple(form)


@lru_cache(maxsize=100_000)
def _smallest(edges: Edges) -> Edges:
    """The smallest of :func:`_forms`, found node by node: only equal pairs have to be tried in turn."""
    pairs = _pairs(edges)

    def grow(place: dict[int, int], form: Edges) -> Edges:
        if len(place) == NODES + 2:
            return form
        ready = [
            (tuple(sorted((place[s], op) for s, op in pair)), node)
            for node, pair in enumerate(pairs, 2)
            if node not in place and all(s in place for s, _ in pair)
        ]
        first = min(ready)[0]
        return min(grow(place | {node: len(place)}, form + pair) for pair, node in ready if pair == first)

    return grow({0: 0, 1: 1}, ())


def _edge(word: str) -> tuple[str | int, int]:
    match = re.fullmatch(r"(\w+)~(\d+)", word)
    if match is None:
        raise ValueError(f"an edge of darts is written operation~input, got {word!r}")
    return int(match[2]), op_index(match[1], OPERATIONS, "darts")


def _literal(text: str) -> list:
    if len(text) > 2_000:  # two cells take 200 characters; the parser's memory grows much faster than its text
        raise ValueError(f"darts cells are two lists of eight (input, operation) pairs, got {len(text)} characters")
    try:
        cells = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"darts cells are two lists of eight (input, operation) pairs, got {text[:200]!r}") from None
    if not isinstance(cells, (list, tuple)) or len(cells) != 2:
        raise ValueError(f"darts cells are a pair (normal, reduce), got {text[:200]!r}")
    return list(cells)


def _official(text: str) -> list:
    """Cells of ``Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), reduce=[...], ...)``."""
    written = f"a DARTS Genotype is written Genotype(normal=[(operation, input), ...], ...), got {text[:200]!r}"
    if len(text) > 2_000:
        raise ValueError(written)
    try:
        call = ast.parse(text, mode="eval").body
        given = {k.arg: _argument(k.value) for k in call.keywords}
        pairs = [[(operator.index(source), op) for op, source in given[label]] for label in CELLS]
    except (ValueError, SyntaxError, MemoryError, RecursionError, AttributeError, KeyError, TypeError):
        raise ValueError(written) from None
    for label in CELLS:
        joined = given.get(f"{label}_concat", JOINED)
        if not isinstance(joined, (list, tuple)) or sorted(joined, key=str) != list(JOINED):
            raise ValueError(f"a cell of darts joins all its nodes {list(JOINED)}, got {label}_concat={joined}")
    return [[(source, op_index(op, OPERATIONS, "darts")) for source, op in cell] for cell in pairs]


def _argument(node: ast.expr) -> Any:
    """A literal, or ``range(a, b)`` of two literals as a list."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        first, last = (operator.index(ast.literal_eval(a)) for a in node.args)
        return list(range(first, min(last, first + 8)))
    return ast.literal_eval(node)


def _preprocess(before: int, last: int, c: int, side: int, was_reduction: bool) -> tuple[int, float]:
    """1x1 convolutions that bring both inputs to ``c`` channels; after a reduction the older one is also halved."""
    weights = (before + last) * c
    return weights + 4 * c, float(weights * side * side)


def _cell(edges: Edges, c: int, side: int, reduction: bool) -> tuple[int, float]:
    params, flops = 0, 0.0
    for source, op in edges:
        stride = 2 if reduction and source < 2 else 1
        positions = (side // 2) ** 2 if reduction else side**2
        kernel = (3, 3, 0, 3, 5, 3, 5)[op]
        weights = norm = 0
        if op in (3, 4):
            weights, norm = 2 * (kernel * kernel * c + c * c), 4 * c
        elif op in (5, 6):
            weights, norm = kernel * kernel * c + c * c, 2 * c
        elif op == 2 and stride == 2:
            weights, norm = c * c, 2 * c
        params, flops = params + weights + norm, flops + weights * positions
    return params, flops
