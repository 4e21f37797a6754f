"""CatCMA (Hamano et al., GECCO 2024, arXiv 2405.09962) through the package ``cmaes``: numbers and choices together.

A normal distribution of the numbers and a categorical one of the choices are adapted at once; injection, restarts and
state are those of :mod:`core.evolve.optimizers.cma`.
"""

from typing import Any

import numpy as np

from core.evolve.mixed import Mixed
from core.evolve.optimizers import OPTIMIZERS
from core.evolve.optimizers.cma import CMAES


@OPTIMIZERS.register("cat_cma", space="mixed")
class CatCMAES(CMAES):
    """CMA-ES whose candidates also choose categories.

    Args:
        space: numbers with choices; its start, step and ``likely`` are the first distribution.
        population: lambda; the field's 4 + 3 ln d when None.
        restart_after: generations without a new best score until a restart at the best point with half the step and
            its choices as the likely ones; 0 never restarts.
    """

    def __init__(self, space: Mixed, seed: int = 0, population: int | None = None, restart_after: int = 0):
        if not isinstance(space, Mixed):
            raise ValueError(f"optimizer 'cat_cma' searches a Mixed space, got {type(space).__name__}")
        if space.reals < 2:
            raise ValueError("optimizer 'cat_cma' needs two real coordinates or more")
        super().__init__(space, seed, population, restart_after=restart_after)

    def _new(self, mean: np.ndarray, sigma: float) -> Any:
        from cmaes import CatCMA

        box = self.space.box
        bounds = np.stack([box.lower, box.upper], axis=1) / box.step[:, None]
        likely = self._around(mean) if self.restarts else self.space.likely.copy()
        cma = CatCMA(
            mean[: self.space.reals] / box.step,
            sigma,
            self.space.categories.copy(),
            bounds,
            population_size=self.batch,
            cat_param=likely,
        )
        cma._rng = self.rng
        cma._funhist_values[:] = 0.0  # np.empty there: its garbage must not reach the state
        return cma

    def _around(self, candidate: np.ndarray) -> np.ndarray:
        """Probabilities that favour a candidate's choices: half of them there, the rest even."""
        even = self.space.even
        return 0.5 * even + 0.5 * np.eye(even.shape[1])[self.space.chosen(candidate)]

    @property
    def mean(self) -> np.ndarray:
        """Mean of the numbers with the most likely choices."""
        return self.space.clip(np.append(self._cma._mean * self.space.box.step, self._cma._q.argmax(axis=1)))

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the numbers, in the units of the box."""
        step = self.space.box.step
        return self._cma._sigma**2 * self._cma._C * np.outer(step, step)

    @property
    def likely(self) -> np.ndarray:
        """Probabilities [c, most categories] of the choices in the present distribution."""
        return self._cma._q.copy()

    def ask(self, n: int = 1) -> list[np.ndarray]:
        return [self.queue.popleft() if self.queue else self._sampled() for _ in range(n)]

    def _sampled(self) -> np.ndarray:
        numbers, choices = self._cma.ask()
        return self.space.clip(np.append(numbers * self.space.box.step, choices.argmax(axis=1)))

    def _reachable(self, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A candidate as the package takes it: numbers drawn in where they are far (as in CMA-ES), choices one-hot."""
        x = np.asarray(candidate[: self.space.reals], dtype=float) / self.space.box.step
        offset = x - self._cma._mean
        basis, scale = self._cma._eigen_decomposition()
        length = np.linalg.norm((basis.T @ offset) / scale) / self._cma._sigma
        limit = np.sqrt(self.space.reals) + 2.0
        near = x if length <= limit else self._cma._mean + offset * (limit / length)
        return near, np.eye(self._cma._Kmax, dtype=bool)[self.space.chosen(candidate)]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._cma._K = self._cma._K.astype(int)
