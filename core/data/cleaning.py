"""Cleaning: faults are found, reported, and removed by choice.

Faults: ``empty`` inputs, ``duplicates`` (later copies of an input with the same label), ``conflicting`` inputs (equal
inputs of different classes, all copies), ``outliers`` (unusually long or short texts, extreme features or targets) and
``leaks`` (inputs that occur again in a later split: train in validation or test, validation in test).

Copies are equal but for case and white space: signs may be all that tells two texts apart (``C++``, ``C#``; ``3 - 2``,
``3 + 2``; emoji). Leaks are told as the splits are made, signs aside: a row too many removed from training costs less.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.data.examples import Examples, Splits, fold
from core.registry import nearest

PARTS = ("train", "validation", "test")
FAULTS = ("empty", "duplicates", "conflicting", "outliers", "leaks")
OUTLIER_Z = 5.0
SPREAD_FLOOR = 1e-9


@dataclass(frozen=True)
class Change:
    """What a data stage did: its name and settings, rows before and after, and content hashes."""

    stage: str
    settings: dict[str, object]
    before: dict[str, int]
    after: dict[str, int]
    counts: dict[str, dict[str, int]]
    sha256_before: dict[str, str]
    sha256_after: dict[str, str]

    @classmethod
    def between(
        cls, stage: str, settings: dict, old: Splits, new: Splits, counts: dict[str, dict[str, int]] | None = None
    ) -> "Change":
        """The change from ``old`` to ``new``; ``counts`` says per part what happened how often."""
        before, after = ({p: len(getattr(s, p)) for p in PARTS} for s in (old, new))
        return cls(stage, settings, before, after, counts or {}, old.sha256, new.sha256)


def find_faults(splits: Splits, outlier_z: float = OUTLIER_Z) -> dict[str, dict[str, list[int]]]:
    """Row numbers of every fault: ``{part: {fault: rows}}``, each list ascending; a row may have several faults."""
    keys = {part: getattr(splits, part).folded() for part in PARTS}
    found = {}
    for part in PARTS:
        examples: Examples = getattr(splits, part)
        later = {k for p in PARTS[PARTS.index(part) + 1 :] for k in keys[p]}
        duplicates, conflicting = _repeated(_alike(examples), examples.labels)
        found[part] = {
            "empty": _empty(examples),
            "duplicates": duplicates,
            "conflicting": conflicting,
            "outliers": outliers(examples, outlier_z),
            "leaks": [i for i, key in enumerate(keys[part]) if key in later],
        }
    return found


def clean(
    splits: Splits,
    remove: Sequence[str] = ("empty", "duplicates", "conflicting", "leaks"),
    parts: Sequence[str] = ("train", "validation"),
    outlier_z: float = OUTLIER_Z,
) -> tuple[Splits, Change]:
    """Remove rows with the named faults from the named parts; by default the test split stays as it is.

    Raises:
        ValueError: unknown fault or part, or nothing would be left of a part.
    """
    for name in remove:
        if name not in FAULTS:
            raise ValueError(f"unknown fault {name!r}{nearest(name, FAULTS)} Allowed: {', '.join(FAULTS)}")
    for name in parts:
        if name not in PARTS:
            raise ValueError(f"unknown part {name!r}{nearest(name, PARTS)} Allowed: {', '.join(PARTS)}")
    faults = find_faults(splits, outlier_z)
    changed: dict[str, Examples] = {}
    counts: dict[str, dict[str, int]] = {}
    for part in parts:
        examples = getattr(splits, part)
        bad = {i for name in remove for i in faults[part][name]}
        if len(bad) == len(examples):
            raise ValueError(f"cleaning ({', '.join(remove)}) would leave no row in {part}")
        counts[part] = {name: len(faults[part][name]) for name in remove if faults[part][name]}
        changed[part] = examples.take([i for i in range(len(examples)) if i not in bad])
    cleaned = replace(splits, **changed)
    settings = {"remove": list(remove), "parts": list(parts), "outlier_z": outlier_z}
    return cleaned, Change.between("clean", settings, splits, cleaned, counts)


def outliers(examples: Examples, z: float = OUTLIER_Z) -> list[int]:
    """Rows whose log word count, any feature, or numeric label lies more than ``z`` robust deviations off the median.

    A robust deviation is 1.4826 times the median absolute deviation. Where that is 0, a word count takes 1.2533 times
    the mean absolute deviation (Iglewicz and Hoaglin 1993); a feature that hardly varies has no outliers.
    """
    texts = [column for column in (examples.texts, examples.pairs) if column]
    columns = [(np.log1p([len(t.split()) for t in column]), True) for column in texts]
    if examples.arrays is not None and examples.arrays.ndim == 2:
        columns += [(column, False) for column in examples.arrays.T.astype(np.float64)]
    if examples.labels and all(isinstance(label, float) for label in examples.labels):
        columns.append((np.asarray(examples.labels), False))
    far = np.zeros(len(examples), dtype=bool)
    for column, fall_back in columns if len(examples) else ():
        distance = np.abs(column - np.median(column))
        spread = 1.4826 * np.median(distance)
        if spread <= SPREAD_FLOOR and fall_back:
            spread = 1.2533 * distance.mean()
        if spread > SPREAD_FLOOR:
            far |= distance > z * spread
    return np.flatnonzero(far).tolist()


def _empty(examples: Examples) -> list[int]:
    if examples.arrays is not None:
        flat = examples.arrays.reshape(len(examples), -1)
        return np.flatnonzero(~np.isfinite(flat).all(axis=1)).tolist()
    columns = [examples.texts] + ([examples.pairs] if examples.pairs else [])
    return [i for i in range(len(examples)) if any(not fold(column[i]) for column in columns)]


def _alike(examples: Examples) -> list[str]:
    """One key per example: equal keys are copies."""
    if not examples.texts:
        return examples.folded()
    columns = [examples.texts, *([examples.pairs] if examples.pairs else [])]
    return ["\x1f".join(" ".join(t.casefold().split()) for t in row) for row in zip(*columns, strict=True)]


def _repeated(keys: Sequence[str], labels: Sequence[object]) -> tuple[list[int], list[int]]:
    groups: dict[object, list[int]] = defaultdict(list)
    # A prompt may have several reference texts, and two ratings of one text are two measurements.
    several = any(isinstance(label, (str, float)) for label in labels)
    for i, key in enumerate(keys):
        groups[(key, labels[i]) if several else key].append(i)
    duplicates: list[int] = []
    conflicting: list[int] = []
    for rows in groups.values():
        if len({labels[i] for i in rows}) > 1:
            conflicting += rows
        else:
            duplicates += rows[1:]
    return sorted(duplicates), sorted(conflicting)
