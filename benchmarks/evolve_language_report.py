"""Goals and page of the evolve-language benchmark: pure functions of its rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.evolve_merge_report import STATIC_NAMES, count, difference, paired
from core.evaluate.benchmark import Goal
from core.evaluate.rows import Row
from core.evaluate.statistics import bootstrap_mean

BASELINES = ("cold_cma", *STATIC_NAMES, "best_single", "greedy_soup", "random")
SIZES = ("default", "full")


def values(rows: Sequence[Row], method: str, metric: str = "normalised", size: str = "default") -> dict[int, float]:
    """seed -> value of a method's metric."""
    return {
        r.seed: r.value
        for r in rows
        if r.method == method and r.metric == metric and r.value is not None and r.settings["size"] == size
    }


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Every goal, on the rows of the default size."""
    found = {m: values(rows, m) for m in ("emfto", *BASELINES)}
    statics = [found[m] for m in STATIC_NAMES]
    best = {s: max(v[s] for v in statics) for s in found["emfto"] if all(s in v for v in statics)}
    return [
        count(
            "language models: LoRA experts of SmolLM2-135M, one generative; seeds with EMFTO and every merge baseline",
            ">= 3", len(set.intersection(*map(set, found.values()))), 3,
        ),
        difference(
            "EMFTO above the best static operator, normalised points", "> 0", *paired(found["emfto"], best), 1e-9
        ),
        difference(
            "EMFTO above cold CMA-ES at equal total budget, normalised points",
            "> 0", *paired(found["emfto"], found["cold_cma"]), 1e-9,
        ),
    ]  # fmt: skip


def page(rows: Sequence[Row], folder: Path) -> str:
    """Tables below the goals."""
    parts = [part for size in SIZES for part in (experts_table(rows, size), main_table(rows, size))]
    return "\n\n".join(p for p in parts if p) or "No rows yet."


def experts_table(rows: Sequence[Row], size: str) -> str:
    """Test score of the base and of each task's own expert."""
    kept = {r.metric: r.value for r in rows if r.method == "experts" and r.settings["size"] == size}
    tasks = [m.removeprefix("expert ") for m in kept if m.startswith("expert ")]
    if not tasks:
        return ""
    lines = [f"| {t} | {100 * kept[f'base {t}']:.1f} | {100 * kept[f'expert {t}']:.1f} |" for t in tasks]
    head = [
        f"## Experts, {size} size",
        "",
        "Percent of test rows answered rightly: by label word, the last task by text that matches exactly. The base's "
        f"mean normalised score is {kept['normalised base']:.1f}.",
        "",
        "| task | base | its own expert |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *lines])


def main_table(rows: Sequence[Row], size: str) -> str:
    """Mean normalised score by method, with what it spent."""
    mine = [r for r in rows if r.settings["size"] == size and r.method != "experts"]
    scored = [r for r in mine if r.metric == "normalised"]
    if not scored:
        return ""
    tasks = [
        m.removeprefix("normalised ") for m in dict.fromkeys(r.metric for r in mine) if m.startswith("normalised ")
    ]
    lines = []
    for method in dict.fromkeys(r.method for r in scored):
        found = values(rows, method, size=size)
        interval = bootstrap_mean(list(found.values()))
        between = "" if interval.low is None else f"{interval.low:.2f} to {interval.high:.2f}"
        single = [f"{np.mean(list(values(rows, method, f'normalised {t}', size).values())):.1f}" for t in tasks]
        examples = np.mean([r.budget.get("task_examples", 0) for r in scored if r.method == method])
        seconds = np.mean(list(values(rows, method, "cpu_seconds", size).values()))
        cells = [method, f"{interval.mean:.2f}", between, *single, len(found), f"{examples:.0f}", f"{seconds:.0f}"]
        lines.append((interval.mean, "| " + " | ".join(map(str, cells)) + " |"))
    columns = ["method", "normalised test score", "95 % interval", *tasks, "seeds", "task-examples", "cpu seconds"]
    head = [
        f"## Merges, {size} size",
        "",
        "Percent of each task's own expert's score. A search may spend "
        f"{scored[0].settings['budget']:,} task-examples, its tuned start and finalists included.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    return "\n".join([*head, *(line for _, line in sorted(lines, key=lambda p: p[0]))])
