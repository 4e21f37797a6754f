"""CMA-ES (Hansen, arXiv 1604.00772) through the package ``cmaes``, with our RNG, injection and stall restarts.

The box is searched in units of its ``step`` (a diagonal pre-conditioning), so coordinates of different sensitivity
get different first steps while sigma starts at 1.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.evolve.optimizers import OPTIMIZERS
from core.evolve.protocol import Told
from core.evolve.space import Box


@OPTIMIZERS.register("cma", space="box")
class CMAES:
    """Covariance matrix adaptation; the first distribution may be warm-started by mean, step and correlation.

    Args:
        space: box; ``space.start`` is the first mean, ``space.step`` the first standard deviation per coordinate.
        population: lambda; the field's 4 + 3 ln d when None.
        correlation: (d, d) first correlation matrix, positive definite (the warm start of the covariance).
        sigma: factor on ``space.step``.
        restart_after: generations without a new best score until a restart at the best point with half the step;
            0 never restarts.
        diagonal: adapt variances only (separable CMA-ES), for many coordinates and few evaluations.
    """

    def __init__(
        self,
        space: Box,
        seed: int = 0,
        population: int | None = None,
        correlation: np.ndarray | None = None,
        sigma: float = 1.0,
        restart_after: int = 0,
        diagonal: bool = False,
    ):
        if not isinstance(space, Box):
            raise ValueError(f"optimizer 'cma' searches a Box of real vectors, got {type(space).__name__}")
        if sigma <= 0:
            raise ValueError(f"sigma must be above 0, got {sigma}")
        self.space, self.sigma, self.restart_after, self.diagonal = space, float(sigma), restart_after, diagonal
        self.batch = population if population is not None else 4 + int(3 * np.log(space.dimensions))
        if self.batch < 3:
            raise ValueError(f"population must be at least 3, got {population}")
        self.correlation = _checked_correlation(correlation, space.dimensions)
        if diagonal and correlation is not None:
            raise ValueError("diagonal CMA-ES takes no correlation matrix")
        self.rng = np.random.RandomState(np.random.PCG64(seed))
        self.queue: deque[np.ndarray] = deque()
        self.members: list[Told[np.ndarray]] = []
        self.best, self.best_score, self.stalled, self.restarts = space.start.copy(), -np.inf, 0, 0
        self._cma = self._new(space.start, self.sigma)

    def _new(self, mean: np.ndarray, sigma: float) -> Any:
        from cmaes import CMA, SepCMA

        bounds = np.stack([self.space.lower, self.space.upper], axis=1) / self.space.step[:, None]
        settings = {"mean": mean / self.space.step, "sigma": sigma, "bounds": bounds, "population_size": self.batch}
        cma = SepCMA(**settings) if self.diagonal else CMA(**settings, cov=self.correlation.copy())
        cma._rng = self.rng
        cma._funhist_values[:] = 0.0  # np.empty there: its garbage must not reach the state
        return cma

    @property
    def mean(self) -> np.ndarray:
        """Mean of the present distribution, in the units of the box, clipped into it."""
        return self.space.clip(self._cma._mean * self.space.step)

    @property
    def covariance(self) -> np.ndarray:
        """(d, d) covariance of the present distribution, in the units of the box."""
        matrix = np.diag(self._cma._C) if self.diagonal else self._cma._C
        return self._cma._sigma**2 * matrix * np.outer(self.space.step, self.space.step)

    def ask(self, n: int = 1) -> list[np.ndarray]:
        asked = []
        for _ in range(n):
            asked.append(self.queue.popleft() if self.queue else self.space.clip(self._cma.ask() * self.space.step))
        return asked

    def inject(self, candidates: Sequence[np.ndarray]) -> None:
        self.queue.extend(self.space.clip(np.array(c, dtype=float)) for c in candidates)

    def tell(self, results: Sequence[Told[np.ndarray]]) -> None:
        for result in results:
            self.members.append(result)
            if len(self.members) == self.batch:
                self._generation()

    def _generation(self) -> None:
        finite = [m.score for m in self.members if np.isfinite(m.score)]
        worst = min(finite, default=0.0) - 1.0
        cost = [-(m.score if np.isfinite(m.score) else worst) for m in self.members]
        self._cma.tell([(self._reachable(m.candidate), c) for m, c in zip(self.members, cost, strict=True)])
        top = max(self.members, key=lambda m: m.score)
        self.members = []
        if top.score > self.best_score:
            self.best, self.best_score, self.stalled = np.array(top.candidate, dtype=float), top.score, 0
            return
        self.stalled += 1
        if self.restart_after and self.stalled >= self.restart_after:
            self.restarts, self.stalled = self.restarts + 1, 0
            self._cma = self._new(self.best, self.sigma / 2**self.restarts)

    def _reachable(self, candidate: np.ndarray) -> np.ndarray:
        """In CMA units, at most sqrt(d) + 2 sigmas from the mean (Hansen, "Injecting external solutions", 2011)."""
        x = np.asarray(candidate, dtype=float) / self.space.step
        offset = x - self._cma._mean
        basis, scale = self._axes()
        length = np.linalg.norm((basis.T @ offset) / scale) / self._cma._sigma
        limit = np.sqrt(self.space.dimensions) + 2.0
        return x if length <= limit else self._cma._mean + offset * (limit / length)

    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        if self.diagonal:
            scale = self._cma._eigen_decomposition()
            return np.eye(self.space.dimensions), np.asarray(scale)
        return self._cma._eigen_decomposition()

    def state_dict(self) -> dict[str, Any]:
        inner = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self._cma).items() if k != "_rng"}
        rng = self.rng.get_state(legacy=False)
        return {
            "cma": {k: v.item() if isinstance(v, np.generic) else v for k, v in inner.items()},
            "rng": {k: v.item() if isinstance(v, np.generic) else v for k, v in rng.items()},
            "queue": [self.space.to_json(c) for c in self.queue],
            "members": [[self.space.to_json(m.candidate), m.score] for m in self.members],
            "best": [self.space.to_json(self.best), self.best_score, self.stalled, self.restarts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.set_state(state["rng"])
        for name, value in state["cma"].items():
            setattr(self._cma, name, np.array(value, dtype=float) if isinstance(value, list) else value)
        self.queue = deque(self.space.from_json(c) for c in state["queue"])
        self.members = [Told(self.space.from_json(c), float(s)) for c, s in state["members"]]
        best, self.best_score, self.stalled, self.restarts = state["best"]
        self.best = self.space.from_json(best)


def _checked_correlation(matrix: np.ndarray | None, dimensions: int) -> np.ndarray:
    if matrix is None:
        return np.eye(dimensions)
    matrix = np.array(matrix, dtype=float)
    if matrix.shape != (dimensions, dimensions) or not np.allclose(matrix, matrix.T):
        raise ValueError(f"correlation must be a symmetric ({dimensions}, {dimensions}) matrix, got {matrix.shape}")
    if np.linalg.eigvalsh(matrix).min() <= 0:
        raise ValueError("correlation is not positive definite; clip its eigenvalues first")
    return matrix
