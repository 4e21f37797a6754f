"""Pairwise regression: a task's score is its own level less what each other expert in the form costs or gives it."""

from collections.abc import Mapping, Sequence

import numpy as np

from core.merge.predictors import PREDICTORS, check_forms


@PREDICTORS.register("pairwise")
class Pairwise:
    """Per task a ridge regression on the other experts in the form (directed pair effects) and the form's size.

    ``score_j(form) = level_j + slope · (size - 2) + sum over i in form, i != j of effect_ij``. The effects' penalty is
    chosen by leave-one-form-out error over all tasks.
    """

    def __init__(self, n: int, seed: int = 0, penalties: Sequence[float] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)):
        self.n, self.penalties = n, tuple(penalties)

    def fit(self, forms: Sequence[tuple[int, ...]], scores: Sequence[Mapping[int, float]]) -> None:
        check_forms(forms, scores, self.n)
        rows = [(k, form, j, s) for k, (form, score) in enumerate(zip(forms, scores)) for j, s in score.items()]
        x = np.stack([self._row(form, j) for _, form, j, _ in rows])
        y = np.array([s for *_, s in rows])
        owner = np.array([k for k, *_ in rows])
        self.offset = float(y.mean())
        errors = []
        for penalty in self.penalties:
            inverse = np.linalg.inv(x.T @ x + np.diag(self._penalty(penalty)))
            hat = x @ inverse @ x.T
            residual = (y - self.offset) - hat @ (y - self.offset)
            errors.append(self._left_out(hat, residual, owner))
        best = self.penalties[int(np.argmin(errors))]
        self.weights = np.linalg.solve(x.T @ x + np.diag(self._penalty(best)), x.T @ (y - self.offset))
        self.effects = self.weights[self.n + 1 :].reshape(self.n, self.n)

    def _row(self, form: tuple[int, ...], task: int) -> np.ndarray:
        row = np.zeros(self.n + 1 + self.n * self.n)
        row[task] = 1.0
        row[self.n] = len(form) - 2
        for i in form:
            if i != task:
                row[self.n + 1 + i * self.n + task] = 1.0
        return row

    def _penalty(self, value: float) -> np.ndarray:
        return np.concatenate([np.full(self.n, 0.03), [0.03], np.full(self.n * self.n, value)])

    @staticmethod
    def _left_out(hat: np.ndarray, residual: np.ndarray, owner: np.ndarray) -> float:
        """Mean squared error of each form's rows when the form is left out (closed form for ridge)."""
        total = 0.0
        for k in np.unique(owner):
            at = np.flatnonzero(owner == k)
            block = np.eye(len(at)) - hat[np.ix_(at, at)]
            total += float((np.linalg.solve(block, residual[at]) ** 2).sum())
        return total / len(residual)

    def predict(self, forms: Sequence[tuple[int, ...]]) -> np.ndarray:
        return np.array([
            self.offset + np.mean([self._row(form, j) @ self.weights for j in form]) for form in forms
        ])  # fmt: skip
