"""The sentence encoder: a transformer without head, mean pooling, texts or pairs in, vectors out."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from core.hashing import content_key
from core.models.layers import first_layers, layer_states, output_width
from core.models.score import Tokenized, score


class TextEncoder(nn.Module):
    """A transformer backbone with mean pooling over the real tokens.

    Args:
        backbone: returns ``last_hidden_state`` [B, L, H] and, on demand, ``hidden_states``.
        tokenizer: the backbone's own.
        max_length: longest input in tokens; longer texts are cut (pairs: the longer side first).
    """

    kind = "encoder"

    def __init__(self, backbone: nn.Module, tokenizer: Any, name: str, sha256: str, max_length: int):
        super().__init__()
        self.backbone, self.tokenizer = backbone, tokenizer
        self.name, self.sha256, self.max_length = name, sha256, max_length

    @property
    def width(self) -> int:
        """H, the length of an embedding."""
        return output_width(self.backbone)

    @property
    def depth(self) -> int:
        return self.backbone.config.num_hidden_layers

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokenized:
        """Token ids of texts (or text pairs), cut to ``max_length``."""
        types = getattr(self.backbone.config, "type_vocab_size", 0) > 1  # not every tokenizer gives them unasked
        return Tokenized.of(self.tokenizer, texts, pairs, self.max_length, token_types=types)

    def forward(self, batch: dict[str, torch.Tensor], hidden: bool = False):
        """Pooled embeddings [B, H]; with ``hidden`` also every layer's pooled state [layers + 1, B, H]."""
        out = self.backbone(**batch, output_hidden_states=hidden)
        mask = batch["attention_mask"].unsqueeze(-1)
        length = mask.shape[1]  # soft prompts come before the text and are not pooled
        pooled = mean_pool(out.last_hidden_state[:, -length:], mask)
        if not hidden:
            return pooled
        states = layer_states(self.backbone, out.hidden_states)
        return pooled, torch.stack([mean_pool(h[:, -length:], mask) for h in states])

    def embed(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, dtype: str = "auto", normalize: bool = False
    ) -> np.ndarray:
        """Embeddings, float32 [n, H].

        Args:
            dtype: ``"auto"`` (bfloat16 where the hardware is fast at it), ``"float32"`` or ``"bfloat16"``.
            normalize: scale each to length one.
        """
        if not len(texts):
            return np.zeros((0, self.width), dtype=np.float32)
        vectors = score(self, self.tokenize(texts, pairs), dtype=dtype, description=f"embed {self.name}")[0]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors

    def first_layers(self, count: int) -> "TextEncoder":
        """A copy with the first ``count`` layers, named ``name[:count]``."""
        backbone = first_layers(self.backbone, count)
        digest = content_key(self.sha256, count)
        return TextEncoder(backbone, self.tokenizer, f"{self.name}[:{count}]", digest, self.max_length)


@torch.inference_mode()
def embed_batches(encoder: nn.Module, batches: Iterable[tuple[np.ndarray, dict[str, torch.Tensor]]], count: int):
    """Embeddings, float32 [count, H], of padded batches ``(rows, tensors)``: each goes to its rows."""
    pooled = np.empty((count, encoder.width), dtype=np.float32)
    for rows, batch in batches:
        pooled[rows] = encoder(batch).float().cpu().numpy()
    return pooled


def mean_pool(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``states`` [B, L, H] over tokens where ``mask`` [B, L, 1] is 1, in float32."""
    mask = mask.to(torch.float32)
    return (states.float() * mask).sum(1) / mask.sum(1).clamp_min(1.0)
