"""Scoring many texts: tokenised once, batched by length, in the fastest dtype the hardware has.

Measured on one core with AVX512-BF16, texts a second, float32 against bfloat16 autocast: MiniLM-L6 117 / 343,
MPNet-base 16 / 57; embeddings move by less than 1 % and accuracy stays within the noise.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from core.hashing import content_key
from core.progress import track

DTYPES = ("auto", "float32", "bfloat16", "float16")
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Tokenized:
    """Token ids of n texts, unpadded. ``token_types`` is None for models without them."""

    ids: list[list[int]]
    token_types: list[list[int]] | None
    pad: int
    lengths: np.ndarray

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        token_types: bool = False,
        special: bool = True,
    ) -> "Tokenized":
        """Tokenise; texts over ``max_length`` tokens are cut."""
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(pairs)} second texts; give one for each")
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        if not len(texts):  # which transformers' tokenizers do not take
            return cls([], [] if token_types else None, pad, np.zeros(0, dtype=np.int64))
        out = tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=max_length is not None,
            max_length=max_length,
            add_special_tokens=special,
            return_token_type_ids=token_types,
            return_attention_mask=False,
        )
        ids = [list(row) for row in out["input_ids"]]
        types = [list(row) for row in out["token_type_ids"]] if token_types else None
        return cls(ids, types, pad, np.array([len(row) for row in ids], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sha256(self) -> str:
        return content_key(self.ids, self.token_types)

    def take(self, indices: Sequence[int]) -> "Tokenized":
        ids = [self.ids[i] for i in indices]
        types = None if self.token_types is None else [self.token_types[i] for i in indices]
        return Tokenized(ids, types, self.pad, self.lengths[np.asarray(indices, dtype=np.int64)])

    def unended(self, tokenizer: Any) -> "Tokenized":
        """Without the end-of-text token that a tokenizer may append: what follows a text is read at its last word."""
        end = tokenizer.eos_token_id
        if end is None or tokenizer("a")["input_ids"][-1:] != [end]:
            return self
        return Tokenized([r[:-1] for r in self.ids], None, self.pad, self.lengths - 1)

    def __add__(self, other: "Tokenized") -> "Tokenized":
        types = None if self.token_types is None else [*self.token_types, *other.token_types]
        return Tokenized([*self.ids, *other.ids], types, self.pad, np.concatenate([self.lengths, other.lengths]))

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """``input_ids``, ``attention_mask`` (and ``token_type_ids``), right-padded, [B, longest]."""
        longest = int(self.lengths[indices].max())
        ids = np.full((len(indices), longest), self.pad, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, i in enumerate(indices):
            n = len(self.ids[i])
            ids[row, :n], mask[row, :n] = self.ids[i], 1
            if self.token_types is not None:
                types[row, :n] = self.token_types[i]
        arrays = {"input_ids": ids, "attention_mask": mask}
        if self.token_types is not None:
            arrays["token_type_ids"] = types
        return {name: torch.from_numpy(a).to(device) for name, a in arrays.items()}


def length_buckets(lengths: np.ndarray, batch_tokens: int = BATCH_TOKENS) -> Iterator[np.ndarray]:
    """Indices of batches of similar length whose padded size stays within ``batch_tokens``, longest first."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


@torch.inference_mode()
def score(
    model: nn.Module,
    tokenized: Tokenized,
    *,
    dtype: str = "auto",
    batch_tokens: int = BATCH_TOKENS,
    description: str = "score",
    **forward: Any,
) -> list[np.ndarray]:
    """Run ``model(batch, **forward)`` over all texts; outputs as float32 arrays in the order of the texts.

    A tensor output [B, ...] gives one array [n, ...]; a tuple gives one array for each element, where an element with a
    leading layer axis [layers, B, ...] (three axes) gives [n, layers, ...].

    Raises:
        ValueError: no texts (the shapes of the outputs are the model's to tell).
    """
    if not len(tokenized):
        raise ValueError(f"{description}: there are no texts; give at least one")
    device = next(model.parameters()).device
    results: list[np.ndarray] = []
    with evaluating(model), track(description, len(tokenized), "text") as bar:
        for indices in length_buckets(tokenized.lengths, batch_tokens):
            with autocast(device, dtype):
                out = model(tokenized.batch(indices, device), **forward)
            for position, part in enumerate(out if isinstance(out, tuple) else (out,)):
                array = part.float().cpu().numpy()
                array = array.swapaxes(0, 1) if array.ndim == 3 else array
                if len(results) <= position:
                    results.append(np.empty((len(tokenized), *array.shape[1:]), dtype=np.float32))
                results[position][indices] = array
            bar.advance(len(indices))
    return results


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the former mode of every module afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def autocast(device: torch.device | str, dtype: str = "auto") -> AbstractContextManager:
    """An autocast context for ``dtype`` on ``device`` (no-op in float32)."""
    kind = torch.device(device).type
    chosen = resolve_dtype(dtype, kind)
    return nullcontext() if chosen == "float32" else torch.autocast(kind, getattr(torch, chosen))


def resolve_dtype(dtype: str = "auto", device: str = "cpu") -> str:
    """``"auto"`` becomes ``"bfloat16"`` on CUDA or on a CPU with AVX512-BF16 or AMX, else ``"float32"``.

    Raises:
        ValueError: unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; allowed: {', '.join(DTYPES)}")
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" or (device == "cpu" and cpu_has_bfloat16()) else "float32"


@cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (flags of /proc/cpuinfo; False where it cannot be read)."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return False
    flags = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "")
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))
