"""NAS-Bench-Graph: validation accuracy for search, test for reports, on nine graph data sets (registry archive)."""

from functools import cache
from types import MappingProxyType

import numpy as np

from core.data import pickles
from core.data.assets import resolve
from core.nas.oracles import ORACLES, TableOracle
from core.nas.oracles.columns import complete, fields, finite, genotypes
from core.nas.spaces.nasbench_graph import GraphCell, NASBenchGraph
from core.registry import nearest
from core.transfer.budget import Budget

ARCHIVE = "nas-bench-graph"
DATASETS = ("cora", "citeseer", "pubmed", "cs", "physics", "photo", "computers", "arxiv", "proteins")
PARTIAL = ("proteins",)  # only some of the architectures were trained on it
COLUMNS = ("valid_perf", "perf", "latency", "para")


@ORACLES.register("nasbench-graph", space="nasbench-graph")
class NASBenchGraphTable(TableOracle):
    """NAS-Bench-Graph from the registry archive: 26,206 architectures (2,021 on proteins), mean of three runs.

    The light tables state no training time: ``cost_seconds`` is 0, only queries are counted.

    Args:
        dataset: one of :data:`DATASETS`.
    """

    name, noise = "nasbench-graph", "mean"
    cost = "not stated by the table (0)"

    def __init__(self, dataset: str = "cora", seed: int = 0, budget: Budget | None = None):
        if dataset not in DATASETS:
            raise ValueError(f"unknown data set {dataset!r}{nearest(dataset, DATASETS)} Allowed: {', '.join(DATASETS)}")
        super().__init__(budget, seed)
        self.space, self.dataset = NASBenchGraph(), dataset
        asset = resolve(ARCHIVE)
        self.inputs = MappingProxyType({ARCHIVE: asset.sha256})
        file = asset.path / "light" / f"{dataset}.bench"
        self.cells, self.row_of, columns = _read(str(file), dataset not in PARTIAL)
        self.answers, self.seconds = columns["valid_perf"] * 100, np.zeros(len(self.cells))
        self.columns = {"params": columns["para"] * 1e6, "latency_s": columns["latency"]}
        self.report = {"valid": self.answers, "test": columns["perf"] * 100}

    def index(self, g: GraphCell) -> int:
        row = self.row_of.get(self.space.canonical(g))
        if row is None:
            raise ValueError(
                f"the {self.dataset} table has no cell {self.space.format(g)!r} (only {len(self.cells)} of "
                f"{self.space.size:,} architectures were trained on it)"
            )
        return row


@cache
def _read(path: str, whole: bool) -> tuple[list[GraphCell], dict[GraphCell, int], dict[str, np.ndarray]]:
    data, space = pickles.load(path), NASBenchGraph()
    fields(data, COLUMNS, path)
    numbers = list(data)
    cells, row_of = genotypes(
        space, numbers, path, lambda n: space.canonical(space.from_number(n)), lambda row, cell: cell
    )
    if whole:
        complete(space, cells, path)
    columns = {name: finite([row[name] for row in data.values()], name, path, numbers) for name in COLUMNS}
    return cells, row_of, columns
