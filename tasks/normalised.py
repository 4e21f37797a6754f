"""Accuracy relative to each task's own expert, also where an expert got no test item right.

Nothing is relative to zero: such a task's ``normalised`` is undefined, and means are over the other tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from core.evaluate.relative import MEAN, NORMALISED, relative
from core.evaluate.rows import Row
from core.merge.suite import Predictions, rows_of


def normalised_rows(
    method: str, found: Mapping[str, Predictions], individual: Mapping[str, float], **facts: Any
) -> list[Row]:
    """The rows of :func:`core.merge.suite.rows_of`, ``normalised`` by :func:`core.evaluate.relative.relative`."""
    rows = rows_of(method, found, {task: value or 1.0 for task, value in individual.items()}, **facts)
    values = relative({task: float(p.correct.mean()) for task, p in found.items()}, individual)
    return [r.model_copy(update={"value": values[r.settings["task"]]}) if r.metric == NORMALISED else r for r in rows]


def undefined_tasks(rows: Sequence[Row]) -> list[str]:
    """The tasks of which nothing can be normalised."""
    return sorted(
        {str(r.settings["task"]) for r in rows if r.metric == NORMALISED and r.value is None} - {MEAN}
    )  # fmt: skip


def undefined_words(tasks: Sequence[str], who: str = "expert") -> str:
    """What a page says of them; empty without any."""
    if not tasks:
        return ""
    return (
        f" The {who} of {', '.join(tasks)} got no test item right, so nothing is relative to it: there is no "
        "normalised accuracy on this task, and means of it are over the others."
    )
