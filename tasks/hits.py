"""Which test items a model got right, kept with its registered version: what promotion compares."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LONG = 4500  # characters of a tag


@dataclass(frozen=True)
class Hits:
    """Which test items of a task a model got right; ``items`` is a hash of the items."""

    items: str
    right: np.ndarray

    @staticmethod
    def tags(hits: Mapping[str, "Hits"]) -> dict[str, str]:
        """As tags of a model version (``hits``, ``hits.1``, ...), which hold about 5,000 characters each."""
        packed = {t: np.packbits(h.right.astype(bool)).tobytes().hex() for t, h in hits.items()}
        text = json.dumps({t: [h.items[:16], len(h.right), packed[t]] for t, h in hits.items()})
        return {f"hits.{i}" if i else "hits": text[at : at + LONG] for i, at in enumerate(range(0, len(text), LONG))}

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> dict[str, "Hits"]:
        """By task; empty for a version that carries none."""
        text, i = tags.get("hits", ""), 1
        while f"hits.{i}" in tags:
            text, i = text + tags[f"hits.{i}"], i + 1
        found = {}
        for task, (items, count, packed) in json.loads(text or "{}").items():
            right = np.unpackbits(np.frombuffer(bytes.fromhex(packed), dtype=np.uint8))[:count]
            found[task] = cls(items, right.astype(bool))
        return found
