"""Normalisation of texts, features, images and numeric targets. Statistics come from train alone."""

import html
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from core.data.cleaning import PARTS, Change
from core.data.examples import Examples, Splits
from core.registry import Registry

TEXT_STEPS: Registry[Callable[[str], str]] = Registry("text normalisation")
SCALES: Registry[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = Registry("feature scaling")


@TEXT_STEPS.register("unicode")
def unicode_form(text: str) -> str:
    """Canonical composition (NFC), no zero-width characters, plain spaces."""
    text = unicodedata.normalize("NFC", text)
    return "".join(" " if unicodedata.category(c) == "Zs" else c for c in text if unicodedata.category(c) != "Cf")


@TEXT_STEPS.register("html")
def plain_html(text: str) -> str:
    """Character references resolved, line-break tags as spaces."""
    for tag in ("<br />", "<br/>", "<br>", "<BR>"):
        text = text.replace(tag, " ")
    return html.unescape(text)


@TEXT_STEPS.register("spaces")
def single_spaces(text: str) -> str:
    """Runs of white space as one space, none at the ends."""
    return " ".join(text.split())


@TEXT_STEPS.register("lower")
def lower(text: str) -> str:
    """Lower case."""
    return text.lower()


@SCALES.register("standard")
def standard(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean 0 and standard deviation 1 on train."""
    return train.mean(axis=0), train.std(axis=0)


@SCALES.register("minmax")
def minmax(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least value 0 and largest 1 on train."""
    return train.min(axis=0), train.max(axis=0) - train.min(axis=0)


@SCALES.register("robust")
def robust(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median 0 and interquartile range 1 on train."""
    low, middle, high = np.percentile(train, [25, 50, 75], axis=0)
    return middle, high - low


def normalise_texts(splits: Splits, steps: tuple[str, ...] = ("html", "unicode", "spaces")) -> tuple[Splits, Change]:
    """Apply the named steps, in order, to the texts and pairs of every part; counts say how many rows changed."""
    functions = [TEXT_STEPS.get(name) for name in steps]
    counts: dict[str, dict[str, int]] = {}
    parts: dict[str, Examples] = {}
    for part in PARTS:
        old: Examples = getattr(splits, part)
        texts = [_apply(functions, t) for t in old.texts]
        pairs = [_apply(functions, t) for t in old.pairs] if old.pairs is not None else None
        parts[part] = replace(old, texts=texts, pairs=pairs)
        changed = [a != b or (pairs is not None and c != d) for a, b, c, d in zip(old.texts, texts, *_two(old, pairs))]
        counts[part] = {"changed": sum(changed)}
    new = replace(splits, **parts)
    return new, Change.between("normalise texts", {"steps": list(steps)}, splits, new, counts)


def normalise_arrays(splits: Splits, scale: str = "standard") -> tuple[Splits, Change, dict[str, Any]]:
    """Scale features (by column) or images (by channel) to float32 with statistics of train.

    A column without spread on train is only shifted.

    Returns:
        the scaled splits, the change, and the statistics ``{"shift", "spread"}`` that undo it.

    Raises:
        ValueError: no arrays, or unknown scaling.
    """
    if splits.train.arrays is None:
        raise ValueError("normalise_arrays is for images and tables; these splits hold texts (see normalise_texts)")
    function = SCALES.get(scale)
    shift, spread = (np.asarray(s, dtype=np.float64) for s in function(_columns(splits.train.arrays)))
    spread = np.where(spread > 0, spread, 1.0)
    shape = (1, -1, 1, 1) if splits.train.arrays.ndim == 4 else (1, -1)
    parts = {}
    for part in PARTS:
        old: Examples = getattr(splits, part)
        scaled = (old.arrays.astype(np.float64) - shift.reshape(shape)) / spread.reshape(shape)
        parts[part] = replace(old, arrays=scaled.astype(np.float32))
    new = replace(splits, **parts)
    statistics = {"shift": shift.tolist(), "spread": spread.tolist()}
    return new, Change.between("normalise arrays", {"scale": scale}, splits, new), statistics


def normalise_targets(splits: Splits) -> tuple[Splits, Change, tuple[float, float]]:
    """Numeric targets with mean 0 and standard deviation 1 on train; returns (mean, deviation) to undo it.

    Raises:
        ValueError: the labels are no numbers of a regression, or do not vary.
    """
    if not all(isinstance(label, float) for label in splits.train.labels):
        raise ValueError("normalise_targets is for regression; these labels are classes or texts")
    mean, deviation = float(np.mean(splits.train.labels)), float(np.std(splits.train.labels))
    if deviation == 0:
        raise ValueError(f"all train targets are {mean:g}; a constant target cannot be scaled (or learnt from)")
    parts = {}
    for part in PARTS:
        old: Examples = getattr(splits, part)
        parts[part] = old.with_labels([(float(label) - mean) / deviation for label in old.labels])
    new = replace(splits, **parts)
    return (
        new,
        Change.between("normalise targets", {"mean": mean, "deviation": deviation}, splits, new),
        (mean, deviation),
    )


def _columns(arrays: np.ndarray) -> np.ndarray:
    """(rows, features) of a table, or (pixels, channels) of images, as float64."""
    if arrays.ndim == 4:
        return arrays.transpose(0, 2, 3, 1).reshape(-1, arrays.shape[1]).astype(np.float64)
    return arrays.astype(np.float64)


def _apply(functions: list[Callable[[str], str]], text: str) -> str:
    for function in functions:
        text = function(text)
    return text


def _two(old: Examples, pairs: list[str] | None) -> tuple[list[str], list[str]]:
    empty = [""] * len(old)
    return (old.pairs or empty, pairs or empty)
