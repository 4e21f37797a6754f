"""Train only the words that occur: the other rows of a vocabulary have no gradient, but cost as much as those that do.

Half of a small encoder's parameters are word embeddings, and a transfer set uses few of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from core.models.score import Tokenized


class UsedWords(nn.Module):
    """The rows ``used`` [m] (ascending ids) of an embedding, looked up by ids of the whole vocabulary."""

    def __init__(self, whole: nn.Embedding, used: torch.Tensor):
        super().__init__()
        place = torch.zeros(whole.num_embeddings, dtype=torch.int64, device=used.device)
        place[used] = torch.arange(len(used), device=used.device)
        self.register_buffer("place", place, persistent=False)
        self.weight = nn.Parameter(whole.weight.detach()[used].clone())
        self.padding = None if whole.padding_idx is None else int(place[whole.padding_idx])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(self.place[ids], self.weight, self.padding)


@contextmanager
def only_used_words(encoder: nn.Module | None, tokens: Tokenized) -> Iterator[None]:
    """Inside, an encoder trains the word embeddings that ``tokens`` use; afterwards they stand in the whole table.

    Equal to training the whole table, but for the weight decay of words that never occur.

    Args:
        encoder: a transformer backbone that does not answer with its words; None does nothing, and so do embeddings
            that are frozen or wrapped.
    """
    whole = None if encoder is None else encoder.get_input_embeddings()
    if type(whole) is not nn.Embedding or not whole.weight.requires_grad:
        yield
        return
    ids = {i for row in tokens.ids for i in row} | {tokens.pad, whole.padding_idx or 0}
    used = torch.from_numpy(np.array(sorted(ids))).to(whole.weight.device)
    part = UsedWords(whole, used)
    encoder.set_input_embeddings(part)
    try:
        yield
    finally:
        encoder.set_input_embeddings(whole)
        with torch.no_grad():
            whole.weight[used] = part.weight
