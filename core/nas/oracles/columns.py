"""Columns of a table of architectures, checked before a search believes an answer.

A hole in a table would be an answer of NaN, or the answer of another cell. So every table, the benchmarks' own and a
user's, passes the same checks when it is read; what is refused is told with file, rows and the rule that is broken.
"""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.nas.spaces import Genotype, Space, shown
from core.registry import nearest

SHOWN = 3
DROP = "drop the rows"
AGAIN = "the published table has no such rows: get it again"


def read_frame(path: str, text: Sequence[str] = ()) -> Any:
    """The table of a parquet or csv file as a data frame; csv columns of ``text`` are not read as numbers.

    Raises:
        ValueError: no such file, another format, damaged, or no rows.
    """
    import pandas as pd

    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no file {path}")
    readers = {
        ".parquet": pd.read_parquet,
        ".csv": lambda f: pd.read_csv(f, dtype=dict.fromkeys(text, str), index_col=False),
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


def require(frame: Any, names: Sequence[str], path: str) -> None:
    """Raise ValueError unless the frame has these columns."""
    for name in names:
        if name not in frame.columns:
            known = ", ".join(map(str, frame.columns))
            raise ValueError(f"{path} has no column {name!r}{nearest(name, map(str, frame.columns))} It has: {known}")


def numbers(column: Any, name: str, path: str, advice: str = DROP, missing: bool = False) -> np.ndarray:
    """A data frame's column as float64 ``[rows]``.

    Args:
        missing: whether a row may hold nothing; it is NaN then.

    Raises:
        ValueError: a row that is no finite number.
    """
    import pandas as pd

    try:
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    except TypeError:  # lists or records in it
        values = np.array([c if isinstance(c, (int, float)) else np.nan for c in column], dtype=float)
    bad = np.flatnonzero(~np.isfinite(values) & ~(missing & column.isna().to_numpy()))
    if len(bad):
        cells = column.iloc[bad[:SHOWN]].tolist()
        named = ["nothing" if pd.api.types.is_scalar(c) and pd.isna(c) else repr(c)[:40] for c in cells]
        told = [f"row {i}: {cell}" for i, cell in zip(bad, named)]
        raise ValueError(f"{path}: {_no_number(name, told, len(bad))}; {advice}")
    return values


def texts(column: Any) -> list[str | None]:
    """A data frame's column as texts; None for what is none."""
    return [cell if isinstance(cell, str) else None for cell in column.tolist()]


def finite(values: Sequence[Any] | np.ndarray, name: str, path: str, rows: Sequence[Any] | None = None) -> np.ndarray:
    """``values`` as float64 ``[rows]``. Raises ValueError for one that is no finite number.

    Args:
        rows: what the rows are called; their numbers by default.
    """
    plain = values if isinstance(values, np.ndarray) else [v if _is_number(v) else np.nan for v in values]
    array = np.asarray(plain, dtype=float)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        given = values.tolist() if isinstance(values, np.ndarray) else values
        told = [f"{_called(rows, i)}: {given[i]!r}" for i in bad[:SHOWN]]
        raise ValueError(f"{path}: {_no_number(name, told, len(bad))}; {AGAIN}")
    return array


def padded(entries: Sequence[Any], name: str, path: str, rows: Sequence[Any]) -> np.ndarray:
    """Lists of measurements side by side, float64 ``[rows, longest]``, NaN behind the end of a shorter one.

    Raises:
        ValueError: a list that is empty or holds what is no finite number.
    """
    bad = [i for i, entry in enumerate(entries) if not _all_finite(entry)]
    if bad:
        told = ", ".join(f"{_called(rows, i)}: {shown(entries[i])}" for i in bad[:SHOWN])
        raise ValueError(
            f"{path}: {name!r} of {len(bad)} rows is no list of finite numbers, at least one ({told}); {AGAIN}"
        )
    out = np.full((len(entries), max(map(len, entries))), np.nan)
    for row, entry in enumerate(entries):
        out[row, : len(entry)] = entry
    return out


def not_negative(seconds: np.ndarray, name: str, path: str) -> np.ndarray:
    """``seconds``. Raises ValueError for a negative one."""
    bad = np.flatnonzero(seconds < 0)
    if len(bad):
        times = f"{len(bad)} times, first in row {bad[0]}"
        raise ValueError(f"{path}: column {name!r} has negative training seconds, {times}")
    return seconds


def training_runs(
    values: np.ndarray, name: str, path: str, rows: Sequence[Any] | None = None, count: Any = 1
) -> np.ndarray:
    """Measurements ``[rows, most runs]``, NaN behind the last run of a row.

    Args:
        rows: what the rows are called; count: how many runs a row has at least, one number or ``[rows]``.

    Raises:
        ValueError: a row with fewer runs, with a hole between them, or with an infinite value.
    """
    there = np.isfinite(values)
    found = there.sum(1)
    torn = (there != (np.arange(values.shape[1]) < found[:, None])).any(1) | np.isinf(values).any(1)
    bad = np.flatnonzero((found < count) | torn)
    if len(bad):
        told = "; ".join(f"{_called(rows, i)}: {', '.join(map(str, values[i].tolist()))}" for i in bad[:SHOWN])
        raise ValueError(f"{path}: {name}: {len(bad)} rows lack a finite training run ({told}); {AGAIN}")
    return values


def fields(data: Any, names: Sequence[str], path: str) -> None:
    """Raise ValueError unless ``data`` has rows, each a mapping with these names."""
    if not isinstance(data, Mapping) or not data:
        raise ValueError(f"{path}: a table has rows by architecture, got {shown(data)}")
    bad = [row for row, entry in data.items() if not isinstance(entry, Mapping) or set(names) - set(entry)]
    if bad:
        told = ", ".join(f"row {row!r}" for row in bad[:SHOWN])
        raise ValueError(f"{path}: {len(bad)} rows lack one of {', '.join(names)} ({told}); {AGAIN}")


def genotypes(
    space: Space,
    given: Sequence[Any],
    path: str,
    read: Callable[[Any], Genotype] | None = None,
    key: Callable[[int, Genotype], Hashable] | None = None,
    advice: Callable[[list[int]], str] = lambda bad: AGAIN,
) -> tuple[list[Genotype], dict[Any, int]]:
    """Cells of a column, and the row of every key.

    Args:
        given: what stands in the rows; empty or None where nothing does.
        read: makes a valid cell of it; the space's ``parse`` by default.
        key: of row number and cell; the space's by default.
        advice: what to do about the bad rows.

    Raises:
        ValueError: rows without genotype, with none of this space, or with that of an earlier row.
    """
    read, key = read or space.parse, key or (lambda row, cell: space.key(cell))
    cells: list[Genotype] = []
    row_of: dict[Any, int] = {}
    bad: dict[int, str] = {}
    for row, value in enumerate(given):
        if value is None or value == "":
            bad[row] = "no genotype"
            continue
        try:
            cell = read(value)
        except ValueError as error:
            bad[row] = str(error)
            continue
        own = key(row, cell)
        if own in row_of:
            bad[row] = f"the same architecture as row {row_of[own]}"
        row_of.setdefault(own, row)
        cells.append(cell)
    if bad:
        told = "; ".join(f"row {row}: {reason}" for row, reason in list(bad.items())[:SHOWN])
        more = f" (and {len(bad) - SHOWN} more)" if len(bad) > SHOWN else ""
        rule = f"{path} has {len(bad)} bad genotypes of {space.name}: {told}{more}"
        raise ValueError(f"{rule}; {advice(list(bad))}")
    return cells, row_of


def complete(space: Space, cells: Sequence[Genotype], path: str) -> None:
    """Raise ValueError, with the first that are missing, unless ``cells`` are as many as the space has."""
    if len(cells) != space.size:
        known = {space.key(cell) for cell in cells}
        missing = [space.format(cell) for cell in space.enumerate() if space.key(cell) not in known]
        told = "; ".join(missing[:SHOWN]) + ("; ..." if len(missing) > SHOWN else "")
        raise ValueError(
            f"{path}: the table has a row for each of the {space.size:,} architectures of {space.name}, got "
            f"{len(cells):,}; missing are {told}; get the published table again"
        )


def _all_finite(entry: Any) -> bool:
    if not isinstance(entry, (list, tuple, np.ndarray)):
        return False
    return len(entry) > 0 and all(_is_number(v) and np.isfinite(v) for v in entry)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating))


def _no_number(name: str, told: Sequence[str], count: int) -> str:
    return f"column {name!r} has {count} values that are no finite number ({', '.join(told)})"


def _called(rows: Sequence[Any] | None, i: int) -> str:
    return f"row {i}" if rows is None else f"row {rows[i]}"
