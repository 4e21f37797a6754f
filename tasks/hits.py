"""Which test items a model got right, kept with its registered version: what promotion compares."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks.long_tags import joined, split


@dataclass(frozen=True)
class Hits:
    """Which test items of a task a model got right; ``items`` is a hash of the items."""

    items: str
    right: np.ndarray

    @staticmethod
    def tags(hits: Mapping[str, "Hits"]) -> dict[str, str]:
        """As tags of a model version."""
        packed = {t: np.packbits(h.right.astype(bool)).tobytes().hex() for t, h in hits.items()}
        return split("hits", {t: [h.items[:16], len(h.right), packed[t]] for t, h in hits.items()})

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> dict[str, "Hits"]:
        """By task; empty for a version that carries none."""
        found = {}
        for task, (items, count, packed) in joined("hits", tags, {}).items():
            right = np.unpackbits(np.frombuffer(bytes.fromhex(packed), dtype=np.uint8))[:count]
            found[task] = cls(items, right.astype(bool))
        return found
