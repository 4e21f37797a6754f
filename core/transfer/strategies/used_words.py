"""Train only the words that occur: a vocabulary's other rows have no gradient, but would cost as much as the rest.

Of a small encoder's parameters half are word embeddings, of which a few hundred training examples use one row in fifty.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


class UsedWords(nn.Module):
    """The rows ``used`` of an embedding, looked up by the ids of the whole vocabulary."""

    def __init__(self, whole: nn.Embedding, used: torch.Tensor):
        super().__init__()
        place = torch.zeros(whole.num_embeddings, dtype=torch.int64, device=used.device)
        place[used] = torch.arange(len(used), device=used.device)
        self.register_buffer("place", place)
        self.weight = nn.Parameter(whole.weight.detach()[used].clone())
        self.padding = None if whole.padding_idx is None else int(place[whole.padding_idx])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(self.place[ids], self.weight, self.padding)


@contextmanager
def only_used_words(body: nn.Module, inputs: object) -> Iterator[None]:
    """Inside, ``body`` trains the word embeddings that occur in ``inputs``; afterwards they stand in the whole table.

    Equal to training the whole table, but for the weight decay of words that never occur. Does nothing where the body
    reads no text, answers with its words (a language model), or keeps its embeddings frozen.
    """
    whole = body.backbone.get_input_embeddings() if body.modality == "text" else None
    if type(whole) is not nn.Embedding or not whole.weight.requires_grad:
        yield
        return
    ids = {i for row in inputs.ids for i in row} | {inputs.pad, whole.padding_idx or 0}
    used = torch.from_numpy(np.array(sorted(ids))).to(whole.weight.device)
    part = UsedWords(whole, used)
    body.backbone.set_input_embeddings(part)
    try:
        yield
    finally:
        body.backbone.set_input_embeddings(whole)
        with torch.no_grad():
            whole.weight[used] = part.weight
