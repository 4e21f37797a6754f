"""NAS-Bench-101 as a pool: the cells whose validation accuracy is at hand locally, noise-free by construction."""

from functools import cache
from types import MappingProxyType

import numpy as np

from core.data.assets import content_hash
from core.nas.oracles import ORACLES, TableOracle
from core.nas.oracles.columns import AGAIN, genotypes, not_negative, numbers, read_frame, require, texts
from core.nas.oracles.nb201 import local_table
from core.nas.spaces.nb101 import NB101, NB101Cell
from core.transfer.budget import Budget

PARQUET = "nas/nb101_subset30k.parquet"
EPOCHS = (4, 12, 36, 108)
SECONDS = "train_time_108_s"


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
        self.seconds = columns[SECONDS] * epochs / 108
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
    table = read_frame(path, ["adj_upper", "ops", "hash"])
    names = [*(f"valid_{e}" for e in EPOCHS), SECONDS, "params"]
    require(table, ["adj_upper", "ops", "hash", *names], path)
    edges, ops, hashes = (texts(table[name]) for name in ("adj_upper", "ops", "hash"))
    given = [None if None in row else row for row in zip(edges, ops, hashes)]  # no operations are the empty text
    cells, row_of = genotypes(NB101(), given, path, _cell, lambda row, cell: hashes[row])
    columns = {name: numbers(table[name], name, path, AGAIN) for name in names}
    not_negative(columns[SECONDS], SECONDS, path)
    return cells, row_of, columns


def _cell(row: tuple[str, str, str]) -> NB101Cell:
    """The cell of edge bits and operation digits. Raises ValueError unless it is valid."""
    edges, ops, key = row
    if not (edges + ops).isdecimal() or not key:
        raise ValueError(f"a cell has edge bits, operation digits and a hash, got {edges!r}, {ops!r} and {key!r}")
    cell = NB101Cell(tuple(map(int, edges)), tuple(map(int, ops)))
    NB101().check(cell)
    return cell
