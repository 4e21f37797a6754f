"""What a flow packaged, whatever kind of model it is: one way to describe it, to open it and to ask it.

Describing a package costs neither the model nor torch: the process that delivers to MLflow does no more than that.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.models.classifier import CARD, Prediction, TextClassifier

LANGUAGE, STUDENT = "language.json", "student.json"  # of core.merge.language_package and core.distill.export
CARDS = (CARD, LANGUAGE, STUDENT)  # a packaged encoder student has the first and the last
TASK = "task"  # of a language model that learned one task and is asked by its prompt


class Package(Protocol):
    """A loaded package."""

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, task: str | None = None
    ) -> list[Prediction]:
        """An answer for each text. Raises ValueError: unknown task, or texts that do not fit it."""


@dataclass(frozen=True)
class Described:
    """What a package's card says, the model unloaded.

    Args:
        card: name of the file that describes it.
        pairs: task -> whether it reads two texts at a time.
    """

    card: str
    pairs: Mapping[str, bool]


def described(folder: Path) -> Described:
    """What lies in ``folder``.

    Raises:
        ValueError: no package.
    """
    card = next((name for name in CARDS if (folder / name).is_file()), None)
    if card is None:
        raise ValueError(f"{folder} is no packaged model (none of {', '.join(CARDS)}); give what a flow packaged")
    told = json.loads((folder / card).read_text())
    if card == CARD:
        pairs = {task: bool(told.get("pairs", {}).get(task)) for task in told["tasks"]}
    elif card == LANGUAGE:
        pairs = {task: bool(asked["pair"]) for task, asked in told["tasks"].items()}
    else:
        pairs = {TASK: "{pair}" in json.dumps(told["prompt"])}
    return Described(card, pairs)


def open_package(folder: Path) -> Package:
    """The package in ``folder``, ready to answer.

    Raises:
        ValueError: no package. StateError: one that a newer version wrote.
    """
    card = described(folder).card
    if card == CARD:
        return TextClassifier(folder)
    if card == STUDENT:
        return _OneTask(folder)
    from core.merge.language_package import LanguagePackage

    return LanguagePackage(folder)


class _OneTask:
    """A language model that learned one task."""

    def __init__(self, folder: Path):
        from core.distill.export import load_student

        self.student = load_student(folder)

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, task: str | None = None
    ) -> list[Prediction]:
        if task not in (None, TASK):
            raise ValueError(f"unknown task {task!r}; this model has one, leave the task out")
        return self.student.predict(texts, pairs)
