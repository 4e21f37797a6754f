"""Modalities: how a source model reads examples. One file each; strategies and scores never ask which it is.

A modality gives *bodies*: a model without output layer that turns a batch into features [B, width]. Strategies put
adapters into ``body.backbone`` and an output layer on top.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from core.data.examples import Examples
from core.registry import Registry

MODALITIES: Registry[type["Body"]] = Registry("modality", "core.transfer.modalities")


class Inputs(Protocol):
    """n examples ready for a model; ``lengths`` decide which are batched together."""

    lengths: np.ndarray

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]: ...


class Body(Protocol):
    """A source model without output layer: an ``nn.Module`` with these parts."""

    modality: str
    name: str
    sha256: str
    backbone: nn.Module

    @property
    def width(self) -> int:
        """Length of the feature vector."""

    @classmethod
    def load(cls, source: Any, **options: Any) -> "Body":
        """From an asset, a folder or a name."""

    def inputs(self, examples: Examples) -> Inputs:
        """Examples as model inputs; ValueError when they are of another modality or shape."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features [B, width]."""

    def fresh(self, seed: int) -> "Body":
        """The same architecture with new random weights."""


class ArrayInputs:
    """Arrays (n, ...) as model inputs under one name; every example counts as ``length`` tokens when batching."""

    def __init__(self, name: str, arrays: np.ndarray, length: int):
        self.name, self.arrays = name, arrays
        self.lengths = np.full(len(arrays), max(1, length), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.arrays)

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        return {self.name: torch.from_numpy(self.arrays[np.asarray(indices)]).to(device)}


def arrays_of(examples: Examples, modality: str, axes: int, shape: str) -> np.ndarray:
    """The examples' arrays, checked to have ``axes`` axes.

    Raises:
        ValueError: the examples are of another modality.
    """
    if examples.arrays is None or examples.arrays.ndim != axes:
        found = "text" if examples.arrays is None else f"arrays of shape {examples.arrays.shape}"
        raise ValueError(f"a source of modality {modality} reads arrays {shape}, but the target holds {found}")
    return examples.arrays


def seeded(build, seed: int):
    """``build()`` under a seeded torch RNG; the global one is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
