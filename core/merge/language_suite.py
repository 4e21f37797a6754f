"""The tasks of a language model: which ones its adapters are for, and how what they answered becomes rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.data.tasks import Task, load_task
from core.evaluate.relative import MEAN, NORMALISED, relative
from core.evaluate.rows import Row
from core.merge.adapter_experts import KINDS
from core.merge.language import LanguageObjective

Hits = dict[str, np.ndarray]  # task -> which of its examples were answered rightly, bool [n]


def as_prompted_tasks(names: Sequence[str]) -> list[Task]:
    """Loaded tasks that a causal language model can be asked.

    Raises:
        ValueError: one of them is neither classification nor generation or has no causal template, or a name occurs
            twice.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"a task occurs twice in {list(names)}")
    loaded = [load_task(n) for n in names]
    for task in loaded:
        if task.kind not in KINDS:
            raise ValueError(f"task {task.name!r} is of kind {task.kind!r}; adapters are for {', '.join(KINDS)}")
        if not task.causal_template:
            raise ValueError(
                f"task {task.name!r} has no causal_template, so a language model cannot be asked; add one to its file "
                '(causal_template: "{text} It was")'
            )
    return loaded


def answered(network: Any, tasks: Mapping[str, LanguageObjective]) -> Hits:
    """Which examples of every task the model answers rightly: label words by likelihood, free texts by exact match.

    An answer that is no number is a miss.
    """
    return {t: o.judge(network, np.arange(o.size)).correct == 1 for t, o in tasks.items()}


def individual_scores(own: Hits) -> dict[str, float]:
    """Task -> share that its own expert answers rightly."""
    return {t: float(h.mean()) for t, h in own.items()}


def hit_rows(method: str, hits: Hits, individual: Mapping[str, float], **facts: Any) -> list[Row]:
    """Rows of one method: per task accuracy (of free texts exact match), the same relative to the expert, and means.

    Args:
        individual: task -> test accuracy of its own expert (the ceiling that normalises).
        facts: further fields of the rows (budget, inputs, seed, version ...).
    """
    accuracy = {t: float(h.mean()) for t, h in hits.items()}
    found = {
        "accuracy": {**accuracy, MEAN: float(np.mean(list(accuracy.values())))},
        NORMALISED: relative(accuracy, individual),
    }
    return [
        Row(method=method, metric=metric, value=value, settings={"task": task}, **facts)
        for metric, values in found.items()
        for task, value in values.items()
    ]
