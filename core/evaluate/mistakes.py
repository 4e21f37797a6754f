"""The test examples that a classifier gets most confidently wrong: where to look first, in data and model alike.

The only analysis that quotes texts; callers ask their user first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.data.examples import Examples

LONGEST = 400  # characters of a quoted text


@dataclass(frozen=True)
class Mistake:
    """A quoted example: its class by the label and by the model, and the probability of the latter."""

    text: str
    label: str
    predicted: str
    probability: float


def most_confident(
    examples: Examples, probabilities: np.ndarray, labels: Sequence[str], count: int = 10
) -> list[Mistake]:
    """At most ``count`` mistakes, the most confident first, equals in the order of the examples.

    Args:
        probabilities: [n, C], a line an example.
        labels: the names of the C classes.

    Raises:
        ValueError: sizes that do not fit each other; examples without text.
    """
    if probabilities.shape != (len(examples), len(labels)):
        raise ValueError(
            f"probabilities of shape {probabilities.shape} for {len(examples)} examples of {len(labels)} classes"
        )
    if len(examples) and not examples.texts:
        raise ValueError("only examples with texts can be quoted")
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != np.asarray(examples.labels))
    first = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return [
        Mistake(_quoted(examples, i), labels[examples.labels[i]], labels[predicted[i]], float(confidence[i]))
        for i in first
    ]


def _quoted(examples: Examples, i: int) -> str:
    parts = [examples.texts[i], *([] if examples.pairs is None else [examples.pairs[i]])]
    return " | ".join(p if len(p) <= LONGEST else f"{p[:LONGEST]} ..." for p in parts)
