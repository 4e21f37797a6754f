"""A packaged text classifier: one encoder, a head a task, and the label names; what a user loads, serves and ships.

The folder: ``classifier.json``, ``heads.safetensors`` (``TASK.weight`` [C, H], ``TASK.bias`` [C]) and ``encoder/`` in
Hugging Face form, so ``AutoModel.from_pretrained(folder / "encoder")`` opens it too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.registry import nearest
from core.state import StateError, write_json

CARD = "classifier.json"
HEADS = "heads.safetensors"
SCHEMA = 1


@dataclass(frozen=True)
class Head:
    """A linear head: ``weight`` [C, H], ``bias`` [C], and the names of its C classes.

    ``pair``: whether its task reads two texts at a time; None where nobody said so.
    """

    weight: np.ndarray
    bias: np.ndarray
    labels: Sequence[str]
    pair: bool | None = None


@dataclass(frozen=True)
class Prediction:
    """The most probable class of a text."""

    label: str
    probability: float


def save(folder: Path, encoder: Path, heads: Mapping[str, Head], max_length: int, facts: Mapping[str, Any]) -> None:
    """Write a package into ``folder``; ``encoder`` is a model folder whose files are copied.

    Raises:
        ValueError: no task, or a head whose sizes do not fit its labels.
    """
    import shutil

    shutil.copytree(encoder, folder / "encoder", dirs_exist_ok=True)
    package(folder, heads, max_length, facts)


def package(folder: Path, heads: Mapping[str, Head], max_length: int, facts: Mapping[str, Any]) -> None:
    """Make a package of ``folder``, where ``encoder/`` already lies: heads and card are written.

    Args:
        facts: what else the card states; ``normalize`` true scales embeddings to length one before the head.
    """
    from safetensors.numpy import save_file

    if not heads:
        raise ValueError("a classifier needs at least one task with its head")
    for task, head in heads.items():
        if head.weight.shape[0] != len(head.labels) or head.bias.shape != (len(head.labels),):
            raise ValueError(f"head of {task!r}: weight {head.weight.shape} for {len(head.labels)} labels")
    tensors = {
        f"{t}.{k}": np.ascontiguousarray(v)
        for t, h in heads.items()
        for k, v in (("weight", h.weight), ("bias", h.bias))
    }
    save_file(tensors, folder / HEADS)
    labels = {task: list(head.labels) for task, head in heads.items()}
    pairs = {task: head.pair for task, head in heads.items() if head.pair is not None}
    write_json(folder / CARD, {"schema": SCHEMA, "tasks": labels, "pairs": pairs, "max_length": max_length, **facts})


class TextClassifier:
    """A loaded package.

    Raises:
        ValueError: no package there, or one of a newer version.
    """

    def __init__(self, folder: str | Path):
        from safetensors.numpy import load_file

        from core.models.load import load_encoder

        folder = Path(folder)
        if not (folder / CARD).is_file():
            raise ValueError(f"{folder} is no packaged classifier ({CARD} is missing); give what a flow packaged")
        card = json.loads((folder / CARD).read_text())
        if card["schema"] > SCHEMA:
            raise StateError(f"{folder} was packaged by a newer version (schema {card['schema']}); update transferopt")
        tensors = load_file(folder / HEADS)
        pairs = card.get("pairs", {})
        self.heads = {
            t: Head(tensors[f"{t}.weight"], tensors[f"{t}.bias"], labels, pairs.get(t))
            for t, labels in card["tasks"].items()
        }
        self.encoder = load_encoder(folder / "encoder")
        self.encoder.max_length = min(card["max_length"], self.encoder.max_length)
        self.normalize = bool(card.get("normalize", False))

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, task: str | None = None
    ) -> list[Prediction]:
        """The most probable class of each text.

        Args:
            task: whose head; may be left out when there is only one.

        Raises:
            ValueError: unknown or missing task, an empty text, second texts missing or too many for the task.
        """
        from scipy.special import softmax

        from core.models.score import score

        task = self._task(task)
        head = self.heads[task]
        if not len(texts):
            return []
        if head.pair and pairs is None:
            raise ValueError(f"task {task!r} reads two texts at a time; give the second ones as well (pairs, --pair)")
        if head.pair is False and pairs is not None:
            raise ValueError(f"task {task!r} reads one text at a time; leave the second ones out (pairs, --pair)")
        for what, given in (("text", texts), ("second text", pairs if head.pair else ())):
            for i, text in enumerate(given):
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(f"{what} {i} is empty or no text: {text!r}")
        pooled = score(self.encoder, self.encoder.tokenize(list(texts), pairs))[0]
        if self.normalize:  # label-word heads read embeddings of length one
            pooled = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        probabilities = softmax(pooled @ head.weight.T + head.bias, axis=1)
        best = probabilities.argmax(axis=1)
        return [Prediction(head.labels[c], float(p[c])) for c, p in zip(best, probabilities, strict=True)]

    def _task(self, task: str | None) -> str:
        if task is None and len(self.heads) == 1:
            return next(iter(self.heads))
        if task not in self.heads:
            given = "no task was named" if task is None else f"unknown task {task!r}{nearest(task, self.heads)}"
            raise ValueError(f"{given}; this model has {', '.join(sorted(self.heads))}")
        return task
