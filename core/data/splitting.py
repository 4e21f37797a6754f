"""Rows become splits: named splits are taken, others cut by hash so that no text crosses them; rows become examples."""

import re
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from core.data.arrays import task_arrays
from core.data.examples import Examples, Splits, TaskError, fold, share_of
from core.data.normalise import TEXT_STEPS
from core.data.reading import derive, read_source
from core.data.tables import strings
from core.data.tasks import TEXT_KINDS, Task
from core.hashing import sha256_file
from core.registry import nearest

HIDDEN = "-1"  # a hidden label in many published test sets
CALLED = {
    "train": ("train", "training"),
    "validation": ("validation", "dev", "development", "valid", "val"),
    "test": ("test", "testing"),
}
_WHOLE = re.compile(r"[+-]?\d+\.0*")


@cache
def make_splits(description: str, seed: int, state: tuple[tuple[str, int, int], ...]) -> Splits:
    """The splits of a task given as JSON (see :meth:`core.data.tasks.Task.splits`); ``state`` only keys the memory."""
    task = Task.model_validate_json(description)
    columns = [c for c in (task.fields.text, task.fields.pair) if c and task.kind in TEXT_KINDS] + [task.fields.label]
    frames = cut(read_source(task.source, task.name, seed, columns), task, seed)
    dropped: dict[str, dict[str, int]] = {}
    if task.plan.leaks == "remove" and task.kind in TEXT_KINDS:
        frames = _without_leaks(frames, task, dropped)
    parts = {name: _examples(task, name, rows, dropped.setdefault(name, {})) for name, rows in frames.items()}
    for name, part in parts.items():
        if not len(part):
            raise TaskError(f"task {task.name}: no rows in {name} ({_absent(name, dropped[name])})")
    for name, part in parts.items():
        present = set(part.labels)
        missing = [label for i, label in enumerate(task.labels) if i not in present]
        if missing:
            raise TaskError(
                f"task {task.name}: {name} has no row of class {', '.join(missing[:5])}; add rows, enlarge its "
                "share in `splits`, or remove the label"
            )
    return Splits(**parts, dropped=dropped)


def _absent(part: str, dropped: dict[str, int]) -> str:
    if not dropped:
        return "left out: none"
    reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
    hidden = f"; where labels are hidden, give a share or another split as splits.{part}"
    return f"left out: {reasons}{hidden if 'without label' in dropped and part != 'train' else ''}"


def _without_leaks(
    frames: dict[str, pd.DataFrame], task: Task, dropped: dict[str, dict[str, int]]
) -> dict[str, pd.DataFrame]:
    """Test stays; validation loses what is in test, train what is in either (as read, or as it was before the cut)."""
    later: set[str] = set()
    kept = {}
    for name in ("test", "validation", "train"):
        rows = frames[name]
        keys = _input_keys(task, rows)
        if task.max_words:
            whole = _input_keys(task.model_copy(update={"max_words": None}), rows)
            keys = [(a, b) for (a,), (b,) in zip(keys, whole)]
        inside = np.array([not any(k in later for k in some) for some in keys], dtype=bool)
        _note(dropped.setdefault(name, {}), "in a later split", int((~inside).sum()))
        kept[name] = rows[inside]
        later |= {k for some in keys for k in some}
    return {name: kept[name] for name in frames}


def _input_keys(task: Task, rows: pd.DataFrame) -> list[tuple[str]]:
    """Each row's folded input (text, and pair)."""
    columns = [_texts(task, rows, c) for c in (task.fields.text, task.fields.pair) if c]
    return [("\x1f".join(fold(t) for t in texts),) for texts in zip(*columns)]


def cut(frames: dict[str, pd.DataFrame], task: Task, seed: int) -> dict[str, pd.DataFrame]:
    """Apply the split plan: named splits are taken, shares are cut from train by the hash of the split column."""
    plan = task.plan
    named = _plan(frames, task)
    train = named["train"]
    for part, name in named.items():
        if isinstance(name, str) and name not in frames:
            raise TaskError(f"task {task.name}: {part} names split {name!r}{nearest(name, frames)} Has: {list(frames)}")
    if len({n for n in named.values() if isinstance(n, str)}) < sum(isinstance(n, str) for n in named.values()):
        raise TaskError(f"task {task.name}: two parts name the same split ({named})")
    shares = {part: share for part, share in named.items() if not isinstance(share, str)}
    if not all(0 < s < 1 for s in shares.values()) or sum(shares.values()) >= 1:
        raise TaskError(f"task {task.name}: shares must lie between 0 and 1 and leave rows for train, got {shares}")
    rows = frames[train]
    result = {"train": rows, **{p: frames[n] for p, n in named.items() if p != "train" and isinstance(n, str)}}
    if shares:
        position = _positions(_split_keys(rows, task), _strata(rows, task), seed)
        low = 0.0
        for part in ("test", "validation"):
            if part in shares:
                result[part] = rows[(position >= low) & (position < round(low + shares[part], 9))]
                low = round(low + shares[part], 9)
        result["train"] = rows[position >= low]
    for name, settings in plan.pair.items():
        result = {part: derive(name, r, seed, settings, f"task {task.name}") for part, r in result.items()}
    return {part: result[part] for part in ("train", "validation", "test")}


def _plan(frames: dict[str, pd.DataFrame], task: Task) -> dict[str, str | float]:
    """Each part's split or share: as the task says, else the split that is called so, else the usual share."""
    said = {part: getattr(task.plan, part) for part in CALLED if getattr(task.plan, part) != ""}
    if len(frames) == 1:
        return {"train": next(iter(frames)), "validation": 0.1, "test": 0.2} | said
    free = [name for name in frames if name not in said.values()]
    found = {part: _called(part, free, task.name) for part in CALLED if part not in said}
    if not said.get("train") and not found["train"]:
        raise TaskError(
            f"task {task.name}: none of the splits {', '.join(frames)} is called train; say which is, and which are "
            "validation and test, as splits: {train: NAME, ...}"
        )
    shares = {"validation": 0.1, "test": 0.2}
    return {part: said.get(part, found.get(part) or shares.get(part, "")) for part in CALLED}


def _called(part: str, names: list[str], task: str) -> str:
    """The split with a usual name of the part; the plain name goes before its short forms."""
    found = [name for name in names if name.lower() in CALLED[part]]
    if part in found:
        return part
    if len(found) > 1:
        raise TaskError(f"task {task}: {' and '.join(found)} may both be {part}; say which as splits: {{{part}: NAME}}")
    return found[0] if found else ""


def _split_keys(rows: pd.DataFrame, task: Task) -> list[str]:
    """What decides a row's split: the folded text or group, the image's bytes, or all features."""
    by, text = task.plan.by, task.fields.text
    if by or task.kind in TEXT_KINDS:
        column = _column(rows, by or text, f"task {task.name}")
        if not by:
            return [fold(t) for t in _texts(task, rows, text)]
        groups = [fold(v) for v in strings(column)]
        return _joined(groups, [fold(t) for t in _texts(task, rows, text)]) if text in rows.columns else groups
    if task.kind == "image" and task.fields.image in rows.columns:
        return [sha256_file(str(p)) for p in rows[task.fields.image]]
    features = rows[[c for c in rows.columns if c != task.fields.label]]
    return [repr(values) for values in features.itertuples(index=False, name=None)]


def _joined(groups: list[str], texts: list[str]) -> list[str]:
    """One key a connected set of groups: two groups that share a text must not be parted. The key is the least name."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names = sorted(set(groups))
    number = {name: i for i, name in enumerate(names)}
    known = {text: len(names) + i for i, text in enumerate(dict.fromkeys(texts))}
    edges = [number[g] for g in groups], [known[t] for t in texts]
    size = len(names) + len(known)
    _, component = connected_components(coo_matrix((np.ones(len(groups)), edges), shape=(size, size)), directed=False)
    least: dict[int, str] = {}
    for name in names:
        least.setdefault(component[number[name]], name)
    return [least[component[number[g]]] for g in groups]


def _strata(rows: pd.DataFrame, task: Task) -> list[str]:
    known = bool(task.labels) and not task.plan.pair and task.fields.label in rows.columns
    return strings(rows[task.fields.label]) if known else [""] * len(rows)


def _positions(keys: list[str], strata: list[str], seed: int) -> np.ndarray:
    """Each row's place in [0, 1): the rank of its key's hash among the keys of its class.

    Equal keys get equal places, and every class is cut in the same proportion.
    """
    members: dict[str, list[str]] = {}
    for key, stratum in dict(zip(keys[::-1], strata[::-1])).items():  # a key belongs to the class of its first row
        members.setdefault(stratum, []).append(key)
    place = {}
    for of_class in members.values():
        of_class.sort(key=lambda key: share_of(key, seed))
        place |= {key: round(rank / len(of_class), 9) for rank, key in enumerate(of_class)}
    return np.array([place[key] for key in keys])


def _column(rows: pd.DataFrame, column: str, where: str) -> pd.Series:
    if column not in rows.columns:
        has = [str(c) for c in rows.columns]
        raise TaskError(f"{where}: no column {column!r}{nearest(column, has)} Has: {', '.join(has)}")
    return rows[column]


def _examples(task: Task, part: str, rows: pd.DataFrame, dropped: dict[str, int]) -> Examples:
    where = f"task {task.name}, {part}"
    labelled = _column(rows, task.fields.label, where)
    hidden = {"", HIDDEN} if task.labels and HIDDEN not in _known(task) else {""}
    keep = np.array([plain_label(label) not in hidden for label in strings(labelled)], dtype=bool)
    _note(dropped, "without label", (~keep).sum())
    columns = [task.fields.text] + ([task.fields.pair] if task.fields.pair else [])
    for column in columns if task.kind in TEXT_KINDS else []:
        full = np.array([text != "" for text in strings(_column(rows, column, where))], dtype=bool)
        _note(dropped, "empty", (keep & ~full).sum())
        keep &= full
    rows = rows[keep]
    labels = _labels(task, rows[task.fields.label])
    if task.kind not in TEXT_KINDS:
        return task_arrays(task, rows, labels)
    texts, pairs = (_texts(task, rows, column) for column in (task.fields.text, task.fields.pair))
    return Examples(texts or [], pairs, labels)


def _note(dropped: dict[str, int], reason: str, count: int) -> None:
    if count:
        dropped[reason] = dropped.get(reason, 0) + int(count)


def _texts(task: Task, rows: pd.DataFrame, column: str) -> list[str] | None:
    """The column's texts as the task reads them: normalised, then cut."""
    if not column:
        return None
    texts = strings(_column(rows, column, f"task {task.name}"))
    for name in task.normalise:
        step = TEXT_STEPS.get(name)
        texts = [step(t) for t in texts]
    most = task.max_words
    return [" ".join(t.split(maxsplit=most)[:most]) for t in texts] if most else texts


def _labels(task: Task, raw: pd.Series) -> list[Any]:
    """Class indices, numbers or reference texts."""
    if task.kind == "generation":
        return strings(raw)
    if not task.labels:
        return _numbers(task, raw)
    known = _known(task)
    texts = [
        str(int(v)) if isinstance(v, (float, np.floating)) and float(v).is_integer() else str(v).strip() for v in raw
    ]
    texts = [t if t in known else plain_label(t) for t in texts]
    unknown = sorted({t for t in texts if t not in known})
    if unknown:
        raise TaskError(
            f"task {task.name}: column {task.fields.label!r} holds {unknown[:5]}{nearest(unknown[0], known)} "
            f"Allowed: {', '.join(known)}; map raw labels with `values`, or leave rows out with source.where"
        )
    return [known[t] for t in texts]


def _known(task: Task) -> dict[str, int]:
    """What may stand in the label column -> class index: the raw labels of ``values``, else the names, else places."""
    index = {name: i for i, name in enumerate(task.labels)}
    known = {str(value): index[name] for value, name in task.values.items()} or dict(index)
    if not task.values and not any(plain_label(name).lstrip("-").isdigit() for name in index):
        known |= {str(i): i for i in index.values()}
    return {plain_label(raw): i for raw, i in known.items()} | known


def plain_label(text: str) -> str:
    """``text``, or without ``.0`` where it is a whole number: a table writes classes so beside a missing one."""
    return str(int(float(text))) if _WHOLE.fullmatch(text) else text


def _numbers(task: Task, raw: pd.Series) -> list[float]:
    numbers = pd.to_numeric(raw, errors="coerce").astype(float)
    bad = raw[~np.isfinite(numbers.to_numpy())]
    if len(bad):
        raise TaskError(f"task {task.name}: {task.fields.label!r} holds {str(bad.iloc[0])!r}, not a finite number")
    return numbers.tolist()
