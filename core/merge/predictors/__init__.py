"""Predictors: the score of a merge of experts that was never tried, from solved forms.

A predictor is fitted on forms (sets of experts with the score of each of their tasks relative to the individual expert)
and predicts the mean relative score of unseen sets. The simplest that wins is the default.

    predictor = PREDICTORS.get("pairwise")(n)      # n experts, expert i owns task i
    predictor.fit(forms, scores)                   # forms: tuples of experts; scores: dicts task owner -> score
    predictor.predict(forms)                       # mean score of each form
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from core.registry import Registry

PREDICTORS: Registry[Any] = Registry("score predictor", "core.merge.predictors")
DEFAULT = "pairwise"


class Predictor(Protocol):
    """Predicts the mean relative score of sets of experts."""

    def fit(self, forms: Sequence[tuple[int, ...]], scores: Sequence[Mapping[int, float]]) -> None:
        """Learn from solved forms; ``scores[k][j]`` is the relative score of expert j's task in form k."""

    def predict(self, forms: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Mean relative score [number of forms]."""


def check_forms(forms: Sequence[tuple[int, ...]], scores: Sequence[Mapping[int, float]], n: int) -> None:
    """Refuse forms that a predictor of n experts cannot learn from.

    Raises:
        ValueError: no form, unequal lengths, an unknown expert, or a score of a task whose expert is not in the form.
    """
    if not forms or len(forms) != len(scores):
        raise ValueError(f"{len(forms)} forms with {len(scores)} scores; give as many, at least one")
    for form, score in zip(forms, scores, strict=True):
        if not set(form) <= set(range(n)) or not set(score) <= set(form):
            raise ValueError(f"form {form} with scores of {sorted(score)}: experts are 0 to {n - 1}, scores of its own")
