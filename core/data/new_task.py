"""Write a task's YAML from a table with a label column."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from core.data.encoded import opened
from core.data.examples import TaskError, fold
from core.data.splitting import HIDDEN, plain_label
from core.data.tables import SEPARATED, check_cells, format_of, read_table, strings
from core.data.tasks import KINDS, load_task, parse_task
from core.registry import nearest
from core.state import write_bytes

MOST_CLASSES = 200
FEWEST_ROWS = 3  # of a class: one each for train, validation and test
TEXT_NAMES = ("text", "sentence", "review", "content", "question", "premise", "sentence1", "question1", "prompt")
PAIR_NAMES = ("pair", "hypothesis", "sentence2", "question2", "answer", "text2", "context")


def new_task(
    file: str | Path,
    label: str,
    text: str = "",
    pair: str = "",
    kind: str = "",
    out: str | Path | None = None,
    overwrite: bool = False,
    sep: str = "",
    encoding: str = "",
    labels: str = "",
) -> Path:
    """Look at a csv, tsv, jsonl, json or parquet file and write ``<file>.yaml`` beside it.

    Text columns, kind and labels are guessed from the rows where they are not given; the written task is read back, so
    what was written works.

    Args:
        file: the table.
        label: its label column.
        text: column of the text (or first text); default: a usual name, else the column of the longest texts.
        pair: column of the second text; given or guessed names make the kind ``pair``.
        kind: one of the task kinds; default: from the columns.
        out: where to write; default beside the file, with suffix ``.yaml``.
        overwrite: write over an existing task file.
        sep: what separates the cells of a csv or tsv file, one character; default: a comma, or a tab.
        encoding: of a csv or tsv file, default UTF-8. Both become options of the written source.
        labels: class names in index order, separated by commas; default: all values of the label column. A -1 must be
            named to be a class: published test sets mark hidden labels so.

    Raises:
        TaskError: missing file or column, an existing task file, one class only, too many classes, too few rows of a
            class, no text column.
    """
    file = Path(file)
    _check_file(file)
    if kind and kind not in KINDS:
        raise TaskError(f"unknown kind {kind!r}{nearest(kind, KINDS)} Allowed: {', '.join(KINDS)}")
    target = Path(out) if out else file.with_suffix("").with_suffix(".yaml")
    options = _options(file, sep, encoding)
    given = [label, *filter(None, (text, pair))]
    rows = _read(file, options, given)
    columns = [str(c) for c in rows.columns]
    for column in given:
        if column not in columns:
            separated = _separator_hint(columns) if format_of(file) in SEPARATED else ""
            near = nearest(column, columns)
            raise TaskError(f"{file.name}: no column {column!r}{near} Has: {', '.join(columns)}{separated}")
    content = describe(file, rows, label, text, pair, kind, target, options, labels)
    parse_task({"name": target.stem, **content}, str(target))
    _check_target(target, file, overwrite)
    before = target.read_bytes() if target.exists() else None
    write_bytes(target, _yaml(content).encode())
    try:
        load_task(target).splits()
    except ValueError:
        if before is None:
            target.unlink()
        else:
            write_bytes(target, before)
        raise
    return target


def _check_file(file: Path) -> None:
    if file.is_dir():
        raise TaskError(
            f"{file} is a folder; give one table (csv, tsv, jsonl, json or parquet). A task that "
            "reads a folder (one table a split, or images in a folder a class) is a few lines of YAML: docs/data.md"
        )
    if not file.is_file():
        raise TaskError(f"{file} does not exist; give a table with a label column")


def _check_target(target: Path, file: Path, overwrite: bool) -> None:
    """Said last: who must correct a column or a kind too should not first be sent to remove a file."""
    if target.suffix not in (".yaml", ".yml") or target.is_dir():
        raise TaskError(f"{target} cannot be a task file; give --out a path that ends in .yaml")
    if target.exists() and target.samefile(file):
        raise TaskError(f"{target} is the table itself; give another path with --out")
    if target.exists() and not overwrite:
        raise TaskError(f"{target} exists; write over it with --force, or give another path with --out")


def _options(file: Path, sep: str, encoding: str) -> dict[str, str]:
    """The read options of the written source."""
    options = {key: value for key, value in (("sep", sep.replace("\\t", "\t")), ("encoding", encoding)) if value}
    if options and format_of(file) not in SEPARATED:
        given = " and ".join(f"--{key}" for key in options)
        raise TaskError(f"{file.name}: {given} is for csv and tsv files only; leave it out")
    if len(options.get("sep", " ")) != 1:
        raise TaskError(f"--sep is one character (\\t is a tab), got {sep!r}")
    try:
        "a".encode(encoding or "utf-8")
    except LookupError:
        raise TaskError(f"--encoding {encoding!r} is not known; give one like utf-8, latin-1, cp1252, utf-16") from None
    return options


def _read(file: Path, options: dict[str, str], columns: Sequence[str]) -> pd.DataFrame:
    """The rows; what the reading of a csv or tsv file trips over is answered with the option that helps."""
    there = _header(file, options)
    remedies = {
        "header": f"Has: {', '.join(there)}{_separator_hint(there)}; a text with a separator in it stands in quotes",
        "encoding": "give its encoding with --encoding, e.g. latin-1, cp1252, utf-16",
        "separator": f"if its cells are not separated by {_sep(file, options)!r}, give --sep; a text with it stands in "
        "quotes",
    }
    return read_table(file, options=options, where=file.name, columns=columns, remedies=remedies)


def _header(file: Path, options: dict[str, str]) -> list[str]:
    """The first line's cells, for messages."""
    if format_of(file) not in SEPARATED:
        return []
    try:
        with opened(file) as stream:
            line = stream.readline().decode(options.get("encoding", "utf-8"), "replace")
    except (OSError, ValueError, EOFError):  # said by the reading itself
        return []
    return line.strip().split(_sep(file, options))


def _sep(file: Path, options: dict[str, str]) -> str:
    return options.get("sep", "\t" if format_of(file) == "tsv" else ",")


def _separator_hint(columns: Sequence[str]) -> str:
    """A header that was not cut, or was cut at the wrong mark, names the mark."""
    mark = next((mark for mark in (";", "\t", "|", ",") if any(mark in column for column in columns)), "")
    if mark:
        shown = mark.replace("\t", "\\t")
        return f"; if these are several columns, give their separator with --sep '{shown}'"
    return "; if these are several columns, give their separator with --sep" if len(columns) == 1 else ""


def describe(
    file: Path,
    rows: pd.DataFrame,
    label: str,
    text: str,
    pair: str,
    kind: str,
    target: Path,
    options: dict[str, str] | None = None,
    named: str = "",
) -> dict[str, object]:
    """The task as a dictionary in the order in which it is written."""
    others = [c for c in map(str, rows.columns) if c not in (label, text, pair)]
    others = [c for c in others if others.count(c) == 1]
    flat = [c for c in others if not _is_nested(rows[c])]
    numeric = [c for c in flat if _is_numeric(rows[c])]
    words = [c for c in flat if c not in numeric and not _is_numeric(_filled(rows[c]))]
    likely = [c for c in others if c in words or c not in flat]  # lists in a column called text are said, not passed by
    text = text or next((c for c in TEXT_NAMES if c in likely), "") or _longest(rows, words)
    pair = pair or next((c for c in PAIR_NAMES if c in words and c != text), "")
    check_cells(rows, [c for c in (text, pair) if c], file.name)
    kind = kind or _kind(rows, label, text, pair, numeric)
    given: dict[str, object] = {"path": Path(_relative(file, target)).as_posix()}
    if options:
        given["options"] = options
    fields = {"text": text, "pair": pair if kind in ("pair", "regression", "generation") else "", "label": label}
    if kind == "table":
        fields = {"label": label, "features": numeric}
    elif not text:
        raise TaskError(f"{file.name}: no text column found; give one with --text, or --kind table")
    known = _filled(rows[label])
    measured = kind == "table" and not named and _is_numeric(known) and not (_whole(known) and known.nunique() <= 20)
    labels = [] if measured or kind in ("regression", "generation") else _labels(rows, label, file.name, named)
    if named and not labels:
        raise TaskError(f"{file.name}: kind {kind} has no classes; leave --labels out, or give --kind single or pair")
    content: dict[str, object] = {"version": 1, "summary": f"{label} of {file.name}", "kind": kind, "source": given}
    smallest = _fewest(rows, label, labels, "" if kind == "table" else text, file.name)
    shares = {"validation": 0.1, "test": 0.2} if smallest >= 10 else {"validation": 0.25, "test": 0.25}
    content |= {"splits": shares, "fields": {k: v for k, v in fields.items() if v}}
    if labels:
        content["labels"] = labels
    content["metric"] = {"regression": "pearson", "generation": "rouge_l"}.get(kind, "accuracy" if labels else "r2")
    if kind in ("single", "pair"):
        second = " {pair}" if kind == "pair" else ""
        content["template"] = f"{{text}}{second} This is {{mask}}."
        content["causal_template"] = f"Text: {{text}}{second} The {label.strip()} of this text is"
        content["label_words"] = [name.replace("_", " ").replace("|", " ") for name in labels]  # a | parts alternatives
    return content


def _kind(rows: pd.DataFrame, label: str, text: str, pair: str, numeric: list[str]) -> str:
    known = _filled(rows[label])
    if not text:
        return "table" if numeric else ""
    if _is_numeric(known) and not _whole(known):
        return "regression"
    if known.nunique() > MOST_CLASSES:
        return "regression" if _is_numeric(known) else "generation"
    return "pair" if pair else "single"


def _classes(column: pd.Series) -> list[str]:
    """The label column as class names: 1.0 is 1 where all are whole numbers (a missing one makes a column so)."""
    values = strings(column)
    plain = [plain_label(v) for v in values]
    return plain if all(v.lstrip("+-").isdecimal() for v in plain if v) else values


def _labels(rows: pd.DataFrame, label: str, name: str, named: str) -> list[str]:
    values = set(_classes(rows[label])) - {""}
    if label in values and plain_label(label).isdecimal():
        raise TaskError(
            f"{name}: column {label!r} holds {label} too, so its first row seems to be data; put a line of column "
            "names before it"
        )
    found = sorted(values, key=lambda v: (len(v), v) if v.isdigit() else (99, v))
    if named:
        chosen = [part.strip() for part in named.split(",")]
        for part in chosen:
            if part not in values:
                raise TaskError(
                    f"{name}: column {label!r} holds no {part!r}{nearest(part, found)} Has: {', '.join(found[:20])}"
                )
        return chosen
    if len(found) < 2:
        raise TaskError(f"{name}: column {label!r} holds {found or 'nothing'}; a classification needs two classes")
    if len(found) > MOST_CLASSES:
        raise TaskError(f"{name}: column {label!r} holds {len(found)} values, more than {MOST_CLASSES}; is it a text?")
    if HIDDEN in found:
        raise TaskError(
            f"{name}: column {label!r} holds {HIDDEN}, which marks a hidden label in published test sets, and may be a "
            f"class. Name the classes: --labels={','.join(found)} where it is one, --labels="
            f"{','.join(v for v in found if v != HIDDEN)} where such rows have no label and are left out"
        )
    return found


def _fewest(rows: pd.DataFrame, label: str, labels: Sequence[str], text: str, name: str) -> int:
    """Different inputs of the smallest class (of all rows without classes): equal ones stay in one split.

    Raises:
        TaskError: too few for a row each in train, validation and test.
    """
    others = rows.drop(columns=label)
    keys = [fold(t) for t in strings(rows[text])] if text else map(repr, others.itertuples(index=False, name=None))
    values = _classes(rows[label]) if labels else strings(rows[label])
    found = {(key, value if labels else "") for key, value in zip(keys, values) if key and value}
    counts = Counter(value for _, value in found)
    few = {value: counts[value] for value in labels or [""] if counts[value] < FEWEST_ROWS}
    if not few:
        return min(counts[value] for value in labels or [""])
    what = "texts" if text else "features"
    value, count = next(iter(few.items()))
    if not labels:
        raise TaskError(f"{name} has {count} rows of different {what}; a task needs at least {FEWEST_ROWS}")
    raise TaskError(
        f"{name}: {len(few)} of {len(labels)} classes have too few rows of different {what} ({value!r} has {count}); "
        f"each class needs at least {FEWEST_ROWS}, one each for train, validation and test: add rows, leave the "
        f"classes out, or give --kind if {label!r} holds no classes"
    )


def _is_numeric(column: pd.Series) -> bool:
    return bool(np.isfinite(pd.to_numeric(column, errors="coerce").astype(float)).all())


def _filled(column: pd.Series) -> pd.Series:
    """The cells that are not empty."""
    return column[[text != "" for text in strings(column)]]


def _is_nested(column: pd.Series) -> bool:
    return any(isinstance(value, (list, tuple, dict, set, np.ndarray)) for value in column.tolist())


def _whole(column: pd.Series) -> bool:
    return bool((pd.to_numeric(column) % 1 == 0).all())


def _longest(rows: pd.DataFrame, columns: list[str]) -> str:
    return max(columns, key=lambda c: np.mean([len(v) for v in strings(rows[c].head(200))]), default="")


def _relative(file: Path, target: Path) -> str:
    file, folder = file.resolve(), target.resolve().parent
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)


def _yaml(content: dict[str, object]) -> str:
    """One key a line, short values in flow style."""
    lines = []
    for key, value in content.items():
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=110, allow_unicode=True).strip()
        text = text.removesuffix("...").strip().replace("\n", "\n ")
        lines.append(f"{key}: {text}")
    return "\n".join(lines) + "\n"
