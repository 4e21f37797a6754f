"""A source's own classifier: what a model that was trained to classify already answers, before anything is adjusted.

Modalities read a model without its output layer, since a target has other classes. The layer itself is knowledge too:
it may name the target's very classes (:mod:`core.transfer.strategies.own_classifier`), and LEEP and NCE compare its
classes with the target's. What stands between features and classes differs by family (a pooler, a second layer, the
first token), so the classifier is the whole model as transformers reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from core.data.examples import Examples
from core.models.load import locate
from core.models.quiet import quietly
from core.models.score import score
from core.transfer.sources import Source
from core.transfer.target import Target

AUTO = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "audio": "AutoModelForAudioClassification",
}


@dataclass(frozen=True, eq=False)
class NamedTarget(Target):
    """A target that knows what its classes are called, in the order of its class indices."""

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Any, train: Examples, modality: str | None = None, originals: int | None = None) -> "NamedTarget":
        return replace(super().of(task, train, modality, originals), names=tuple(task.labels))

    def with_train(self, train: Examples) -> "NamedTarget":
        return replace(self, train=train, originals=None).checked()


@dataclass(eq=False)
class ClassifierSource(Source):
    """A source whose model came with a classifier of ``labels``."""

    classifier: nn.Module | None = None

    def probabilities(self, examples: Examples) -> np.ndarray | None:
        """What the classifier says of examples, float32 (n, classes)."""
        if self.classifier is None:
            return super().probabilities(examples)
        inputs = self.original.inputs(examples)
        logits = score(self.classifier, inputs, description=f"own classes of {self.name}")[0]
        return torch.from_numpy(logits).softmax(dim=1).numpy()


class _Logits(nn.Module):
    """A transformers classifier on the batches of a body."""

    def __init__(self, body: Any, model: nn.Module):
        super().__init__()
        self.ready, self.model = getattr(body, "ready", dict), model  # a bound method: the body is no part of it

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**self.ready(batch)).logits


def with_own_classifier(source: Source, asset: Any) -> Source:
    """``source`` with the classifier that ``asset`` holds; as it was where that is none.

    A model counts as a classifier of one label an example: its architecture is one, it has two classes or more, and its
    files have all its weights (a new output layer would answer at random).
    """
    found = locate(asset)
    labels = _labels(found.path, source.modality)
    if source.head is not None or not labels:
        return source
    import transformers

    load = getattr(transformers, AUTO[source.modality]).from_pretrained
    model, info = quietly(load, found.path, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] or info["mismatched_keys"]:
        return source
    model = _Logits(source.original, model).to(next(source.original.parameters()).device).eval()
    known = {f.name: getattr(source, f.name) for f in fields(Source)} | {"labels": labels}
    return ClassifierSource(**known, classifier=model)


def _labels(folder: Any, modality: str) -> tuple[str, ...]:
    """Names of the classes that a folder's model tells apart; empty where it is no such classifier."""
    import transformers
    from transformers import AutoConfig

    if modality not in AUTO or not (folder / "config.json").is_file():
        return ()
    config = AutoConfig.from_pretrained(folder)
    classes = getattr(transformers, AUTO[modality])._model_mapping.get(type(config), ())
    names = {c.__name__ for c in (classes if isinstance(classes, tuple) else (classes,))}
    if not names & set(config.architectures or ()) or config.problem_type not in (None, "single_label_classification"):
        return ()
    return tuple(config.id2label[i] for i in range(config.num_labels)) if config.num_labels > 1 else ()


def order_of(labels: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """For each of ``names`` the place of the class called so, upper and lower case alike; None where one is missing."""
    places = {label.strip().casefold(): i for i, label in enumerate(labels)}
    found = [places.get(name.strip().casefold()) for name in names]
    return None if not found or None in found else found
