"""The official NAS-Bench-101 file (nasbench_only108.tfrecord, nasbench_full.tfrecord), read without TensorFlow."""

import base64
import binascii
import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from core.data.assets import content_hash
from core.data.tfrecord import RecordError, protobuf_fields, records
from core.hashing import content_key
from core.nas.oracles import ORACLES
from core.nas.oracles.columns import not_negative, training_runs
from core.nas.oracles.nb101 import EPOCHS
from core.nas.oracles.runs import RunsTable
from core.nas.spaces.nb101 import NB101, NB101Cell
from core.progress import track
from core.state import Cache
from core.transfer.budget import Budget

RUNS = 3
EVALUATION = {2: "seconds", 4: "valid", 5: "test"}  # field numbers of EvaluationData


@ORACLES.register("nb101-official", space="nb101")
class NB101Official(RunsTable):
    """NAS-Bench-101 from its official TFRecord: three training runs a cell, validation for search, test for reports.

    The file is parsed once and kept as arrays in the cache, under its content hash.

    Args:
        path: the TFRecord.
        epochs: 4, 12, 36 or 108 (the small file has 108 only).
        noise: "single run" (chosen by ``seed``) or "mean" of the runs.
    """

    name, dataset = "nb101-official", "cifar10"

    def __init__(
        self,
        path: str,
        epochs: int = 108,
        noise: str = "single run",
        seed: int = 0,
        budget: Budget | None = None,
        cache: Cache | None = None,
    ):
        super().__init__(noise, seed, budget)
        if not Path(path).is_file():
            raise ValueError(f"no file {path}: give the path of nasbench_only108.tfrecord or nasbench_full.tfrecord")
        self.space, self.epochs = NB101(), epochs
        digest = content_hash(path)
        self.inputs = MappingProxyType({Path(path).name: digest})
        self.cells, self.row_of, arrays = _arrays(str(parsed(path, digest, cache or Cache())), epochs, str(path))
        self.fill(arrays["valid"], arrays["seconds"])
        self.columns = {"params": arrays["params"]}
        self.report["test"] = np.nanmean(arrays["test"], axis=1)

    def index(self, g: NB101Cell) -> int:
        key = self.space.key(g)
        if key not in self.row_of:
            raise ValueError(f"the file has no nb101 cell {self.space.format(g)!r} at {self.epochs} epochs")
        return self.row_of[key]


def parsed(path: str | Path, digest: str, cache: Cache) -> Path:
    """The cached folder of arrays of the TFRecord ``path``: one ``<epochs>.npz`` for each training length in it.

    Raises:
        RecordError: torn or damaged file, or records that are not NAS-Bench-101's.
    """

    def build(folder: Path) -> dict[str, str]:
        cells: dict[str, tuple[str, str, int]] = {}
        runs: dict[int, dict[str, list]] = defaultdict(lambda: defaultdict(list))
        with track(f"read {Path(path).name}", Path(path).stat().st_size, "B") as bar:
            for number, data in enumerate(records(path)):
                key, epochs, shape, final = read_record(data, f"{path}, record {number}")
                cells.setdefault(key, shape)
                runs[epochs][key].append(final)
                bar.advance(len(data) + 16)
        if not runs:
            raise RecordError(f"{path} holds no records")
        for epochs, by_key in runs.items():
            np.savez(folder / f"{epochs}.npz", **_columns(by_key, cells, str(path)))
        return {"file": Path(path).name, "sha256": digest}

    return cache.compute("nb101", content_key(digest, "arrays 2"), build)


def read_record(data: bytes, where: str) -> tuple[str, int, tuple[str, str, int], tuple[float, float, float]]:
    """One record: module hash, epochs, (adjacency bits, operations, parameters), (valid, test, seconds) at the end.

    Raises:
        RecordError: not a NAS-Bench-101 record.
    """
    try:
        key, epochs, adjacency, operations, metrics = json.loads(data)
        bytes.fromhex(key)
        params, evaluations = 0, []
        unwrapped = "".join(metrics.split())  # the file's base64 has a line break after each 76 characters
        for number, value in protobuf_fields(base64.b64decode(unwrapped, validate=True)):
            if number == 1:
                evaluations.append(value)
            elif number == 2:
                params = int(value)
        last = {EVALUATION[n]: v for n, v in protobuf_fields(evaluations[-1]) if n in EVALUATION}
        final = tuple(float(last[name]) for name in ("valid", "test", "seconds"))
        return key, int(epochs), (str(adjacency), str(operations), params), final
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, binascii.Error) as error:
        raise RecordError(f"{where}: no record of NAS-Bench-101 ({type(error).__name__}: {error})") from None


def _columns(by_key: dict[str, list], cells: dict[str, tuple[str, str, int]], path: str) -> dict[str, np.ndarray]:
    """Arrays of one training length: hashes, adjacency bits, operations, params, and ``[rows, runs]`` measurements."""
    keys = sorted(by_key)
    values = np.full((3, len(keys), max(RUNS, max(len(r) for r in by_key.values()))), np.nan)
    for row, key in enumerate(keys):
        for column, final in enumerate(by_key[key]):
            values[:, row, column] = final
    shapes = [_cell(*cells[key][:2], path) for key in keys]
    return {
        "hash": np.array(keys),
        "edges": np.array(["".join(map(str, cell.edges)) for cell in shapes]),
        "ops": np.array(["".join(map(str, cell.ops)) for cell in shapes]),
        "params": np.array([cells[key][2] for key in keys], dtype=float),
        "valid": values[0] * 100,
        "test": values[1] * 100,
        "seconds": values[2],
    }


@cache
def _arrays(folder: str, epochs: int, path: str) -> tuple[list[NB101Cell], dict[str, int], dict[str, np.ndarray]]:
    file = Path(folder) / f"{epochs}.npz"
    if not file.is_file():
        found = sorted(int(p.stem) for p in Path(folder).glob("*.npz"))
        raise ValueError(f"the file has no training of {epochs} epochs (known lengths {EPOCHS}); it has {found}")
    with np.load(file) as stored:
        arrays = dict(stored)
    hashes = arrays["hash"].tolist()
    for name in ("valid", "test", "seconds"):
        training_runs(arrays[name], f"{name} at {epochs} epochs", path, hashes, RUNS)
    not_negative(np.nanmin(arrays["seconds"], axis=1), "seconds", path)
    cells = [
        NB101Cell(tuple(map(int, edges)), tuple(map(int, ops)))
        for edges, ops in zip(arrays["edges"].tolist(), arrays["ops"].tolist())
    ]
    return cells, {key: row for row, key in enumerate(hashes)}, arrays


def _cell(bits: str, names: str, path: str) -> NB101Cell:
    """The cell of the file's adjacency bits (row by row, all of them) and operation names."""
    operations = names.split(",")
    n = len(operations)
    if len(bits) != n * n or set(bits) - {"0", "1"}:
        raise RecordError(f"{path}: a record has {n} operations and the adjacency {bits!r}, not {n} x {n} bits")
    try:
        return NB101().from_matrix(np.array(list(bits), dtype=int).reshape(n, n), operations)
    except ValueError as error:
        raise RecordError(f"{path}: a record with the adjacency {bits} and the operations {names}: {error}") from None
