"""What a merged model is scored on: per-example scores of objectives, each a task with its validation examples.

An :class:`Objective` is anything with ``name``, ``size`` and ``score(model, indices) -> per-example array``. Encoder
classification tasks are scored together: their examples share one encoder, so mixed batches of similar length waste no
padding. Language-model objectives are in :mod:`core.merge.objectives_lm`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from core.models.score import Tokenized, length_buckets

SOFT = 0.5


class Objective(Protocol):
    """A task that a merged model is scored on."""

    name: str
    size: int

    def score(self, model: Any, indices: np.ndarray) -> np.ndarray:
        """Scores in [0, 1] of the examples at ``indices``, larger is better; NaN where the model failed."""


@dataclass
class EncoderObjective:
    """A classification task: shared encoder, own head.

    Args:
        tokenized: its examples.
        labels: class indices [n].
        weight, bias: the head, [C, H] and [C].
        reference: score that counts as 1 after normalisation (the individual expert's, usually).

    Raises:
        ValueError: no examples, or examples of one class only (every constant model would be perfect).
    """

    name: str
    tokenized: Tokenized
    labels: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    reference: float = 1.0
    cache: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.labels = np.asarray(self.labels, dtype=np.int64)
        if len(self.tokenized) != len(self.labels) or not len(self.labels):
            raise ValueError(f"task {self.name!r}: {len(self.tokenized)} texts for {len(self.labels)} labels")
        if len(np.unique(self.labels)) < 2:
            raise ValueError(f"task {self.name!r}: all {len(self.labels)} validation examples are of one class")
        if self.weight.shape[0] <= self.labels.max():
            raise ValueError(
                f"task {self.name!r}: label {self.labels.max()} but a head of {self.weight.shape[0]} classes"
            )

    @property
    def size(self) -> int:
        return len(self.labels)

    def score(self, model: Any, indices: np.ndarray) -> np.ndarray:
        return score_encoder(model, {self.name: self}, {self.name: indices})[self.name].correct

    def take(self, indices: Sequence[int]) -> "EncoderObjective":
        """The same task on some of its examples."""
        index = np.asarray(indices)
        return EncoderObjective(
            self.name, self.tokenized.take(index), self.labels[index], self.weight, self.bias, self.reference
        )


@dataclass(frozen=True)
class Scored:
    """Per-example results: hit or miss, and the same smoothed by the margin."""

    correct: np.ndarray
    soft: np.ndarray


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Logit of the right class minus the largest other one, [n]; NaN logits stay NaN."""
    right = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    others = logits.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    return right - others.max(axis=1)


def judge(logits: np.ndarray, labels: np.ndarray) -> Scored:
    """Hits, and hits smoothed by the margin: ``sigmoid(margin / SOFT)``, which ranks candidates with less noise."""
    margin = margins(np.asarray(logits, dtype=np.float64), labels)
    correct = np.where(np.isfinite(margin), (margin > 0).astype(float), np.nan)
    return Scored(correct, 1.0 / (1.0 + np.exp(-np.clip(margin / SOFT, -60, 60))))


def score_encoder(
    encoder: Any,
    objectives: Mapping[str, EncoderObjective],
    wanted: Mapping[str, np.ndarray],
    batches: list[Any] | None = None,
) -> dict[str, Scored]:
    """Per-example scores of several tasks in one pass of the shared encoder.

    Args:
        encoder: :class:`core.models.encoder.TextEncoder` (any floating dtype).
        wanted: task -> indices into its examples.
        batches: from :func:`mixed_batches` for the same ``wanted``, to reuse them.
    """
    from core.models.encoder import embed_batches

    names = sorted(wanted)
    batches = mixed_batches(objectives, wanted, encoder.device) if batches is None else batches
    counts = [len(wanted[n]) for n in names]
    pooled = embed_batches(encoder, batches, sum(counts))
    out, at = {}, 0
    for name, count in zip(names, counts, strict=True):
        task = objectives[name]
        logits = pooled[at : at + count] @ task.weight.T + task.bias
        out[name] = judge(logits, task.labels[wanted[name]])
        at += count
    return out


def mixed_batches(objectives: Mapping[str, EncoderObjective], wanted: Mapping[str, np.ndarray], device: Any) -> list:
    """Padded batches of similar length over all wanted examples: ``[(rows, tensors)]``, rows in order of task names."""
    names = sorted(wanted)
    tokens = objectives[names[0]].tokenized.take(wanted[names[0]])
    for name in names[1:]:
        tokens = tokens + objectives[name].tokenized.take(wanted[name])
    return [(rows, tokens.batch(rows, device)) for rows in length_buckets(tokens.lengths, batch_tokens=2048)]


@dataclass
class FunctionObjective:
    """A user's function ``score(model, tokenizer) -> per-example array``, larger is better.

    Raises:
        ValueError: (when scored) the function gave another number of examples than ``size``.
    """

    name: str
    size: int
    function: Callable[[Any, Any], np.ndarray]
    tokenizer: Any = None
    reference: float = 1.0

    def score(self, model: Any, indices: np.ndarray) -> np.ndarray:
        values = np.asarray(self.function(model, self.tokenizer), dtype=float)
        if values.shape != (self.size,):
            raise ValueError(
                f"objective {self.name!r} gave {values.shape} scores, expected one for each of {self.size}"
            )
        return values[np.asarray(indices)]


def score_all(model: Any, objectives: Mapping[str, Objective], wanted: Mapping[str, np.ndarray]) -> dict[str, Scored]:
    """Scores of any mix of objectives: encoder tasks together, the others one after the other."""
    mixed = {n: o for n, o in objectives.items() if isinstance(o, EncoderObjective) and n in wanted}
    out = score_encoder(model, mixed, {n: wanted[n] for n in mixed}) if mixed else {}
    for name in wanted.keys() - mixed.keys():
        values = np.asarray(objectives[name].score(model, wanted[name]), dtype=float)
        out[name] = Scored(values, values)
    return out
