"""The official NAS-Bench-201 file through its own package, loaded safely.

The package reads its ``.pth`` with plain ``torch.load``, which newer torch refuses. Here the dictionary is read with
``weights_only=True`` and an allow-list of the two numpy names it holds, then handed over record by record.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from core.data.assets import content_hash
from core.hashing import content_key
from core.nas.oracles import ORACLES
from core.nas.oracles.columns import AGAIN, finite, genotypes, not_negative, training_runs
from core.nas.oracles.runs import RunsTable
from core.nas.spaces.nb201 import NB201, NB201Cell
from core.progress import progress
from core.registry import nearest
from core.state import Cache
from core.transfer.budget import Budget

# data set -> (official name and set of validation, official name and set of test)
SETS = {
    "cifar10": (("cifar10-valid", "x-valid"), ("cifar10", "ori-test")),
    "cifar100": (("cifar100", "x-valid"), ("cifar100", "x-test")),
    "imagenet16": (("ImageNet16-120", "x-valid"), ("ImageNet16-120", "x-test")),
}
LENGTHS = {200: "full", 12: "less"}


@ORACLES.register("nb201-official", space="nb201")
class NB201Official(RunsTable):
    """NAS-Bench-201 from its official ``.pth``: validation runs for search, test for reports, 12 or 200 epochs.

    Cells that the file has not evaluated are refused. What was read is kept in the cache under the file's hash.

    Args:
        path: ``NAS-Bench-201-v1_0-e61699.pth``, ``NAS-Bench-201-v1_1-096897.pth``, or a file of that format.
        dataset: cifar10, cifar100 or imagenet16.
        epochs: 200 or 12 (trained with a schedule of their own).
        noise: "single run" (chosen by ``seed``) or "mean".
    """

    name = "nb201-official"

    def __init__(
        self,
        path: str,
        dataset: str = "cifar10",
        epochs: int = 200,
        noise: str = "single run",
        seed: int = 0,
        budget: Budget | None = None,
        cache: Cache | None = None,
    ):
        if dataset not in SETS:
            raise ValueError(f"unknown data set {dataset!r}{nearest(dataset, SETS)} Allowed: {', '.join(SETS)}")
        if epochs not in LENGTHS:
            raise ValueError(f"the file has 12 and 200 epochs, got {epochs}")
        super().__init__(noise, seed, budget)
        self.space, self.dataset, self.epochs = NB201(), dataset, epochs
        digest = content_hash(_existing(path))
        self.inputs = MappingProxyType({Path(path).name: digest})
        arrays = _arrays(path, digest, cache or Cache(), dataset, epochs)
        self.cells = [NB201Cell(tuple(ops)) for ops in arrays["ops"].tolist()]
        self._row_of = {cell: row for row, cell in enumerate(self.cells)}
        self.fill(arrays["valid"], arrays["seconds"])
        self.columns = {"params": arrays["params"], "flops": arrays["flops"]}
        self.report |= {name: arrays[name] for name in ("test",) if name in arrays}

    def index(self, g: NB201Cell) -> int:
        if g not in self._row_of:
            raise ValueError(f"the file has not evaluated {self.space.format(g)} ({len(self.cells)} cells evaluated)")
        return self._row_of[g]


def load_dictionary(path: str | Path) -> dict[str, Any]:
    """The official dictionary, unpickled with ``weights_only=True``; only numpy's scalars are allowed on top.

    Raises:
        ValueError: no such file, another format, or a file that asks for anything else.
    """
    import pickle

    import torch

    scalar = np.float64(0).__reduce__()[0]
    allowed = [np.dtype, type(np.dtype("float64")), type(np.dtype("int64"))]
    allowed += [(scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(allowed):
            data = torch.load(_existing(path), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read safely as a NAS-Bench-201 file: {error}") from None
    missing = {"meta_archs", "arch2infos", "evaluated_indexes"} - set(data if isinstance(data, dict) else ())
    if missing:
        raise ValueError(f"{path} is no NAS-Bench-201 file: it lacks {', '.join(sorted(missing))}")
    return data


def load_api(path: str | Path) -> Any:
    """A ``nas_201_api.NASBench201API`` of the file, with all its methods.

    The records are handed over one by one: the package itself would first copy the whole dictionary.
    """
    from nas_201_api import NASBench201API
    from nas_201_api.api_utils import ArchResults

    data = load_dictionary(path)
    infos = data["arch2infos"]
    api = NASBench201API({**data, "arch2infos": {}}, verbose=False)
    for index in sorted(infos):
        record = infos.pop(index)
        with _named(path, index):
            api.arch2infos_dict[index] = {
                str(epochs): ArchResults.create_from_state_dict(record[name])
                for epochs, name in sorted(LENGTHS.items())
            }
    api.evaluated_indexes = sorted(api.arch2infos_dict)
    return api


def _arrays(path: str, digest: str, cache: Cache, dataset: str, epochs: int) -> dict[str, np.ndarray]:
    def build(folder: Path) -> dict[str, str]:
        api = load_api(path)
        for name in SETS:
            for length in LENGTHS:
                np.savez(folder / f"{name}-{length}.npz", **_columns(api, name, str(length), path))
        return {"file": Path(path).name, "sha256": digest}

    folder = cache.compute("nb201", content_key(digest, "arrays 2"), build)
    with np.load(folder / f"{dataset}-{epochs}.npz") as stored:
        arrays = dict(stored)
    if not len(arrays["ops"]):
        raise ValueError(f"{path} has no validation run on {dataset} at {epochs} epochs")
    return _checked(arrays, path, f"{dataset} at {epochs} epochs")


def _checked(arrays: dict[str, np.ndarray], path: str, what: str) -> dict[str, np.ndarray]:
    """``arrays``; without ``test`` where no cell of the file has one.

    Raises:
        ValueError: a cell twice, one without a run, or what is no finite number.
    """
    space = NB201()
    cells, _ = genotypes(space, [NB201Cell(tuple(ops)) for ops in arrays["ops"].tolist()], path, lambda cell: cell)
    rows = [space.format(cell) for cell in cells]
    runs = np.isfinite(training_runs(arrays["valid"], f"validation on {what}", path, rows)).sum(1)
    training_runs(arrays["seconds"], f"training seconds on {what}", path, rows, runs)
    not_negative(np.nanmin(arrays["seconds"], axis=1), "seconds", path)
    if np.isnan(arrays["test"]).all():
        arrays = {name: values for name, values in arrays.items() if name != "test"}
    for name in sorted({"test", "params", "flops"} & arrays.keys()):
        finite(arrays[name], f"{name} on {what}", path, rows)
    return arrays


def _columns(api: Any, dataset: str, hp: str, path: str) -> dict[str, np.ndarray]:
    """Arrays over the evaluated cells: ops, valid and seconds ``[rows, runs]``, test, params, flops."""
    (valid_name, valid_set), (test_name, test_set) = SETS[dataset]
    space = NB201()
    rows = []
    for index in progress(api.evaluated_indexes, f"read {dataset} {hp} epochs"):
        with _named(path, index):
            record = api.arch2infos_dict[index][hp]
            if valid_name not in record.get_dataset_names():
                continue
            seeds = record.get_dataset_seeds(valid_name)
            runs = [record.get_metrics(valid_name, valid_set, is_random=seed) for seed in seeds]
            has_test = test_name in record.get_dataset_names()
            cost = record.get_compute_costs(valid_name)
            rows.append(
                {
                    "ops": space.parse(api.arch(index)).ops,
                    "valid": [run["accuracy"] for run in runs],
                    "test": record.get_metrics(test_name, test_set)["accuracy"] if has_test else np.nan,
                    "seconds": [record.get_metrics(valid_name, "train", is_random=s)["all_time"] for s in seeds],
                    "params": cost["params"] * 1e6,
                    "flops": cost["flops"] * 1e6,
                }
            )
    most = max((len(row["valid"]) for row in rows), default=1)
    columns = {name: np.array([row[name] for row in rows], dtype=float) for name in ("test", "params", "flops")}
    for name in ("valid", "seconds"):
        columns[name] = np.array([row[name] + [np.nan] * (most - len(row[name])) for row in rows]).reshape(-1, most)
    return {"ops": np.array([row["ops"] for row in rows], dtype=int), **columns}


@contextmanager
def _named(path: str | Path, index: Any) -> Iterator[None]:
    """What the official package says of a damaged record comes with the file and the architecture."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: architecture {index} has no record of NAS-Bench-201 ({told}); {AGAIN}") from None


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"no file {path}: give the path of NAS-Bench-201-v1_1-096897.pth")
    return Path(path)
