"""Each task's mean relative score over the forms it was in."""

from collections.abc import Mapping, Sequence

import numpy as np

from core.merge.predictors import PREDICTORS, check_forms


@PREDICTORS.register("task_means")
class TaskMeans:
    """A form's prediction is the mean of its tasks' means: no interaction at all."""

    def __init__(self, n: int, seed: int = 0):
        self.n = n

    def fit(self, forms: Sequence[tuple[int, ...]], scores: Sequence[Mapping[int, float]]) -> None:
        check_forms(forms, scores, self.n)
        seen: list[list[float]] = [[] for _ in range(self.n)]
        for score in scores:
            for task, value in score.items():
                seen[task].append(value)
        overall = float(np.mean([v for values in seen for v in values]))
        self.means = np.array([np.mean(v) if v else overall for v in seen])

    def predict(self, forms: Sequence[tuple[int, ...]]) -> np.ndarray:
        return np.array([self.means[list(form)].mean() for form in forms])
