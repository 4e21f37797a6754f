"""Transfer injection: candidates from elsewhere enter a running search, throttled by what they realised.

Explicit-autoencoding multitasking (Feng et al., IEEE T. Cybernetics 2019) injects a fixed number every G
generations. Here the number follows the realised gain, so that a useless source costs a bounded share of the budget.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

C = TypeVar("C")


class Injection(Generic[C]):
    """A throttled source of candidates.

    Args:
        source: ``source(n, generation) -> up to n candidates``; called only when an injection is due.
        size: candidates of a full injection.
        every: generations between injections.
        patience: injections in a row without gain after which the source is not asked any more.

    The realised gain of an injection is the share of its candidates above the median of the generation's own
    candidates, minus one half. Below zero the next injection is half as large and twice as late; above zero both
    return to their full value.
    """

    def __init__(self, source: Callable[[int, int], Sequence[C]], size: int = 10, every: int = 10, patience: int = 3):
        if size < 1 or every < 1 or patience < 1:
            raise ValueError(f"size, every and patience must be at least 1, got {size}, {every}, {patience}")
        self.source, self.size, self.every, self.patience = source, size, every, patience
        self.now_size, self.wait, self.due, self.failures = size, every, 0, 0
        self.gains: list[float] = []

    def propose(self, generation: int) -> list[C]:
        """Candidates to inject before this generation; empty when none is due."""
        if generation < self.due or self.failures >= self.patience:
            return []
        self.due = generation + self.wait
        return list(self.source(self.now_size, generation))[: self.now_size]

    def observe(self, injected: Sequence[float], own: Sequence[float]) -> None:
        """Scores of a generation's injected and own candidates (-inf for failed ones)."""
        if not injected:
            return
        reference = float(np.median(own)) if len(own) else -np.inf
        gain = float(np.mean([s > reference for s in injected])) - 0.5
        self.gains.append(gain)
        if gain > 0:
            self.now_size, self.wait, self.failures = self.size, self.every, 0
        else:
            self.failures += 1
            self.now_size, self.wait = max(1, self.now_size // 2), self.wait * 2

    def state_dict(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("now_size", "wait", "due", "failures", "gains")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("now_size", "wait", "due", "failures"):
            setattr(self, name, int(state[name]))
        self.gains = [float(g) for g in state["gains"]]
