"""EMFTO: evolutionary multi-form transfer of merge recipes.

    tuned static recipe -> forms (pairs up, context kept) -> relation graph + response model
                        -> warm-started CMA-ES on the full problem, with throttled injection -> finalists

Forms cost little because they are scored on few tasks; every answer, of forms and of the full problem, teaches one
response model per task. What is transferred: the mean and covariance of the first distribution, and recipes that the
model predicts to be best, injected as long as they beat the generation's own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from core.config import Config
from core.evolve.injection import Injection
from core.evolve.optimizers import OPTIMIZERS
from core.hashing import content_key
from core.merge.fitness import Answer, Fitness
from core.merge.forms import Form, Solved
from core.merge.planner import Planner
from core.merge.recipe_space import RecipeSpace
from core.merge.relation import RelationGraph
from core.merge.response import ResponseModel
from core.merge.solver import Evaluator, Outcome, SolverConfig, choose_finalists, run_search, select, tune_static
from core.progress import track
from core.state import StateError, load_checkpoint, save_checkpoint
from core.transfer.budget import Budget

KIND, SCHEMA = "emfto", 1


class EmftoConfig(Config):
    """Settings of the multi-form search. The defaults are what the ablations of docs/results favoured."""

    forms_share: float = Field(0.0, ge=0, lt=1, description="part of the budget for forms; 0 solves none")
    form_candidates: int = Field(4, ge=1, description="recipes scored in a form")
    form_tasks: int = Field(4, ge=1, description="tasks a form is scored on at most")
    radius: float = Field(0.6, gt=0, description="how far a form moves a coefficient, relative to the static one")
    order: Literal["planned", "random"] = Field("planned", description="order of the forms (random: control)")
    warm_mean: bool = Field(True, description="start at the predicted recipe")
    warm_covariance: bool = Field(True, description="start with the predicted curvature as correlation")
    tie: float = Field(
        0.0, ge=0, lt=1, description="first correlation of an expert's coefficients across layer groups (0: none)"
    )
    inject: int = Field(8, ge=0, description="predicted recipes injected a generation; 0 injects none")
    inject_every: int = Field(1, ge=1, description="generations between injections")
    locality: float = Field(0.7, ge=0, description="distance at which answers count less, relative to static; 0: never")
    screen: int = Field(
        60, ge=0, description="samples of the search's distribution whose predicted best are injected; 0: model optima"
    )
    trust: float = Field(0.8, gt=0, description="how far predictions may go from the best mean, relative to static")
    solver: SolverConfig = Field(SolverConfig(), description="settings shared with every other search")


@dataclass
class State:
    """What EMFTO learns: graph, response model, present best context."""

    graph: RelationGraph
    response: ResponseModel
    planner: Planner
    context: np.ndarray
    start: np.ndarray
    start_answer: Answer
    rng: np.random.Generator


def emfto(
    fitness: Fitness,
    space: RecipeSpace,
    budget: Budget,
    config: EmftoConfig,
    owners: list[int | None],
    *,
    seed: int = 0,
    source: RelationGraph | None = None,
    priors: np.ndarray | None = None,
    checkpoint: Path | None = None,
) -> Outcome:
    """Search a merge recipe by multi-form transfer.

    Args:
        budget: in task-examples; static tuning, forms, search and finalists all count.
        owners: for each task of ``fitness`` the index of its expert, or None.
        source: relation graph of an earlier run; pairs and affinities of experts and tasks known there are taken over.
        checkpoint: folder for checkpoints; a killed run continues from them.

    Raises:
        ValueError: the budget does not afford static start, one candidate and the finalists.
    """
    key = _key(fitness, space, budget, config, seed)
    state = solve_forms(
        fitness, space, budget, config, owners, seed=seed, source=source, priors=priors, checkpoint=checkpoint
    )
    spent_forms = sum(s.cost for s in state.graph.solved)
    outcome = _full_phase(fitness, space, budget, config, state, seed, checkpoint, key)
    outcome.facts |= {
        "spent_forms": spent_forms,
        "forms": len(state.graph.solved),
        "graph": state.graph,
        "response": state.response,
    }
    return outcome


def solve_forms(
    fitness: Fitness,
    space: RecipeSpace,
    budget: Budget,
    config: EmftoConfig,
    owners: list[int | None],
    *,
    seed: int = 0,
    source: RelationGraph | None = None,
    priors: np.ndarray | None = None,
    checkpoint: Path | None = None,
) -> State:
    """The first half: tuned static start and forms. :func:`emfto` on the same checkpoint folder goes on from there."""
    state = _begin(fitness, space, budget, config, owners, seed, priors)
    if source is not None:
        take_over(state, source, space)
    key = _key(fitness, space, budget, config, seed)
    _forms_phase(fitness, space, budget, config, state, checkpoint, key)
    return state


def _key(fitness: Fitness, space: RecipeSpace, budget: Budget, config: EmftoConfig, seed: int) -> str:
    return content_key(
        "emfto", config, space.config, space.experts, fitness.tasks, fitness.sizes, fitness.seed, budget.limit, seed
    )


def _begin(fitness, space, budget, config, owners, seed, priors) -> State:
    start, answer = tune_static(fitness, space, budget, config.solver)
    names = [None if o is None else space.experts[o] for o in owners]
    scale = float(np.abs(start).mean())
    planner = Planner(
        owners,
        fitness.tasks,
        space.config.lower,
        space.config.upper,
        config.radius * scale,
        config.form_tasks,
        order=config.order,
        seed=seed,
        priors=priors,
    )
    return State(
        RelationGraph(space.experts, fitness.tasks, names),
        ResponseModel(start, fitness.tasks, owners),
        planner,
        start.copy(),
        start,
        answer,
        np.random.default_rng([seed, 11]),
    )


def _forms_phase(fitness, space, budget, config, state, checkpoint, key) -> None:
    """Solve forms until their share of the budget is spent; the context follows the model's best recipe."""
    path = None if checkpoint is None else checkpoint / "forms.ckpt"
    limit = config.forms_share * (budget.limit if budget.limit is not None else 0.0)
    spent = 0.0
    if path is not None and path.exists():
        spent = _load_forms(path, key, state, budget)
    with track("forms", max(limit, 1), "example") as bar:
        bar.advance(spent)
        while True:
            form = state.planner.next(state.graph, state.response, state.context)
            price = config.form_candidates * sum(fitness.sizes[t] for t in form.tasks)
            if spent + price > limit:
                break
            solved = solve_form(form, fitness, space, config, state)
            budget.spend(solved.cost)
            spent += solved.cost
            bar.advance(solved.cost)
            state.graph.update(solved)
            state.response.fit()
            if path is not None:
                _save_forms(path, key, state, budget, spent)
    if path is not None and not path.exists():  # no form was affordable: that is a state, too
        _save_forms(path, key, state, budget, spent)
    state.graph.set_affinity(state.response.interference())


def solve_form(form: Form, fitness: Fitness, space: RecipeSpace, config: EmftoConfig, state: State) -> Solved:
    """Score a few recipes of a form: the model's best guess and draws of its posterior, others held at the context."""
    free, low, high = form.free(space.shape), space.config.lower, space.config.upper
    radius = state.planner.radius
    round_ = 1 + state.planner.solved
    tried: list[tuple[np.ndarray, Answer]] = []
    fitness.model.hold(state.context, form.models)
    for k in range(config.form_candidates):
        if (not state.graph.solved and k == 0) or not any(state.response.data):
            recipe = state.context + free * state.rng.normal(0, radius / 2, space.shape)
        else:
            recipe = state.response.propose(low, high, radius, state.rng, free, state.context)
            recipe = recipe + free * state.rng.normal(0, radius / 8, space.shape)
        recipe = space.coefficients(np.clip(recipe, low, high))
        answer = fitness.evaluate(recipe, round_, form.tasks)
        listen(state, fitness, recipe, answer)
        tried.append((recipe, answer))
    fitness.model.release()
    reference = {t: float(v) for t, v in zip(fitness.tasks, control_scores(fitness), strict=True)}
    best, answer = max(tried, key=lambda t: -np.inf if np.isnan(t[1].mean) else t[1].mean)
    scores = dict(zip(answer.tasks, map(float, answer.score), strict=True))
    expected = float(np.mean([reference[t] for t in form.tasks]))
    return Solved(form, best, answer.mean, expected, float(sum(a.cost for _, a in tried)), scores)


def control_scores(fitness: Fitness) -> np.ndarray:
    """Normalised score of the reference recipe per task, in the values that mini-batches average."""
    return np.array([fitness.control[t].mean() / fitness.objectives[t].reference for t in fitness.tasks])


def listen(state: State, fitness: Fitness, recipe: np.ndarray, answer: Answer) -> None:
    """Teach the response model one answer."""
    control = dict(zip(fitness.tasks, control_scores(fitness), strict=True))
    difference = answer.score - np.array([control[t] for t in answer.tasks])
    state.response.add(recipe, answer.tasks, difference, answer.variance)
    facts = {t: (y, v) for t, y, v in zip(answer.tasks, difference, answer.variance, strict=True)}
    state.graph.remember(recipe - state.start, facts)


def _full_phase(fitness, space, budget, config, state, seed, checkpoint, key) -> Outcome:
    """Warm-started CMA-ES with throttled injection, then finalists by predicted score."""
    scale = float(np.abs(state.start).mean())
    low, high, trust = space.config.lower, space.config.upper, config.trust * scale
    local = config.locality * scale if config.locality else np.inf
    learned = any(state.response.data)
    first = state.response.propose(low, high, trust) if config.warm_mean and learned else state.start
    correlation = first_correlation(state.response, space, config)
    box = space.box(first, config.solver.step * scale)
    optimizer = OPTIMIZERS.get("cma")(
        box,
        seed=seed,
        population=config.solver.population,
        correlation=correlation,
        restart_after=config.solver.restart_after,
    )
    answers: list[tuple[np.ndarray, Answer]] = []

    def hear(recipe: np.ndarray, answer: Answer) -> None:
        answers.append((recipe, answer))
        listen(state, fitness, recipe, answer)

    def predicted(count: int, generation: int) -> list[np.ndarray]:
        centre = space.coefficients(optimizer.mean)
        state.response.fit(centre, local)
        rng = np.random.default_rng([seed, 13, generation])
        if config.screen:
            return screened(state.response, space, optimizer, config.screen, count, rng)
        draws = [state.response.propose(low, high, trust, rng, centre=centre) for _ in range(count - 1)]
        return [space.vector(r) for r in [state.response.propose(low, high, trust, centre=centre), *draws]]

    evaluator = Evaluator(fitness, space, config.solver, hear, first_round=1 + state.planner.solved)
    injector = Injection(predicted, config.inject, config.inject_every) if config.inject else None
    result = run_search(
        optimizer,
        evaluator,
        budget,
        config.solver,
        injector=injector,
        checkpoint=None if checkpoint is None else checkpoint / "search.ckpt",
        key=key,
        also={"response": state.response, "graph": state.graph},
        description="emfto",
    )
    state.response.fit(space.coefficients(optimizer.mean), local)
    state.graph.set_affinity(state.response.interference())
    state.graph.set_synergy(state.response.synergy())
    finalists = predicted_finalists(state, space, result, optimizer.mean, trust, config.solver.finalists, config.screen)
    best, validation = select(fitness, finalists, state.start, state.start_answer, budget)
    gains = injector.gains if injector else []
    facts = {"result": result, "injection_gains": gains, "optimizer": optimizer}
    return Outcome(best, validation, state.start, state.start_answer, budget.spent, answers, facts)


def first_correlation(response: ResponseModel, space: RecipeSpace, config: EmftoConfig) -> np.ndarray | None:
    """Correlation [D, D] of the first distribution: learned from forms, else the one of the coarser form.

    A form with one coefficient an expert is the same problem in fewer dimensions. Its distribution lifted to g groups
    moves an expert's coefficients together: blocks of correlation ``tie``.
    """
    if not config.warm_covariance:
        return None
    if any(response.data):
        return response.covariance()
    n, g = space.shape
    if not config.tie or g == 1:
        return None
    return np.kron(np.eye(n), (1 - config.tie) * np.eye(g) + config.tie)


def screened(
    response: ResponseModel, space: RecipeSpace, optimizer: Any, samples: int, count: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """The samples of the optimizer's own distribution that the model predicts to be best (pre-selection)."""
    drawn = rng.multivariate_normal(optimizer.mean, optimizer.covariance, samples, method="eigh")
    drawn = np.clip(drawn, optimizer.space.lower, optimizer.space.upper)
    value = response.score(np.array([space.coefficients(v) for v in drawn]))
    return list(drawn[np.argsort(-value, kind="stable")[:count]])


def predicted_finalists(state, space, result, mean, trust, count, screen=0) -> list[np.ndarray]:
    """The predicted optimum, the search mean, then evaluated recipes by predicted score."""
    low, high = space.config.lower, space.config.upper
    centre = space.coefficients(mean)
    optimum = [] if screen else [space.vector(state.response.propose(low, high, trust, centre=centre))]
    tried = [space.coefficients(t.candidate) for t in result.trials if np.isfinite(t.score)]
    order = np.argsort(-state.response.score(np.array(tried)), kind="stable") if tried else []
    return choose_finalists([*(space.coefficients(v) for v in optimum), centre, *(tried[i] for i in order)], count)


def take_over(state: State, source: RelationGraph, space: RecipeSpace, distrust: float = 4.0) -> None:
    """Use an earlier run's graph: its answers about tasks that are here too, and the pairs it knows.

    Coefficients of experts that are gone are left out and new ones stand at the reference, so a kept answer is less
    certain than it was. An expert that was added, replaced or removed is the same case.
    """
    rows = {name: i for i, name in enumerate(source.experts)}
    for answer in source.answers:
        old = np.array(answer["offset"], dtype=float)
        new = np.zeros(space.shape)
        for i, name in enumerate(space.experts):
            if name in rows:
                new[i] = old[rows[name]] if old.shape[1] == space.shape[1] else old[rows[name]].mean()
        state.response.borrow(new, answer["tasks"], distrust)
    state.response.fit()
    known = [e for e in space.experts if e in source.experts]
    for at, a in enumerate(known):
        for b in known[at + 1 :]:
            old_edge = source.graph.edges[("expert", a), ("expert", b)]
            edge = state.graph.graph.edges[("expert", a), ("expert", b)]
            doubt = min(1.0, 2 * old_edge["uncertainty"])
            edge |= {"synergy": old_edge["synergy"], "uncertainty": doubt, "seen": 0}


def _save_forms(path: Path, key: str, state: State, budget: Budget, spent: float) -> None:
    payload = {
        "key": key,
        "graph": state.graph.state_dict(),
        "response": state.response.state_dict(),
        "planner": state.planner.state_dict(),
        "rng": state.rng.bit_generator.state,
        "budget": budget.state_dict(),
        "spent": spent,
    }
    save_checkpoint(path, payload, kind=KIND, schema=SCHEMA)


def _load_forms(path: Path, key: str, state: State, budget: Budget) -> float:
    payload: dict[str, Any] = load_checkpoint(path, kind=KIND, schema=SCHEMA)[0]
    if payload["key"] != key:
        raise StateError(f"{path} is the checkpoint of another run; give another folder or remove it")
    state.graph.load_state_dict(payload["graph"])
    state.response.load_state_dict(payload["response"])
    state.planner.load_state_dict(payload["planner"])
    state.rng.bit_generator.state = payload["rng"]
    budget.load_state_dict(payload["budget"])
    return float(payload["spent"])
