"""Space-independent features of a cell: what its data-flow graph looks like, whatever the space calls its operations.

Every space describes a cell as a graph over one vocabulary (:data:`core.nas.spaces.OPS`). Joins are contracted, so
that operations on nodes (NB101) and on edges (NB201, DARTS) give the same kind of graph, and dead branches are cut.
Over all paths from input to output we count, take the longest, the shortest and the mean of what the operations on the
path bring. A predictor trained on these numbers in one space can be asked about another.

Two views of the same numbers transfer differently, so both are kept: the raw value (a longest path of 3 convolutions
means the same everywhere) and the rank within the space (more convolutions than 90 % of this space's cells).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from core.nas.spaces import OPS, Genotype, Space

PROPERTIES = ("learn", "mix", "reach", "pool", "maxpool", "skip", "weight")
ALONG = (*PROPERTIES, "length")
CELLS = {"normal": 0.75, "reduce": 0.25}  # share of a network's cells of each kind in the DARTS macro

NAMES = (
    *("nodes", "edges", "cycles", "log_paths"),
    *(f"{how}_{name}" for name in PROPERTIES for how in ("sum", "share")),
    *(f"{how}_{name}" for name in ALONG for how in ("longest", "shortest", "mean")),
    *("free_paths", "identity_paths", "has_identity", "free_count", "out_of_input", "into_output"),
    *(f"{end}_{name}" for name in ("learn", "pool", "weight") for end in ("first", "last")),
    *("width", "most_inputs", "learn_learn", "learn_pool", "depth_share", "connected"),
)
SIZES = ("log_params", "log_flops")
COLUMNS = (*NAMES, *SIZES)


def properties(op: str) -> list[float]:
    """The numbers of :data:`PROPERTIES` for a generic operation."""
    kind = OPS[op]
    reach = (kind.kernel - 1) / 2 if kind.kernel else 0.0
    return [
        float(kind.weight > 0),
        float(kind.weight > 0 and kind.kernel > 1),
        reach,
        float(kind.family == "pool"),
        float(op == "maxpool3x3"),
        float(kind.family == "skip"),
        kind.weight / 9,
    ]


def contract(graph: nx.DiGraph) -> tuple[np.ndarray, np.ndarray]:
    """Adjacency (bool ``[n, n]``, input first, output last, sorted) and properties (``[n, p]``) without join nodes.

    Several inputs become one. Raises ValueError for a cyclic graph or one without input or output.
    """
    try:
        order = list(nx.topological_sort(graph))
    except nx.NetworkXUnfeasible:
        raise ValueError("a cell's graph must not have a cycle") from None
    ops = nx.get_node_attributes(graph, "op")
    if "input" not in ops.values() or "output" not in ops.values():
        raise ValueError("a cell's graph needs an input and an output node")
    real = [v for v in order if OPS[ops[v]].family not in ("join", "end")]
    index = {v: i for i, v in enumerate(real, 1)} | {v: 0 for v in order if ops[v] == "input"}
    last = len(real) + 1
    adjacency = np.zeros((last + 1, last + 1), dtype=bool)
    origins: dict = {}
    for v in order:
        above = set()
        for u in graph.predecessors(v):
            above |= origins[u] if OPS[ops[u]].family == "join" else {index[u]}
        origins[v] = above
        place = last if ops[v] == "output" else index.get(v)
        if place:
            adjacency[list(above), place] = True
    return adjacency, np.array([[0.0] * len(PROPERTIES), *(properties(ops[v]) for v in real), [0.0] * len(PROPERTIES)])


def raw_features(space: Space, cells: Sequence[Genotype]) -> np.ndarray:
    """Features of cells, float32 ``[n, len(COLUMNS)]``; the last two columns are log sizes from closed forms."""
    graphs, owner, share = [], [], []
    for i, cell in enumerate(cells):
        graph = space.graph(cell)
        kinds = nx.get_node_attributes(graph, "cell")
        names = sorted(set(kinds.values()))
        for name in names or [None]:
            part = graph if name is None else graph.subgraph([v for v in graph if kinds.get(v) == name])
            graphs.append(contract(part))
            owner.append(i)
            share.append(1.0 if name is None else CELLS.get(name, 1 / len(names)))
    out = np.zeros((len(cells), len(COLUMNS)), dtype=np.float32)
    sizes = np.array([len(p) for _, p in graphs])
    for size in np.unique(sizes):  # cells of equal size are measured together
        rows = np.flatnonzero(sizes == size)
        values = measure(np.stack([graphs[r][0] for r in rows]), np.stack([graphs[r][1] for r in rows]))
        np.add.at(out, (np.array(owner)[rows], slice(0, len(NAMES))), values * np.array(share)[rows, None])
    size_features = [space.size_features(cell) for cell in cells]
    for column, name in ((-2, "params"), (-1, "flops")):
        out[:, column] = np.log1p([s[name] for s in size_features])
    return out


def measure(adjacency: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Path statistics of a batch of sorted graphs.

    Args:
        adjacency: bool ``[batch, n, n]``, upper triangular, node 0 the input, node n-1 the output.
        values: ``[batch, n, p]`` properties of the operations, 0 at both ends.

    Returns:
        ``[batch, len(NAMES)]``; all 0 where no path leads from input to output.
    """
    edges, live = _cut_dead(adjacency)
    values = values * live[:, :, None]
    a = edges.astype(float)
    joined = live[:, 0]
    nodes = np.maximum(live.sum(1) - 2.0, 0)
    paths, total, longest, shortest, free, identity = _walk(edges, values)
    count = np.maximum(paths, 1)
    sums = values.sum(1)
    learn, pool, weight = values[:, :, 0], values[:, :, 3], values[:, :, 6]
    column = [nodes, a.sum((1, 2)), a.sum((1, 2)) - nodes - 1, np.log(count)]
    for k in range(len(PROPERTIES)):
        column += [sums[:, k], sums[:, k] / np.maximum(nodes, 1)]
    for k in range(len(ALONG)):
        column += [longest[:, -1, k], shortest[:, -1, k], total[:, k] / count]
    outgoing, incoming = a[:, 0].sum(1), a[:, :, -1].sum(1)
    column += [free / count, identity / count, identity > 0, free, outgoing, incoming]
    for p in (learn, pool, weight):
        column.append((a[:, 0] * p).sum(1) / np.maximum(outgoing, 1))
        column.append((a[:, :, -1] * p).sum(1) / np.maximum(incoming, 1))
    level = np.where(live, longest[:, :, -1], -1)
    column.append(np.max([(level == depth).sum(1) for depth in range(1, edges.shape[1])], axis=0))
    column += [a.sum(1).max(1), np.einsum("bi,bij,bj->b", learn, a, learn)]
    column.append(np.einsum("bi,bij,bj->b", learn, a, pool) + np.einsum("bi,bij,bj->b", pool, a, learn))
    column += [longest[:, -1, 0] / np.maximum(sums[:, 0], 1), joined]
    return np.stack([np.where(joined, c, 0.0) for c in column], axis=1)


def _cut_dead(adjacency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges on a path from input to output, and which nodes lie on one."""
    n = adjacency.shape[1]
    ahead = np.zeros(adjacency.shape[:2], dtype=bool)
    behind = ahead.copy()
    ahead[:, 0] = behind[:, -1] = True
    for j in range(1, n):
        ahead[:, j] = (adjacency[:, :, j] & ahead).any(1)
    for i in range(n - 2, -1, -1):
        behind[:, i] = (adjacency[:, i] & behind).any(1)
    live = ahead & behind
    return adjacency & live[:, :, None] & live[:, None, :], live


def _walk(edges: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """One pass in topological order: number of paths, sums over paths, longest and shortest at every node, number of
    paths without weights, number of pure identity paths."""
    batch, n, _ = values.shape
    step = np.concatenate([values, np.ones((batch, n, 1))], axis=2)
    step[:, 0] = step[:, -1] = 0
    paths, free, identity = (np.zeros((batch, n)) for _ in range(3))
    paths[:, 0] = free[:, 0] = identity[:, 0] = 1
    total = np.zeros_like(step)
    longest, shortest = np.full_like(step, -np.inf), np.full_like(step, np.inf)
    longest[:, 0] = shortest[:, 0] = 0
    for j in range(1, n):
        a, mask = edges[:, :j, j].astype(float), edges[:, :j, j, None]
        paths[:, j] = (a * paths[:, :j]).sum(1)
        total[:, j] = (a[:, :, None] * total[:, :j]).sum(1) + paths[:, j, None] * step[:, j]
        longest[:, j] = np.where(mask, longest[:, :j], -np.inf).max(1) + step[:, j]
        shortest[:, j] = np.where(mask, shortest[:, :j], np.inf).min(1) + step[:, j]
        weightless = values[:, j, 0] == 0
        free[:, j] = (a * free[:, :j]).sum(1) * weightless
        identity[:, j] = (a * identity[:, :j]).sum(1) * (weightless & (values[:, j, 3] == 0))
    return paths[:, -1], total[:, -1], longest, shortest, free[:, -1], identity[:, -1]


@dataclass(frozen=True)
class Scale:
    """The population of a space against which raw features are read: sorted columns ``[m, f]``, mean and deviation."""

    columns: np.ndarray

    @classmethod
    def of(cls, raw: np.ndarray) -> "Scale":
        return cls(np.sort(np.asarray(raw, dtype=np.float32), axis=0))

    def ranks(self, raw: np.ndarray) -> np.ndarray:
        """Share of the population below each value (ties count half), ``[n, f]`` in 0..1."""
        out = np.empty(raw.shape, dtype=np.float32)
        for k in range(raw.shape[1]):
            column = self.columns[:, k]
            out[:, k] = np.searchsorted(column, raw[:, k], "left") + np.searchsorted(column, raw[:, k], "right")
        return out / (2 * len(self.columns))

    def distances(self, raw: np.ndarray) -> np.ndarray:
        """Standardised raw values and ranks side by side, scaled to mean squared norm 1: the Gaussian process measures
        distances between cells here. Columns constant in the population are left out."""
        mean, spread = self.columns.mean(0), self.columns.std(0)
        moving = spread > 1e-6
        own = self.ranks(self.columns)
        z = np.clip((raw - mean)[:, moving] / spread[moving], -4, 4)
        r = (self.ranks(raw) - 0.5)[:, moving] / np.maximum(own.std(0)[moving], 1e-3)
        return (np.concatenate([z, np.clip(r, -4, 4)], axis=1) / np.sqrt(2 * moving.sum())).astype(np.float32)
