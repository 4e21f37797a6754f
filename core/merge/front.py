"""A Pareto front over tasks: merges for other preferences than the equal one, from what a search has learned.

The response model of a finished multi-form search predicts every task's score. For a set of preferences (weights of the
tasks) its best recipe is proposed, scored on the whole validation data, and kept unless another recipe is at least as
good on every task. A user picks a preference after the run; nothing is searched again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.merge.fitness import Fitness
from core.merge.recipe_space import RecipeSpace
from core.merge.solver import Outcome
from core.progress import progress
from core.registry import nearest
from core.state import load_checkpoint, save_checkpoint
from core.transfer.budget import Budget

KIND, SCHEMA = "pareto front", 1
EMPHASIS = 0.5  # weight of the one task that an emphasising preference is about


@dataclass(frozen=True)
class Front:
    """Recipes of which none is beaten on every task.

    Attributes:
        tasks: names, in the order of the columns below.
        recipes: coefficients [k, n, g].
        scores: validation scores relative to each task's own expert [k, tasks].
    """

    tasks: tuple[str, ...]
    recipes: np.ndarray
    scores: np.ndarray

    def pick(self, preference: Mapping[str, float]) -> int:
        """Place of the recipe of the largest weighted mean score; tasks that are not named weigh 1.

        Raises:
            ValueError: an unknown task, a negative weight, or no task with a weight.
        """
        weights = preference_weights(self.tasks, preference)
        return int(np.argmax(self.scores @ weights))

    def save(self, path: str | Path) -> None:
        arrays = {"recipes": self.recipes, "scores": self.scores}
        save_checkpoint(path, {"tasks": list(self.tasks)}, kind=KIND, schema=SCHEMA, arrays=arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Front":
        payload, arrays, _ = load_checkpoint(path, kind=KIND, schema=SCHEMA)
        return cls(tuple(payload["tasks"]), arrays["recipes"], arrays["scores"])


def preference_weights(tasks: tuple[str, ...], preference: Mapping[str, float]) -> np.ndarray:
    """Weights [tasks] scaled to a sum of one; before that, tasks that are not named weigh 1.

    Raises:
        ValueError: an unknown task, a negative weight, or no task with a weight.
    """
    for name, value in preference.items():
        if name not in tasks:
            raise ValueError(f"preference names task {name!r}{nearest(name, tasks)} Tasks: {', '.join(tasks)}")
        if not 0 <= value < np.inf:
            raise ValueError(f"preference gives task {name!r} the weight {value:g}; give 0 or more")
    weights = np.array([preference.get(t, 1.0) for t in tasks], dtype=float)
    if not weights.sum() > 0:
        raise ValueError("preference gives every task the weight 0; leave out the tasks that matter")
    return weights / weights.sum()


def preferences(tasks: int, points: int, seed: int = 0) -> np.ndarray:
    """``points`` preferences [points, tasks]: each task emphasised in turn, then even draws from the simplex."""
    emphasised = (1 - EMPHASIS) / tasks + EMPHASIS * np.eye(tasks)
    drawn = np.random.default_rng([seed, 19]).dirichlet(np.ones(tasks), max(0, points - tasks))
    return np.concatenate([emphasised, drawn])[:points]


def pareto_front(
    outcome: Outcome,
    fitness: Fitness,
    space: RecipeSpace,
    budget: Budget,
    points: int,
    *,
    trust: float = 0.8,
    seed: int = 0,
) -> Front:
    """The front of the selected recipe, the static start and the recipes predicted best for ``points`` preferences.

    Args:
        outcome: of a search that keeps a response model (EMFTO and its variants).
        budget: pays ``fitness.validation_size`` task-examples a point.
        trust: how far predictions may go from the selected recipe, relative to the static start.

    Raises:
        ValueError: the search kept no response model.
    """
    response = outcome.facts.get("response")
    if response is None:
        raise ValueError("a Pareto front needs a search with a response model: emfto or one of its variants")
    low, high = space.config.lower, space.config.upper
    radius = trust * float(np.abs(outcome.start).mean())
    known = [(outcome.coefficients, outcome.validation.score), (outcome.start, outcome.start_validation.score)]
    equal = response.weights
    try:
        for weights in progress(preferences(len(fitness.tasks), points, seed), "Pareto front", points, "recipe"):
            response.weights = weights
            proposed = response.propose(low, high, radius, centre=outcome.coefficients)
            recipe = space.coefficients(space.vector(proposed))
            answer = fitness.full(recipe)
            budget.spend(answer.cost)
            known.append((recipe, answer.score))
    finally:
        response.weights = equal
    recipes, scores = np.stack([r for r, _ in known]), np.stack([s for _, s in known])
    kept = unbeaten(scores)
    return Front(fitness.tasks, recipes[kept], scores[kept])


def unbeaten(scores: np.ndarray) -> list[int]:
    """Rows of [k, tasks] that no other row equals or beats on every task; of equal rows the first, NaN rows never."""
    kept = []
    for i, row in enumerate(scores):
        others = np.delete(scores, i, axis=0)
        beaten = ((others >= row).all(axis=1) & (others > row).any(axis=1)).any()
        repeated = (scores[:i] == row).all(axis=1).any()
        if np.isfinite(row).all() and not beaten and not repeated:
            kept.append(i)
    return kept
