"""What a search or a table taught, as one portable file: elites, predictor, and (where trained) encoder and latents.

A source is learned where its labels are and used anywhere: the file needs neither the table nor the space's oracle.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.hashing import content_key
from core.nas.arena import Arena
from core.nas.predictors.forest import Forest, RankPredictor
from core.nas.spaces import Genotype, Space, get_space
from core.state import load_checkpoint, save_checkpoint

KIND, SCHEMA = "nas-source", 2
LABELS, ELITES = 8000, 200


@dataclass(frozen=True)
class Source:
    """Knowledge K from source S.

    Args:
        name: how reports call it, e.g. ``nb201 cifar10``.
        space: name of the source space (:attr:`home` is the space itself).
        elites: the best labelled cells, best first, with their ``scores``.
        predictor: rank predictor on space-independent features.
        facts: where it comes from: oracle, number of labels, input hashes.
        encoder: arrays of the source space's encoder, latents and values (see :mod:`core.nas.encoder`), may be empty.
        settings: of the source space, where it has some.
    """

    name: str
    space: str
    elites: tuple[Genotype, ...]
    scores: tuple[float, ...]
    predictor: RankPredictor
    facts: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, np.ndarray] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def home(self) -> Space:
        """The source space, with its settings. Raises ValueError for one that this program does not have."""
        return get_space(self.space, **self.settings)

    @cached_property
    def key(self) -> str:
        """Content key: equal for sources that say the same."""
        arrays = self.predictor.raw.arrays("raw") | self.predictor.rank.arrays("rank")
        digests = {n: hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest() for n, a in arrays.items()}
        return content_key(self.name, self.space, digests)

    def save(self, path: str | Path) -> None:
        """Write one checksummed file (JSON and safetensors), atomically."""
        payload = {
            "name": self.name,
            "space": self.space,
            "settings": self.settings,
            "elites": [self.home.format(e) for e in self.elites],
            "scores": list(self.scores),
            "facts": self.facts,
        }
        arrays = self.predictor.raw.arrays("raw") | self.predictor.rank.arrays("rank")
        arrays |= {f"encoder.{k}": v for k, v in self.encoder.items()}
        save_checkpoint(path, payload, kind=KIND, schema=SCHEMA, arrays=arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Source":
        """Read what :meth:`save` wrote, here or elsewhere.

        Raises:
            StateError: damaged, of another kind, or newer than this program.
            ValueError: a genotype that its space refuses, or a space this program does not have.
        """
        payload, arrays, _ = load_checkpoint(path, kind=KIND, schema=SCHEMA)
        settings = payload.get("settings", {})  # schema 1 knew spaces without settings only
        space = get_space(payload["space"], **settings)
        return cls(
            payload["name"],
            payload["space"],
            tuple(space.parse(e) for e in payload["elites"]),
            tuple(payload["scores"]),
            RankPredictor(Forest.from_arrays(arrays, "raw"), Forest.from_arrays(arrays, "rank")),
            payload["facts"],
            {k.removeprefix("encoder."): v for k, v in arrays.items() if k.startswith("encoder.")},
            settings,
        )


def learn_source(
    name: str,
    arena: Arena,
    cells: Sequence[Genotype],
    labels: np.ndarray,
    *,
    most: int = LABELS,
    seed: int = 0,
    facts: dict[str, Any] | None = None,
) -> Source:
    """Learn from labelled cells of a source space.

    Args:
        arena: population of the source space against which feature ranks are read.
        cells, labels: what is known, larger better; a random ``most`` of them train the predictor.

    Raises:
        ValueError: lengths differ, fewer than 20 labels, or a label that is not finite.
    """
    labels = np.asarray(labels, dtype=float)
    if len(cells) != len(labels):
        raise ValueError(f"{len(cells)} cells have {len(labels)} labels")
    if not np.isfinite(labels).all():
        raise ValueError(f"source {name!r} has {int((~np.isfinite(labels)).sum())} labels that are not finite")
    chosen = np.random.default_rng(seed).permutation(len(cells))[:most]
    rows = [arena.row_of.get(arena.key(cells[i])) for i in chosen]
    if any(r is None for r in rows):
        raise ValueError(f"source {name!r} has labelled cells outside its arena; build the arena from them")
    raw = arena.raw[rows]
    predictor = RankPredictor.fit(raw, arena.ranks[rows], labels[chosen], seed)
    best = np.argsort(-labels, kind="stable")[:ELITES]
    known = {"labels": len(chosen), **(facts or {})}
    elites = tuple(cells[i] for i in best)
    scores = tuple(float(labels[i]) for i in best)
    return Source(name, arena.space.name, elites, scores, predictor, known, settings=arena.space.settings)
