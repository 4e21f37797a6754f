"""Search baselines of the table: the same start, budget, mini-batches, racing and selection as EMFTO, without transfer.

``SEARCHES`` names every way to spend the budget, EMFTO, its controls and the baselines alike.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core.evolve.optimizers import OPTIMIZERS
from core.evolve.space import Box
from core.hashing import content_key
from core.merge.emfto import EmftoConfig, emfto
from core.merge.fitness import Answer, Fitness
from core.merge.recipe_space import RecipeSpace
from core.merge.solver import (
    Evaluator,
    Outcome,
    SolverConfig,
    by_search_score,
    choose_finalists,
    run_search,
    select,
    tune_static,
)
from core.registry import Registry
from core.transfer.budget import Budget

SEARCHES: Registry[Callable[..., Outcome]] = Registry("merge search")
REACH = 3.0  # random search and the GA's first population stay within so many steps of the static start


def plain_search(
    optimizer: str,
    fitness: Fitness,
    space: RecipeSpace,
    budget: Budget,
    config: SolverConfig,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> Outcome:
    """One optimizer on the full problem, started at the tuned static recipe of the basis."""
    start, start_answer = tune_static(fitness, space, budget, config)
    scale = float(np.abs(start).mean())
    box = space.box(start, config.step * scale)
    settings: dict[str, Any] = {}
    if optimizer == "cma":
        settings = {"population": config.population, "restart_after": config.restart_after}
    else:
        low, high = (np.clip(box.start + s * REACH * box.step, box.lower, box.upper) for s in (-1, 1))
        box = Box(low, high, box.start, box.step)
    made = OPTIMIZERS.get(optimizer)(box, seed=seed, **settings)
    answers: list[tuple[np.ndarray, Answer]] = []
    evaluator = Evaluator(fitness, space, config, lambda recipe, answer: answers.append((recipe, answer)))
    key = content_key("plain", optimizer, config, space.config, space.experts, fitness.sizes, budget.limit, seed)
    path = None if checkpoint is None else checkpoint / "search.ckpt"
    result = run_search(made, evaluator, budget, config, checkpoint=path, key=key, description=optimizer)
    ranked = by_search_score(space, result, getattr(made, "mean", None))
    finalists = choose_finalists(ranked, config.finalists)
    best, validation = select(fitness, finalists, start, start_answer, budget)
    return Outcome(best, validation, start, start_answer, budget.spent, answers, {"result": result, "optimizer": made})


def _plain(name: str, optimizer: str, summary: str) -> None:
    def run(fitness, space, budget, config: EmftoConfig, owners, *, seed=0, source=None, checkpoint=None) -> Outcome:
        return plain_search(optimizer, fitness, space, budget, config.solver, seed, checkpoint)

    run.__name__ = run.__qualname__ = name
    SEARCHES.register(name, summary, transfer=False)(run)


def _variant(name: str, summary: str, **changes: Any) -> None:
    def run(fitness, space, budget, config: EmftoConfig, owners, *, seed=0, source=None, checkpoint=None) -> Outcome:
        changed = config.model_copy(update=changes)
        return emfto(fitness, space, budget, changed, owners, seed=seed, source=source, checkpoint=checkpoint)

    run.__name__ = run.__qualname__ = name
    SEARCHES.register(name, summary, transfer=True)(run)


_variant("emfto", "Multi-form transfer: response model of all answers, warm-started CMA-ES with throttled injection.")
_plain("cold_cma", "cma", "CMA-ES on the full problem from the tuned static recipe.")
_plain("random", "random", "Uniform samples around the tuned static recipe.")
_plain("ga", "ga", "Genetic algorithm around the tuned static recipe (with granularity layers: layer-wise weights).")
_variant("forms", "With forms before the full problem (a quarter of the budget).", forms_share=0.25)
_variant("random_order", "Control: the same forms in random order.", forms_share=0.25, order="random")
_variant("no_covariance", "Control: with forms, no covariance warm start.", forms_share=0.25, warm_covariance=False)
_variant("mean_only", "Control: with forms, mean warm start only.", forms_share=0.25, warm_covariance=False, inject=0)


def greedy_soup(fitness: Fitness, space: RecipeSpace, budget: Budget) -> tuple[np.ndarray, Answer]:
    """Greedy soup (Wortsman et al., ICML 2022): average experts, best first, keeping those that do not lower the score.

    Args:
        space: on raw task vectors.
    """
    n = space.shape[0]

    def average(members: list[int]) -> np.ndarray:
        recipe = np.zeros(space.shape)
        recipe[members] = 1.0 / len(members)
        return recipe

    def scored(members: list[int]) -> Answer:
        answer = fitness.full(average(members))
        budget.spend(answer.cost)
        return answer

    singles = [scored([i]) for i in range(n)]
    order = sorted(range(n), key=lambda i: -singles[i].mean)
    soup, best = [order[0]], singles[order[0]]
    for i in order[1:]:
        answer = scored([*soup, i])
        if answer.mean >= best.mean:
            soup, best = [*soup, i], answer
    return average(soup), best
