"""The target of a transfer: its training examples, what is asked of them, and the checks before any work."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from core.data.examples import Examples

MODALITY = {"single": "text", "pair": "text", "regression": "text", "generation": "language", "image": "image"}


def kind_of(task: Any) -> str:
    """``classification``, ``regression`` or ``generation``, of a :class:`core.data.tasks.Task`."""
    if task.labels:
        return "classification"
    return task.kind if task.kind in ("regression", "generation") else "regression"


class TargetError(ValueError):
    """The target data cannot be learned from as asked; the message says what to change."""


@dataclass(frozen=True, eq=False)
class Target:
    """Training data of a target task.

    Args:
        kind: "classification", "regression" or "generation".
        modality: "text", "language" (generation), "image", "audio" or "table".
        classes: number of classes (0 for the other kinds).
        metric: name of the metric that decides.
        originals: how many of ``train``, from the first on, are examples of their own; the rest are changed copies of
            these, in their order, round and round. None: all.
    """

    name: str
    train: Examples
    kind: str
    modality: str
    classes: int
    metric: str
    originals: int | None = None

    @classmethod
    def of(cls, task: Any, train: Examples, modality: str | None = None, originals: int | None = None) -> "Target":
        """The target of a :class:`core.data.tasks.Task` with the given training examples, checked."""
        kind = kind_of(task)
        found = modality or MODALITY.get(task.kind, "table")
        return cls(task.name, train, kind, found, task.n_classes, task.metric, originals).checked()

    def with_train(self, train: Examples) -> "Target":
        """The same task with other training examples, checked."""
        return Target(self.name, train, self.kind, self.modality, self.classes, self.metric).checked()

    @property
    def counted(self) -> int:
        """Labels that were paid for: a changed copy has its original's."""
        return len(self.train) if self.originals is None else self.originals

    @property
    def groups(self) -> np.ndarray:
        """For each training example the number of its original: what no fold may divide."""
        return np.arange(len(self.train)) % self.counted

    def without_copies(self) -> "Target":
        """The same target without augmented copies."""
        return self if self.counted == len(self.train) else self.with_train(self.train.take(range(self.counted)))

    def checked(self) -> "Target":
        """Self, when it can be learned from.

        Raises:
            TargetError: no examples; one class; more classes than examples; a class without example; labels that are
                no class index; a regression target that is not numeric or constant.
        """
        if not len(self.train):
            raise TargetError(f"target {self.name}: no training examples")
        if self.kind == "classification":
            self._check_classes()
        elif self.kind == "regression":
            self._check_numbers()
        elif not all(isinstance(y, str) and y.strip() for y in self.train.labels):
            raise TargetError(f"target {self.name}: every generation example needs a reference text that is not empty")
        return self

    @cached_property
    def labels(self) -> np.ndarray:
        """Class indices (int64), values (float64) or reference texts (object) of the training examples."""
        dtype = {"classification": np.int64, "regression": np.float64}.get(self.kind, object)
        return np.array(self.train.labels, dtype=dtype)

    def _check_classes(self) -> None:
        if self.classes < 2:
            raise TargetError(f"target {self.name} has {self.classes} class; a classification needs at least two")
        if self.classes > len(self.train):
            raise TargetError(
                f"target {self.name} has {self.classes} classes but {len(self.train)} training examples; "
                "give at least one example a class"
            )
        bad = next((y for y in self.train.labels if not _is_index(y, self.classes)), None)
        if bad is not None:
            raise TargetError(f"target {self.name}: label {bad!r} is no class index 0..{self.classes - 1}")
        count = Counter(int(y) for y in self.train.labels)
        if len(count) == 1:
            raise TargetError(
                f"target {self.name}: all {len(self.train)} training examples are of class {next(iter(count))}; "
                "give examples of at least two classes"
            )

    def _check_numbers(self) -> None:
        try:
            values = np.array(self.train.labels, dtype=np.float64)
        except (TypeError, ValueError):
            bad = next(y for y in self.train.labels if not isinstance(y, (int, float)))
            raise TargetError(f"target {self.name}: regression needs numbers, got the label {bad!r}") from None
        if not np.isfinite(values).all():
            raise TargetError(f"target {self.name}: regression targets must be finite numbers")
        if np.ptp(values) == 0:
            raise TargetError(f"target {self.name}: all regression targets are {values[0]:g}; nothing can be learned")


def _is_index(label: Any, classes: int) -> bool:
    return isinstance(label, (int, np.integer)) and not isinstance(label, bool) and 0 <= label < classes
