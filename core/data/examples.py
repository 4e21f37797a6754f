"""Examples of a task and their splits, and the folding by which two texts count as the same."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

_FOLD = re.compile(r"[\W_]+")
_FOLD_ASCII = str.maketrans({chr(c): " " for c in range(128) if not chr(c).isalnum()})
Label = int | float | str
ALL = "all"  # name of the only split of a source that has none


class TaskError(ValueError):
    """A task's file, source or rows are not what its description says; the message names the place and the remedy."""


def fold(text: str) -> str:
    """``text`` lower-cased with everything but letters and digits folded into one space.

    Texts equal after folding are the same text for splits, duplicates and leaks. A text without letters and digits is
    only stripped.
    """
    if text.isascii():  # the same result, many times faster
        return " ".join(text.lower().translate(_FOLD_ASCII).split()) or text.strip()
    text = unicodedata.normalize("NFKC", text)
    return _FOLD.sub(" ", text.lower()).strip() or text.strip()


@dataclass(frozen=True, eq=False)
class Examples:
    """Parallel columns of one split.

    ``labels`` are class indices (int), target values (float) or reference texts (str). Text kinds fill ``texts`` and,
    for pairs, ``pairs``; images and tables fill ``arrays`` instead: uint8 or float32 of shape (N, channels, height,
    width), or float32 of shape (N, features).
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[Label]
    arrays: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.labels)
        for name, column in (("texts", self.texts), ("pairs", self.pairs), ("arrays", self.arrays)):
            if column is not None and len(column) not in ({n} if name != "texts" or self.arrays is None else {0, n}):
                raise ValueError(f"{len(column)} {name} for {n} labels; they must be as many")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """Content hash over all columns, in order."""
        digest = hashlib.sha256()
        for i, label in enumerate(self.labels):
            parts = [self.texts[i] if self.texts else "", self.pairs[i] if self.pairs else "", repr(label)]
            for part in parts:
                data = part.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "little") + data)
        if self.arrays is not None:
            digest.update(
                f"{self.arrays.dtype}{self.arrays.shape}".encode() + np.ascontiguousarray(self.arrays).tobytes()
            )
        return digest.hexdigest()

    def take(self, indices: Sequence[int]) -> "Examples":
        """The examples at ``indices``, in that order."""
        index = [int(i) for i in indices]
        return Examples(
            [self.texts[i] for i in index] if self.texts else [],
            [self.pairs[i] for i in index] if self.pairs is not None else None,
            [self.labels[i] for i in index],
            self.arrays[index] if self.arrays is not None else None,
        )

    def sample(self, n: int, seed: int = 0) -> "Examples":
        """``n`` examples drawn without replacement (all, in order, when there are not more), order kept."""
        if n >= len(self):
            return self
        chosen = np.random.default_rng(seed).choice(len(self), size=n, replace=False)
        return self.take(np.sort(chosen))

    def folded(self) -> list[str]:
        """One folded key per example (pair included): equal keys are the same input."""
        if self.arrays is not None and not self.texts:
            flat = np.ascontiguousarray(self.arrays).reshape(len(self), -1)
            return [hashlib.sha256(row.tobytes()).hexdigest() for row in flat]
        if self.pairs is None:
            return [fold(t) for t in self.texts]
        return [f"{fold(a)}\x1f{fold(b)}" for a, b in zip(self.texts, self.pairs, strict=True)]

    def with_labels(self, labels: Sequence[Label]) -> "Examples":
        """The same inputs with other labels."""
        return replace(self, labels=list(labels))


@dataclass(frozen=True)
class Splits:
    """The three parts of a task, and how many rows were left out while reading, by part and reason."""

    train: Examples
    validation: Examples
    test: Examples
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def sha256(self) -> dict[str, str]:
        return {name: getattr(self, name).sha256 for name in ("train", "validation", "test")}


def share_of(key: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on the key and the seed alone: the same text always falls on the same side."""
    digest = hashlib.sha256(f"{seed}\x1f{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
