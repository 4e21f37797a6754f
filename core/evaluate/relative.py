"""Scores relative to each task's own expert."""

from collections.abc import Mapping

import numpy as np

MEAN, NORMALISED = "mean", "normalised"


def relative(scores: Mapping[str, float], individual: Mapping[str, float]) -> dict[str, float | None]:
    """Per cent of the score of each task's own expert, and under :data:`MEAN` their mean.

    Nothing is relative to an expert that scored 0: its task is None, and the mean is over the others (None without
    any).
    """
    found = {t: 100 * value / individual[t] if individual[t] else None for t, value in scores.items()}
    known = [value for value in found.values() if value is not None]
    return {**found, MEAN: float(np.mean(known)) if known else None}
