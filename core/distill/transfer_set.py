"""The transfer set: every text the student learns from, and the phrases cut from the pool.

Few labelled texts, the unlabelled pool, and phrases: contiguous spans of the pool's own texts. A phrase has no label,
but the teacher has an opinion on it. A student learns a small pool by heart within a few passes; with phrases it hardly
meets the same words twice, and a phrase costs less than a text.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from core.config import Config
from core.data.examples import Examples, fold
from core.hashing import content_key

UNLABELLED = -1


class PhraseConfig(Config):
    """Phrases cut from pool texts."""

    per_text: float = Field(3.0, ge=0, description="phrases for each pool text; 0: none")
    shortest: float = Field(0.3, gt=0, le=1, description="shortest phrase, as a share of the text's words")
    longest: float = Field(0.8, gt=0, le=1, description="longest phrase, as a share of the text's words")

    @model_validator(mode="after")
    def _in_order(self) -> "PhraseConfig":
        if self.shortest > self.longest:
            raise ValueError(f"shortest={self.shortest} is above longest={self.longest}; give shortest <= longest")
        return self


@dataclass(frozen=True)
class TransferSet:
    """Parallel columns: texts, second texts (or None), labels (UNLABELLED where unknown).

    ``sizes``: how many texts each part has (labelled, pool, phrases), so that signals of a part can be shared.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray
    sizes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labelled(self) -> np.ndarray:
        """Positions of the labelled texts."""
        return np.flatnonzero(self.labels != UNLABELLED)

    def parts(self) -> list[tuple[list[str], list[str] | None]]:
        """Texts and second texts of each part that is not empty."""
        ends = np.cumsum(self.sizes or (len(self),))
        found = []
        for start, end in zip([0, *ends], ends):
            if end > start:
                found.append((self.texts[start:end], None if self.pairs is None else self.pairs[start:end]))
        return found

    @property
    def sha256(self) -> str:
        return content_key(self.texts, self.pairs, self.labels.tolist())


def transfer_set(
    train: Examples | None,
    pool: Examples,
    phrases: PhraseConfig | None = None,
    seed: int = 0,
    without: Collection[str] = (),
) -> TransferSet:
    """Labelled texts first, then the pool, then phrases of the pool (single texts only).

    Args:
        train: labelled examples; None for the unlabelled-only mode.
        pool: its labels are ignored, whatever they are.
        seed: draws the phrases.
        without: folded texts that no phrase may equal (those of dev and test).
    """
    parts = ([train] if train is not None else []) + [pool]
    texts = [t for part in parts for t in part.texts]
    pairs = None if pool.pairs is None else [p for part in parts for p in part.pairs]
    labels = [*(train.labels if train is not None else []), *[UNLABELLED] * len(pool)]
    sizes = [len(part) for part in parts]
    if phrases is not None and phrases.per_text and pairs is None:
        cut = cut_phrases(pool.texts, round(phrases.per_text * len(pool)), phrases, seed, without)
        texts, labels = [*texts, *cut], [*labels, *[UNLABELLED] * len(cut)]
        sizes.append(len(cut))
    return TransferSet(texts, pairs, np.asarray(labels, dtype=np.int64), tuple(sizes))


def cut_phrases(
    texts: Sequence[str], count: int, config: PhraseConfig, seed: int, without: Collection[str] = ()
) -> list[str]:
    """``count`` distinct spans of words, shorter than their texts, from all texts alike (fewer if there are no more).

    Args:
        without: folded texts that no span may equal.
    """
    without = frozenset(without)
    words = [w for w in (t.split() for t in texts) if len(w) > 1]
    rng = np.random.default_rng([seed, 71])
    found: dict[str, None] = {}
    for attempt in range(4 * count if words else 0):
        if len(found) == count:
            break
        w = words[attempt % len(words)]
        length = min(max(round(len(w) * rng.uniform(config.shortest, config.longest)), 1), len(w) - 1)
        start = int(rng.integers(len(w) - length + 1))
        phrase = " ".join(w[start : start + length])
        if fold(phrase) not in without:
            found.setdefault(phrase)
    return list(found)
