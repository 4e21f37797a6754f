"""Temperature, representation terms, phrases and learning rate of Prompt-Distiller, tuned on development tasks.

    make bench-distill_tuning

The development tasks are in no table. What is chosen on them is frozen in ``core/distill/methods.py`` for all tasks and
seeds; the cost of the search is what the rows say. qqp is a development task without head-room (16 labels a class, seed
13, 1,000 test rows: teacher 64.3 %, student alone 62.2 %), on which no objective can show anything: it is not searched.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from core.data.assets import resolve
from core.distill.study import Study, StudyConfig
from core.distill.tuning import NAMES, accuracy, tune_objective
from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row

TASKS = {"pros_cons": (16, 10.0), "clinc150": (1, 10.0)}  # K and n
SEEDS = (13, 21)
EVALUATIONS, TEST_ROWS = 16, 1000
MODULES = ("core.distill.tuning",)


def cells(size: str) -> list[Cell]:
    """The search, and vanilla KD on the same problems."""
    evaluations = 2 if size == "smoke" else EVALUATIONS
    tasks = ["pros_cons"] if size == "smoke" else list(TASKS)
    return [Cell(m, {"tasks": tasks, "evaluations": evaluations}, 0, MODULES) for m in ("vanilla_kd", "search")]


@cache
def studies(tasks: tuple[str, ...]) -> list[Study]:
    """The development problems, one a task and seed."""
    return [
        Study(StudyConfig(task=t, k=TASKS[t][0], n=TASKS[t][1], seed=s, test_rows=TEST_ROWS))
        for t in tasks
        for s in (SEEDS if len(tasks) > 1 else SEEDS[:1])
    ]


def measure(c: Cell) -> list[Row]:
    """Mean accuracy; for the search also the point it found."""
    problems = studies(tuple(c.settings["tasks"]))
    oracle = f"test sets of development tasks, {TEST_ROWS} rows"
    if c.method == "vanilla_kd":
        return [
            c.row("accuracy", float(np.mean([accuracy(s, s.run("vanilla_kd").test) for s in problems])), {}, oracle)
        ]
    found, budget = tune_objective(problems, c.settings["evaluations"])
    rows = [c.row("accuracy", found.best.score, budget.counts, oracle)]
    rows += [c.row(name, float(x), budget.counts) for name, x in zip(NAMES, found.best.candidate, strict=True)]
    return rows + [c.row(f"trial {i}", t.score, budget.counts, oracle) for i, t in enumerate(found.trials)]


def goals(rows: Sequence[Row]) -> list[Goal]:
    """What the search gained over vanilla KD where it searched (an upper bound of what it gains elsewhere)."""
    by = {r.method: r.value for r in rows if r.metric == "accuracy"}
    gain = 100 * (by["search"] - by["vanilla_kd"]) if len(by) == 2 else None
    goal = "gain of the tuned objective over vanilla KD on development tasks, points"
    return [Goal(goal, ">= 1", gain, None, None, gain is not None and gain >= 1)]


def page(rows: Sequence[Row], folder: Path) -> str:
    """The point found, every trial, and the cost."""
    lines = ["| method | metric | value |", "|---|---|---|"]
    lines += [f"| {r.method} | {r.metric} | {r.value:.4g} |" for r in rows if r.value is not None]
    cost = {k: v for r in rows if r.method == "search" for k, v in r.budget.items()}
    return "\n".join([*lines, "", f"Cost of the search: {cost}"])


BENCHMARK = Benchmark("distill_tuning", "Tuning the objective on development tasks", cells, measure, goals, page)

if __name__ == "__main__":
    resolve("all-mpnet-base-v2")
    main(BENCHMARK)
