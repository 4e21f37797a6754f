"""Sources: what knowledge is taken from. A model as it is, or a model trained first on a source data set."""

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from core.data.examples import Examples
from core.hashing import content_key
from core.models.score import score
from core.state import Cache, write_json
from core.transfer.modalities import MODALITIES
from core.transfer.target import Target

FACTS, HEAD = "source.json", "head.safetensors"


@dataclass(eq=False)
class Source:
    """A source model. Strategies work on copies of ``original``; it is never changed.

    Args:
        head: the source task's own output layer, where there is one (needed by LEEP and NCE).
        labels: names of the source task's classes.
        task: name of the data set it was last trained on, where known.
        train: the data it was last trained on, where known (for measured similarity).
        cache: where features are kept between processes; None keeps them in memory only.
    """

    name: str
    original: nn.Module
    head: nn.Linear | None = None
    labels: tuple[str, ...] = ()
    task: str = ""
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
            "features 2", self.sha256, type(self.original).__name__, _reading(self.original), examples.sha256
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
    """Load a source model: ``open_source("all-minilm-l6-v2", layers=3)``.

    Args:
        asset: an asset's name, a folder, or a folder that :func:`save_source` wrote (its head and labels come along).
        options: those of the modality's ``load``.
    """
    folder = Path(str(asset))
    body = MODALITIES.get(modality).load(asset, **options)
    if not (folder / FACTS).is_file():
        return Source(body.name, body, cache=cache)
    facts = json.loads((folder / FACTS).read_text())
    body.name = facts["name"]  # its hash stays that of the files: what was trained further is another model
    return Source(body.name, body, _read_head(folder), tuple(facts["labels"]), facts["task"], cache=cache)


def save_source(source: Source, folder: Path) -> None:
    """Write a trained text source as a model folder, with its output layer and labels beside the weights."""
    from safetensors.torch import save_file

    from core.models.quiet import quietly

    quietly(source.original.backbone.save_pretrained, folder)
    source.original.tokenizer.save_pretrained(folder)
    if source.head is not None:
        save_file({k: v.detach().cpu().contiguous() for k, v in source.head.state_dict().items()}, folder / HEAD)
    write_json(folder / FACTS, {"name": source.name, "labels": list(source.labels), "task": source.task})


def _read_head(folder: Path) -> nn.Linear | None:
    from safetensors.torch import load_file

    if not (folder / HEAD).is_file():
        return None
    state = load_file(folder / HEAD)
    head = nn.utils.skip_init(nn.Linear, state["weight"].shape[1], state["weight"].shape[0])
    head.load_state_dict(state)
    return head


def train_source(
    source: Source, target: Target, labels: tuple[str, ...], fit: Callable[[Source, Target], Any]
) -> Source:
    """A source trained first on another data set; ``fit`` is a strategy that trains the whole body (such as full)."""
    net = fit(source, target).net
    net.body.name, net.body.sha256 = f"{source.name} + {target.name}", _weights_sha256(net.body)
    head = net.head if labels else None  # numbers have no class probabilities
    return Source(net.body.name, net.body.eval(), head, labels, target.name, target.train, source.cache)


def _weights_sha256(body: nn.Module) -> str:
    """Of the weights themselves: seed, settings and strategy of a training all end in them."""
    digest = hashlib.sha256(type(body).__name__.encode())
    for name, tensor in sorted(body.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _reading(body: nn.Module) -> dict[str, Any]:
    """How a body reads examples, as far as it changes features."""
    return {k: getattr(body, k) for k in ("max_length", "size", "mean", "std", "template") if hasattr(body, k)}
