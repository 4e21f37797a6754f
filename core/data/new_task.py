"""Write a task's YAML from a table with a label column."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from core.data.examples import TaskError
from core.data.reading import read_table, strings
from core.data.tasks import load_task, parse_task
from core.registry import nearest
from core.state import write_bytes

MOST_CLASSES = 200
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

    Raises:
        TaskError: missing file or column, an existing task file, one class only, too many classes, no text column.
    """
    file = Path(file)
    if not file.is_file():
        raise TaskError(f"{file} does not exist; give a table with a label column")
    target = Path(out) if out else file.with_suffix("").with_suffix(".yaml")
    if target.exists() and not overwrite:
        raise TaskError(f"{target} exists; remove it or give another path")
    rows = read_table(file, where=file.name)
    columns = [str(c) for c in rows.columns]
    for column in [label, *filter(None, (text, pair))]:
        if column not in columns:
            raise TaskError(f"{file.name}: no column {column!r}{nearest(column, columns)} Has: {', '.join(columns)}")
    content = describe(file, rows, label, text, pair, kind, target)
    parse_task({"name": target.stem, **content}, str(target))
    write_bytes(target, _yaml(content).encode())
    try:
        load_task(target).splits()
    except ValueError:
        target.unlink()
        raise
    return target


def describe(
    file: Path, rows: pd.DataFrame, label: str, text: str, pair: str, kind: str, target: Path
) -> dict[str, object]:
    """The task as a dictionary in the order in which it is written."""
    others = [c for c in map(str, rows.columns) if c not in (label, text, pair)]
    numeric = [c for c in others if _is_numeric(rows[c])]
    words = [c for c in others if c not in numeric]
    text = text or next((c for c in TEXT_NAMES if c in words), "") or _longest(rows, words)
    pair = pair or next((c for c in PAIR_NAMES if c in words and c != text), "")
    kind = kind or _kind(rows, label, text, pair, numeric)
    given = {"path": Path(_relative(file, target)).as_posix()}
    fields = {"text": text, "pair": pair if kind in ("pair", "regression", "generation") else "", "label": label}
    if kind == "table":
        fields = {"label": label, "features": numeric}
    elif not text:
        raise TaskError(f"{file.name}: no text column found; give one with --text, or --kind table")
    measured = (
        kind == "table" and _is_numeric(rows[label]) and not (_whole(rows[label]) and rows[label].nunique() <= 20)
    )
    labels = [] if measured or kind in ("regression", "generation") else _labels(rows, label, file.name)
    content: dict[str, object] = {"version": 1, "summary": f"{label} of {file.name}", "kind": kind, "source": given}
    smallest = int(rows[label].value_counts().min()) if labels else len(rows)
    shares = {"validation": 0.1, "test": 0.2} if smallest >= 10 else {"validation": 0.25, "test": 0.25}
    content |= {"splits": shares, "fields": {k: v for k, v in fields.items() if v}}
    if labels:
        content["labels"] = labels
    content["metric"] = {"regression": "pearson", "generation": "rouge_l"}.get(kind, "accuracy" if labels else "r2")
    if kind in ("single", "pair"):
        second = " {pair}" if kind == "pair" else ""
        content["template"] = f"{{text}}{second} This is {{mask}}."
        content["causal_template"] = f"Text: {{text}}{second} The {label} of this text is"
        content["label_words"] = [name.replace("_", " ") for name in labels]
    return content


def _kind(rows: pd.DataFrame, label: str, text: str, pair: str, numeric: list[str]) -> str:
    distinct = rows[label].nunique()
    if not text:
        return "table" if numeric else ""
    if _is_numeric(rows[label]) and not _whole(rows[label]):
        return "regression"
    if distinct > MOST_CLASSES:
        return "regression" if _is_numeric(rows[label]) else "generation"
    return "pair" if pair else "single"


def _labels(rows: pd.DataFrame, label: str, name: str) -> list[str]:
    found = sorted({v for v in strings(rows[label]) if v}, key=lambda v: (len(v), v) if v.isdigit() else (99, v))
    if len(found) < 2:
        raise TaskError(f"{name}: column {label!r} holds {found or 'nothing'}; a classification needs two classes")
    if len(found) > MOST_CLASSES:
        raise TaskError(f"{name}: column {label!r} holds {len(found)} values, more than {MOST_CLASSES}; is it a text?")
    return found


def _is_numeric(column: pd.Series) -> bool:
    return bool(np.isfinite(pd.to_numeric(column, errors="coerce").astype(float)).all())


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
