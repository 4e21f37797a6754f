"""Forms: sub-problems of a merge. Which experts' coefficients move, which tasks are scored, what the others do.

A *lone* form merges its experts only, as in the thesis; a *context-preserving* form moves their coefficients while all
others stay merged as in the present best recipe, so it sees the interference that decides the full problem.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Form:
    """A sub-problem.

    Args:
        models: indices of the experts whose coefficients move, sorted.
        tasks: names of the tasks scored.
        kind: ``context`` (the others stay merged) or ``lone`` (the others are left out).
        basis, granularity: formulation in which it is solved; empty means that of the full problem.
    """

    models: tuple[int, ...]
    tasks: tuple[str, ...]
    kind: Literal["context", "lone"] = "context"
    basis: str = ""
    granularity: str = ""

    def __post_init__(self) -> None:
        if not self.models or list(self.models) != sorted(set(self.models)):
            raise ValueError(f"a form needs experts, each once and in order, got {self.models}")
        if not self.tasks:
            raise ValueError("a form needs at least one task to be scored on")

    @property
    def level(self) -> int:
        """Number of experts that move."""
        return len(self.models)

    def background(self, context: np.ndarray) -> np.ndarray:
        """Coefficients [n, g] of the experts that do not move (zero rows for those that do)."""
        out = np.array(context, dtype=float) if self.kind == "context" else np.zeros_like(context, dtype=float)
        out[list(self.models)] = 0.0
        return out

    def expand(self, moving: np.ndarray, context: np.ndarray) -> np.ndarray:
        """Full coefficients [n, g] from those of the moving experts [level, g]."""
        out = self.background(context)
        out[list(self.models)] = moving
        return out

    def free(self, shape: tuple[int, int]) -> np.ndarray:
        """Mask [n, g] of the coefficients that move."""
        mask = np.zeros(shape, dtype=bool)
        mask[list(self.models)] = True
        return mask


@dataclass(frozen=True)
class Solved:
    """A solved form: best recipe [n, g], score and reference score on its tasks, and what it cost."""

    form: Form
    coefficients: np.ndarray
    score: float
    reference: float
    cost: float
    task_scores: dict[str, float] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        return self.score - self.reference


def all_forms(n: int, level: int, owners: Sequence[int | None], tasks: Sequence[str]) -> Iterator[Form]:
    """Every form of ``level`` experts, scored on their own tasks."""
    for models in combinations(range(n), level):
        yield Form(models, own_tasks(models, owners, tasks))


def own_tasks(models: Iterable[int], owners: Sequence[int | None], tasks: Sequence[str]) -> tuple[str, ...]:
    """Names of the tasks whose expert is among ``models``; all tasks when none has an expert there."""
    chosen = set(models)
    own = tuple(t for t, owner in zip(tasks, owners, strict=True) if owner in chosen)
    return own or tuple(tasks)


def sensitive_tasks(
    models: Sequence[int], owners: Sequence[int | None], tasks: Sequence[str], interference: np.ndarray, most: int
) -> tuple[str, ...]:
    """Own tasks, filled up to ``most`` with those that answer strongest to the moving experts.

    Args:
        interference: [n, tasks] effect of an expert's coefficient on a task (its size counts).
    """
    own = own_tasks(models, owners, tasks)
    strength = np.abs(interference[list(models)]).sum(axis=0)
    order = [tasks[i] for i in np.argsort(-strength, kind="stable") if tasks[i] not in own]
    return tuple(t for t in tasks if t in {*own, *order[: max(0, most - len(own))]})
