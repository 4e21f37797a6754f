"""Search the full problem within the budget and write the selected recipe file."""

from collections.abc import Mapping

import numpy as np

from core.merge import choice_search, lone_forms
from core.merge.baselines import SEARCHES
from core.merge.choices import ChoiceSpace
from core.merge.front import pareto_front
from core.merge.recipe import write_recipe
from core.state import write_bytes, write_json
from core.transfer.budget import Budget
from tasks.build_subproblems import FORMS, GRAPH, PICTURE, EvolveConfig, graph_of, scored
from tasks.costed import costed
from tasks.runner import executor
from tasks.stage import Artifact, Output, stage

MODULES = [
    "core.merge.baselines",
    "core.merge.front",
    "core.merge.problem",
    "core.merge.language",
    "core.merge.own_fitness",
    "core.merge.exact_finalists",
    choice_search.__name__,  # two searches that register themselves
    lone_forms.__name__,
]
RECIPE, OUTCOME = "recipe.yaml", "outcome.json"
FRONT, CHOICES = "front.ckpt", "front.json"  # the Pareto front, and the recipe of each of its points


@stage("evolve-recipes", modules=MODULES)
@costed
def evolve_recipes(
    out: Output,
    config: EvolveConfig,
    base: Artifact,
    experts: Mapping[str, Artifact],
    subproblems: Artifact | None = None,
    source: Artifact | None = None,
) -> None:
    """Spend the budget with one search method, from the sub-problems' state where it has one."""
    problem, fitness = scored(config, base, experts, executor())
    budget = Budget("task_examples", config.searched(fitness.validation_size))
    forms = out.folder / FORMS
    if subproblems is not None and not forms.exists():
        write_bytes(forms, (subproblems.folder / FORMS).read_bytes())
    known = None if source is None else graph_of(source, config)
    outcome = SEARCHES.get(config.method)(
        fitness,
        problem.space,
        budget,
        config.search,
        problem.owners,
        seed=config.seed,
        source=known,
        checkpoint=out.folder,
    )
    write_recipe(out.folder / RECIPE, problem.recipe(outcome.coefficients))
    if config.front:
        budget.limit = config.budget
        trust = config.search.trust
        front = pareto_front(outcome, fitness, problem.space, budget, config.front, trust=trust, seed=config.seed)
        front.save(out.folder / FRONT)
        write_json(out.folder / CHOICES, [problem.recipe(c) for c in front.recipes])
    curve = best_so_far(outcome)
    facts = {
        "method": config.method,
        "coefficients": outcome.coefficients.tolist(),
        "experts": list(problem.space.experts),
        "groups": list(problem.space.labels),
        "validation": outcome.validation.mean,
        "start": outcome.start_validation.mean,
        "start_scale": float(outcome.start[np.nonzero(outcome.start)].mean()),
        "spent": budget.spent,
        "candidates": len(outcome.answers),
        "merging_share": fitness.clock.merging_share,
        "curve": curve,
        "injection_gains": outcome.facts.get("injection_gains", []),
    }
    if isinstance(problem.space, ChoiceSpace):
        facts["choices"] = problem.space.described(outcome.coefficients)
    write_json(out.folder / OUTCOME, facts)
    if "graph" in outcome.facts:
        outcome.facts["graph"].save(out.folder / GRAPH)
        outcome.facts["graph"].draw(out.folder / PICTURE)
    out.curve("search/best", [(int(spent), value) for spent, value in curve])
    out.metrics({"validation": outcome.validation.mean, "start": outcome.start_validation.mean})
    out.budget(budget.counts)


def best_so_far(outcome) -> list[tuple[float, float]]:
    """Best mini-batch score against task-examples spent (control-corrected, so rounds compare)."""
    curve, best = [], float("-inf")
    for trial in outcome.facts["result"].trials:
        best = max(best, trial.score)
        if best > float("-inf"):
            curve.append((trial.spent, best))
    return curve
