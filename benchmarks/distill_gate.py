"""The gate's two bounds on development tasks: when a teacher should be skipped, and when its student given up.

    make bench-distill_gate

The gate sees a few dev rows of one draw; what it should do is known only from many. So, for every draw of a development
task, a student is fine-tuned alone and another taught without gate, and both answer 2,000 of its test rows, from which
dev sets of the gate's size are then drawn again and again: a bound decides on the drawn rows and gets the accuracy of
the student it would have kept. (A teacher heard at less weight between the bounds is not studied.) The development
tasks are in no other table, and the bounds are frozen in ``core/distill/gate.py`` for all tasks and seeds.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.data.assets import resolve
from core.data.few_shot import SEEDS
from core.distill.gate import GateConfig
from core.distill.methods import PROMPT_DISTILLER, Method
from core.distill.study import MODULES, Study, StudyConfig
from core.distill.teachers import TEACHERS
from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row
from core.evaluate.statistics import bootstrap_mean

TASKS, TAUGHT = ("pros_cons", "qqp"), Method(summary="taught without gate", distill=PROMPT_DISTILLER)
K, N, TEST_ROWS, DRAWS = 16, 10, 2000, 4000
BOUNDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
DECISIONS = {"skip": "a teacher is skipped below", "keep": "a taught student is given up below"}


def cells(size: str) -> list[Cell]:
    """Good teachers and bad ones, seed by seed."""
    if size == "smoke":
        return [_cell("pros_cons", "smollm2", 13, k=4, n=2, steps=4)]
    return [_cell(t, teacher, s) for s in SEEDS for teacher in ("mpnet", "smollm2") for t in TASKS]


def _cell(task: str, teacher: str, seed: int, k: int = K, n: float = N, steps: int = 240) -> Cell:
    return Cell("gate", {"task": task, "teacher": teacher, "k": k, "n": n, "steps": steps}, seed, MODULES)


def measure(c: Cell) -> list[Row]:
    """Accuracy of teacher, student alone and taught student; and of what each bound would have kept."""
    settings = {name: c.settings[name] for name in ("task", "k", "n", "steps")}
    teacher = TEACHERS[c.settings["teacher"]]
    s = Study(StudyConfig(**settings, seed=c.seed, teacher=teacher, test_rows=TEST_ROWS))
    labels = np.asarray(s.few.test.labels)
    logits = {"teacher": s.teacher_answers("tuned").test, "alone": s.run("label_words").test}
    taught = s.run("taught without gate", TAUGHT)
    right = {who: z.argmax(1) == labels for who, z in (logits | {"taught": taught.test}).items()}
    oracle = f"test set of a development task, {len(labels)} rows"
    rows = [c.row(who, float(r.mean()), taught.budget, oracle) for who, r in right.items()]
    for decision, judged in (("skip", "teacher"), ("keep", "taught")):
        posterior = posteriors(right[judged], right["alone"], labels, c.settings["k"], c.seed)
        for bound in BOUNDS:
            share = float((posterior > bound).mean())
            kept = share * right["taught"].mean() + (1 - share) * right["alone"].mean()
            rows.append(c.row(f"{decision} {bound:g}", float(kept), {}, f"{DRAWS} drawn dev sets"))
    return rows


def posteriors(judged: np.ndarray, alone: np.ndarray, labels: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The gate's posterior [DRAWS] on dev sets of ``k`` rows a class, drawn from rows answered rightly or not."""
    from scipy.stats import beta

    rng = np.random.default_rng([seed, 17])
    only = np.zeros((2, DRAWS))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn = members[rng.random((DRAWS, len(members))).argpartition(k, axis=1)[:, :k]]
        only += [(judged & ~alone)[drawn].sum(1), (alone & ~judged)[drawn].sum(1)]
    return beta.sf(0.5, 1 + only[0], 1 + only[1])


def goals(rows: Sequence[Row]) -> list[Goal]:
    """The bounds in force against every other one tried, on the mean over draws."""
    config = GateConfig()
    return [_goal(rows, "skip", config.skip_below), _goal(rows, "keep", config.keep_above)]


def _goal(rows: Sequence[Row], decision: str, bound: float) -> Goal:
    goal = f"the bound in force ({DECISIONS[decision]} {bound:g}) less the best bound, points"
    means, mine = {b: _values(rows, f"{decision} {b:g}") for b in BOUNDS}, _values(rows, f"{decision} {bound:g}")
    if not mine:
        return Goal(goal, ">= -0.1", None, None, None, False)
    best = max(means, key=lambda b: np.mean(list(means[b].values())))
    lost = [100 * (mine[draw] - means[best][draw]) for draw in mine]
    interval = bootstrap_mean(lost)
    complete = len(mine) == len(cells("default"))
    return Goal(goal, ">= -0.1", interval.mean, interval.low, interval.high, complete and bool(interval.mean >= -0.1))


def _values(rows: Sequence[Row], metric: str) -> dict[tuple, float]:
    """Draw (task, teacher, seed) -> value."""
    found = [r for r in rows if r.metric == metric and r.settings["k"] == K and r.value is not None]
    return {(r.settings["task"], r.settings["teacher"], r.seed): r.value for r in found}


def page(rows: Sequence[Row], folder: Path) -> str:
    """What teaching gave, and what each bound keeps of it."""
    grouped: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        if r.settings["k"] == K and r.value is not None:
            grouped[r.settings["task"], r.settings["teacher"]][r.metric].append(100 * r.value)
    if not grouped:
        return f"No draw with {K} labels a class yet."
    lines = ["## Accuracy on development tasks, mean over seeds", ""]
    lines += ["| task | teacher | seeds | teacher alone | student alone | taught |", "|---|---|---|---|---|---|"]
    for (task, teacher), by in grouped.items():
        shown = " | ".join(f"{np.mean(by[m]):.1f}" for m in ("teacher", "alone", "taught"))
        lines.append(f"| {task} | {teacher} | {len(by['alone'])} | {shown} |")
    for decision, what in DECISIONS.items():
        lines += ["", f"## Accuracy where {what} a bound on the posterior", ""]
        lines.append("| task | teacher | " + " | ".join(f"{b:g}" for b in BOUNDS) + " |")
        lines.append("|---|---|" + "---|" * len(BOUNDS))
        for (task, teacher), by in grouped.items():
            shown = " | ".join(f"{np.mean(by[f'{decision} {b:g}']):.2f}" for b in BOUNDS)
            lines.append(f"| {task} | {teacher} | {shown} |")
        means = " | ".join(f"{100 * np.mean(list(_values(rows, f'{decision} {b:g}').values())):.2f}" for b in BOUNDS)
        lines.append(f"| mean over draws | | {means} |")
    return "\n".join(lines)


BENCHMARK = Benchmark("distill_gate", "The gate's bounds on development tasks", cells, measure, goals, page)

if __name__ == "__main__":
    if os.environ.get("SIZE", "default") != "smoke":
        resolve("all-mpnet-base-v2")
    main(BENCHMARK)
