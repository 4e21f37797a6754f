"""Sources: what knowledge is taken from. A model as it is, or a model trained first on a source data set."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from core.data.examples import Examples
from core.hashing import content_key
from core.models.score import score
from core.state import Cache
from core.transfer.modalities import MODALITIES
from core.transfer.target import Target


@dataclass(eq=False)
class Source:
    """A source model. Strategies work on copies of ``original``; it is never changed.

    Args:
        head: the source task's own output layer, where there is one (needed by LEEP and NCE).
        labels: names of the source task's classes.
        train: the data it was last trained on, where known (for measured similarity).
        cache: where features are kept between processes; None keeps them in memory only.
    """

    name: str
    original: nn.Module
    head: nn.Linear | None = None
    labels: tuple[str, ...] = ()
    train: Examples | None = None
    cache: Cache | None = None
    _features: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def modality(self) -> str:
        return self.original.modality

    @property
    def sha256(self) -> str:
        return self.original.sha256

    @property
    def parameters(self) -> int:
        """Parameters of the body."""
        return sum(p.numel() for p in self.original.parameters())

    def body(self) -> nn.Module:
        """A copy of the body that a strategy may change."""
        return copy.deepcopy(self.original)

    def features(self, examples: Examples) -> np.ndarray:
        """Frozen features of examples, float32 (n, width); computed once for the same examples."""
        key = content_key(
            "features 1", self.sha256, type(self.original).__name__, _reading(self.original), examples.sha256
        )
        if key not in self._features:
            self._features[key] = self._cached_features(key, examples)
        return self._features[key]

    def _cached_features(self, key: str, examples: Examples) -> np.ndarray:
        def compute() -> np.ndarray:
            inputs = self.original.inputs(examples)
            return score(self.original, inputs, description=f"features of {self.name}")[0]

        if self.cache is None:
            return compute()
        folder = self.cache.compute("features", key, lambda out: np.save(out / "features.npy", compute()))
        return np.load(folder / "features.npy")

    def probabilities(self, examples: Examples) -> np.ndarray | None:
        """The source task's class probabilities of examples (n, Z); None without a source head."""
        if self.head is None:
            return None
        weight, bias = (p.detach().cpu().numpy() for p in (self.head.weight, self.head.bias))
        logits = self.features(examples) @ weight.T + bias
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def fits(self, target: Target) -> None:
        """Check that this source can read the target.

        Raises:
            ValueError: another modality.
        """
        if self.modality != target.modality:
            raise ValueError(
                f"source {self.name} is of modality {self.modality}, target {target.name} of {target.modality}; "
                "choose a source that reads the target's data"
            )


def open_source(asset: Any, modality: str = "text", cache: Cache | None = None, **options: Any) -> Source:
    """Load a source model: ``open_source("minilm", layers=3)``; options are those of the modality's ``load``."""
    body = MODALITIES.get(modality).load(asset, **options)
    return Source(body.name, body, cache=cache)


def train_source(
    source: Source, target: Target, labels: tuple[str, ...], fit: Callable[[Source, Target], Any]
) -> Source:
    """A source trained first on another data set; ``fit`` is a strategy that trains the whole body (such as full)."""
    net = fit(source, target).net
    digest = content_key("trained", source.sha256, target.name, target.train.sha256)
    net.body.name, net.body.sha256 = f"{source.name} + {target.name}", digest
    return Source(net.body.name, net.body.eval(), net.head, labels, target.train, source.cache)


def _reading(body: nn.Module) -> dict[str, Any]:
    """How a body reads examples, as far as it changes features."""
    return {k: getattr(body, k) for k in ("max_length", "size", "mean", "std", "template") if hasattr(body, k)}
