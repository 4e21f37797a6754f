"""Few-shot splits: K labelled examples per class, as many for development, an unlabelled pool, the untouched test.

The LM-BFF protocol (Gao et al. 2021): train and dev are drawn from the training set with seeds 13, 21, 42, 87, 100. The
pool follows Prompt-Distiller (Hou et al. 2023): n·|X| further training inputs without labels. No text, after folding,
occurs in two of the four parts.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from core.data.assets import data_folders, find_local
from core.data.encoded import first_line
from core.data.examples import Examples, TaskError, fold
from core.data.tasks import Task
from core.registry import nearest

SEEDS = (13, 21, 42, 87, 100)
UNLABELLED = -1
FILES = "text/_lmbff_kshot"  # LM-BFF's files inside a data folder


@dataclass(frozen=True)
class FewShot:
    """One few-shot problem.

    ``train`` and ``dev`` hold K examples per class; ``pool`` inputs carry :data:`UNLABELLED` as label. ``pool_gold``
    are the pool's true labels: for ceilings and analysis only, whoever trains on them counts them as labels.
    ``replaced`` counts rows of published files that had to be exchanged, by part and reason.
    """

    train: Examples
    dev: Examples
    pool: Examples
    test: Examples
    k: int
    seed: int
    pool_gold: tuple[int, ...] = ()
    replaced: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def sha256(self) -> dict[str, str]:
        return {name: getattr(self, name).sha256 for name in ("train", "dev", "pool", "test")}


def few_shot(task: Task, k: int = 16, n: float = 10, seed: int = 13) -> FewShot:
    """Draw K per class for train, K per class for dev and ``min(n·|train|, what remains)`` unlabelled inputs.

    Args:
        task: a classification task; its train split is drawn from, its test split stays whole.
        k: labelled examples per class.
        n: pool size as a multiple of the train size; 0 for none.

    Raises:
        TaskError: no classification task, or a class with fewer than 2·k distinct train texts outside the test.
    """
    _check(task, k, n)
    splits = task.splits()
    usable = _usable(splits.train, splits.test)
    order = np.random.default_rng(seed).permutation(usable)
    train, dev = _per_class(task, splits.train, order, k)
    taken = set(train) | set(dev)
    free = [int(i) for i in order if int(i) not in taken]
    pool, gold = _pool(splits.train, free, n, len(train))
    return FewShot(splits.train.take(train), splits.train.take(dev), pool, splits.test, k, seed, gold)


def _check(task: Task, k: int, n: float) -> None:
    if not task.labels:
        raise TaskError(f"task {task.name} is of kind {task.kind} without classes; few-shot splits need classes")
    if k < 1 or n < 0:
        raise TaskError(f"few-shot splits need k >= 1 and n >= 0, got k={k}, n={n}")


def _usable(train: Examples, test: Examples) -> np.ndarray:
    """Rows of train to draw from: first of equal texts, one label for them, and not in test."""
    forbidden = set(test.folded())
    first: dict[str, int] = {}
    labels: dict[str, set] = defaultdict(set)
    for i, key in enumerate(train.folded()):
        first.setdefault(key, i)
        labels[key].add(train.labels[i])
    return np.array([i for key, i in first.items() if key not in forbidden and len(labels[key]) == 1], dtype=int)


def _per_class(task: Task, rows: Examples, order: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """The first K rows of each class in ``order`` for train, the next K for dev; classes stay together."""
    train: list[int] = []
    dev: list[int] = []
    for label, name in enumerate(task.labels):
        members = [int(i) for i in order if rows.labels[i] == label]
        if len(members) < 2 * k:
            raise TaskError(
                f"task {task.name}: class {name!r} has {len(members)} distinct train texts outside the test, "
                f"{2 * k} are needed for k={k}; choose a smaller k"
            )
        train += members[:k]
        dev += members[k : 2 * k]
    return train, dev


def _pool(rows: Examples, free: list[int], n: float, size: int) -> tuple[Examples, tuple[int, ...]]:
    """The first ``min(n·size, all)`` free rows without their labels, and those labels."""
    chosen = free[: min(int(n * size), len(free))]
    gold = tuple(int(rows.labels[i]) for i in chosen)
    return rows.take(chosen).with_labels([UNLABELLED] * len(chosen)), gold


# -- the published files ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Published:
    """Where LM-BFF keeps a task: folder, columns (by place), and its raw labels in our index order."""

    folder: str
    text: int
    label: int
    pair: int | None = None
    header: bool = True
    raw: tuple[str, ...] = ()
    dev: str = "dev"


_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
PUBLISHED = {
    "sst2_sent": _Published("SST-2", 0, 1),
    "sst5": _Published("sst-5", 1, 0, header=False),
    "rotten_tomatoes": _Published("mr", 1, 0, header=False),
    "cr": _Published("cr", 1, 0, header=False),
    "subj": _Published("subj", 1, 0, header=False),
    "trec": _Published("trec", 1, 0, header=False, raw=("2", "1", "0", "3", "4", "5")),
    "cola": _Published("CoLA", 3, 1, header=False),
    "mrpc": _Published("MRPC", 3, 0, pair=4),
    "qqp": _Published("QQP", 3, 5, pair=4),
    "qnli": _Published("QNLI", 1, 3, pair=2, raw=_ENTAILMENT),
    "rte": _Published("RTE", 1, 3, pair=2, raw=_ENTAILMENT),
    "mnli": _Published("MNLI", 8, -1, pair=9, raw=_NLI, dev="dev_matched"),
    "snli": _Published("SNLI", 7, -1, pair=8, raw=_NLI),
}


def lmbff(task: Task, seed: int = 13, n: float = 10, k: int = 16, folder: str | Path | None = None) -> FewShot:
    """The split that the LM-BFF files hold, with the same pool rule.

    Rows that are empty, occur in our test split, or occur in an earlier row of the files are exchanged for the next
    train row of the same class (order drawn with ``seed``); ``replaced`` says how many and why.

    Args:
        folder: holds ``<TASK>/<k>-<seed>/{train,dev}.{tsv,csv}``; by default ``text/_lmbff_kshot`` of a data folder.

    Raises:
        TaskError: no published files for this task or seed, or an unknown label in them.
    """
    _check(task, k, n)
    source, place = _place(task, k, seed, folder)
    splits = task.splits()
    usable = _usable(splits.train, splits.test)
    order = np.random.default_rng(seed).permutation(usable)
    read = {part: _read(place, stem, source, task) for part, stem in (("train", "train"), ("dev", source.dev))}
    kept, replaced = _exchange(read, splits.train, splits.test, order)
    outside = {key for part in kept.values() for key in part.folded()}
    keys = splits.train.folded()
    pool, gold = _pool(splits.train, [int(i) for i in order if keys[i] not in outside], n, len(kept["train"]))
    return FewShot(kept["train"], kept["dev"], pool, splits.test, k, seed, gold, replaced)


def _place(task: Task, k: int, seed: int, folder: str | Path | None) -> tuple[_Published, Path]:
    """Where the task's files lie; what is missing is named from the outside in."""
    drawn = "or draw the few with `splits: drawn`"
    missing = f"no published few-shot files for {task.name!r}"
    if task.name not in PUBLISHED:
        near = nearest(task.name, PUBLISHED)
        raise TaskError(f"{missing}{near} LM-BFF has files of {', '.join(sorted(PUBLISHED))}; take one, {drawn}")
    source, root = PUBLISHED[task.name], Path(folder) if folder else find_local(FILES)
    if root is None or not root.is_dir():
        folders = ", ".join(map(str, data_folders())) or "not set"
        where = f"{root} is no folder" if root else f"no {FILES} in a local data folder (TRANSFEROPT_DATA: {folders})"
        raise TaskError(
            f"{missing}: {where}; put there what LM-BFF's tools/generate_k_shot_data.py writes "
            f"({source.folder}/{k}-{seed}/train.tsv and dev.tsv), {drawn}"
        )
    if not (root / source.folder).is_dir():
        near = nearest(source.folder, (p.name for p in root.iterdir() if p.is_dir()))
        raise TaskError(f"{missing}: {root} has no folder {source.folder!r}{near} Put the task's files there, {drawn}")
    place = root / source.folder / f"{k}-{seed}"
    if not place.is_dir():
        there = sorted(p.name for p in place.parent.iterdir() if p.is_dir())
        raise TaskError(
            f"{missing} with k={k} and seed={seed}: no folder {place}; it has (k-seed) {', '.join(there) or 'none'}; "
            f"take one of them, {drawn}"
        )
    return source, place


def _read(place: Path, stem: str, source: _Published, task: Task) -> Examples:
    files = [p for p in (place / f"{stem}.tsv", place / f"{stem}.csv") if p.is_file()]
    if not files:
        raise TaskError(f"{place} holds no {stem}.tsv or {stem}.csv; copy LM-BFF's {stem} file of the task there")
    try:
        cells = _cells(files[0], source)
    except ValueError as error:
        raise TaskError(f"cannot read {files[0]} ({first_line(error)}); copy LM-BFF's file anew") from None
    raw = source.raw or tuple(str(i) for i in range(len(task.labels)))
    needed = 1 + max(source.text, source.label, source.pair or 0)
    for i, row in enumerate(cells, 1):
        if len(row) < needed:
            raise TaskError(
                f"{files[0]}: row {i} has {len(row)} cells, LM-BFF's files of {source.folder} have at least {needed}; "
                "copy LM-BFF's file anew"
            )
    unknown = {row[source.label] for row in cells} - set(raw)
    if unknown:
        names = ", ".join(f"{value} ({name})" for value, name in zip(raw, task.labels))
        raise TaskError(
            f"{files[0]} holds labels {sorted(unknown)[:5]} in column {source.label}, which are not those of task "
            f"{task.name}; allowed: {names}. Is it LM-BFF's file of {source.folder}?"
        )
    pairs = [row[source.pair].strip() for row in cells] if source.pair is not None else None
    labels = [raw.index(row[source.label]) for row in cells]
    return Examples([row[source.text].strip() for row in cells], pairs, labels)


def _cells(file: Path, source: _Published) -> list[list[str]]:
    if file.suffix == ".csv":
        return pd.read_csv(file, header=None, dtype=str, keep_default_na=False).values.tolist()
    lines = file.read_text(encoding="utf-8-sig").split("\n")
    return [line.rstrip("\r").split("\t") for line in lines[1 if source.header else 0 :] if line]


def _exchange(
    read: dict[str, Examples], train: Examples, test: Examples, order: np.ndarray
) -> tuple[dict[str, Examples], dict[str, dict[str, int]]]:
    """Replace unusable published rows by train rows of the same class, taken in ``order``."""
    in_test, seen = set(test.folded()), set()
    published = {key for part in read.values() for key in part.folded()}
    keys = train.folded()
    spare: dict[int, list[int]] = defaultdict(list)
    for i in order[::-1]:
        if keys[i] not in published:
            spare[train.labels[i]].append(int(i))
    kept: dict[str, Examples] = {}
    replaced: dict[str, dict[str, int]] = {}
    for part, rows in read.items():
        reasons: dict[str, int] = {}
        columns: list[tuple[str, str | None, int]] = []
        for i, key in enumerate(rows.folded()):
            pair = rows.pairs[i] if rows.pairs else None
            reason = _unusable(key, rows.texts[i], pair, in_test, seen)
            seen.add(key)
            if reason:
                reasons[reason] = reasons.get(reason, 0) + 1
                if not spare[rows.labels[i]]:
                    raise TaskError(
                        f"row {i + 1} of the published {part} file is unusable ({reason}), and train has no further "
                        f"row of class {rows.labels[i]} to exchange it for; draw the few with `splits: drawn`"
                    )
                j = spare[rows.labels[i]].pop()
                columns.append((train.texts[j], train.pairs[j] if train.pairs else None, rows.labels[i]))
            else:
                columns.append((rows.texts[i], pair, rows.labels[i]))
        texts, pairs, labels = (list(c) for c in zip(*columns))
        kept[part] = Examples(texts, pairs if rows.pairs else None, labels)
        replaced[part] = reasons
    return kept, replaced


def _unusable(key: str, text: str, pair: str | None, in_test: set[str], seen: set[str]) -> str:
    if not fold(text) or (pair is not None and not fold(pair)):
        return "empty"
    if key in in_test:
        return "in test"
    return "repeated" if key in seen else ""
