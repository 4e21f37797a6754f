"""Goals and page of the evolve-merge benchmark: pure functions of its rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from core.evaluate import plots
from core.evaluate.benchmark import Goal
from core.evaluate.rows import Row
from core.evaluate.statistics import Interval, bootstrap_mean, paired_wilcoxon
from core.state import write_bytes

MIX = ("sst2_sent", "trec", "qnli", "mrpc", "snli", "mnli", "qqp", "rte")
EXCHANGED = ("sst2_sent", "trec", "qnli", "mrpc", "snli", "subj", "ag_news", "cola")
BUDGET, VALIDATION = 100_000, 800
STATIC_NAMES = ("average", "task_arithmetic", "ties", "dare_linear", "dare_ties", "iso_c", "tsv_m", "wudi")
SEARCHED = ("emfto", "cold_cma", "random", "ga", "forms", "random_order", "no_covariance", "mean_only")
HEADS = {
    "normalised": "own",
    "aligned normalised": "aligned",
    "own heads": "own",
    "start": "aligned, before the search",
}
TRANSFERRED = ("forms", "random_order", "no_covariance", "mean_only")
MAIN = {"mix": "eight", "n": 8, "granularity": "blocks:3", "budget": BUDGET, "validation": VALIDATION}


def values(rows: Sequence[Row], method: str, metric: str = "normalised", **settings: object) -> dict[int, float]:
    """seed -> value of a method's metric at some settings (those of the main comparison by default)."""
    wanted = {**MAIN, **settings}
    return {
        r.seed: r.value
        for r in rows
        if r.method == method and r.metric == metric and r.value is not None and dict(r.settings) == wanted
    }


def paired(first: dict[int, float], second: dict[int, float]) -> tuple[list[float], list[float]]:
    """Values of the seeds both have."""
    seeds = sorted(first.keys() & second.keys())
    return [first[s] for s in seeds], [second[s] for s in seeds]


def difference(goal: str, target: str, a: list[float], b: list[float], least: float, also: bool = True) -> Goal:
    """A goal on the mean paired difference; it holds from two pairs on."""
    if not a:
        return Goal(goal, target, None, None, None, False)
    interval = bootstrap_mean([x - y for x, y in zip(a, b, strict=True)])
    return Goal(
        goal, target, interval.mean, interval.low, interval.high, len(a) > 1 and interval.mean >= least and also
    )


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Every numeric goal of the system level, with its literal target."""
    emfto, cold = values(rows, "emfto"), values(rows, "cold_cma")
    best, aligned = (best_static(rows, emfto, metric) for metric in ("normalised", "aligned normalised"))
    found = [
        difference("EMFTO above the best static operator, normalised points", ">= 2", *paired(emfto, best), 2.0),
        difference("the same above the best static operator with heads aligned as EMFTO's are", "> 0",
                   *paired(emfto, aligned), 1e-9),
        above_cold(rows, emfto, cold),
        cold_at_half(rows, cold),
        count("paired seeds of the eight-task comparison", ">= 8", len(emfto.keys() & cold.keys()), 8),
        count("seeds with curves at B/4 and B/2", ">= 8", _curve_seeds(rows), 8),
        count("seeds at 4B", ">= 2", len(values(rows, "emfto", budget=4 * BUDGET)), 2),
        count("seeds of the smallest cell of the scaling table (4, 8, 12 experts; 8 and 48 coefficients)", ">= 4",
              _scaling_seeds(rows), 4),
    ]  # fmt: skip
    return [*found, *prediction_goals(rows), *speed_goals(rows), warm_goal(rows)]


def best_static(rows: Sequence[Row], emfto: dict[int, float], metric: str) -> dict[int, float]:
    """The best static operator's score for every seed of EMFTO: tuned on all validation examples, it has no seed."""
    found = [values(rows, m, metric).get(0) for m in STATIC_NAMES]
    return {} if None in found else dict.fromkeys(emfto, max(found))


def above_cold(rows: Sequence[Row], emfto: dict[int, float], cold: dict[int, float]) -> Goal:
    goal = "EMFTO above cold CMA-ES at equal total budget, normalised points"
    target = ">= 0.7 with p < .05, or cold's final score for at most half the budget"
    a, b = paired(emfto, cold)
    if len(a) < 2:
        return difference(goal, target, a, b, 0.7)
    sure = len(a) > 4 and a != b and paired_wilcoxon(a, b, alternative="greater") < 0.05
    half, final = paired(values(rows, "emfto", budget=BUDGET // 2), cold)
    cheaper = len(half) >= 8 and float(np.mean(half)) >= float(np.mean(final))
    made = difference(goal, target, a, b, 0.7, sure)
    return made if not cheaper else Goal(goal, target, made.value, made.low, made.high, True)


def cold_at_half(rows: Sequence[Row], cold: dict[int, float]) -> Goal:
    """Beside the goal above: where cold itself is done by half the budget, that EMFTO is says nothing of transfer."""
    a, b = paired(values(rows, "cold_cma", budget=BUDGET // 2), cold)
    found = difference("(beside) cold CMA-ES at half the budget, less its own final score", "< 0", a, b, -np.inf)
    return replace(found, holds=found.holds and found.value < 0)


def count(goal: str, target: str, found: int, least: int) -> Goal:
    return Goal(goal, target, float(found) if found else None, None, None, found >= least)


def _curve_seeds(rows: Sequence[Row]) -> int:
    parts = [values(rows, m, budget=BUDGET // p) for m in ("emfto", "cold_cma") for p in (2, 4)]
    return len(set.intersection(*(set(p) for p in parts)))


def _scaling_seeds(rows: Sequence[Row]) -> int:
    wanted = [(4, "eight", "global"), (4, "eight", "layers"), (8, "eight", "global"), (8, "eight", "layers")]
    cells = [*wanted, (12, "many", "global")]
    return min(len(values(rows, m, n=n, mix=mix, granularity=g)) for n, mix, g in cells for m in ("emfto", "cold_cma"))


def prediction_goals(rows: Sequence[Row]) -> list[Goal]:
    def spearman(name: str) -> list[float]:
        return list(values(rows, "predictors", f"spearman {name}").values())

    pairwise, additive, means = spearman("pairwise"), spearman("additive"), spearman("task_means")
    goal = "relation graph predicts unseen sets of 3 and more after 50 forms, Spearman"
    if not pairwise:
        empty = [(goal, ">= .6"), ("the same above an additive model", ">= .1"), ("the same above task means", "> 0")]
        return [Goal(g, t, None, None, None, False) for g, t in empty]
    return [
        Goal(goal, ">= .6", float(np.mean(pairwise)), None, None, float(np.mean(pairwise)) >= 0.6),
        _gap("the same above an additive model", ">= .1", pairwise, additive, 0.1),
        _gap("the same above task means", "> 0", pairwise, means, 1e-9),
    ]


def _gap(goal: str, target: str, a: list[float], b: list[float], least: float) -> Goal:
    gap = float(np.mean(a) - np.mean(b))
    return Goal(goal, target, gap, None, None, gap >= least)


def speed_goals(rows: Sequence[Row]) -> list[Goal]:
    ratio = list(values(rows, "speed", "peer_ratio").values())
    shares = list(values(rows, "emfto", "merging_share").values())
    first = "putting a candidate into the model, times faster than a peer in process (torch sum, save, load)"
    second = "merging's share of a candidate's time at the smallest mini-batch"
    return [
        Goal(first, ">= 20", ratio[0] if ratio else None, None, None, bool(ratio) and ratio[0] >= 20),
        Goal(second, "< 15 %", 100 * max(shares) if shares else None, None, None, bool(shares) and max(shares) < 0.15),
    ]


def warm_goal(rows: Sequence[Row]) -> Goal:
    goal = "warm start from the earlier graph on a mix with three tasks exchanged: half budget less cold full budget"
    warm = values(rows, "warm_start", "normalised warm half", mix="exchanged")
    cold = values(rows, "warm_start", "normalised cold", mix="exchanged")
    return difference(goal, ">= 0 (median of eight seeds)", *paired(warm, cold), 0.0)


def page(rows: Sequence[Row], folder: Path) -> str:
    """Tables below the goals."""
    parts = [main_table(rows), curve(rows, folder), *extra(rows), artificial(rows)]
    return "\n\n".join(p for p in parts if p) or "No rows yet."


def main_table(rows: Sequence[Row]) -> str:
    """Mean normalised score by method and heads, with what it spent."""
    main = [r for r in rows if dict(r.settings) == MAIN]
    methods = dict.fromkeys(r.method for r in main if r.metric == "normalised")
    lines = []
    for method in methods:
        for metric, heads in HEADS.items():
            found = values(rows, method, metric)
            if not found:
                continue
            heads = "aligned" if metric == "normalised" and method in SEARCHED else heads
            interval = bootstrap_mean(list(found.values()))
            spent = [r.budget for r in main if (r.method, r.metric) == (method, "normalised")]
            examples = np.mean([b.get("task_examples", 0) for b in spent])
            labels = np.mean([b.get("train_labels", 0) for b in spent])
            seconds = values(rows, method, "cpu_seconds") or values(rows, method, "train_seconds")
            cpu = f"{np.mean(list(seconds.values())):.0f}" if seconds else ""
            between = "" if interval.low is None else f"{interval.low:.2f} to {interval.high:.2f}"
            cells = [
                method,
                heads,
                f"{interval.mean:.2f}",
                between,
                len(found),
                f"{examples:.0f}",
                f"{labels:.0f}",
                cpu,
            ]
            lines.append((interval.mean, "| " + " | ".join(map(str, cells)) + " |"))
    if not lines:
        return ""
    body = [line for _, line in sorted(lines, key=lambda p: p[0])]
    return "\n".join(
        [
            "## Eight tasks, budget B = 100,000 task-examples",
            "",
            "Heads: the experts' own, or aligned (`core/merge/align.py`: fitted to the experts' answers to unlabelled",
            "validation texts). Searches score their candidates with heads aligned at their start.",
            "",
            "| method | heads | normalised test score | 95 % interval | seeds | task-examples | labels | seconds |",
            "|---|---|---|---|---|---|---|---|",
            *body,
        ]
    )


def curve(rows: Sequence[Row], folder: Path) -> str:
    """Score against budget for EMFTO and cold CMA-ES, with intervals over seeds."""
    budgets = (BUDGET // 4, BUDGET // 2, BUDGET, 4 * BUDGET)
    lines: dict[str, tuple[list[float], list[Interval]]] = {}
    table = ["| method | task-examples | normalised test score | 95 % interval | seeds |", "|---|---|---|---|---|"]
    for method in ("emfto", "cold_cma"):
        scores = {budget: list(values(rows, method, budget=budget).values()) for budget in budgets}
        points = {budget: bootstrap_mean(found) for budget, found in scores.items() if found}
        if len(points) > 1:
            lines[method] = ([budget / 1000 for budget in points], list(points.values()))
        for budget, point in points.items():
            between = "" if point.low is None else f"{point.low:.2f} to {point.high:.2f}"
            table.append(f"| {method} | {budget:,} | {point.mean:.2f} | {between} | {len(scores[budget])} |")
    if not lines:
        return ""
    figure = plots.curves_with_bands(
        lines, "task-examples, thousands", "normalised test score, %", "Score against budget"
    )
    write_bytes(folder / "evolve_merge_curve.svg", plots.svg(figure).encode())
    return "\n".join(["## Score against budget", "", "![score against budget](evolve_merge_curve.svg)", "", *table])


def artificial(rows: Sequence[Row]) -> str:
    """Searches on artificial landscapes (for tuning settings; no claim about models)."""
    kept = [r for r in rows if r.settings.get("mix") == "artificial" and r.metric == "normalised"]
    if not kept:
        return ""
    lines = []
    for method in dict.fromkeys(r.method for r in kept):
        mine = {r.seed: r.value for r in kept if r.method == method}
        cold = {r.seed: r.value for r in kept if r.method == "cold_cma"}
        a, b = paired(mine, cold)
        gap = bootstrap_mean([x - y for x, y in zip(a, b, strict=True)]) if a else None
        shown = "" if gap is None or gap.low is None else f"{gap.mean:+.2f} ({gap.low:+.2f} to {gap.high:+.2f})"
        lines.append(f"| {method} | {np.mean(list(mine.values())):.2f} | {shown} | {len(mine)} |")
    head = [
        "## Artificial landscapes",
        "",
        "Eight tasks, 24 coefficients, 30,000 task-examples; a formula with sampling noise, no models "
        "(`core/merge/landscape.py`).",
        "",
        "| method | expected score | against cold CMA-ES | seeds |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *lines])


def extra(rows: Sequence[Row]) -> list[str]:
    """Prediction of unseen sets, speed, and whatever else was measured beside the main comparison."""
    kept = [r for r in rows if r.method in ("predictors", "speed", "together", "warm_start") and r.value is not None]
    if not kept:
        return []
    lines = [f"| {r.method} | {r.metric} | {r.seed} | {r.value:.4g} |" for r in kept]
    return [
        "\n".join(
            ["## Prediction, speed, warm start", "", "| cell | metric | seed | value |", "|---|---|---|---|", *lines]
        )
    ]
