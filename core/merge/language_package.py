"""A packaged language model: one merged model, and for each task how it is asked and what may be answered.

The folder: ``language.json`` and ``model/`` in Hugging Face form, so ``AutoModelForCausalLM.from_pretrained(folder /
"model")`` opens it too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.merge.adapter_experts import label_words
from core.merge.answers import log_likelihoods, written
from core.merge.objectives_lm import answer_ids, prompt_ids
from core.models.classifier import Prediction
from core.models.load import load_causal
from core.registry import nearest
from core.state import StateError, write_json

CARD, MODEL = "language.json", "model"
SCHEMA = 1
NEW_TOKENS = 32


class Asked(Config):
    """How one task is asked."""

    template: str = Field(description="prompt with {text} and {pair}, ending where the answer begins")
    pair: bool = Field(False, description="whether it reads two texts at a time")
    max_words: int = Field(40, ge=1, description="texts are cut after this many words (pairs: each), as in training")
    labels: tuple[str, ...] = Field((), description="class names; none: the answer is written freely")
    words: tuple[str, ...] = Field((), description="the answer that stands for each class")

    def prompt(self, text: str, pair: str = "") -> str:
        """The filled template."""
        cut = (" ".join(t.split()[: self.max_words]) if len(t.split()) > self.max_words else t for t in (text, pair))
        return self.template.format(text=next(cut), pair=next(cut), mask="").rstrip()


def asked(task: Any, max_words: int) -> Asked:
    """How a task (:class:`core.data.tasks.Task`) is asked; nothing of where its data lie."""
    words = () if task.kind == "generation" else tuple(label_words(task))
    return Asked(
        template=task.causal_template, pair=task.kind == "pair", max_words=max_words, labels=task.labels, words=words
    )


def describe(folder: Path, tasks: Mapping[str, Asked], facts: Mapping[str, Any]) -> None:
    """Make a package of ``folder``, where ``model/`` already lies: the card is written."""
    described = {name: task.model_dump(mode="json") for name, task in tasks.items()}
    write_json(folder / CARD, {"schema": SCHEMA, "tasks": described, **facts})


class LanguagePackage:
    """A loaded package.

    Raises:
        ValueError: no package there, or one of a newer version.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not (folder / CARD).is_file():
            raise ValueError(f"{folder} is no packaged language model ({CARD} is missing); give what a flow packaged")
        card = json.loads((folder / CARD).read_text())
        if card["schema"] > SCHEMA:
            raise StateError(f"{folder} was packaged by a newer version (schema {card['schema']}); update transferopt")
        self.tasks = {name: Asked(**task) for name, task in card["tasks"].items()}
        self.lm = load_causal(str(folder / MODEL))

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, task: str | None = None
    ) -> list[Prediction]:
        """The most probable class of each text, or what the model writes and the probability it gives to that.

        Args:
            task: which one; may be left out when there is only one.

        Raises:
            ValueError: unknown or missing task, an empty text, second texts missing or too many for the task.
        """
        name = self._task(task)
        how = self.tasks[name]
        if how.pair is not (pairs is not None):
            told = "two texts at a time; give" if how.pair else "one text at a time; leave out"
            raise ValueError(f"task {name!r} reads {told} the second ones (pairs, --pair)")
        for i, text in enumerate([*texts, *(pairs or ())]):
            if not text.strip():
                raise ValueError(f"text {i} is empty: {text!r}")
        if not len(texts):
            return []
        prompts = [how.prompt(t, p) for t, p in zip(texts, pairs or [""] * len(texts), strict=True)]
        ids = prompt_ids(self.lm.tokenizer, prompts, name)
        return self._chosen(name, ids, how) if how.words else self._written(name, ids)

    def _chosen(self, name: str, ids: list[list[int]], how: Asked) -> list[Prediction]:
        from scipy.special import softmax

        found = softmax(self._likelihoods(name, ids, [how.words] * len(ids)), axis=1)
        return [Prediction(how.labels[int(p.argmax())], float(p.max())) for p in found]

    def _written(self, name: str, ids: list[list[int]]) -> list[Prediction]:
        answers = [text.strip().split("\n")[0] for text in written(self.lm.model, self.lm.tokenizer, ids, NEW_TOKENS)]
        said = [i for i, text in enumerate(answers) if text]
        found = np.full(len(ids), np.nan)  # of an empty answer nothing is known
        if said:
            found[said] = np.exp(self._likelihoods(name, [ids[i] for i in said], [[answers[i]] for i in said]))[:, 0]
        return [Prediction(text, float(p)) for text, p in zip(answers, found, strict=True)]

    def _likelihoods(self, name: str, ids: list[list[int]], answers: Sequence[Sequence[str]]) -> np.ndarray:
        """Log-likelihood of every answer of every prompt, [n, answers]."""
        tokenizer = self.lm.tokenizer
        pad = tokenizer.pad_token_id or 0
        return np.array(log_likelihoods(self.lm.model, ids, answer_ids(tokenizer, answers, name), pad))

    def _task(self, task: str | None) -> str:
        if task is None and len(self.tasks) == 1:
            return next(iter(self.tasks))
        if task not in self.tasks:
            given = "no task was named" if task is None else f"unknown task {task!r}{nearest(task, self.tasks)}"
            raise ValueError(f"{given}; this model has {', '.join(sorted(self.tasks))}")
        return task
