"""What the optimizers on candidate operators share: queue of injected candidates, seen keys, RNG and state."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from core.evolve.protocol import Told
from core.evolve.space import Space

C = TypeVar("C")
TRIES = 200


class OperatorOptimizer(Generic[C]):
    """Ask-tell frame: a subclass gives :meth:`propose` and :meth:`learn`, and keeps its population in ``members``.

    With ``unique`` a candidate whose key was asked or told before is not asked again: up to ``TRIES`` new draws,
    then fewer candidates are returned.
    """

    def __init__(self, space: Space[C], seed: int = 0, batch: int = 1, unique: bool = True):
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.space, self.batch, self.unique = space, batch, unique
        self.rng = np.random.default_rng(seed)
        self.members: list[Told[C]] = []
        self.queue: deque[C] = deque()
        self.seen: set[str] = set()

    def propose(self) -> C:
        raise NotImplementedError

    def learn(self, results: Sequence[Told[C]]) -> None:
        raise NotImplementedError

    def ask(self, n: int = 1) -> list[C]:
        asked: list[C] = []
        while self.queue and len(asked) < n:
            asked += self._new(self.queue.popleft)[:1]
        while len(asked) < n:
            fresh = self._new(self.propose, TRIES)
            if not fresh:
                break
            asked += fresh
        return asked

    def _new(self, draw: Callable[[], C], tries: int = 1) -> list[C]:
        for _ in range(tries):
            candidate = draw()
            key = self.space.key(candidate)
            if not self.unique or key not in self.seen:
                self.seen.add(key)
                return [candidate]
        return []

    def tell(self, results: Sequence[Told[C]]) -> None:
        self.seen.update(self.space.key(r.candidate) for r in results)
        self.learn(results)

    def inject(self, candidates: Sequence[C]) -> None:
        self.queue.extend(candidates)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": self.rng.bit_generator.state,
            "members": [[self.space.to_json(m.candidate), m.score] for m in self.members],
            "queue": [self.space.to_json(c) for c in self.queue],
            "seen": sorted(self.seen),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.members = [Told(self.space.from_json(c), float(s)) for c, s in state["members"]]
        self.queue = deque(self.space.from_json(c) for c in state["queue"])
        self.seen = set(state["seen"])
