"""Any table of a user's as an oracle: a parquet or csv file with one row an architecture."""

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from core.data.assets import content_hash
from core.data.reading import strings
from core.nas.oracles import ORACLES, TableOracle
from core.nas.oracles.columns import SHOWN, genotypes, not_negative, numbers, read_frame, require
from core.nas.spaces import Genotype, get_space
from core.registry import nearest
from core.transfer.budget import Budget

LONGEST = 32  # digits of a genotype that may have lost leading zeros


@ORACLES.register("table")
class UserTable(TableOracle):
    """A parquet or csv file: a genotype column in the space's text form, metric columns.

    Args:
        path: the file.
        space: name of the genotypes' space; space_settings: its settings, where it has some.
        metric: column that answers; larger is better unless ``minimise``.
        genotype: column of the genotypes (anything the space's ``parse`` reads).
        cost: column of training seconds, or None (0 is charged).
        reference: columns that only reports may see (test accuracy).
        minimise: the metric is better when smaller; answers are its negative.
        split, epochs, noise: what the metric is, for rows and reports.

    Raises:
        ValueError: an unknown or absent setting, no such file or column, bad genotypes or numbers (with their rows).
    """

    name = "table"

    def __init__(
        self,
        path: str = "",
        space: str = "",
        metric: str = "",
        genotype: str = "genotype",
        cost: str | None = None,
        reference: Sequence[str] = (),
        minimise: bool = False,
        split: str = "validation",
        epochs: int | None = None,
        noise: str = "single run",
        space_settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        budget: Budget | None = None,
        **unknown: Any,
    ):
        super().__init__(budget, seed)
        _check_settings({"path": path, "space": space, "metric": metric}, unknown)
        if noise not in ("single run", "mean", "none", "surrogate"):
            raise ValueError(f"noise is 'single run', 'mean', 'none' or 'surrogate', got {noise!r}")
        self.space = get_space(space, **(space_settings or {}))
        self.metric, self.split, self.epochs, self.noise = metric, split, epochs, noise
        self.dataset, self.cost = Path(path).stem, f"column {cost}" if cost else "not stated by the table (0)"
        frame = read_frame(path, [genotype])
        wanted = [metric, *([cost] if cost else []), *reference]
        require(frame, [genotype, *wanted], path)
        self.cells, self.row_of = self._cells(frame[genotype], path)
        values = {name: numbers(frame[name], name, path) for name in wanted}
        self.answers = -values[metric] if minimise else values[metric]
        self.seconds = values[cost] if cost else np.zeros(len(frame))
        not_negative(self.seconds, str(cost), path)
        self.report = {name: values[name] for name in reference}
        self.inputs = MappingProxyType({Path(path).name: content_hash(path)})

    def index(self, g: Genotype) -> int:
        key = self.space.key(g)
        if key not in self.row_of:
            raise ValueError(f"the table {self.dataset} has no row for {self.space.format(g)!r}")
        return self.row_of[key]

    def _cells(self, column, path: str) -> tuple[list[Genotype], dict[str, int]]:
        texts = strings(column)

        def advice(bad: list[int]) -> str:
            return self._zeros_lost([texts[row] for row in bad], column) or "correct or drop the rows"

        return genotypes(self.space, texts, path, advice=advice)

    def _zeros_lost(self, bad: Sequence[str], column) -> str:
        """What to do where genotypes of digits were saved as numbers: 000000 comes back as 0."""
        for text in sorted({t for t in bad if t.isdecimal()}, key=lambda t: (len(t), t))[:SHOWN]:
            for width in range(len(text) + 1, LONGEST + 1):
                try:
                    self.space.parse(text.zfill(width))
                except ValueError:
                    continue
                number = ".astype('Int64')" if column.dtype.kind == "f" else ""  # whole numbers beside missing ones
                return (
                    f"column {column.name!r} ({column.dtype}) lost leading zeros ({text} for {text.zfill(width)}); "
                    f"save it as text, frame[{column.name!r}]{number}.astype(str).str.zfill({width})"
                )
        return ""


def _check_settings(needed: dict[str, str], unknown: dict[str, Any]) -> None:
    known = [name for name in signature(UserTable.__init__).parameters if name not in ("self", "unknown")]
    for name in unknown:
        raise ValueError(f"oracle table has no setting {name!r}{nearest(name, known)} Allowed: {', '.join(known)}")
    absent = [name for name, value in needed.items() if not value]
    if absent:
        raise ValueError(f"oracle table needs {', '.join(needed)}; not given: {', '.join(absent)}")
