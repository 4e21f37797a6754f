"""Augmentation: changed copies of training examples, labels kept.

Text methods change single words: ``word_drop``, ``word_swap``, ``synonym`` and ``back_off``. Image methods: ``flip``,
``crop``, ``rotate``, ``scale``. Each is one function with its own random generator; originals stay, copies follow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from core.data.cleaning import Change
from core.data.examples import Examples, Splits
from core.registry import Registry

TEXT: Registry = Registry("text augmentation", "core.data.augment")
IMAGE: Registry = Registry("image augmentation", "core.data.augment")


def augment(
    splits: Splits, methods: Mapping[str, Mapping[str, Any]] | Sequence[str], copies: int = 1, seed: int = 0
) -> tuple[Splits, Change]:
    """Add ``copies`` changed copies of every train example; validation and test stay.

    Args:
        methods: names, or name -> settings; applied to each copy in that order.
        copies: copies an example.

    Raises:
        ValueError: unknown method or setting, a method that does not fit the kind of data, or copies < 1.
    """
    if copies < 1:
        raise ValueError(f"augmentation needs copies >= 1, got {copies}")
    settings = dict(methods) if isinstance(methods, Mapping) else {name: {} for name in methods}
    train = splits.train
    images = train.arrays is not None
    if images and train.arrays.ndim != 4:
        raise ValueError("augmentation is for texts and images; these splits hold a table")
    from core.data.augment.image import change_images
    from core.data.augment.text import change_texts

    change = change_images if images else change_texts
    rng = np.random.default_rng(seed)
    made = [train]
    changed = 0
    for _ in range(copies):
        copy = change(train, settings, rng)
        changed += sum(a != b for a, b in zip(copy.folded(), train.folded()))
        made.append(copy)
    new = replace(splits, train=_concatenate(made))
    counts = {"train": {"copies": copies * len(train), "changed": changed}}
    return new, Change.between("augment", {"methods": settings, "copies": copies, "seed": seed}, splits, new, counts)


def _concatenate(parts: list[Examples]) -> Examples:
    return Examples(
        [t for p in parts for t in p.texts],
        [t for p in parts for t in p.pairs] if parts[0].pairs is not None else None,
        [label for p in parts for label in p.labels],
        np.concatenate([p.arrays for p in parts]) if parts[0].arrays is not None else None,
    )
