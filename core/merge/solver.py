"""Solving the full merge problem: tuned static start, black-box search on mini-batches, finalists on full validation.

Every method of the table runs through these functions, so baselines have the same start, mini-batches, racing, control
variate, restarts and selection rule; only the optimizer and what is injected differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.evolve.injection import Injection
from core.evolve.loop import Evaluation, SearchResult, search
from core.merge.fitness import Answer, Fitness, Racing, race
from core.merge.recipe_space import RecipeSpace
from core.transfer.budget import Budget

SCALES = {
    "raw": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
    "tsv_m": (0.8, 1.0, 1.3, 1.6, 2.0, 2.5),
    "iso_c": (0.8, 1.0, 1.3, 1.6, 2.0, 2.5),
    "wudi": (0.6, 0.8, 1.0, 1.2, 1.5, 1.8),
}
OTHER_SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


class SolverConfig(Config):
    """Settings that every search shares."""

    step: float = Field(0.25, gt=0, description="first standard deviation of a coefficient, relative to its start")
    population: int | None = Field(None, ge=3, description="candidates a generation; the optimizer's own when empty")
    racing_parts: int = Field(3, ge=1, description="pieces of a mini-batch after which losers are dropped; 1: never")
    racing_z: float = Field(1.65, gt=0, description="standard errors below the parents at which a candidate is dropped")
    restart_after: int = Field(12, ge=0, description="generations without a better mean until a restart with half step")
    finalists: int = Field(4, ge=1, description="recipes scored on the whole validation data at the end")
    start_share: float = Field(
        0.1, ge=0, lt=1, description="part of the budget for tuning the static start beyond one mini-batch a scale"
    )


@dataclass
class Outcome:
    """A finished search.

    Attributes:
        coefficients: the selected recipe [n, g].
        validation: its score on the whole validation data.
        start: the tuned static recipe it started from, and its validation score.
        spent: task-examples, all of them.
        answers: every recipe scored, with the answer, in order.
    """

    coefficients: np.ndarray
    validation: Answer
    start: np.ndarray
    start_validation: Answer
    spent: float
    answers: list[tuple[np.ndarray, Answer]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def scales_of(basis: str) -> Sequence[float]:
    """The coefficients tried for the static start in a basis."""
    return SCALES.get(basis, OTHER_SCALES)


def start_cost(scales: Sequence[float], price: int, validation_size: int) -> int:
    """Task-examples that :func:`tune_static` takes at least: a mini-batch (``price``) a scale, the start's score."""
    return len(scales) * price + validation_size


def tune_static(
    fitness: Fitness, space: RecipeSpace, budget: Budget, config: SolverConfig, scales: Sequence[float] | None = None
) -> tuple[np.ndarray, Answer]:
    """The best uniform recipe of the basis, by successive halving, then scored on the whole validation data.

    Every scale is scored on one mini-batch, the better half on two further ones, of these the better half on four
    more, until one is left or ``start_share`` of the budget is spent (Karnin et al., ICML 2013). The winner becomes the
    control variate of the fitness, and the start of every search.

    Raises:
        ValueError: the budget does not afford it, or every scale failed.
    """
    scales = scales or scales_of(space.config.basis)
    need = start_cost(scales, fitness.price, fitness.validation_size)
    if not budget.affords(need):
        raise ValueError(f"tuning the static start takes {need} task-examples, the budget leaves {budget.left:g}")
    recipes = [np.full(space.shape, float(s)) for s in scales]
    share = np.inf if budget.limit is None else config.start_share * budget.limit
    best = recipes[_halved(fitness, recipes, budget, min(share, budget.left - fitness.validation_size))]
    answer = fitness.set_control(best)
    budget.spend(answer.cost)
    return best, answer


def _halved(fitness: Fitness, recipes: Sequence[np.ndarray], budget: Budget, limit: float) -> int:
    """Index of the recipe that successive halving leaves, or that leads when ``limit`` task-examples are spent."""
    seen: list[list[float]] = [[] for _ in recipes]
    lead, left, spent, round_, batches = 0, list(range(len(recipes))), 0.0, 0, 1
    while len(left) > 1 and (not round_ or spent + len(left) * batches * fitness.price <= limit):
        for i in left:
            answers = [fitness.evaluate(recipes[i], round_ + k) for k in range(batches)]
            seen[i] += [a.mean for a in answers]
            cost = sum(a.cost for a in answers)
            budget.spend(cost)
            spent += cost
        round_, batches = round_ + batches, 2 * batches
        left = sorted((i for i in left if np.isfinite(seen[i]).all()), key=lambda i: -np.mean(seen[i]))
        if not left:
            raise ValueError("no scale of the static start has a score: every one of them gave NaN")
        lead, left = left[0], left[: (len(left) + 1) // 2]
    return lead


class Evaluator:
    """``evaluate_many`` of a merge search: rounds of mini-batches with racing; hears of every answer.

    Args:
        listen: called with each recipe and its answer.
    """

    def __init__(
        self,
        fitness: Fitness,
        space: RecipeSpace,
        config: SolverConfig,
        listen: Callable[[np.ndarray, Answer], None] | None = None,
        first_round: int = 1,
    ):
        self.fitness, self.space, self.listen, self.round = fitness, space, listen, first_round
        self.config = config

    def __call__(self, vectors: list[np.ndarray]) -> list[Evaluation]:
        recipes = [self.space.coefficients(v) for v in vectors]
        rule = None
        if self.config.racing_parts > 1:
            rule = Racing(self.config.racing_parts, max(2, len(vectors) // 2), self.config.racing_z)
        answers = race(self.fitness, recipes, self.round, rule)
        self.round += 1
        if self.listen is not None:
            for recipe, answer in zip(recipes, answers, strict=True):
                self.listen(recipe, answer)
        return [Evaluation(a.mean, a.cost, tuple(a.score), "dropped" if a.stopped else "") for a in answers]

    def state_dict(self) -> dict[str, Any]:
        return {"round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.round = int(state["round"])


def run_search(
    optimizer: Any,
    evaluator: Evaluator,
    budget: Budget,
    config: SolverConfig,
    *,
    injector: Injection | None = None,
    checkpoint: Path | None = None,
    key: str = "",
    also: dict[str, Any] | None = None,
    on_generation: Callable | None = None,
    description: str = "search",
) -> SearchResult:
    """Search until only the finalists' share of the budget is left."""
    reserve = config.finalists * evaluator.fitness.validation_size
    price = evaluator.fitness.price
    if budget.left < reserve + price:
        raise ValueError(
            f"{budget.left:g} task-examples are left; the {config.finalists} finalists take {reserve} and one "
            f"candidate {price}: raise the budget, or lower finalists, mini-batch or validation size"
        )
    part = Reserved(budget, reserve)
    return search(
        optimizer,
        evaluator,
        part,
        price=price,
        checkpoint=checkpoint,
        key=key,
        also={"evaluator": evaluator, **(also or {})},
        injector=injector,
        on_generation=on_generation,
        description=description,
    )


class Reserved(Budget):
    """A budget of which ``reserve`` is kept back: spends on the whole, affords only what is not reserved."""

    def __init__(self, whole: Budget, reserve: float):
        self.whole, self.reserve = whole, reserve
        self.unit = whole.unit

    @property
    def limit(self) -> float | None:
        return None if self.whole.limit is None else self.whole.limit - self.reserve

    @property
    def counts(self) -> dict[str, float]:
        return self.whole.counts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.whole.counts = dict(state["counts"])


def choose_finalists(recipes: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """The first ``count`` different recipes."""
    out: list[np.ndarray] = []
    for recipe in recipes:
        if len(out) < count and not any(np.array_equal(recipe, r) for r in out):
            out.append(recipe)
    return out


def select(
    fitness: Fitness, finalists: Sequence[np.ndarray], start: np.ndarray, start_answer: Answer, budget: Budget
) -> tuple[np.ndarray, Answer]:
    """The declared selection rule: the finalist of the best score (plain hits) on the whole validation data.

    The tuned static start takes part, so a search never selects below it.
    """
    best, best_answer = start, start_answer
    for recipe in finalists:
        answer = fitness.full(recipe)
        budget.spend(answer.cost)
        if answer.mean > best_answer.mean:
            best, best_answer = recipe, answer
    return best, best_answer


def by_search_score(space: RecipeSpace, result: SearchResult, mean: np.ndarray | None) -> list[np.ndarray]:
    """Finalists of a plain search: the optimizer's mean, then its best trials (those not dropped early)."""
    trials = sorted((t for t in result.trials if t.note != "dropped"), key=lambda t: -t.score)
    return [space.coefficients(v) for v in [*([] if mean is None else [mean]), *(t.candidate for t in trials)]]
