"""CatCMA (Hamano et al., GECCO 2024, arXiv 2405.09962) through the package ``cmaes``: numbers and choices together.

A normal distribution of the numbers and a categorical one of the choices are adapted at once. As in
:mod:`core.evolve.optimizers.cma` the box is searched in units of its ``step``, with our RNG and injection.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.evolve.mixed import Mixed
from core.evolve.optimizers import OPTIMIZERS
from core.evolve.protocol import Told


@OPTIMIZERS.register("cat_cma", space="mixed")
class CatCMAES:
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
        self.batch = population if population is not None else 4 + int(3 * np.log(space.dimensions))
        if self.batch < 3:
            raise ValueError(f"population must be at least 3, got {population}")
        self.space, self.restart_after = space, restart_after
        self.rng = np.random.RandomState(np.random.PCG64(seed))
        self.queue: deque[np.ndarray] = deque()
        self.members: list[Told[np.ndarray]] = []
        self.best, self.best_score, self.stalled, self.restarts = space.start.copy(), -np.inf, 0, 0
        self._cma = self._new(space.box.start, space.likely, 1.0)

    def _new(self, mean: np.ndarray, likely: np.ndarray, sigma: float) -> Any:
        from cmaes import CatCMA

        box = self.space.box
        bounds = np.stack([box.lower, box.upper], axis=1) / box.step[:, None]
        cma = CatCMA(
            mean / box.step,
            sigma,
            self.space.categories.copy(),
            bounds,
            population_size=self.batch,
            cat_param=likely.copy(),
        )
        cma._rng = self.rng
        cma._funhist_values[:] = 0.0  # np.empty there: its garbage must not reach the state
        return cma

    @property
    def mean(self) -> np.ndarray:
        """Mean of the numbers with the most likely choices."""
        return self.space.clip(np.append(self._cma._mean * self.space.box.step, self._cma._q.argmax(axis=1)))

    @property
    def likely(self) -> np.ndarray:
        """Probabilities [c, most categories] of the choices in the present distribution."""
        return self._cma._q.copy()

    def ask(self, n: int = 1) -> list[np.ndarray]:
        return [self.queue.popleft() if self.queue else self._sampled() for _ in range(n)]

    def _sampled(self) -> np.ndarray:
        numbers, choices = self._cma.ask()
        return self.space.clip(np.append(numbers * self.space.box.step, choices.argmax(axis=1)))

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
        self._cma.tell([(self._parts(m.candidate), c) for m, c in zip(self.members, cost, strict=True)])
        top = max(self.members, key=lambda m: m.score)
        self.members = []
        if top.score > self.best_score:
            self.best, self.best_score, self.stalled = np.array(top.candidate, dtype=float), top.score, 0
            return
        self.stalled += 1
        if self.restart_after and self.stalled >= self.restart_after:
            self.restarts, self.stalled = self.restarts + 1, 0
            mean = self.best[: self.space.reals]
            self._cma = self._new(mean, self._around(self.space.chosen(self.best)), 0.5**self.restarts)

    def _around(self, chosen: np.ndarray) -> np.ndarray:
        """Probabilities that favour ``chosen``: half of them there, the rest even."""
        even = self.space.even
        return 0.5 * even + 0.5 * np.eye(even.shape[1])[chosen]

    def _parts(self, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A candidate as the package takes it: numbers in units of the step, choices one-hot; far ones are drawn in.

        At most sqrt(d) + 2 sigmas from the mean (Hansen, "Injecting external solutions", 2011).
        """
        x = np.asarray(candidate[: self.space.reals], dtype=float) / self.space.box.step
        one_hot = np.eye(self._cma._Kmax, dtype=bool)[self.space.chosen(candidate)]
        offset = x - self._cma._mean
        basis, scale = self._cma._eigen_decomposition()
        length = np.linalg.norm((basis.T @ offset) / scale) / self._cma._sigma
        limit = np.sqrt(self.space.reals) + 2.0
        return (x if length <= limit else self._cma._mean + offset * (limit / length)), one_hot

    def state_dict(self) -> dict[str, Any]:
        rng = self.rng.get_state(legacy=False)
        return {
            "cma": {k: _plain(v) for k, v in vars(self._cma).items() if k != "_rng"},
            "rng": {k: _plain(v) for k, v in rng.items()},
            "queue": [self.space.to_json(c) for c in self.queue],
            "members": [[self.space.to_json(m.candidate), m.score] for m in self.members],
            "best": [self.space.to_json(self.best), self.best_score, self.stalled, self.restarts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.set_state(state["rng"])
        for name, value in state["cma"].items():
            whole = {"_K": int}.get(name, float)
            setattr(self._cma, name, np.array(value, dtype=whole) if isinstance(value, list) else value)
        self.queue = deque(self.space.from_json(c) for c in state["queue"])
        self.members = [Told(self.space.from_json(c), float(s)) for c, s in state["members"]]
        best, self.best_score, self.stalled, self.restarts = state["best"]
        self.best = self.space.from_json(best)


def _plain(value: Any) -> Any:
    """JSON-able form of what the package and NumPy keep."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
