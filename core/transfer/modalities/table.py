"""Tables: a multilayer perceptron on numeric columns, trained first on a source table of the same columns."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from core.data.examples import Examples
from core.hashing import content_key
from core.transfer.modalities import MODALITIES, ArrayInputs, arrays_of, seeded


@MODALITIES.register("table", reads="arrays (n, columns), numbers")
class TableBody(nn.Module):
    """Perceptron on standardised columns."""

    modality = "table"

    def __init__(self, backbone: nn.Module, mean: np.ndarray, std: np.ndarray, name: str, sha256: str):
        super().__init__()
        self.backbone, self.name, self.sha256 = backbone, name, sha256
        self.mean, self.std = mean.astype(np.float32), std.astype(np.float32)
        self.width = backbone.config.hidden_size

    @classmethod
    def load(cls, source: Any, hidden: int = 128, layers: int = 2, seed: int = 0) -> "TableBody":
        """A new perceptron whose normalisation comes from the source table (``source``: its training Examples)."""
        table = arrays_of(source, "table", 2, "(n, columns)")
        std = table.std(axis=0)
        shape = (table.shape[1], hidden, layers)
        backbone = seeded(lambda: Perceptron(*shape), seed)
        digest = content_key(shape, seed, source.sha256)
        return cls(backbone, table.mean(axis=0), np.where(std > 0, std, 1), f"perceptron {shape}", digest).eval()

    def inputs(self, examples: Examples) -> ArrayInputs:
        table = arrays_of(examples, "table", 2, "(n, columns)")
        if table.shape[1] != len(self.mean):
            raise ValueError(f"{self.name} was trained on {len(self.mean)} columns, the target has {table.shape[1]}")
        return ArrayInputs("columns", ((table - self.mean) / self.std).astype(np.float32), length=8)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.backbone(batch["columns"]).float()

    def fresh(self, seed: int) -> "TableBody":
        backbone = seeded(lambda: Perceptron(*self.backbone.shape), seed)
        return TableBody(backbone, self.mean, self.std, f"{self.name} (new)", "")


class Perceptron(nn.Module):
    """``layers`` blocks of linear, layer norm and GELU; the blocks after the first are residual."""

    def __init__(self, columns: int, hidden: int, layers: int):
        super().__init__()
        self.shape = (columns, hidden, layers)
        self.config = SimpleNamespace(hidden_size=hidden, num_hidden_layers=layers, model_type="perceptron")
        self.layer = nn.ModuleList(Block(columns if i == 0 else hidden, hidden) for i in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layer:
            x = block(x)
        return x


class Block(nn.Module):
    """One layer of the perceptron."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.dense, self.norm = nn.Linear(inside, outside), nn.LayerNorm(outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = nn.functional.gelu(self.norm(self.dense(x)))
        return x + out if x.shape[-1] == out.shape[-1] else out
