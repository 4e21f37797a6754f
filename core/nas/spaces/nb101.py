"""NAS-Bench-101: labelled directed acyclic graphs of at most 7 nodes and 9 edges (Ying et al., ICML 2019).

A cell is stored pruned: every node lies on a path from input to output, as the benchmark's model specification does
before it trains. The key is the benchmark's own module hash (iterated md5 over in- and out-neighbours), so keys found
here are keys of the published tables. The space has exactly 423,624 of them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import Any

import networkx as nx
import numpy as np

from core.nas.spaces import CLS, END, SPACES, Space, check_integers, op_index, shown

OPERATIONS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
GENERIC = ("conv3x3", "conv1x1", "maxpool3x3")
MAX_NODES, MAX_EDGES = 7, 9
STAGES = (
    (128, 128, 32),
    (128, 256, 16),
    (256, 512, 8),
)  # (channels in, channels out, image side) of three modules each


@dataclass(frozen=True)
class NB101Cell:
    """``edges``: bits of the adjacency matrix's upper triangle, row by row; ``ops``: operations of the interior."""

    edges: tuple[int, ...]
    ops: tuple[int, ...]

    @property
    def nodes(self) -> int:
        return len(self.ops) + 2


def matrix_of(cell: NB101Cell) -> np.ndarray:
    """Adjacency matrix, int8 ``[nodes, nodes]``, upper triangular."""
    matrix = np.zeros((cell.nodes, cell.nodes), dtype=np.int8)
    matrix[np.triu_indices(cell.nodes, 1)] = cell.edges
    return matrix


def prune(matrix: np.ndarray, ops: Sequence[int]) -> NB101Cell:
    """Drop the nodes that lie on no path from input to output.

    Raises:
        ValueError: no path from input to output is left, or more than 9 edges.
    """
    keep = _useful(matrix)
    if not keep[0]:
        raise ValueError("disconnected nb101 cell: no path leads from input to output")
    inner = matrix[np.ix_(keep, keep)]
    if inner.sum() > MAX_EDGES:
        raise ValueError(f"an nb101 cell has at most {MAX_EDGES} edges, got {int(inner.sum())}")
    edges = inner[np.triu_indices(len(inner), 1)]
    return NB101Cell(tuple(edges.tolist()), tuple(int(o) for o, k in zip(ops, keep[1:-1]) if k))


@SPACES.register("nb101", source="Ying et al. 2019")
class NB101(Space):
    """NAS-Bench-101: up to 7 nodes, 9 edges, three operations, 423,624 cells."""

    name, kind, genotype = "nb101", "op_on_node", NB101Cell
    vocabulary = (CLS, END, "no_edge", "edge", *OPERATIONS, "absent")
    token_length = 28
    size = 423_624

    def check(self, g: NB101Cell) -> None:
        self.own(g)
        check_integers(g.ops, "operations of an nb101 cell")
        check_integers(g.edges, "edge bits of an nb101 cell")
        n = g.nodes
        if not 2 <= n <= MAX_NODES:
            raise ValueError(f"an nb101 cell has 2 to {MAX_NODES} nodes, got {n}")
        if len(g.edges) != n * (n - 1) // 2 or any(e not in (0, 1) for e in g.edges):
            raise ValueError(f"{n} nodes need {n * (n - 1) // 2} edge bits of 0 or 1 (upper triangle), got {g.edges}")
        if sum(g.edges) > MAX_EDGES:
            raise ValueError(f"an nb101 cell has at most {MAX_EDGES} edges, got {sum(g.edges)}")
        for op in g.ops:
            if op not in (0, 1, 2):
                raise ValueError(f"unknown operation {op!r} of nb101; allowed: 0..2 = {', '.join(OPERATIONS)}")
        useless = np.flatnonzero(~_useful(matrix_of(g))).tolist()
        if useless:
            raise ValueError(
                f"disconnected nb101 cell: nodes {useless} lie on no path from input (0) to output ({n - 1})"
            )

    def from_matrix(self, matrix: Sequence[Sequence[int]], operations: Sequence[str]) -> NB101Cell:
        """The cell of an official specification (matrix with input first, operation names of all nodes).

        Raises:
            ValueError: no matrix, not square, not 0/1, cyclic, too large, unknown operation, or a node off every path.
        """
        names = _items(operations)
        if names is None or not all(isinstance(name, str) for name in names):
            raise ValueError(f"operations are a list of names, input and output included, got {shown(operations)}")
        n = len(names)
        array = _square(matrix, n)
        if n < 2 or names[0] != "input" or names[-1] != "output":
            raise ValueError(f"the first operation is 'input' and the last 'output', got {names}")
        if np.tril(array).any():
            i, j = np.argwhere(np.tril(array))[0]
            raise ValueError(f"cyclic or unsorted cell: edge {i} -> {j} does not go forward (upper triangle only)")
        ops = tuple(op_index(op, OPERATIONS, self.name) for op in names[1:-1])
        cell = NB101Cell(tuple(int(v) for v in array[np.triu_indices(n, 1)]), ops)
        self.check(cell)
        return cell

    def key(self, g: NB101Cell) -> str:
        return module_hash(matrix_of(g).tolist(), (-1, *g.ops, -2))

    def canonical(self, g: NB101Cell) -> NB101Cell:
        n, matrix = g.nodes, matrix_of(g)
        if n < 4:
            return g
        orders = _orders(n)
        permuted = matrix[orders[:, :, None], orders[:, None, :]]
        forward = ~np.tril(np.ones((n, n), bool))
        legal = (permuted * ~forward).sum((1, 2)) == 0
        bits = permuted[legal][:, forward]
        ops = np.asarray(g.ops)[orders[legal][:, 1:-1] - 1]
        rows = np.concatenate([bits, ops], axis=1)
        best = rows[np.lexsort(rows.T[::-1])[0]].tolist()
        return NB101Cell(tuple(best[: len(g.edges)]), tuple(best[len(g.edges) :]))

    def relabel(self, g: NB101Cell, rng: np.random.Generator) -> NB101Cell:
        matrix, orders = matrix_of(g), _orders(g.nodes)
        for order in orders[rng.permutation(len(orders))]:
            permuted = matrix[np.ix_(order, order)]
            if not np.tril(permuted).any():
                ops = tuple(g.ops[i - 1] for i in order[1:-1])
                return NB101Cell(tuple(permuted[np.triu_indices(g.nodes, 1)].tolist()), ops)
        return g

    def sample(self, rng: np.random.Generator) -> NB101Cell:
        """As the benchmark samples: a random 7-node matrix and operations, redrawn until valid, then pruned."""
        upper = np.triu_indices(MAX_NODES, 1)
        while True:
            matrix = np.zeros((MAX_NODES, MAX_NODES), dtype=np.int8)
            matrix[upper] = rng.integers(0, 2, len(upper[0]))
            ops = rng.integers(0, 3, MAX_NODES - 2)
            try:
                return prune(matrix, ops.tolist())
            except ValueError:
                continue

    def neighbours(self, g: NB101Cell) -> list[NB101Cell]:
        found = {self.key(g): g}
        for child in self._edits(self.canonical(g)):
            found.setdefault(self.key(child), child)
        return list(found.values())[1:]

    def mutate(self, g: NB101Cell, rng: np.random.Generator) -> NB101Cell:
        edits, own = list(self._edits(g)), self.key(g)
        for i in rng.permutation(len(edits)):
            if self.key(edits[i]) != own:
                return edits[i]
        raise ValueError(f"nb101 cell {self.format(g)} has no neighbour")

    def encode(self, g: NB101Cell) -> np.ndarray:
        """CLS, 21 edges, 5 operations, END; a smaller cell keeps its interior first, then absent nodes, then output."""
        places = [*range(g.nodes - 1), MAX_NODES - 1]
        wide = np.zeros((MAX_NODES, MAX_NODES), dtype=np.int64)
        wide[np.ix_(places, places)] = matrix_of(g)
        ops = [4 + op for op in g.ops] + [7] * (MAX_NODES - g.nodes)
        return np.array([0, *(2 + wide[np.triu_indices(MAX_NODES, 1)]), *ops, 1])

    def decode(self, tokens: Sequence[int]) -> NB101Cell:
        """Prunes as the benchmark does; absent nodes take their edges with them."""
        names = self._spelled(tokens)
        edges, ops = names[:21], names[21:]
        if not set(edges) <= {"no_edge", "edge"} or not set(ops) <= {*OPERATIONS, "absent"}:
            raise ValueError(f"nb101 sequences hold 21 edges, then 5 operations, got {' '.join(names)}")
        matrix = np.zeros((MAX_NODES, MAX_NODES), dtype=np.int8)
        matrix[np.triu_indices(MAX_NODES, 1)] = [e == "edge" for e in edges]
        kept = [0, *(i for i, op in enumerate(ops, 1) if op != "absent"), MAX_NODES - 1]
        return prune(matrix[np.ix_(kept, kept)], [OPERATIONS.index(op) for op in ops if op != "absent"])

    def parse(self, text: str) -> NB101Cell:
        """``bits op,op,...`` as :meth:`format` writes, or JSON with ``module_adjacency`` and ``module_operations``."""
        text = self._text(text)
        if text.startswith("{"):
            try:
                data = json.loads(text)
                adjacency, operations = data["module_adjacency"], data["module_operations"]
            except (ValueError, KeyError, RecursionError) as error:
                said = f"an nb101 cell in JSON has module_adjacency and module_operations: {error!r}"
                raise ValueError(said) from None
            return self.from_matrix(adjacency, operations)
        bits, _, names = text.partition(" ")
        if not bits or set(bits) - {"0", "1"}:
            raise ValueError(f"an nb101 cell starts with the bits of its upper triangle, got {text!r}")
        ops = tuple(op_index(name, OPERATIONS, self.name) for name in names.strip().split(",") if name)
        cell = NB101Cell(tuple(int(b) for b in bits), ops)
        self.check(cell)
        return cell

    def format(self, g: NB101Cell) -> str:
        return " ".join(["".join(map(str, g.edges)), ",".join(OPERATIONS[o] for o in g.ops)]).strip()

    def size_features(self, g: NB101Cell) -> dict[str, float]:
        """Trainable weights and multiply-adds of the benchmark's CIFAR-10 network (stem, 3 x 3 modules, 10 classes)."""
        matrix = matrix_of(g)
        params, flops = 27 * 128 + 256 + 512 * 10 + 10, 27.0 * 128 * 32 * 32 + 512 * 10
        for into, out, side in STAGES:
            for source in (into, out, out):
                weights, norms = _module_weights(matrix, g.ops, source, out)
                params += weights + norms
                flops += weights * side * side
        return {"params": float(params), "flops": float(flops)}

    def graph(self, g: NB101Cell) -> nx.DiGraph:
        graph = nx.DiGraph()
        for node, op in enumerate(("input", *(GENERIC[o] for o in g.ops), "output")):
            graph.add_node(node, op=op)
        graph.add_edges_from(np.argwhere(matrix_of(g)).tolist())
        return graph

    def enumerate(self) -> Iterator[NB101Cell]:
        for n in range(2, MAX_NODES + 1):
            labels = np.array(list(product(range(3), repeat=n - 2))).reshape(3 ** (n - 2), n - 2)
            weights = 3 ** np.arange(n - 3, -1, -1) if n > 2 else np.zeros(0, int)
            for edges, symmetries in _topologies(n):
                codes = np.stack([labels[:, [p - 1 for p in s[1:-1]]] @ weights for s in symmetries])
                for ops in labels[codes.min(0) == codes[0]].tolist():
                    yield NB101Cell(edges, tuple(ops))

    def _edits(self, g: NB101Cell) -> Iterator[NB101Cell]:
        """Change an operation, flip an edge (then prune), or add a node on a new path."""
        for i, op in product(range(len(g.ops)), range(3)):
            if op != g.ops[i]:
                yield NB101Cell(g.edges, (*g.ops[:i], op, *g.ops[i + 1 :]))
        for e in range(len(g.edges)):
            flipped = NB101Cell((*g.edges[:e], 1 - g.edges[e], *g.edges[e + 1 :]), g.ops)
            try:
                yield prune(matrix_of(flipped), g.ops)
            except ValueError:
                continue
        if g.nodes < MAX_NODES and sum(g.edges) + 2 <= MAX_EDGES:
            for source in range(g.nodes - 1):
                for target, op in product(range(source + 1, g.nodes), range(3)):
                    yield _with_node(g, source, target, op)


def module_hash(matrix: Sequence[Sequence[int]], labels: Sequence[int]) -> str:
    """The benchmark's isomorphism-invariant hash: md5 over (out-degree, in-degree, label), refined once a node."""
    n = len(labels)
    into = [[w for w in range(n) if matrix[w][v]] for v in range(n)]
    out = [[w for w in range(n) if matrix[v][w]] for v in range(n)]
    hashes = [_md5(str((len(out[v]), len(into[v]), labels[v]))) for v in range(n)]
    for _ in range(n):
        left = ["".join(sorted(hashes[w] for w in into[v])) for v in range(n)]
        right = ["".join(sorted(hashes[w] for w in out[v])) for v in range(n)]
        hashes = [_md5(f"{left[v]}|{right[v]}|{hashes[v]}") for v in range(n)]
    return _md5(str(sorted(hashes)))


def vertex_channels(matrix: np.ndarray, into: int, out: int) -> list[int]:
    """Channels of a module's nodes: the output's are split over its interior inputs, the rest inherit the largest."""
    n = len(matrix)
    channels = [into] + [0] * (n - 2) + [out]
    if n > 2:
        share, extra = divmod(out, int(matrix[1:, -1].sum()))
        for v in range(1, n - 1):
            if matrix[v, -1]:
                channels[v], extra = share + (extra > 0), max(0, extra - 1)
        for v in range(n - 3, 0, -1):
            if not matrix[v, -1]:
                channels[v] = max(channels[t] for t in range(v + 1, n - 1) if matrix[v, t])
    return channels


def _module_weights(matrix: np.ndarray, ops: Sequence[int], into: int, out: int) -> tuple[int, int]:
    """Convolution weights and batch-normalisation weights of one module, input projections included."""
    channels = vertex_channels(matrix, into, out)
    weights = norms = 0
    for v in range(1, len(matrix)):
        if matrix[0, v]:
            weights, norms = weights + into * channels[v], norms + 2 * channels[v]
    for v, op in enumerate(ops, 1):
        if op < 2:
            weights, norms = weights + (9, 1)[op] * channels[v] ** 2, norms + 2 * channels[v]
    return weights, norms


def _square(matrix: Any, n: int) -> np.ndarray:
    """The adjacency matrix as int8 ``[n, n]``. Raises ValueError unless it is ``n`` rows of ``n`` zeros and ones."""
    outer = _items(matrix)
    rows = [] if outer is None else [_items(row) for row in outer]
    if outer is None or None in rows:
        raise ValueError(f"an adjacency matrix is a list of rows, each a list of 0 and 1, got {shown(matrix)}")
    lengths = [len(row) for row in rows]
    if lengths != [n] * n:
        even = f"{len(rows)} by {max(lengths, default=0)}"
        told = even if len(set(lengths)) < 2 else f"rows of lengths {lengths}"
        raise ValueError(f"{n} operations need a {n} by {n} adjacency matrix, got {told}")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if not isinstance(value, (int, float, np.number, np.bool_)) or value not in (0, 1):
                raise ValueError(f"an adjacency matrix holds 0 and 1 only, got {shown(value)} in row {i}, column {j}")
    return np.array([[int(value) for value in row] for row in rows], dtype=np.int8).reshape(n, n)


def _items(values: Any) -> list | None:
    """A list, tuple or array as a list; None for what has no order or no items (text, sets, numbers, nothing)."""
    if not isinstance(values, (list, tuple)) and hasattr(values, "__array__"):
        values = np.asarray(values)
        return list(values) if values.ndim else None
    return list(values) if isinstance(values, (list, tuple)) else None


def _useful(matrix: np.ndarray) -> np.ndarray:
    """Which nodes lie on a path from the first to the last, bool ``[nodes]``."""
    n = len(matrix)
    reach = np.linalg.matrix_power(np.eye(n, dtype=np.int64) + (matrix != 0), n) > 0
    return reach[0] & reach[:, -1]


def _with_node(g: NB101Cell, source: int, target: int, op: int) -> NB101Cell:
    """``g`` with a new node right before ``target``, on the path source -> node -> target."""
    n, matrix = g.nodes, matrix_of(g)
    old = [i for i in range(n + 1) if i != target]
    wide = np.zeros((n + 1, n + 1), dtype=np.int8)
    wide[np.ix_(old, old)] = matrix
    wide[source, target] = wide[target, target + 1] = 1
    ops = (*g.ops[: target - 1], op, *g.ops[target - 1 :])
    return NB101Cell(tuple(wide[np.triu_indices(n + 1, 1)].tolist()), ops)


@cache
def _orders(n: int) -> np.ndarray:
    """All node orders that keep input first and output last, identity first, int ``[(n-2)!, n]``."""
    return np.array([(0, *p, n - 1) for p in permutations(range(1, n - 1))], dtype=np.int64).reshape(-1, n)


def _topologies(n: int) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Unlabelled cells of ``n`` nodes in canonical form, each with its symmetries (identity first)."""
    pairs = list(zip(*np.triu_indices(n, 1)))
    place = {pair: len(pairs) - 1 - i for i, pair in enumerate(pairs)}  # first pair is the highest bit
    codes = np.arange(2 ** len(pairs), dtype=np.int64)
    has = [(codes >> place[p]) & 1 for p in pairs]
    codes = codes[(sum(has) <= MAX_EDGES) & _all_used(dict(zip(pairs, has)), n)]
    images = np.stack([_permuted(codes, order, place) for order in _orders(n)])
    smallest = images.min(0) == codes
    for code, row in zip(codes[smallest].tolist(), images[:, smallest].T):
        yield tuple((code >> place[p]) & 1 for p in pairs), _orders(n)[row == code]


def _all_used(edge: dict, n: int) -> np.ndarray:
    """Whether every node has an input and an output (in a sorted graph: lies on a path from first to last)."""
    ok = np.ones(len(edge[0, n - 1]), dtype=bool)
    for v in range(n):
        if v > 0:
            ok &= sum(edge[u, v] for u in range(v)) > 0
        if v < n - 1:
            ok &= sum(edge[v, w] for w in range(v + 1, n)) > 0
    return ok


def _permuted(codes: np.ndarray, order: np.ndarray, place: dict) -> np.ndarray:
    """Codes of the graphs with node ``order[i]`` moved to place ``i``; the largest integer where an edge turns back."""
    image, legal = np.zeros_like(codes), np.ones(len(codes), dtype=bool)
    rank = np.argsort(order)
    for (u, v), bit in place.items():
        has, a, b = (codes >> bit) & 1, int(rank[u]), int(rank[v])
        if a < b:
            image |= has << place[a, b]
        else:
            legal &= has == 0
    return np.where(legal, image, np.iinfo(np.int64).max)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
