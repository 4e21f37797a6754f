"""Candidate operators: what a search space must offer so that every generic optimizer runs on it."""

from typing import Any, Protocol, TypeVar

import numpy as np

C = TypeVar("C")


class Space(Protocol[C]):
    """Operators on candidates. All draw from the generator they are given and leave their arguments unchanged."""

    def sample(self, rng: np.random.Generator) -> C:
        """A candidate drawn from the space's prior (uniform where that has a meaning)."""

    def mutate(self, candidate: C, rng: np.random.Generator) -> C:
        """A neighbour of ``candidate``."""

    def crossover(self, a: C, b: C, rng: np.random.Generator) -> C:
        """A child of two parents."""

    def key(self, candidate: C) -> str:
        """Equal for candidates that are the same thing (a canonical hash)."""

    def to_json(self, candidate: C) -> Any:
        """JSON-able form of a candidate."""

    def from_json(self, value: Any) -> C:
        """Inverse of :meth:`to_json`."""


class Box:
    """Real vectors within bounds, with the point and the step from which a search starts.

    Args:
        lower, upper: bounds, each of length ``d``.
        start: first mean, length ``d``; the middle of the box when None.
        step: standard deviation per coordinate of the first samples around ``start``, scalar or length ``d``;
            a fifth of the box's width when None.
    """

    def __init__(self, lower: Any, upper: Any, start: Any = None, step: Any = None):
        self.lower, self.upper = np.array(lower, dtype=float), np.array(upper, dtype=float)
        if self.lower.ndim != 1 or self.lower.shape != self.upper.shape or not self.lower.size:
            raise ValueError(f"bounds must be two vectors of one length, got {self.lower.shape} and {self.upper.shape}")
        if not (np.isfinite(self.lower).all() and np.isfinite(self.upper).all() and (self.lower < self.upper).all()):
            raise ValueError("every lower bound must be finite and below its upper bound")
        width = self.upper - self.lower
        self.start = self.lower + width / 2 if start is None else np.array(start, dtype=float)
        self.step = np.broadcast_to(width / 5 if step is None else np.asarray(step, dtype=float), width.shape).copy()
        if self.start.shape != self.lower.shape:
            raise ValueError(f"start has length {self.start.size}, the box {self.lower.size} dimensions")
        if ((self.start < self.lower) | (self.start > self.upper)).any():
            raise ValueError("start lies outside the bounds")
        if not (self.step > 0).all():
            raise ValueError("every step must be above 0")

    @property
    def dimensions(self) -> int:
        return self.lower.size

    def clip(self, x: np.ndarray) -> np.ndarray:
        """The nearest point of the box."""
        return np.clip(x, self.lower, self.upper)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(self.lower, self.upper)

    def mutate(self, candidate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Gaussian steps of ``step / 2`` on a random third of the coordinates, at least one."""
        mask = rng.random(self.dimensions) < 1 / 3
        mask[rng.integers(self.dimensions)] = True
        return self.clip(candidate + mask * rng.normal(0, self.step / 2))

    def crossover(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Uniform crossover."""
        return np.where(rng.random(self.dimensions) < 0.5, a, b)

    def key(self, candidate: np.ndarray) -> str:
        return np.asarray(candidate, dtype=float).tobytes().hex()

    def to_json(self, candidate: np.ndarray) -> list[float]:
        return [float(v) for v in candidate]

    def from_json(self, value: Any) -> np.ndarray:
        return np.array(value, dtype=float)
