"""Forms as the thesis has them: experts merged alone, up from pairs, whose synergies warm-start the full problem.

The other way than :mod:`core.merge.emfto`: a lone pair does not see what the rest of the merge does to it, and one
number a pair (its synergy) is what it teaches. Kept as a search of its own, for the comparison.
"""

from itertools import combinations
from pathlib import Path

import numpy as np

from core.evolve.optimizers import OPTIMIZERS
from core.hashing import content_key
from core.merge.baselines import SEARCHES
from core.merge.emfto import EmftoConfig, control_scores
from core.merge.fitness import Fitness
from core.merge.forms import Form, Solved, own_tasks
from core.merge.full_search import full_search
from core.merge.recipe_space import RecipeSpace
from core.merge.relation import RelationGraph
from core.merge.solver import Outcome, tune_static
from core.transfer.budget import Budget

SHARE, BETA = 0.25, 0.1  # part of the budget for forms; how much an uncertain pair is worth against synergy


def next_form(graph: RelationGraph, owners: list[int | None], rng: np.random.Generator) -> Form:
    """The set of highest mean synergy plus uncertainty that holds a pair seen least often.

    All pairs come first, then sets of three and so on. Granularities take turns: one coefficient an expert, then the
    space's own groups.
    """
    n, seen = len(graph.experts), graph.matrix("seen")
    least = int(seen[np.triu_indices(n, 1)].min())
    level = min(n, 2 + least)
    pairs = [p for p in combinations(range(n), 2) if seen[p] == least]
    others = [rng.permutation([i for i in range(n) if i not in p])[: level - 2].tolist() for p in pairs]
    drawn = [tuple(sorted((*p, *more))) for p, more in zip(pairs, others, strict=True)]
    known = [m for m in graph.near_cliques(level) if any(set(p) <= set(m) for p in pairs)]
    candidates = list(dict.fromkeys([*known, *drawn]))
    value = graph.matrix("synergy") + BETA / np.sqrt(1 + len(graph.solved)) * graph.matrix("uncertainty")
    models = max(candidates, key=lambda m: value[np.ix_(m, m)].sum() / (len(m) * (len(m) - 1)))
    granularity = "global" if len(graph.solved) % 2 == 0 else ""
    return Form(models, own_tasks(models, owners, graph.tasks), "lone", granularity=granularity)


def solve_lone(
    form: Form, fitness: Fitness, space: RecipeSpace, start: np.ndarray, config: EmftoConfig, rng: np.random.Generator
) -> Solved:
    """The form's best of a few recipes around the static coefficients, the other experts left out.

    Its reference is what the static recipe of all experts scores on its tasks: a gain says that they get on
    better alone than with the rest.
    """
    round_, tried, cost = 1 + int(rng.integers(10**6)), [], 0
    for k in range(config.form_candidates):
        width = 1 if form.granularity == "global" else space.shape[1]
        move = config.radius * (rng.normal(0, 0.5, (form.level, width)) if k else np.zeros((form.level, width)))
        moving = np.clip(start[list(form.models)] * (1 + move), space.config.lower, space.config.upper)
        recipe = np.round(form.expand(moving, start), 4)
        answer = fitness.evaluate(recipe, round_, form.tasks)
        cost += answer.cost
        tried.append((recipe, answer.mean if np.isfinite(answer.mean) else -np.inf))
    best, score = max(tried, key=lambda t: t[1])
    reference = float(
        np.mean([v for t, v in zip(fitness.tasks, control_scores(fitness), strict=True) if t in form.tasks])
    )
    return Solved(form, best, score, reference, float(cost))


def first_distribution(graph: RelationGraph, space: RecipeSpace, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [n, g] and correlation [D, D] of the search: each expert's mean over its forms, and tanh of synergies."""
    mean, (n, g) = start.copy(), space.shape
    for i in range(n):
        own = [s.coefficients[i] for s in graph.solved if i in s.form.models]
        if own:
            mean[i] = np.mean(own, axis=0)
    return mean, np.kron(graph.correlation(), 0.5 * np.eye(g) + 0.5) if g > 1 else graph.correlation()


@SEARCHES.register(
    "lone_forms", "Control: the thesis' forms, experts merged alone, then a CMA-ES warm-started twice.", transfer=True
)
def lone_forms(
    fitness: Fitness,
    space: RecipeSpace,
    budget: Budget,
    config: EmftoConfig,
    owners: list[int | None],
    *,
    seed: int = 0,
    source: RelationGraph | None = None,
    checkpoint: Path | None = None,
) -> Outcome:
    """A quarter of the budget on lone forms, the rest on the full problem from what they say.

    Raises:
        ValueError: the budget does not afford static start, one candidate and the finalists.
    """
    solver, rng = config.solver, np.random.default_rng([seed, 17])
    start, start_answer = tune_static(fitness, space, budget, solver)
    names = [None if o is None else space.experts[o] for o in owners]
    graph = RelationGraph(space.experts, fitness.tasks, names)
    spent, limit = 0.0, SHARE * (budget.limit or 0.0)
    while len(space.experts) > 1:
        form = next_form(graph, owners, rng)
        price = config.form_candidates * sum(fitness.sizes[t] for t in form.tasks)
        reserve = solver.finalists * fitness.validation_size + fitness.price
        if spent + price > limit or not budget.affords(price + reserve):
            break
        graph.update(solved := solve_lone(form, fitness, space, start, config, rng))
        budget.spend(solved.cost)
        spent += solved.cost
    mean, correlation = first_distribution(graph, space, start)
    optimizer = OPTIMIZERS.get("cma")(
        space.box(mean, solver.step * float(np.abs(start).mean())),
        seed=seed,
        population=solver.population,
        restart_after=solver.restart_after,
        correlation=correlation,
    )
    key = content_key("lone forms", config, space.config, space.experts, fitness.sizes, budget.limit, seed)
    return full_search(
        optimizer,
        fitness,
        space,
        budget,
        solver,
        (start, start_answer),
        key=key,
        description="lone forms",
        checkpoint=checkpoint,
        facts={"forms": len(graph.solved), "spent_forms": spent, "graph": graph},
    )
