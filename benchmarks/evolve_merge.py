"""Evolving merges: EMFTO against static operators, trained models and searches at the same total budget.

Experts of one MiniLM base on the eight tasks of ``core/data/suites/eight.yaml`` (../shared/data, found through
TRANSFEROPT_DATA). All validation examples (249 to 800 a task) and all test rows are used; a seed draws the order of the
validation examples and the search's random numbers, the experts stay. Selection rule, declared before looking at test:
of the search mean, the best recipe by search score (EMFTO: by predicted score) and the tuned static start, the one with
the best accuracy on all validation examples. Static operators are tuned on all of them: one row, no seeds.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.evolve_merge_report import BUDGET, EXCHANGED, MIX, TRANSFERRED, VALIDATION, goals, page
from core.data.assets import AssetError
from core.data.tasks import TaskError
from core.evaluate.benchmark import Benchmark, Cell, main
from core.evaluate.rows import Row
from core.hashing import content_key
from core.merge import lone_forms
from core.merge.align import Head, embed
from core.merge.baselines import SEARCHES, greedy_soup
from core.merge.candidate import InMemoryModel
from core.merge.emfto import EmftoConfig
from core.merge.experts import Expert, ExpertConfig, load_expert, train_expert
from core.merge.landscape import artificial_problem
from core.merge.objectives import mixed_batches
from core.merge.predictors import PREDICTORS
from core.merge.problem import MergeProblem, ProblemConfig, merge_problem, own_scores
from core.merge.recipe_space import SpaceConfig
from core.merge.relation import RelationGraph
from core.merge.solver import Evaluator, SolverConfig
from core.merge.static import STATIC, static_deltas
from core.merge.suite import objectives
from core.models.train import TrainConfig
from core.transfer.budget import Budget

BASE = "all-minilm-l6-v2"
ARTIFICIAL = {"mix": "artificial", "budget": 30_000}
FORMULA = ["core.merge.landscape", "core.merge.baselines"]
MODULES = ["core.merge.baselines", "core.merge.problem", "core.merge.static", "core.merge.predictors.pairwise"]
STATICS = tuple(n for n, m in STATIC.items() if m.max_models is None)
BATCH, GRANULARITY = 24, "blocks:3"
SEARCH = EmftoConfig(solver=SolverConfig(finalists=2))
SPACES = {8: "global", 24: "blocks:3", 48: "layers"}
SMOKE = ("rt_fresh", "chat_reply")
MANY = (*MIX, "subj", "ag_news", "cola", "cr")
TIMES = frozenset(
    {"cpu_seconds", "merging_share", "train_seconds", "write_seconds", "peer_seconds", "peer_ratio"}
    | {"alone_per_second", "together_per_second"}
)
GENERATION = 24  # candidates: those of CMA-ES on 24 coefficients and the injected ones


def settings(mix: str = "eight", granularity: str = GRANULARITY, budget: int = BUDGET, n: int = 8) -> dict[str, Any]:
    return {"mix": mix, "n": n, "granularity": granularity, "budget": budget, "validation": VALIDATION}


def cells(size: str) -> list[Cell]:
    """Most valuable first: the main comparison by seeds, then speed and prediction, then curves, controls, scaling."""

    def cell(method: str, seed: int, **changes: Any) -> Cell:
        return Cell(method, settings(**changes), seed, MODULES)

    if size == "smoke":
        small = {"mix": "smoke", "n": 2, "budget": 5000, "granularity": "global"}
        return [cell(m, 0, **small) for m in ("tsv_m", "emfto", "cold_cma")]
    tried = [(m, s) for s in range(8) for m in ("emfto", "cold_cma", "forms")]
    found = [Cell(m, settings(**ARTIFICIAL), s, FORMULA) for m, s in tried]
    found += [Cell("lone_forms", settings(**ARTIFICIAL), s, [*FORMULA, lone_forms.__name__]) for s in range(8)]
    found += [cell("speed", 0), cell("together", 0)]
    found += [cell(m, 0) for m in (*STATICS, "greedy_soup", "best_single", "frozen_probe")]
    found += [cell(m, seed) for seed in range(8) for m in ("emfto", "cold_cma")]
    found.append(cell("predictors", 0))
    for part in (2, 4):
        found += [cell(m, s, budget=BUDGET // part) for s in range(8) for m in ("emfto", "cold_cma")]
    found += [cell("joint", 0), cell("sequential", 0)]
    found += [cell(m, s) for s in range(8) for m in ("random", "ga", *TRANSFERRED)]
    found += [cell("warm_start", s, mix="exchanged") for s in range(8)]
    if size == "full":
        found += [cell(m, s, budget=4 * BUDGET) for s in range(2) for m in ("emfto", "cold_cma")]
        for n, granularity in [(4, "global"), (4, "layers"), (8, "global"), (8, "layers"), (12, "global")]:
            mix = "many" if n == 12 else "eight"
            scaled = {"mix": mix, "n": n, "granularity": granularity}
            found += [cell(m, s, **scaled) for s in range(4) for m in ("emfto", "cold_cma")]
    return found


@dataclass
class World:
    """Experts of a mix and their test sets."""

    experts: list[Expert]
    base: Path


def tasks_of(mix: str, n: int) -> tuple[str, ...]:
    names = {"eight": MIX, "exchanged": EXCHANGED, "many": MANY, "smoke": SMOKE}[mix]
    return tuple(names[:n])


@cache
def world(names: tuple[str, ...]) -> World:
    from core.models.load import locate

    quick = TrainConfig(lr=1e-4, head_lr=3e-3, epochs=1, batch_size=32)
    config = ExpertConfig(examples=128, train=quick) if names[0] in SMOKE else ExpertConfig()
    experts = [load_expert(train_expert(name, BASE, config)) for name in names]
    return World(experts, locate(BASE).path)


def problem_of(names: tuple[str, ...], granularity: str, seed: int, together: int | None = None) -> MergeProblem:
    space = SpaceConfig(granularity=granularity)
    config = ProblemConfig(space=space, batch=BATCH, validation_examples=VALIDATION, seed=seed, together=together)
    return merge_problem(world(names).base, world(names).experts, config)


class Tester:
    """Scores recipes on every available test row; embeddings are kept by recipe."""

    def __init__(self, names: tuple[str, ...]):
        from core.models.load import load_encoder

        found = world(names)
        self.encoder = load_encoder(found.base)
        self.encoder.max_length = ExpertConfig().max_length
        limit = 200 if names[0] in SMOKE else None
        self.tasks = objectives(self.encoder, found.experts, "test", limit)
        wanted = {t: np.arange(o.size) for t, o in self.tasks.items()}
        self.batches = mixed_batches(self.tasks, wanted, self.encoder.device)
        self.individual: dict[str, float] = {}
        self._kept: dict[str, dict[str, np.ndarray]] = {}

    def accuracy(
        self, model: InMemoryModel, coefficients: np.ndarray, heads: Mapping[str, Head] = MappingProxyType({})
    ) -> dict[str, float]:
        """Test accuracy of a recipe by task, with aligned heads where some are given."""
        key = content_key(model.vectors.sha256, np.asarray(coefficients), model.slices)
        if key not in self._kept:
            self._kept[key] = embed(model.write(coefficients), self.tasks, self.batches)
        found = {}
        for t, x in self._kept[key].items():
            head = heads.get(t) or Head(self.tasks[t].weight, self.tasks[t].bias)
            found[t] = float((head.logits(x).argmax(axis=1) == self.tasks[t].labels).mean())
        return found

    def normalised(self, accuracy: dict[str, float]) -> dict[str, float]:
        return {t: 100 * accuracy[t] / self.individual[t] for t in accuracy}


@cache
def tester(names: tuple[str, ...]) -> Tester:
    made = Tester(names)
    problem = problem_of(names, "global", 0)
    raw = InMemoryModel(problem.fitness.model.model, problem.raw, problem.space.groups, problem.fitness.model.dtype)
    made.individual = own_scores(raw, made.tasks)
    return made


def measure(cell: Cell) -> list[Row]:
    """Rows of a cell; none where its data are not on this machine, so another run can still add them."""
    if cell.settings["mix"] == "artificial":
        return artificial(cell)
    names = tasks_of(cell.settings["mix"], cell.settings["n"])
    try:
        world(names)
    except (TaskError, AssetError) as error:
        print(f"{cell.method} {cell.settings['mix']}: {error}", file=sys.stderr)
        return []
    if cell.method in SEARCHES:
        return searched(cell, names)
    special = {
        "predictors": predicted,
        "speed": speed,
        "together": rates,
        "warm_start": warm_start,
        "greedy_soup": soup,
        "joint": trained,
        "sequential": trained,
    }
    return special.get(cell.method, static)(cell, names)


def score_rows(
    cell: Cell, names: tuple[str, ...], accuracy: dict[str, float], spent: dict[str, float], prefix: str = ""
) -> list[Row]:
    normalised = tester(names).normalised(accuracy)
    rows = [cell.row(f"{prefix}normalised {t}", v, spent, "test") for t, v in normalised.items()]
    return [cell.row(f"{prefix}normalised", float(np.mean(list(normalised.values()))), spent, "test"), *rows]


def searched(cell: Cell, names: tuple[str, ...], source: RelationGraph | None = None, method: str = "") -> list[Row]:
    problem = problem_of(names, cell.settings["granularity"], cell.seed)
    budget = Budget("task_examples", cell.settings["budget"])
    started = time.process_time()
    outcome = SEARCHES.get(method or cell.method)(
        problem.fitness, problem.space, budget, SEARCH, problem.owners, seed=cell.seed, source=source
    )
    seconds = time.process_time() - started
    found = {}
    for which, recipe in (("", outcome.coefficients), ("start", outcome.start)):
        for aligned, heads in (("own heads", {}), ("", problem.fitness.heads(recipe))):
            found[f"{which} {aligned}".strip()] = tester(names).accuracy(problem.fitness.model, recipe, heads)
    accuracy = found.pop("")
    facts = {
        "validation": 100 * outcome.validation.mean,
        **{k: float(np.mean(list(tester(names).normalised(a).values()))) for k, a in found.items()},
        "candidates": float(len(outcome.answers)),
        "forms": float(outcome.facts.get("forms", 0)),
        "cpu_seconds": seconds,
        "merging_share": problem.fitness.clock.merging_share,
    }
    gains = outcome.facts.get("injection_gains") or []
    facts["injection_gain"] = float(np.mean(gains)) if gains else float("nan")
    searched.graph = outcome.facts.get("graph")
    return score_rows(cell, names, accuracy, dict(budget.counts)) + [cell.row(m, v) for m, v in facts.items()]


def artificial(cell: Cell) -> list[Row]:
    """A search on an artificial landscape: expected score of its recipe, of the static start, and the spent budget."""
    fitness, space = artificial_problem(cell.settings["n"], cell.settings["granularity"], cell.seed)
    budget = Budget("task_examples", cell.settings["budget"])
    owners: list[int | None] = list(range(cell.settings["n"]))
    outcome = SEARCHES.get(cell.method)(fitness, space, budget, SEARCH, owners, seed=cell.seed)
    found = {"normalised": outcome.coefficients, "start": outcome.start}
    return [cell.row(m, fitness.landscape.truth(a), dict(budget.counts), "formula") for m, a in found.items()]


def static(cell: Cell, names: tuple[str, ...]) -> list[Row]:
    """Static operators, their scale tuned on the whole validation data: with the experts' heads, and with aligned ones.

    Also the best single expert and the frozen probe.
    """
    problem = problem_of(names, "global", cell.seed)
    fitness, spent = problem.fitness, Budget("task_examples")
    dtype = fitness.model.dtype
    if cell.method == "frozen_probe":
        base = InMemoryModel(fitness.model.model, problem.raw, problem.space.groups, dtype)
        probes = {e.task: Head(*e.head(probe=True)) for e in world(names).experts}
        return score_rows(cell, names, tester(names).accuracy(base, np.zeros(problem.space.shape), probes), {})
    if cell.method == "best_single":
        vectors, tried = problem.raw, [np.eye(len(names))[:, [i]] for i in range(len(names))]
    else:
        chosen = {cell.method: STATIC[cell.method]}
        vectors = static_deltas(problem.raw, chosen, seed=0)
        tried = [np.full((1, 1), s) for s in STATIC[cell.method].scales]
    fitness.model = InMemoryModel(fitness.model.model, vectors, problem.space.groups, dtype)
    targets, rows = fitness.targets, []
    further = [f * tried[-1] for f in (1.25, 1.5)] if len(tried) > 1 and cell.method != "best_single" else []
    for prefix, wanted, more in (("", {}, []), ("aligned ", targets, further)):
        fitness.targets = wanted
        tried += more  # what is aligned bears larger scales
        answers = [fitness.full(c) for c in tried]
        spent.spend(sum(a.cost for a in answers))
        best = int(np.argmax([a.mean for a in answers]))
        accuracy = tester(names).accuracy(fitness.model, tried[best], fitness.heads(tried[best]))
        rows += score_rows(cell, names, accuracy, dict(spent.counts), prefix)
        rows.append(cell.row(f"{prefix}scale", float(np.max(tried[best]))))
        rows.append(cell.row(f"{prefix}validation", 100 * answers[best].mean))
    return rows


def soup(cell: Cell, names: tuple[str, ...]) -> list[Row]:
    problem, spent = problem_of(names, "global", cell.seed), Budget("task_examples")
    fitness = problem.fitness
    fitness.model = InMemoryModel(fitness.model.model, problem.raw, problem.space.groups, fitness.model.dtype)
    fitness.targets = {}
    recipe, _ = greedy_soup(fitness, problem.space, spent)
    return score_rows(cell, names, tester(names).accuracy(fitness.model, recipe), dict(spent.counts))


def trained(cell: Cell, names: tuple[str, ...]) -> list[Row]:
    from core.merge import trained as module

    done = getattr(module, cell.method)(BASE, world(names).experts)
    spent = {"train_labels": float(done.labels), "train_examples": float(done.examples)}
    rows = [*score_rows(cell, names, done.accuracy, spent), cell.row("train_seconds", done.seconds)]
    if done.before:
        forgotten = np.mean([100 * (done.before[t] - done.accuracy[t]) for t in done.accuracy])
        rows.append(cell.row("forgetting", float(forgotten)))
    return rows


def predicted(cell: Cell, names: tuple[str, ...]) -> list[Row]:
    """Predict the score of unseen sets of size 3 to 5 after 50 lone forms (all pairs, then drawn triples)."""
    problem = problem_of(names, "global", cell.seed)
    fitness, n, spent = problem.fitness, len(names), Budget("task_examples")
    rng = np.random.default_rng([cell.seed, 17])
    triples = [tuple(t) for t in rng.permutation(list(combinations(range(n), 3)))]
    pairs = list(combinations(range(n), 2))
    train = [*pairs, *triples[: max(0, 50 - len(pairs))]]
    larger = [tuple(sorted(rng.choice(n, size, replace=False))) for size in (4, 5) for _ in range(20)]
    test = list(dict.fromkeys([*triples[50 - len(pairs) :][:30], *larger]))

    def score(form: Sequence[int]) -> dict[int, float]:
        recipe = np.zeros(problem.space.shape)
        recipe[list(form)] = 1.0
        chosen = tuple(fitness.tasks[i] for i in form)
        wanted = {t: np.arange(fitness.objectives[t].size) for t in chosen}
        scored = fitness.forward(recipe, wanted)
        spent.spend(sum(len(w) for w in wanted.values()))
        return {int(i): float(scored[t].correct.mean()) / fitness.objectives[t].reference for i, t in zip(form, chosen)}

    seen = [score(f) for f in train]
    cost = dict(spent.counts)
    truth = np.array([np.mean(list(score(f).values())) for f in test])
    rows = []
    for name in PREDICTORS.names():
        predictor = PREDICTORS.get(name)(n, seed=cell.seed)
        predictor.fit(train, seen)
        rows.append(cell.row(f"spearman {name}", float(spearmanr(predictor.predict(test), truth)[0]), cost))
    return rows


def speed(cell: Cell, names: tuple[str, ...]) -> list[Row]:
    """Seconds to put a candidate into the model, against a peer in process: torch sum, save, load."""
    import tempfile

    import torch
    from safetensors.torch import load_file, save_file

    from core.models.load import load_encoder

    problem = problem_of(names, "global", cell.seed)
    model, shape = problem.fitness.model, problem.space.shape
    rng = np.random.default_rng(0)
    ours = [_timed(lambda: model.write(rng.uniform(0.5, 1.5, shape))) for _ in range(15)]
    states = {t: load_file(f / "model.safetensors") for t, f in problem.folders.items()}
    base = load_file(problem.base / "model.safetensors")

    def peer() -> None:
        merged = {k: v + sum(0.3 * (s[k] - v) for s in states.values()) if v.is_floating_point() else v
                  for k, v in base.items()}  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            for path in problem.base.iterdir():
                if path.suffix == ".json" or path.suffix == ".txt":
                    (Path(folder) / path.name).write_bytes(path.read_bytes())
            save_file(merged, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            load_encoder(folder)

    with torch.inference_mode():
        theirs = [_timed(peer) for _ in range(5)]
    mine, peers = float(np.median(ours)), float(np.median(theirs))
    found = {"write_seconds": mine, "peer_seconds": peers, "peer_ratio": peers / mine}
    return [cell.row(m, v) for m, v in found.items()]


def rates(cell: Cell, names: tuple[str, ...]) -> list[Row]:
    """Candidates a second that a search gets through, one by one and together; only where there is a CUDA device."""
    import torch

    if not torch.cuda.is_available():
        print(f"{cell.method}: no CUDA device", file=sys.stderr)
        return []
    rows = []
    for metric, together in (("alone_per_second", 1), ("together_per_second", None)):
        problem = problem_of(names, cell.settings["granularity"], cell.seed, together)
        generation = list(np.random.default_rng(0).uniform(0.5, 1.5, (GENERATION, problem.space.dimensions)))
        evaluate = Evaluator(problem.fitness, problem.space, SEARCH.solver)
        seconds = [_timed(lambda e=evaluate, g=generation: e(g)) for _ in range(8)]
        rows.append(cell.row(metric, GENERATION / float(np.median(seconds[1:]))))
    return rows


def _timed(action: Any) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def warm_start(cell: Cell, names: tuple[str, ...]) -> list[Row]:
    """A cold run on a mix with three tasks exchanged, and warm ones at half its budget from the graph of the first."""
    first = Cell("emfto", settings(), cell.seed, MODULES)
    searched(first, MIX)
    graph = searched.graph
    cold = searched(cell, names, method="emfto")
    half = Cell(cell.method, {**cell.settings, "budget": cell.settings["budget"] // 2}, cell.seed, MODULES)
    warm = searched(half, names, source=graph, method="emfto")
    control = searched(half, names, method="emfto")
    found = {"cold": cold, "warm half": warm, "cold half": control}
    values = {k: next(r.value for r in rows if r.metric == "normalised") for k, rows in found.items()}
    rows = [
        cell.row(f"normalised {k}", v, {"task_examples": cell.settings["budget"]}, "test") for k, v in values.items()
    ]
    return [*rows, cell.row("source_cost", float(cell.settings["budget"]))]


BENCHMARK = Benchmark(
    name="evolve_merge",
    title="Evolving merges by multi-form transfer",
    cells=cells,
    measure=measure,
    goals=goals,
    page=page,
    timing_metrics=TIMES,
)

if __name__ == "__main__":
    main(BENCHMARK)
