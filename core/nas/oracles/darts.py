"""DARTS through the YAHPO surrogate of NAS-Bench-301: a predicted accuracy for any pair of cells.

No training stands behind an answer. The surrogate was fitted to cells that learn; where a cell hardly has weights it
extrapolates absurdly (skips alone score above every trained cell), so such answers carry a flag.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from core.data.assets import content_hash, find_local
from core.nas.oracles import ORACLES, Answer, Oracle
from core.nas.oracles.columns import AGAIN, genotypes, not_negative, numbers, read_frame, require, texts
from core.nas.oracles.nb201 import local_table
from core.nas.spaces.darts import CELLS, OPERATIONS, Darts, DartsCells
from core.transfer.budget import Budget

FOLDER = "nas/nb301_yahpo"
PARTS = ("new_model.onnx", "encoding.json", "cat_names_order.json")
TABLE = "nas/nb301_yahpo_11221.parquet"
ANSWER, SECONDS = "yahpo_val_acc_ep98", "yahpo_runtime_s_ep98"  # columns of the table
PREFIX = "NetworkSelectorDatasetInfo_COLON_darts_COLON_"
OFFSETS = {2: 0, 3: 2, 4: 5, 5: 9}  # number of a node's first edge


@ORACLES.register("darts-surrogate", space="darts")
class DartsSurrogate(Oracle):
    """DARTS cells by an ONNX surrogate of NAS-Bench-301: predicted CIFAR-10 validation accuracy.

    Cells of the 11,221-cell table answer from it; any other cell is predicted in its canonical form, so that renamed
    cells get one answer. ``reference`` gives regret (points below the table's best) and percentile (share of table
    cells that are better, in percent).

    Args:
        epochs: 1 to 98; the table has 98.
        path: folder with ``new_model.onnx``, ``encoding.json``, ``cat_names_order.json``; by default
            ``nas/nb301_yahpo`` in a folder of ``TRANSFEROPT_DATA``.
        table: parquet with ``compact``, ``yahpo_val_acc_ep98``, ``yahpo_runtime_s_ep98``; found the same way.
    """

    name, dataset, noise = "darts-surrogate", "cifar10", "surrogate"
    split, cost = "predicted validation", "predicted training seconds"

    def __init__(self, epochs: int = 98, seed: int = 0, budget: Budget | None = None, path=None, table=None):
        super().__init__(budget, seed)
        if epochs not in range(1, 99):
            raise ValueError(f"the surrogate knows epochs 1 to 98, got {epochs!r}")
        folder = Path(path) if path is not None else find_local(FOLDER)
        for name in PARTS:
            if folder is None or not (folder / name).is_file():
                raise ValueError(f"no surrogate {folder or FOLDER}/{name}: give path=, or a folder of TRANSFEROPT_DATA")
        file = local_table(table, TABLE, "it is the reference for regret and percentile")
        self.space, self.epochs, self.folder = Darts(), epochs, str(folder)
        self.inputs = MappingProxyType({"nb301_yahpo": content_hash(folder), file.name: content_hash(file)})
        self.cells, self._row_of, self.table_values, self.table_seconds = _table(str(file))
        self._sorted = np.sort(self.table_values)

    def _answer(self, g: DartsCells) -> Answer:
        value, seconds = self.predict(g)
        return Answer(value, seconds, flag=degenerate(g))

    def predict(self, g: DartsCells) -> tuple[float, float]:
        """Accuracy in percent and training seconds; uncharged, for oracle and reports."""
        row = self._row_of.get(self.space.key(g)) if self.epochs == 98 else None
        if row is not None:
            return float(self.table_values[row]), float(self.table_seconds[row])
        return surrogate(self.folder, self.space.canonical(g), self.epochs)

    def pool(self) -> list[DartsCells]:
        """The table's cells. The oracle answers all others of the space, too."""
        return list(self.cells)

    def values(self, indices: Sequence[int]) -> np.ndarray:
        """Charged answers for cells of :meth:`pool`, float ``[len(indices)]``."""
        return np.array([self.query(self.cells[i]).value for i in indices])

    def reference(self, g: DartsCells) -> dict[str, float]:
        self.space.check(g)
        value = self.predict(g)[0]
        better = len(self._sorted) - int(np.searchsorted(self._sorted, value, side="right"))
        return {
            "predicted": value,
            "regret": float(self._sorted[-1] - value),
            "percentile": 100.0 * better / len(self._sorted),
        }


def degenerate(g: DartsCells) -> str:
    """Why the surrogate cannot be trusted on ``g``; empty for an ordinary cell.

    A cell counts as degenerate when its normal cell has fewer than two operations with weights, or when skips are more
    than four of its eight: of the table's 11,221 cells 155 and 22 are such.
    """
    weighted = sum(op >= 3 for _, op in g.normal)
    skips = sum(op == 2 for _, op in g.normal)
    if weighted < 2:
        return f"degenerate: {weighted} operations with weights in the normal cell, the surrogate extrapolates"
    if skips > 4:
        return f"degenerate: {skips} of 8 operations of the normal cell are skips, the surrogate extrapolates"
    return ""


def surrogate(folder: str, g: DartsCells, epoch: int) -> tuple[float, float]:
    """The ONNX model's accuracy (percent) and runtime (seconds) for ``g`` as it is written."""
    session, names, codes = _model(folder)
    words = {}
    for label in CELLS:
        edges = getattr(g, label)
        for node in range(2, 6):
            pair = sorted(edges[2 * node - 4 : 2 * node - 2])
            for source, op in pair:
                words[f"edge_{label}_{OFFSETS[node] + source}"] = OPERATIONS[op]
            words[f"inputs_node_{label}_{node}"] = f"{pair[0][0]}_{pair[1][0]}"
    row = [codes[name][words.get(name.removeprefix(PREFIX), "#na#")] for name in names]
    inputs = {"x_cat": np.array([row], dtype=np.int32), "x_cont": np.array([[epoch]], dtype=np.float32)}
    accuracy, seconds = session.run(None, inputs)[0][0]
    return float(accuracy), float(seconds)


@cache
def _model(folder: str):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(f"{folder}/new_model.onnx", options, providers=["CPUExecutionProvider"])
    names = json.loads(Path(folder, "cat_names_order.json").read_text())
    return session, names, json.loads(Path(folder, "encoding.json").read_text())


@cache
def _table(path: str) -> tuple[list[DartsCells], dict[str, int], np.ndarray, np.ndarray]:
    table = read_frame(path)
    require(table, ["compact", ANSWER, SECONDS], path)
    cells, rows = genotypes(Darts(), texts(table["compact"]), path)
    values, seconds = (numbers(table[name], name, path, AGAIN) for name in (ANSWER, SECONDS))
    return cells, rows, values, not_negative(seconds, SECONDS, path)
