"""Classification heads on sentence encoders: linear, or initialised from the embeddings of label-word phrases."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import nn

from core.models.encoder import TextEncoder
from core.models.score import Tokenized, score

ALIKE = 1e-4  # of unit length: below it two embeddings are one but for rounding


class Classifier(nn.Module):
    """Encoder plus linear head: batch in, logits [B, C] out.

    Args:
        normalize: scale embeddings to length one before the head (what label-word heads are made for).
    """

    def __init__(self, encoder: TextEncoder, head: nn.Linear, normalize: bool = False):
        super().__init__()
        self.encoder, self.head, self.normalize = encoder, head, normalize

    def forward(self, batch: dict[str, torch.Tensor], hidden: bool = False):
        """Logits [B, C]; with ``hidden`` a tuple with every layer's pooled state [layers + 1, B, H]."""
        pooled, states = self.encoder(batch, hidden=True) if hidden else (self.encoder(batch), None)
        features = nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled
        with torch.autocast(features.device.type, enabled=False):
            logits = self.head(features.float())
        return (logits, states) if hidden else logits

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokenized:
        return self.encoder.tokenize(texts, pairs)

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None, dtype: str = "auto") -> np.ndarray:
        """Logits of texts, float32 [n, C]."""
        if not len(texts):
            return np.zeros((0, self.head.out_features), dtype=np.float32)
        return score(self, self.tokenize(texts, pairs), dtype=dtype)[0]


def linear_head(width: int, classes: int, seed: int) -> nn.Linear:
    """A randomly initialised linear head (normal, standard deviation 0.02; zero bias) from its own generator."""
    head = nn.utils.skip_init(nn.Linear, width, classes)
    with torch.no_grad():
        head.weight.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
        head.bias.zero_()
    return head


def label_word_head(encoder: TextEncoder, phrases: Sequence[Sequence[str]], scale: float = 20.0) -> nn.Linear:
    """A head whose rows are the classes' prototypes: mean unit embedding of each class's phrases, centred.

    On unit embeddings the logits are ``scale`` times cosine similarity less a constant, so the classifier answers
    sensibly before it has seen a label and fine-tuning starts from there.

    Args:
        phrases: for each class one or more phrases, e.g. ``[["a terrible movie"], ["a great movie"]]``.
        scale: slope of the logits in the cosine.

    Raises:
        ValueError: fewer than two classes, a class without phrase, or two whose phrases the encoder reads alike.
    """
    if len(phrases) < 2 or any(not p or not all(w.strip() for w in p) for p in phrases):
        raise ValueError(f"a label-word head needs two classes or more with at least one phrase each, got {phrases}")
    if len({tuple(p) for p in phrases}) < len(phrases):
        raise ValueError(f"two classes have the same label phrases: {phrases}; give each class its own words")
    rows = torch.from_numpy(np.stack([encoder.embed(p, normalize=True).mean(0) for p in phrases]))
    rows = nn.functional.normalize(rows, dim=-1)
    for i, j in combinations(range(len(phrases)), 2):
        if torch.dist(rows[i], rows[j]) < ALIKE:
            raise ValueError(
                f"this encoder reads the label phrases {list(phrases[i])} and {list(phrases[j])} alike (unknown signs "
                "or accents, perhaps), so no text could be told apart by them; give each class other words"
            )
    rows = rows - rows.mean(0, keepdim=True)
    head = nn.utils.skip_init(nn.Linear, encoder.width, len(phrases))
    with torch.no_grad():
        head.weight.copy_(scale * rows)
        head.bias.zero_()
    return head.to(encoder.device)
