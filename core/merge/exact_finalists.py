"""Mini-batches in a fast precision, decisions in float32: the start and the finalists are scored exactly."""

from typing import Any

import numpy as np

from core.merge.align import Head
from core.merge.fitness import Answer, Fitness


class ExactFinalists:
    """A fitness whose scores on the whole validation data come from its twin in float32.

    bfloat16 ranks a generation (its mini-batch noise is far above the rounding); which recipe is delivered, and the
    score that is reported, should not hang on it. The budget is the same: nothing is scored twice.

    Args:
        fitness: scores mini-batches.
        exact: the same problem in float32.
    """

    def __init__(self, fitness: Fitness, exact: Fitness):
        self.fitness, self.exact = fitness, exact

    def __getattr__(self, name: str) -> Any:
        if name in ("fitness", "exact"):  # not there yet, as when a copy is made
            raise AttributeError(name)
        return getattr(self.fitness, name)

    def full(self, coefficients: np.ndarray) -> Answer:
        """Score a recipe on all validation examples in float32."""
        return self.exact.full(coefficients)

    def set_control(self, coefficients: np.ndarray) -> Answer:
        """The reference recipe in float32: its scores are the control variate, its aligned heads serve mini-batches."""
        answer = self.exact.set_control(coefficients)
        tasks = {t: self.exact.objectives[t] for t in self.exact.targets}
        self.fitness.use({t: Head(o.weight, o.bias) for t, o in tasks.items()})
        self.fitness.control = self.exact.control
        return answer
