"""``check(task)``: what a task holds and what is wrong with it, before any run."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.data.cleaning import PARTS, find_faults
from core.data.examples import Examples, Splits
from core.data.splitting import CALLED
from core.data.tables import format_of
from core.data.tasks import Task

HTML = re.compile(r"<(?:br|p|div|a|b|i|span|li)\b[^<>]*/?>|&(?:amp|lt|gt|quot|nbsp|#\d+);", re.I)
IMBALANCE = 10.0
TWO_CLASSES = ("precision", "recall", "f1")  # averaged over one positive class


@dataclass(frozen=True)
class Report:
    """What :func:`check` found. Counts are rows; shares lie between 0 and 1.

    ``leaks`` maps "train in test" and the like to rows; ``truncated`` is None without a tokenizer; ``problems`` are
    sentences, worst first, empty when nothing stands out.
    """

    task: str
    kind: str
    counts: dict[str, int]
    dropped: dict[str, dict[str, int]]
    balance: dict[str, dict[str, int]]
    words: dict[str, dict[str, float]]
    faults: dict[str, dict[str, int]]
    leaks: dict[str, int]
    truncated: dict[str, float] | None
    max_length: int | None
    prompts: dict[str, str]
    licence: str
    sha256: dict[str, str]
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report for a terminal."""
        out = [f"{self.task} ({self.kind})   licence: {self.licence}"]
        for part in PARTS:
            facts = [f"{self.counts[part]} rows"]
            if part in self.words:
                facts.append("words median {median:.0f}, 95 % {p95:.0f}, most {max:.0f}".format(**self.words[part]))
            if self.truncated is not None:
                facts.append(f"{100 * self.truncated[part]:.1f} % longer than {self.max_length} tokens")
            facts += [f"{n} {fault}" for fault, n in self.faults[part].items() if n and fault != "leaks"]
            facts += [f"{n} left out ({reason})" for reason, n in self.dropped.get(part, {}).items()]
            out.append(f"  {part:<10} " + ", ".join(facts))
            if self.balance.get(part):
                out.append("             " + ", ".join(f"{k} {n}" for k, n in _shortened(self.balance[part])))
        out += [f"  {pair}: {n} rows" for pair, n in self.leaks.items() if n]
        out += [f"  {name} prompt: {text!r}" for name, text in self.prompts.items()]
        out += [f"  ! {problem}" for problem in self.problems] or ["  nothing stands out"]
        return out


def _shortened(balance: dict[str, int], most: int = 8) -> list[tuple[str, int]]:
    items = sorted(balance.items(), key=lambda item: -item[1])
    return (
        items
        if len(items) <= most
        else [*items[: most - 1], (f"and {len(items) - most + 1} more, least", items[-1][1])]
    )


def check(
    task: Task, tokenizer: Callable[..., Any] | None = None, max_length: int | None = None, seed: int = 0
) -> Report:
    """Read the task and report counts, balance, duplicates, conflicts, leaks, lengths and a filled prompt.

    Args:
        tokenizer: a transformers tokenizer; with it the share of inputs longer than ``max_length`` is counted.
        max_length: tokens; default: the tokenizer's own limit.

    Raises:
        TaskError: the task cannot be read at all (see :meth:`Task.splits`); unknown metric.
    """
    from core.evaluate.metrics import METRICS

    METRICS.entry(task.metric)
    splits = task.splits(seed)
    found = find_faults(splits)
    parts = {part: getattr(splits, part) for part in PARTS}
    limit = None
    if tokenizer is not None and splits.train.texts:
        limit = max_length or int(getattr(tokenizer, "model_max_length", 512))
    balance = {part: _balance(task, rows) for part, rows in parts.items()}
    faults = {part: {fault: len(rows) for fault, rows in by.items()} for part, by in found.items()}
    truncated = {p: _truncated(rows, tokenizer, limit) for p, rows in parts.items()} if limit else None
    leaks = _leaks(splits)
    return Report(
        task=task.name,
        kind=task.kind,
        counts={part: len(rows) for part, rows in parts.items()},
        dropped=splits.dropped,
        balance=balance if task.labels else {},
        words={part: _words(rows) for part, rows in parts.items() if rows.texts},
        faults=faults,
        leaks=leaks,
        truncated=truncated,
        max_length=limit,
        prompts=_prompts(task, splits.train),
        licence=task.licence,
        sha256=splits.sha256,
        problems=tuple(_problems(task, splits.train, balance, faults, leaks, truncated)),
    )


def _balance(task: Task, rows: Examples) -> dict[str, int]:
    counts = Counter(rows.labels)
    return {name: counts.get(i, 0) for i, name in enumerate(task.labels)}


def _words(rows: Examples) -> dict[str, float]:
    seconds = rows.pairs or [""] * len(rows)
    n = np.array([len(a.split()) + len(b.split()) for a, b in zip(rows.texts, seconds)])
    return {"median": float(np.median(n)), "p95": float(np.percentile(n, 95)), "max": float(n.max())}


def _truncated(rows: Examples, tokenizer: Callable[..., Any], limit: int, block: int = 2048) -> float:
    long = 0
    for start in range(0, len(rows), block):
        texts = rows.texts[start : start + block]
        pairs = rows.pairs[start : start + block] if rows.pairs else None
        ids = tokenizer(texts, pairs, truncation=False, padding=False, verbose=False)["input_ids"]
        long += sum(len(i) > limit for i in ids)
    return long / len(rows)


def _leaks(splits: Splits) -> dict[str, int]:
    keys = {part: getattr(splits, part).folded() for part in PARTS}
    sets = {part: set(k) for part, k in keys.items()}
    pairs = (("train", "validation"), ("train", "test"), ("validation", "test"))
    return {f"{a} in {b}": sum(k in sets[b] for k in keys[a]) for a, b in pairs}


def _prompts(task: Task, rows: Examples) -> dict[str, str]:
    """Each template filled with the train text of median length."""
    if not rows.texts:
        return {}
    i = int(np.argsort([len(t) for t in rows.texts], kind="stable")[len(rows) // 2])
    text, pair = rows.texts[i], rows.pairs[i] if rows.pairs else ""
    kinds = (("masked", task.template), ("causal", task.causal_template))
    return {name: task.prompt(text, pair, causal=name == "causal") for name, template in kinds if template}


def metric_problem(task: Task) -> str:
    """What is wrong with a metric of another kind of answer than the task's; empty where it fits."""
    from core.evaluate.metrics import METRICS

    if task.labels:
        answers, kinds = f"{len(task.labels)} classes", ("label", "probability")
    else:
        answers, kinds = ("texts", ("text",)) if task.kind == "generation" else ("numbers", ("regression",))
    allowed = [m.name for m in METRICS if m.facts["kind"] in kinds]
    if len(task.labels) > 2:
        allowed = [name for name in allowed if name not in TWO_CLASSES]
    if task.metric in allowed:
        return ""
    return f"metric {task.metric} does not fit answers that are {answers}; allowed: {', '.join(allowed)}"


def unused_splits(task: Task) -> list[str]:
    """Files with the usual names of a validation or test split, beside a train file that alone is the source."""
    path = Path(task.source.path) if task.source.path else None
    if path is None or not path.is_file() or path.name.split(".")[0].lower() not in CALLED["train"]:
        return []
    names = (*CALLED["validation"], *CALLED["test"])
    return sorted(p.name for p in path.parent.iterdir() if format_of(p) and p.name.split(".")[0].lower() in names)


def _prompt_problems(task: Task) -> Iterator[str]:
    """What a language model could not answer from, and label words that are one word."""
    for key, template in (("template", task.template), ("causal_template", task.causal_template)):
        slots = ["{text}", *(["{pair}"] if task.kind == "pair" else []), *(["{mask}"] if key == "template" else [])]
        absent = [slot for slot in slots if template and slot not in template]
        if absent:
            yield f"{key} has no {' and no '.join(absent)}: a language model cannot answer from it"
    seen: dict[str, str] = {}
    for label, words in zip(task.labels, task.label_words or task.labels):
        for word in {w.strip().lower() for w in words.split("|")}:
            if seen.setdefault(word, label) != label:
                yield f"label word {word!r} stands for {seen[word]} and {label}; give others (case is ignored)"


def several_classes(labels: Sequence[str]) -> str:
    """A label that joins other labels (``billing|bug`` beside ``bug``); empty where no two such are found."""
    for mark in "|;,/+":
        joined = [label for label in labels if mark in label]
        parts = {part.strip() for label in joined for part in label.split(mark)}
        if len(joined) > 1 and len(parts & set(labels)) > 1:
            return joined[0]
    return ""


def _text_problems(task: Task, rows: Examples) -> Iterator[str]:
    if joined := several_classes(task.labels):
        yield f"labels such as {joined!r} join others: a text has one class here, so each combination is one of its own"
    tagged = sum(bool(HTML.search(text)) for text in rows.texts)
    if tagged > 0.05 * len(rows):
        yield f"{tagged} texts of train hold HTML; `normalise: [html, spaces]` reads its line breaks and characters"


def _problems(
    task: Task,
    rows: Examples,
    balance: dict[str, dict[str, int]],
    faults: dict[str, dict[str, int]],
    leaks: dict[str, int],
    truncated: dict[str, float] | None,
) -> Iterator[str]:
    if unfit := metric_problem(task):
        yield unfit
    if beside := unused_splits(task):
        yield (
            f"{', '.join(beside)} beside {Path(task.source.path).name} not read; `source: {{path: FOLDER}}` without "
            "`splits` takes every table of a folder as the split that it is named after"
        )
    yield from _text_problems(task, rows)
    for part in PARTS:
        absent = [name for name, n in balance[part].items() if n == 0]
        if absent:
            yield f"{part} has no row of class {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}"
    for pair, n in leaks.items():
        if n:
            a, b = pair.split(" in ")
            yield f"{n} rows of {a} occur in {b}: scores on {b} are too good; `splits: {{leaks: remove}}`"
    for part in PARTS:
        if faults[part]["conflicting"]:
            yield f"{faults[part]['conflicting']} rows of {part} have equal inputs with different labels"
    counts = [n for n in balance["train"].values() if n]
    if counts and max(counts) > IMBALANCE * min(counts):
        yield f"classes are uneven in train (most {max(counts)}, least {min(counts)}); accuracy hides the rare ones"
    if truncated and max(truncated.values()) > 0.2:
        yield f"{100 * max(truncated.values()):.0f} % of the inputs are cut by the model's length limit"
    if task.kind in ("single", "pair") and not (task.template or task.causal_template):
        yield "no template: prompts cannot be used on this task"
    if task.kind in ("single", "pair"):
        yield from _prompt_problems(task)
