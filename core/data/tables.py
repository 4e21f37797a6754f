"""One table from one file: csv, tsv, jsonl, json, parquet or dialogues, plain or compressed, in any marked encoding."""

import codecs
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from core.data.archives import MAX_BYTES
from core.data.compressed import SUFFIXES, unpacked
from core.data.encoded import first_line, marked, opened, read_text, really, undecodable
from core.data.examples import TaskError
from core.safe_yaml import load_yaml

PART = 4096  # rows of a parquet file decoded at once
PLAIN = {"csv": (".csv",), "tsv": (".tsv", ".tab"), "jsonl": (".jsonl", ".ndjson"), "json": (".json",)}
FORMATS = {kind: tuple(s + packed for s in names for packed in ("", *SUFFIXES)) for kind, names in PLAIN.items()} | {
    "parquet": (".parquet",),
    "dialogues": (".yml", ".yaml"),
}
SEPARATED = ("csv", "tsv")
REMEDIES = {
    "header": "put texts that hold the separator in quotes, or give the first column a name too",
    "encoding": "give its encoding, e.g. source.options: {encoding: cp1252}",
    "separator": "put texts that hold the separator in quotes, or give another one as source.options: {sep: ';'}",
}
NESTED = "it is nested too deeply; a row is a flat object, column names to values"
ROWS = "a list of objects, one a row, or an object of columns of one length"


class WideRowsError(ValueError):
    """Rows with more cells than the header has."""


def format_of(path: Path) -> str:
    """The table format that the file's suffix says, or an empty string."""
    name = path.name.lower()
    return next((f for f, suffixes in FORMATS.items() if name.endswith(suffixes)), "")


def read_table(
    path: Path,
    kind: str = "",
    options: Mapping[str, Any] | None = None,
    where: str = "",
    columns: Sequence[str] = (),
    remedies: Mapping[str, str] = REMEDIES,
) -> pd.DataFrame:
    """One file as a data frame. csv and tsv cells are text as written (``NA`` is no missing value, an empty cell is).

    A byte order mark says the encoding of csv, tsv, jsonl and json; without one they are UTF-8, or what a csv's options
    say. json is a list of rows, an object of columns, or one object a line.

    Args:
        columns: names that must not be there twice, nor hold lists or records.
        remedies: what to do about an unknown ``encoding`` or ``separator``, or a short ``header``, for messages.

    Raises:
        TaskError: unknown format, not decodable, or damaged; the file is named.
    """
    kind = kind or format_of(path)
    options = dict(options or {})
    if kind not in FORMATS:
        raise TaskError(
            f"{where}: {path.name} has no known format; allowed: {', '.join(FORMATS)} (source.format), by the suffixes "
            f"{' '.join(s for names in PLAIN.values() for s in names)} .parquet; save a spreadsheet as csv"
        )
    try:
        rows = _READERS[kind](path, options)
        _check_names(path, rows, columns, options if kind in SEPARATED else None)
    except UnicodeError as error:
        remedy = remedies["encoding"] if kind in SEPARATED else "save it as UTF-8"
        reason = f"{undecodable(path, options, error)}; {remedy}"
    except (WideRowsError, pd.errors.ParserError) as error:
        reason = f"{first_line(error)}; {remedies['header' if isinstance(error, WideRowsError) else 'separator']}"
    except (ValueError, OSError, EOFError, TypeError, lzma.LZMAError, zlib.error) as error:
        reason = first_line(error)
    except RecursionError:
        reason = NESTED
    else:
        check_cells(rows, columns, f"{where}: {path}")
        return rows
    raise TaskError(f"{where}: cannot read {path} as {kind} ({reason}{really(path)})") from None


def check_cells(rows: pd.DataFrame, columns: Sequence[str], file: str) -> None:
    """Lists and records of json and parquet would be read as their Python text.

    Raises:
        TaskError: names the first such row, counted from 1.
    """
    for column in columns:
        for i, value in enumerate(rows[column].tolist() if column in rows else (), 1):
            if isinstance(value, (list, tuple, dict, set, np.ndarray)):
                what = "a record" if isinstance(value, dict) else "a list"
                raise TaskError(
                    f"{file}: column {column!r} holds lists or records ({what} in row {i}); write it as one text or "
                    "value a row, or name another column"
                )


def strings(column: pd.Series) -> list[str]:
    """Cells as stripped texts; a missing cell is empty, a whole number written as float has no ``.0``."""
    whole = pd.api.types.is_float_dtype(column) and bool((column.dropna() % 1 == 0).all())
    missing = column.isna().tolist()
    return ["" if m else str(int(v) if whole else v).strip() for v, m in zip(column.tolist(), missing)]


# -- one function a format -------------------------------------------------------------------------------------------


def _separated(sep: str) -> Any:
    def read(path: Path, options: Mapping[str, Any]) -> pd.DataFrame:
        given = _csv_options(path, options, sep)
        rows = pd.read_csv(_unpacked(path, options), **given)
        if "index_col" not in given and not isinstance(rows.index, pd.RangeIndex):
            rows = _without_row_names(rows)
        rows.columns = [str(name) for name in rows.columns]  # numbers where the options say that there is no header
        return rows

    return read


def _unpacked(path: Path, options: Mapping[str, Any]) -> IO[bytes] | Path:
    return unpacked(path, options.get("compression", "infer"))


def _csv_options(path: Path, options: Mapping[str, Any], sep: str) -> dict[str, Any]:
    given = {"dtype": str, "keep_default_na": False, "na_values": [""], "sep": sep}
    if "encoding" in options:
        try:
            codecs.lookup(options["encoding"])
        except (LookupError, TypeError):
            raise ValueError(
                f"unknown encoding {options['encoding']!r}; known are e.g. utf-8, latin-1, cp1252"
            ) from None
    given |= {"encoding": e} if (e := marked(path, options)) else {}
    return given | {key: value for key, value in options.items() if key != "compression"}


def _without_row_names(rows: pd.DataFrame) -> pd.DataFrame:
    """R writes numbered row names without a header; anything else is a text that was cut at its separators."""
    numbered = rows.index.nlevels == 1 and all(str(name).isdecimal() for name in rows.index)
    if not numbered or rows.iloc[:, -1].isna().all():
        raise WideRowsError("its rows have more cells than its header")
    return rows.reset_index(drop=True)


def _jsonl(path: Path, options: Mapping[str, Any]) -> pd.DataFrame:
    encoding = marked(path, {})
    try:
        rows = pd.read_json(
            unpacked(path), lines=True, dtype=False, convert_dates=False, convert_axes=False, encoding=encoding
        )
    except UnicodeError:
        raise
    except (ValueError, TypeError) as error:
        raise ValueError(_bad_line(path, encoding) or first_line(error)) from None
    if rows.columns.inferred_type != "string":  # rows that are no objects have numbers for columns
        raise ValueError(_bad_line(path, encoding) or "it is empty")
    return rows


def _json(path: Path, options: Mapping[str, Any]) -> pd.DataFrame:
    text = read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object a line is often named so
            return _jsonl(path, options)
        raise
    if isinstance(content, list):
        odd = next((i for i, row in enumerate(content, 1) if not isinstance(row, dict)), 0)
        if odd:
            raise ValueError(f"row {odd} is {_kind_of(content[odd - 1])}; it must hold {ROWS}")
    elif not isinstance(content, dict) or not any(isinstance(column, (list, dict)) for column in content.values()):
        raise ValueError(f"it holds {_kind_of(content)} that is no table; it must hold {ROWS}")
    if "\\ud" in text.lower():
        _check_characters(content)
    return pd.DataFrame(content)


def _check_characters(content: list | dict) -> None:
    """Half of a surrogate pair can be written as ``\\uD83D``, but is no character."""
    parts = enumerate(content, 1) if isinstance(content, list) else content.items()
    for place, part in parts:
        try:
            json.dumps(part, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            what = "row" if isinstance(content, list) else "column"
            raise ValueError(f"{what} {place} holds half of a surrogate pair (a cut emoji); remove it") from None


def _parquet(path: Path, options: Mapping[str, Any], most: int = MAX_BYTES) -> pd.DataFrame:
    """A parquet file, part by part: a page of a few bytes can stand for any number of equal rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            parts, size = [], 0
            for part in file.iter_batches(batch_size=PART):
                part.validate(full=True)  # text that is no UTF-8 would else show up far from the file's name
                parts.append(part)
                size += part.nbytes
                if size > most:
                    raise ValueError(f"it unpacks to more than {most} bytes; split it into smaller files")
            table = pa.Table.from_batches(parts, file.schema_arrow)
        return table.to_pandas(ignore_metadata=True)  # notes of another pandas are not checked by the format
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None


def _dialogues(path: Path, options: Mapping[str, Any]) -> pd.DataFrame:
    """A chatterbot-corpus file, one row a turn: language (folder), topic (file), conversation, turn, text."""
    content = load_yaml(read_text(path), path.name)
    if not isinstance(content, dict) or not isinstance(content.get("conversations"), list):
        raise ValueError("no list 'conversations'")
    made = [
        (path.parent.name, path.stem, i, j, "" if turn is None else str(turn).strip())
        for i, turns in enumerate(content["conversations"])
        for j, turn in enumerate(turns)
    ]
    return pd.DataFrame(made, columns=["language", "topic", "conversation", "turn", "text"])


_READERS = {
    "csv": _separated(","),
    "tsv": _separated("\t"),
    "jsonl": _jsonl,
    "json": _json,
    "parquet": _parquet,
    "dialogues": _dialogues,
}


def _bad_line(path: Path, encoding: str | None) -> str:
    """The first line that is no JSON object."""
    for i, line in enumerate(_lines(path, encoding), 1):
        try:
            value = json.loads(line, strict=False) if line.strip() else {}
        except json.JSONDecodeError as error:
            return f"line {i}: {error.msg} at character {error.pos + 1}; every line is one JSON object"
        except RecursionError:
            return f"line {i}: {NESTED}"
        if not isinstance(value, dict):
            return f"line {i} is {_kind_of(value)}; every line is one JSON object, column names to values"
    return ""


def _lines(path: Path, encoding: str | None) -> Iterator[str]:
    with io.TextIOWrapper(opened(path), encoding=encoding or "utf-8") as lines:
        yield from lines


def _kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _check_names(path: Path, rows: pd.DataFrame, columns: Sequence[str], options: Mapping[str, Any] | None) -> None:
    """A name that two columns have; pandas calls the second of a csv's ``NAME.1`` without a word."""
    twice = {column for column in columns if list(rows.columns).count(column) > 1}
    if options is not None and not {"names", "header"} & options.keys():
        doubtful = [column for column in columns if f"{column}.1" in rows.columns]
        if doubtful:
            given = _csv_options(path, options, "\t" if format_of(path) == "tsv" else ",")
            first = pd.read_csv(_unpacked(path, options), **given | {"header": None, "nrows": 1}).iloc[0].tolist()
            twice |= {column for column in doubtful if first.count(column) > 1}
    if twice:
        raise ValueError(f"two columns are named {min(twice)!r}; rename one")
