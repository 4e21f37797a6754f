"""Evolving merges of language models: EMFTO against every merge baseline on LoRA experts of SmolLM2-135M.

Tasks from registry archives: two (full size: four) are classified by label words, one is written freely (the moral
foundation of a word, two words matched exactly: free replies of so small a model hardly ever match). A seed draws the
validation examples, their order and the search's random numbers; experts and test rows stay. The selection rule is that
of :mod:`benchmarks.evolve_merge`. The default size fits one processor core: ten minutes of training once, a quarter of
an hour a seed. ``SIZE=full`` is for a GPU.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from benchmarks.evolve_language_report import BASELINES, goals, page
from core.data.assets import AssetError
from core.data.tasks import TaskError
from core.evaluate.benchmark import Benchmark, Cell, main
from core.evaluate.rows import Row
from core.hashing import content_key
from core.merge.adapter_experts import AdapterConfig, train_adapter
from core.merge.baselines import SEARCHES, greedy_soup
from core.merge.candidate import InMemoryModel
from core.merge.emfto import EmftoConfig
from core.merge.experts import Expert, load_expert
from core.merge.fitness import Clock, Fitness
from core.merge.language import in_memory, language_objectives, language_problem
from core.merge.problem import MergeProblem, ProblemConfig, own_scores
from core.merge.recipe_space import RecipeSpace, SpaceConfig
from core.merge.solver import SolverConfig
from core.merge.static import STATIC, static_deltas
from core.merge.task_vectors import TaskVectors
from core.models.train import TrainConfig
from core.transfer.budget import Budget

BASE = "smollm2-135m-instruct"
TASKS = ("rt_plot", "headline_period", "moral_word")
MANY = ("rt_fresh", "debate_party", *TASKS)
MODULES = ["core.merge.language", "core.merge.baselines", "core.merge.static"]
SEARCH = EmftoConfig(solver=SolverConfig(finalists=3, racing_parts=2))
TIMES = frozenset({"cpu_seconds", "merging_share"})
ALONE = SpaceConfig(basis="raw", granularity="global")  # one coefficient an expert


@dataclass(frozen=True)
class Scale:
    """How much of everything: adapters, validation examples a task (and of a mini-batch), test rows, budget."""

    tasks: Sequence[str]
    adapter: AdapterConfig
    validation: int
    batch: int
    test: int | None
    budget: int
    seeds: int = 3
    granularity: str = "blocks:3"


def adapter(examples: int, **changes: Any) -> AdapterConfig:
    train = TrainConfig(**{"lr": 5e-4, "epochs": 2, "batch_size": 16, "dropout": False, **changes})
    return AdapterConfig(examples=examples, max_words=30, train=train)


SCALES = {
    "smoke": Scale(TASKS[1:], adapter(128, lr=1e-3, batch_size=8), 40, 8, 60, 500, seeds=1),
    "default": Scale(TASKS, adapter(600), 60, 16, 300, 4_000),
    "full": Scale(MANY, adapter(3000), 240, 24, None, 50_000),
}


def cells(size: str) -> list[Cell]:
    """Most valuable first: a whole comparison, seed by seed."""
    scale = SCALES[size]
    made = {"size": size, "n": len(scale.tasks), "granularity": scale.granularity, "budget": scale.budget}
    inputs = {"experts": content_key(BASE, scale.tasks, scale.adapter)}
    methods = ("emfto", "cold_cma", "tsv_m", "best_single") if size == "smoke" else ("emfto", *BASELINES)
    listed = [("experts", 0), *((m, s) for s in range(scale.seeds) for m in methods)]
    return [Cell(method, made, seed, MODULES, inputs) for method, seed in listed]


@cache
def experts(size: str) -> list[Expert]:
    scale = SCALES[size]
    return [load_expert(train_adapter(task, BASE, scale.adapter)) for task in scale.tasks]


@lru_cache(maxsize=1)  # it holds a language model, and cells come seed by seed
def problem_of(size: str, seed: int) -> MergeProblem:
    scale = SCALES[size]
    space = SpaceConfig(granularity=scale.granularity)
    config = ProblemConfig(space=space, batch=scale.batch, validation_examples=scale.validation, seed=seed)
    return language_problem(BASE, experts(size), config)


def fitness_on(problem: MergeProblem, vectors: TaskVectors, space: RecipeSpace) -> Fitness:
    """The problem's fitness over other components. They bind the one network's weights anew, so cells take turns."""
    model = problem.fitness.model
    return replace(problem.fitness, model=in_memory(model.model, vectors, space.groups, model.dtype), clock=Clock())


class Tester:
    """Scores recipes on test rows; answers are kept by recipe."""

    def __init__(self, size: str, problem: MergeProblem):
        tokenizer = next(iter(problem.fitness.objectives.values())).tokenizer
        self.tasks = language_objectives(experts(size), tokenizer, "test", SCALES[size].test)
        space = RecipeSpace(problem.raw, ALONE)
        raw = fitness_on(problem, problem.raw, space).model
        own = own_scores(raw, self.tasks)
        self.individual = {t: max(v, 1 / self.tasks[t].size) for t, v in own.items()}  # at least one right: a divisor
        self._kept: dict[str, dict[str, float]] = {}
        self.base = self.accuracy(raw, np.zeros(space.shape))

    def accuracy(self, model: InMemoryModel, coefficients: np.ndarray) -> dict[str, float]:
        key = content_key(model.vectors.sha256, np.asarray(coefficients), model.slices)
        if key not in self._kept:
            network = model.write(coefficients)
            found = {t: o.judge(network, np.arange(o.size)) for t, o in self.tasks.items()}
            self._kept[key] = {t: float(s.correct.mean()) for t, s in found.items()}
        return self._kept[key]


_TESTERS: dict[str, Tester] = {}


def tester(size: str, problem: MergeProblem) -> Tester:
    """The size's tester; it takes its network from the first problem."""
    if size not in _TESTERS:
        _TESTERS[size] = Tester(size, problem)
    return _TESTERS[size]


def measure(cell: Cell) -> list[Row]:
    """Rows of a cell; none where its archives cannot be had, so another run can still add them."""
    size = cell.settings["size"]
    try:
        problem = problem_of(size, cell.seed)
    except (TaskError, AssetError) as error:
        print(f"{cell.method} {size}: {error}", file=sys.stderr)
        return []
    judge = tester(size, problem)
    if cell.method == "experts":
        named = {"expert": judge.individual, "base": judge.base}
        rows = [cell.row(f"{name} {t}", v, oracle="test") for name, found in named.items() for t, v in found.items()]
        share = np.mean([100 * judge.base[t] / judge.individual[t] for t in judge.base])
        return [*rows, cell.row("normalised base", float(share), oracle="test")]
    spent, started = Budget("task_examples", cell.settings["budget"]), time.process_time()
    if cell.method in SEARCHES:
        model, recipe, facts = searched(cell, problem, spent)
    else:
        spent = Budget("task_examples")  # a static method takes what its scales take
        model, recipe, facts = static(cell, problem, spent)
    facts["cpu_seconds"] = time.process_time() - started
    accuracy = judge.accuracy(model, recipe)
    normalised = {t: 100 * v / judge.individual[t] for t, v in accuracy.items()}
    rows = [cell.row("normalised", float(np.mean(list(normalised.values()))), dict(spent.counts), "test")]
    rows += [cell.row(f"normalised {t}", v, dict(spent.counts), "test") for t, v in normalised.items()]
    return rows + [cell.row(m, v) for m, v in facts.items()]


Merged = tuple[InMemoryModel, np.ndarray, dict[str, Any]]


def searched(cell: Cell, problem: MergeProblem, budget: Budget) -> Merged:
    fitness = fitness_on(problem, problem.fitness.model.vectors, problem.space)
    search = SEARCHES.get(cell.method)
    outcome = search(fitness, problem.space, budget, SEARCH, problem.owners, seed=cell.seed)
    facts = {
        "validation": 100 * outcome.validation.mean,
        "start_validation": 100 * outcome.start_validation.mean,
        "candidates": float(len(outcome.answers)),
        "merging_share": fitness.clock.merging_share,
    }
    return fitness.model, outcome.coefficients, facts


def static(cell: Cell, problem: MergeProblem, budget: Budget) -> Merged:
    """Static operators with the scale tuned on the whole validation data, the greedy soup, the best single expert."""
    space = RecipeSpace(problem.raw, ALONE)
    if cell.method == "greedy_soup":
        fitness = fitness_on(problem, problem.raw, space)
        recipe, answer = greedy_soup(fitness, space, budget)
        return fitness.model, recipe, {"validation": 100 * answer.mean}
    if cell.method == "best_single":
        vectors, tried = problem.raw, [np.eye(len(problem.raw.names))[:, [i]] for i in range(len(problem.raw.names))]
    else:
        vectors = static_deltas(problem.raw, {cell.method: STATIC[cell.method]}, seed=0)
        tried = [np.full((1, 1), s) for s in STATIC[cell.method].scales]
    fitness = fitness_on(problem, vectors, space)
    answers = [fitness.full(c) for c in tried]
    budget.spend(sum(a.cost for a in answers))
    best = int(np.nanargmax([a.mean for a in answers]))
    return fitness.model, tried[best], {"validation": 100 * answers[best].mean, "scale": float(np.max(tried[best]))}


BENCHMARK = Benchmark(
    name="evolve_language",
    title="Evolving merges of language models",
    cells=cells,
    measure=measure,
    goals=goals,
    page=page,
    timing_metrics=TIMES,
)

if __name__ == "__main__":
    main(BENCHMARK)
