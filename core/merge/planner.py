"""Which form to solve next: predicted gain plus what is still unknown, from pairs up."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.merge.forms import Form, all_forms, sensitive_tasks
from core.merge.relation import RelationGraph
from core.merge.response import ResponseModel

ORDERS = ("planned", "random")


@dataclass
class Planner:
    """Proposes forms: uncertain pairs, growing near-cliques of high synergy, and random ones.

    A candidate's value is the gain that the response model predicts for it plus ``beta_b`` times the mean uncertainty
    of its pairs, with ``beta_b = beta / sqrt(1 + b)`` after b forms. The level rises when every pair has been seen.

    Args:
        radius: how far a coefficient may move from the context.
        most_tasks: tasks a form is scored on at most (its own, then the most sensitive).
        order: ``planned``, or ``random`` (control).
        priors: conflict of each pair in [0, 1] from the interference diagnosis, used as first uncertainty (optional).
    """

    owners: Sequence[int | None]
    tasks: Sequence[str]
    lower: float
    upper: float
    radius: float = 0.5
    most_tasks: int = 4
    beta: float = 0.02
    order: str = "planned"
    seed: int = 0
    priors: np.ndarray | None = None
    level: int = 2
    solved: int = 0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"form order {self.order!r}; allowed: {', '.join(ORDERS)}")
        self.rng = np.random.default_rng([self.seed, 5])

    def next(self, graph: RelationGraph, response: ResponseModel, context: np.ndarray) -> Form:
        """The form to solve now; also raises the level when all pairs were seen."""
        n = len(graph.experts)
        uncertainty = graph.matrix("uncertainty")
        if self.priors is not None:
            uncertainty = uncertainty * (0.5 + self.priors)
        pairs = uncertainty[np.triu_indices(n, 1)]
        if self.level < n and (graph.matrix("seen")[np.triu_indices(n, 1)] > 0).all():
            self.level = min(n, self.level + 1)
            for *_, facts in graph.graph.edges(data=True):  # the next level looks at every pair anew
                if "seen" in facts:
                    facts["seen"] = 0
        interference = response.interference()
        if self.order == "random":
            models = tuple(sorted(int(i) for i in self.rng.choice(n, size=min(self.level, n), replace=False)))
        else:
            beta = self.beta / np.sqrt(1 + self.solved)
            models = max(
                self.candidates(graph, pairs),
                key=lambda m: self._value(m, response, context, uncertainty, beta),
            )
        self.solved += 1
        return Form(models, sensitive_tasks(models, self.owners, self.tasks, interference, self.most_tasks))

    def candidates(self, graph: RelationGraph, pairs: np.ndarray) -> list[tuple[int, ...]]:
        """Sets of ``level`` experts worth a look, without repetition, in a fixed order."""
        n = len(graph.experts)
        every = [f.models for f in all_forms(n, min(2, n), self.owners, self.tasks)]
        uncertain = [every[k] for k in np.argsort(-pairs, kind="stable")[: 2 * n]]
        grown = graph.near_cliques(min(self.level, n))[:n]
        drawn = [tuple(sorted(int(i) for i in self.rng.choice(n, self.level, replace=False))) for _ in range(n)]
        return list(dict.fromkeys([*uncertain, *grown, *drawn]))

    def _value(
        self,
        models: tuple[int, ...],
        response: ResponseModel,
        context: np.ndarray,
        uncertainty: np.ndarray,
        beta: float,
    ) -> float:
        free = np.zeros(context.shape, dtype=bool)
        free[list(models)] = True
        best = response.propose(self.lower, self.upper, self.radius, free=free, centre=context)
        gain = float(response.score(best)[0] - response.score(context)[0])
        inside = uncertainty[np.ix_(models, models)]
        return gain + beta * float(inside.sum() / max(len(models) * (len(models) - 1), 1))

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "solved": self.solved, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level, self.solved = int(state["level"]), int(state["solved"])
        self.rng.bit_generator.state = state["rng"]
