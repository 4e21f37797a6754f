"""The full problem from a start that is known: search, finalists, selection. What searches of their own start share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.merge.fitness import Answer, Fitness
from core.merge.solver import Evaluator, Outcome, SolverConfig, by_search_score, choose_finalists, run_search, select
from core.transfer.budget import Budget


def full_search(
    optimizer: Any,
    fitness: Fitness,
    space: Any,
    budget: Budget,
    solver: SolverConfig,
    start: tuple[np.ndarray, Answer],
    *,
    key: str,
    description: str,
    checkpoint: Path | None = None,
    first_round: int = 1,
    facts: Mapping[str, Any] | None = None,
) -> Outcome:
    """Search until the finalists' share is left, then select.

    Args:
        start: the recipe the search starts from and its score on the whole validation data.
        first_round: number of the first mini-batch that nothing has seen.
        facts: what the outcome says besides.

    Raises:
        ValueError: the budget does not afford one candidate and the finalists.
    """
    answers: list[tuple[np.ndarray, Answer]] = []
    evaluator = Evaluator(fitness, space, solver, lambda recipe, answer: answers.append((recipe, answer)), first_round)
    path = None if checkpoint is None else checkpoint / "search.ckpt"
    result = run_search(optimizer, evaluator, budget, solver, checkpoint=path, key=key, description=description)
    finalists = choose_finalists(by_search_score(space, result, optimizer.mean), solver.finalists)
    best, validation = select(fitness, finalists, *start, budget)
    found = {"result": result, "optimizer": optimizer, **(facts or {})}
    return Outcome(best, validation, *start, budget.spent, answers, found)
