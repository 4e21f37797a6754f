"""Additive model: every expert adds its own amount to a form's mean score, whoever else is in it."""

from collections.abc import Mapping, Sequence

import numpy as np

from core.merge.predictors import PREDICTORS, check_forms


@PREDICTORS.register("additive")
class Additive:
    """Ridge regression of the form's mean score on which experts are in it and on how many."""

    def __init__(self, n: int, seed: int = 0, penalty: float = 0.1):
        self.n, self.penalty = n, penalty

    def _features(self, forms: Sequence[tuple[int, ...]]) -> np.ndarray:
        x = np.zeros((len(forms), self.n + 1))
        for row, form in zip(x, forms, strict=True):
            row[list(form)] = 1.0
            row[self.n] = len(form)
        return x

    def fit(self, forms: Sequence[tuple[int, ...]], scores: Sequence[Mapping[int, float]]) -> None:
        check_forms(forms, scores, self.n)
        x, y = self._features(forms), np.array([np.mean(list(s.values())) for s in scores])
        self.centre, self.offset = x.mean(axis=0), float(y.mean())
        z = x - self.centre
        self.weights = np.linalg.solve(z.T @ z + self.penalty * np.eye(z.shape[1]), z.T @ (y - self.offset))

    def predict(self, forms: Sequence[tuple[int, ...]]) -> np.ndarray:
        return self.offset + (self._features(forms) - self.centre) @ self.weights
