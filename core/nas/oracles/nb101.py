"""NAS-Bench-101 as a pool: the cells whose validation accuracy is at hand locally, noise-free by construction."""

from functools import cache
from types import MappingProxyType

import numpy as np

from core.data.assets import content_hash
from core.nas.oracles import ORACLES, TableOracle
from core.nas.oracles.nb201 import local_table
from core.nas.spaces.nb101 import NB101, NB101Cell
from core.transfer.budget import Budget

PARQUET = "nas/nb101_subset30k.parquet"
EPOCHS = (4, 12, 36, 108)


@ORACLES.register("nb101-pool", space="nb101")
class NB101Pool(TableOracle):
    """30,001 real NAS-Bench-101 cells, the one recorded validation accuracy of each.

    The pool is two slices of the hash-sorted benchmark, in effect a random sample. It holds one training run a cell, so
    a query and the reference are the same number: results are called noise-free, and nothing about test accuracy or the
    other 393,623 cells can be claimed from it.

    Args:
        epochs: 4, 12, 36 or 108.
        path: the parquet; by default ``nas/nb101_subset30k.parquet`` in a folder of ``TRANSFEROPT_DATA``.
    """

    name, dataset, noise = "nb101-pool", "cifar10", "none"
    cost = "training seconds of the 108-epoch run, scaled to the epochs"

    def __init__(self, epochs: int = 108, seed: int = 0, budget: Budget | None = None, path: str | None = None):
        super().__init__(budget, seed)
        if epochs not in EPOCHS:
            raise ValueError(f"the pool has {', '.join(map(str, EPOCHS))} epochs, got {epochs}")
        file = local_table(path, PARQUET, "the official TFRecord (oracle 'nb101-official') has all cells")
        self.space, self.epochs = NB101(), epochs
        self.inputs = MappingProxyType({file.name: content_hash(file)})
        self.cells, self.row_of, columns = _read(str(file))
        self.answers = columns[f"valid_{epochs}"] * 100
        self.seconds = columns["train_time_108_s"] * epochs / 108
        self.columns = {"params": columns["params"]}
        self.report = {"valid": self.answers}

    def index(self, g: NB101Cell) -> int:
        key = self.space.key(g)
        if key not in self.row_of:
            raise ValueError(
                f"nb101 cell {self.space.format(g)!r} is not among the {len(self.cells)} cells of the pool"
            )
        return self.row_of[key]


@cache
def _read(path: str) -> tuple[list[NB101Cell], dict[str, int], dict[str, np.ndarray]]:
    import pandas as pd

    table = pd.read_parquet(path)
    cells = [
        NB101Cell(tuple(map(int, edges)), tuple(map(int, ops))) for edges, ops in zip(table["adj_upper"], table["ops"])
    ]
    names = [*(f"valid_{e}" for e in EPOCHS), "train_time_108_s", "params"]
    return cells, {h: i for i, h in enumerate(table["hash"])}, {n: table[n].to_numpy(float) for n in names}
