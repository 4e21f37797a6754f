"""Any table of a user's as an oracle: a parquet or csv file with one row an architecture."""

import warnings
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from core.data.assets import content_hash
from core.data.reading import strings
from core.nas.oracles import ORACLES, TableOracle
from core.nas.spaces import Genotype, Space, get_space
from core.registry import nearest
from core.transfer.budget import Budget

SHOWN = 3
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
        self.space = _space(space, space_settings or {})
        self.metric, self.split, self.epochs, self.noise = metric, split, epochs, noise
        self.dataset, self.cost = Path(path).stem, f"column {cost}" if cost else "not stated by the table (0)"
        frame = _read(path, genotype)
        wanted = [metric, *([cost] if cost else []), *reference]
        _require(frame, [genotype, *wanted], path)
        self.cells, self.row_of = self._cells(frame[genotype], path)
        numbers = {name: _numbers(frame[name], name, path) for name in wanted}
        self.answers = -numbers[metric] if minimise else numbers[metric]
        self.seconds = numbers[cost] if cost else np.zeros(len(frame))
        if (self.seconds < 0).any():
            raise ValueError(f"{path}: column {cost!r} has negative training seconds")
        self.report = {name: numbers[name] for name in reference}
        self.inputs = MappingProxyType({Path(path).name: content_hash(path)})

    def index(self, g: Genotype) -> int:
        key = self.space.key(g)
        if key not in self.row_of:
            raise ValueError(f"the table {self.dataset} has no row for {self.space.format(g)!r}")
        return self.row_of[key]

    def _cells(self, column, path: str) -> tuple[list[Genotype], dict[str, int]]:
        cells, row_of, bad = [], {}, {}
        texts = strings(column)
        for row, text in enumerate(texts):
            if not text:
                bad[row] = "no genotype"
                continue
            try:
                cell = self.space.parse(text)
            except ValueError as error:
                bad[row] = str(error)
                continue
            key = self.space.key(cell)
            if key in row_of:
                bad[row] = f"the same architecture as row {row_of[key]}"
            row_of.setdefault(key, row)
            cells.append(cell)
        if bad:
            shown = "; ".join(f"row {row}: {reason}" for row, reason in list(bad.items())[:SHOWN])
            more = f" (and {len(bad) - SHOWN} more)" if len(bad) > SHOWN else ""
            advice = self._zeros_lost([texts[row] for row in bad], column) or "correct or drop the rows"
            raise ValueError(f"{path} has {len(bad)} bad genotypes of {self.space.name}: {shown}{more}; {advice}")
        return cells, row_of

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


def _space(name: str, settings: Mapping[str, Any]) -> Space:
    """The space with its settings. Raises ValueError for one it does not have."""
    known = get_space(name).settings
    for setting in settings:
        if setting not in known:
            allowed = f"Allowed: {', '.join(known)}" if known else f"{name} has none"
            raise ValueError(f"space {name} has no setting {setting!r}{nearest(setting, known)} {allowed}")
    return get_space(name, **settings)


def _read(path: str, genotype: str):
    import pandas as pd

    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no file {path}")
    readers = {
        ".parquet": pd.read_parquet,
        ".csv": lambda f: pd.read_csv(f, dtype={genotype: str}, index_col=False),
    }  # 000000 is text
    if file.suffix not in readers:
        raise ValueError(f"{path}: a table is a .parquet or .csv file, got {file.suffix or 'no suffix'!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows with more fields than the header has
            frame = readers[file.suffix](file)
    except (ValueError, OSError, pd.errors.ParserWarning) as error:  # pandas' parsing errors and pyarrow's among them
        raise ValueError(f"{path} cannot be read as {file.suffix[1:]}: {error}") from None
    if not len(frame):
        raise ValueError(f"{path} has no rows")
    return frame


def _require(frame, names: Sequence[str], path: str) -> None:
    for name in names:
        if name not in frame.columns:
            known = ", ".join(map(str, frame.columns))
            raise ValueError(f"{path} has no column {name!r}{nearest(name, map(str, frame.columns))} It has: {known}")


def _numbers(column, name: str, path: str) -> np.ndarray:
    import pandas as pd

    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        cells = ["nothing" if pd.isna(cell) else repr(cell) for cell in column.iloc[bad[:SHOWN]].tolist()]
        shown = ", ".join(f"row {i}: {cell}" for i, cell in zip(bad, cells))
        raise ValueError(
            f"{path}: column {name!r} has {len(bad)} values that are no finite number ({shown}); drop the rows"
        )
    return values
