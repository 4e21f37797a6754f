"""The search among components: every expert and layer group may take another operator, basis and density."""

from pathlib import Path

import numpy as np

from core.evolve.optimizers import OPTIMIZERS
from core.hashing import content_key
from core.merge.baselines import SEARCHES
from core.merge.choices import ChoiceSpace
from core.merge.components import TIES, component_named
from core.merge.emfto import EmftoConfig
from core.merge.fitness import Answer, Fitness
from core.merge.full_search import full_search
from core.merge.solver import Outcome, scales_of
from core.transfer.budget import Budget

DECIDING = 3  # mini-batches on which the components, each at its best scale, are compared


def choice_scales(name: str) -> tuple[float, ...]:
    """The coefficients tried for a component's static start."""
    basis, _ = component_named(name)
    return tuple(scales_of("" if basis == TIES else basis))


def choice_start_cost(names: tuple[str, ...], price: int, validation_size: int) -> int:
    """Task-examples of :func:`tune_components`."""
    return (sum(len(choice_scales(n)) for n in names) + DECIDING * len(names)) * price + validation_size


def tune_components(
    fitness: Fitness, space: ChoiceSpace, budget: Budget
) -> tuple[ChoiceSpace, int, np.ndarray, Answer]:
    """Each component's best uniform scale on one mini-batch, and the best component on ``DECIDING`` more.

    Returns:
        the space in units of those scales; the best component's index; its recipe, which becomes the control variate of
        the fitness; its score on the whole validation data.

    Raises:
        ValueError: the budget does not afford it, or every recipe failed.
    """
    need = choice_start_cost(space.names, fitness.price, fitness.validation_size)
    if not budget.affords(need):
        raise ValueError(f"tuning the components' scales takes {need} task-examples, the budget leaves {budget.left:g}")

    def scored(component: int, scale: float, round_: int) -> float:
        answer = fitness.evaluate(uniform(space, component, scale), round_)
        budget.spend(answer.cost)
        return answer.mean if np.isfinite(answer.mean) else -np.inf

    scales = []
    for c, name in enumerate(space.names):
        tried = choice_scales(name)
        scales.append(tried[int(np.argmax([scored(c, s, 0) for s in tried]))])
    means = [np.mean([scored(c, s, 1 + k) for k in range(DECIDING)]) for c, s in enumerate(scales)]
    if not np.isfinite(means).any():
        raise ValueError("no component has a score: every one of them gave NaN")
    best = int(np.argmax(means))
    start = uniform(space, best, scales[best])
    answer = fitness.set_control(start)
    budget.spend(answer.cost)
    return space.scaled(scales), best, start, answer


def uniform(space: ChoiceSpace, component: int, scale: float) -> np.ndarray:
    """The recipe in which every expert takes one component at one coefficient."""
    return space.matrix(np.full(space.numbers.shape, scale), np.full(space.numbers.shape, component))


@SEARCHES.register(
    "choices",
    "Operator, basis and density chosen per expert and layer group, with their coefficients.",
    transfer=False,
    space="choices",
)
def choices(
    fitness: Fitness,
    space: ChoiceSpace,
    budget: Budget,
    config: EmftoConfig,
    owners: list[int | None],
    *,
    seed: int = 0,
    source=None,
    checkpoint: Path | None = None,
) -> Outcome:
    """CatCMA over components and coefficients from the best uniform recipe; racing and finalists as everywhere.

    Raises:
        ValueError: a space without choices, or a budget below start, one candidate and the finalists.
    """
    if not isinstance(space, ChoiceSpace):
        raise ValueError("search 'choices' needs a problem with choices (core.merge.choices.with_choices)")
    solver = config.solver
    scaled, best, start, start_answer = tune_components(fitness, space, budget)
    settings = {"population": solver.population, "restart_after": solver.restart_after}
    optimizer = OPTIMIZERS.get("cat_cma")(scaled.mixed(best, solver.step), seed=seed, **settings)
    key = content_key("choices", solver, space.config, space.names, space.experts, fitness.sizes, budget.limit, seed)
    return full_search(
        optimizer,
        fitness,
        scaled,
        budget,
        solver,
        (start, start_answer),
        key=key,
        description="choices",
        checkpoint=checkpoint,
        first_round=1 + DECIDING,
    )
