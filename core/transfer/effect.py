"""The transfer effect: what a transfer gained against its no-transfer twin, at equal budget, with intervals.

A pure function of rows. A *cell* is what two methods are compared on: all settings except the ones that grow along a
curve (budget, training size). Inside a cell runs are paired by seed. Larger is better; metrics where smaller is better
are negated first. What the rows cannot tell is None and never a number: one run without transfer has no spread to be
harmed against, one pair no test, one amount of the budget no ratio.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from core.evaluate.metrics import METRICS, higher_is_better
from core.evaluate.rows import Row
from core.evaluate.statistics import (
    Interval,
    bootstrap_mean,
    hierarchical_bootstrap,
    holm,
    mcnemar,
    paired_wilcoxon,
    percentile_harm,
    stratified_bootstrap,
)
from core.transfer.energy import ENERGY

Cell = tuple[tuple[str, Any], ...]
COSTS = ("seconds", "trained_parameters", "trained_share", "peak_memory_mb", ENERGY)
CALIBRATION = ("ece", "brier")
BEFORE, AFTER = "source_before", "source_after"
ENERGY_SOURCE = "energy_source"  # the setting that says how a row's energy came about
Correct = Mapping[tuple[str, Hashable], np.ndarray | Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class MethodEffect:
    """What one method gained over the twin. None where the rows do not tell.

    ``score``, ``gain``, ``harm``: at the largest size and budget that both reached; what smaller sizes gave is in the
    curves and in ``area``. ``gain``: mean score difference, interval over cells and seeds (a run that spends
    none of the budget's unit is compared at whatever the other spent, and costs 0 in ``budget_ratio``). ``gain_items``:
    the same in accuracy with its interval over test items, where they are known (mean over seeds; tasks weigh the
    same). ``p_wilcoxon``: paired by cell and seed, from two pairs on. ``harm``: share of
    runs below the 5th percentile of the twin's runs in the same cell, over cells with at least two of those;
    ``harm_chance`` is what luck alone gives: 5 % with many twin runs, more with few, whose percentile is uncertain.
    ``budget_ratio``: median over cells of cost to reach the twin's final mean score, over the twin's own cost of it
    (below 1: cheaper; cells that never reach it are counted in ``not_reached``); None where the method was measured at
    one amount of the budget only. ``area``: difference of the areas under the curves score against log size.
    ``forgetting``: source score before less after. ``calibration``: metric -> difference to the twin (negative:
    better). ``cost``: mean of each cost metric.
    """

    method: str
    pairs: int
    score: Interval
    gain: Interval
    p_wilcoxon: float | None = None
    p_holm: float | None = None
    harm: float | None = None
    harm_chance: float | None = None
    budget_ratio: float | None = None
    not_reached: int = 0
    area: Interval | None = None
    forgetting: Interval | None = None
    calibration: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    mcnemar_p: float | None = None
    gain_items: Interval | None = None


@dataclass(frozen=True)
class EffectReport:
    """Effects of all methods against ``without``, and the curves behind them.

    ``curves[method][size]`` is the score with its interval over cells and seeds; empty without a size setting. Scores
    are larger where better; :meth:`measured` gives them the metric's own sign. ``cells``, ``seeds``: how many cells the
    twin has, and its most runs in one of them. ``cost``: the twin's own. ``reached``: the metric whose curve the budget
    ratios follow. ``energy_source``: how energy came about, as rows say it ("rapl", "nvml", "estimate", or in words,
    several joined by "; "); empty where they do not.
    ``unequal``: methods that were never measured at a budget that the twin reached, too.
    """

    metric: str
    without: str
    unit: str
    baseline: Interval
    methods: Sequence[MethodEffect]
    curves: Mapping[str, Mapping[float, Interval]]
    cells: int
    seeds: int
    cost: Mapping[str, float] = field(default_factory=dict)
    reached: str = ""
    energy_source: str = ""
    unequal: Sequence[str] = ()

    def measured(self, score: Interval) -> Interval:
        """A score as the metric says it: an error is no negative number."""
        if self.metric not in METRICS or higher_is_better(self.metric):
            return score
        known = score.low is not None and score.high is not None
        return replace(score, mean=-score.mean, low=-score.high if known else None, high=-score.low if known else None)

    def of(self, method: str) -> MethodEffect:
        """The effect of ``method``; ValueError names the methods there are."""
        for m in self.methods:
            if m.method == method:
                return m
        raise ValueError(f"no effect of {method!r}; there are {', '.join(m.method for m in self.methods)}")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, comparable across runs."""
        out = asdict(self)
        out["curves"] = {m: {str(x): asdict(i) for x, i in c.items()} for m, c in self.curves.items()}
        return out


def effect(
    rows: Sequence[Row],
    *,
    metric: str,
    without: str,
    unit: str = "train_labels",
    size: str | None = None,
    ignore: Sequence[str] = (),
    correct: Correct | None = None,
    reached: str = "",
    seed: int = 0,
) -> EffectReport:
    """Compare every method in ``rows`` with the method ``without`` transfer.

    Args:
        metric: what is compared; rows of other metrics give costs, calibration and forgetting.
        unit: budget unit of "equal budget" and of the budget ratio (``Row.budget[unit]``).
        size: setting along which data-efficiency curves run (such as ``"n"``).
        ignore: settings that do not distinguish cells (a method's own hyper-parameters).
        correct: (method, seed) -> per test example whether it was right (the same examples for all), or this by task,
            for McNemar (an item counts once, for whom it was right in more seeds) and the interval over items.
        reached: metric whose rows give the budget ratio instead, such as a search's best score against what it spent.

    Raises:
        ValueError: no rows of the metric, or none of the twin, or no method that shares a cell, a seed and a budget
            with it.
    """
    skip = {*ignore, ENERGY_SOURCE, *([size] if size else ())}
    runs = _runs(rows, metric, unit, skip, size)
    if without not in runs:
        raise ValueError(f"no rows of {without!r} with metric {metric!r}; methods there: {', '.join(sorted(runs))}")
    twin = runs[without]
    names = [m for m in runs if m != without]
    pairs = {m: _pairs(m, runs[m], without, twin) for m in names}
    unequal = [m for m in names if not pairs[m]]
    if names and len(unequal) == len(names):
        raise ValueError(
            f"{', '.join(map(repr, names))} and {without!r} were never measured at a common size and budget ({unit})"
        )
    followed = _runs(rows, reached, unit, skip, size) if reached else runs
    raw = []
    for m in names:
        if pairs[m]:
            values = _compared(pairs[m], seed) | _told(m, rows, without, skip, seed)
            values["budget_ratio"], values["not_reached"] = _budget_ratio(
                followed.get(m, {}), followed.get(without, {})
            )
            raw.append({"method": m, **values, "area": _areas(runs[m], twin, pairs[m], seed)})
    adjusted = _holm({r["method"]: r["p_wilcoxon"] for r in raw})
    methods = [
        MethodEffect(**r, p_holm=adjusted.get(r["method"]), **_items(correct, r["method"], without, seed)) for r in raw
    ]
    by_cell = _by_cell(twin, lambda points: points[-1].score)
    return EffectReport(
        metric,
        without,
        unit,
        baseline=hierarchical_bootstrap(by_cell, seed),
        methods=methods,
        curves={m: _curve(r, seed) for m, r in runs.items()} if size else {},
        cells=len(by_cell),
        seeds=max(map(len, by_cell.values())),
        cost=_costs(rows, without),
        reached=reached or metric,
        energy_source=_energy_source(rows),
        unequal=unequal,
    )


@dataclass(frozen=True)
class _Point:
    """One measured score of a run: at which budget and which size."""

    spent: float
    size: float
    score: float


Runs = dict[tuple[Cell, int], list[_Point]]


def _runs(rows, metric, unit, skip, size) -> dict[str, Runs]:
    """method -> (cell, seed) -> points in order of size, then budget."""
    sign = 1.0 if metric not in METRICS or higher_is_better(metric) else -1.0
    out: dict[str, Runs] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        if r.metric == metric and r.value is not None:
            point = _Point(r.budget.get(unit, 0.0), float(r.settings.get(size, 0)) if size else 0.0, sign * r.value)
            out[r.method][_cell(r, skip), r.seed].append(point)
    if not out:
        raise ValueError(f"no rows of metric {metric!r}; metrics there: {', '.join(sorted({r.metric for r in rows}))}")
    for runs in out.values():
        for points in runs.values():
            points.sort(key=lambda p: (p.size, p.spent))
    return {m: dict(runs) for m, runs in out.items()}


def _cell(row: Row, skip: set[str]) -> Cell:
    return tuple(sorted((k, str(v)) for k, v in row.settings.items() if k not in skip))


def _pairs(method: str, runs: Runs, without: str, twin: Runs) -> dict[tuple[Cell, int], list[tuple[float, float]]]:
    """(cell, seed) -> both scores at equal budget by size; empty where they have no budget in common.

    Raises:
        ValueError: they have no cell and seed in common.
    """
    shared = sorted(runs.keys() & twin.keys())
    if not shared:
        raise ValueError(f"{method!r} and {without!r} share no cell and seed; settings of the method go into ignore")
    pairs = {key: _equal_budget(runs[key], twin[key]) for key in shared}
    return {key: p for key, p in pairs.items() if p}


def _compared(pairs: Mapping[tuple[Cell, int], list[tuple[float, float]]], seed: int) -> dict[str, Any]:
    """Score, gain, test and harm, at the largest common size."""
    ours, base = ({key: p[-1][i] for key, p in pairs.items()} for i in (0, 1))
    gains = _group({key: ours[key] - base[key] for key in pairs})
    harm, chance = _harm(_group(ours), _group(base))
    tested = len(pairs) > 1  # the test of one pair has no other p than 1
    return {
        "pairs": len(pairs),
        "score": hierarchical_bootstrap(_group(ours), seed),
        "gain": hierarchical_bootstrap(gains, seed),
        "p_wilcoxon": paired_wilcoxon(list(ours.values()), list(base.values())) if tested else None,
        "harm": harm,
        "harm_chance": chance,
    }


def _told(method: str, rows: Sequence[Row], without: str, skip: set[str], seed: int) -> dict[str, Any]:
    """What rows of other metrics say."""
    return {
        "forgetting": _forgetting(rows, method, skip, seed),
        "calibration": _differences(rows, method, without, skip),
        "cost": _costs(rows, method),
    }


def _holm(p_values: Mapping[str, float | None]) -> dict[str, float]:
    known = {m: p for m, p in p_values.items() if p is not None}
    return dict(zip(known, holm(list(known.values())), strict=True)) if known else {}


def _equal_budget(ours: Sequence[_Point], twin: Sequence[_Point]) -> list[tuple[float, float]]:
    """For each size both have: the two scores at the largest budget that both reached.

    A run that spends nothing of the unit (a language model as it is looks at no label) would answer the same with any
    of it, so it has reached whatever the other has.
    """
    out = []
    for size in sorted({p.size for p in ours} & {p.size for p in twin}):
        a, b = ([p for p in points if p.size == size] for points in (ours, twin))
        limit = min([points[-1].spent for points in (a, b) if points[-1].spent > 0], default=0.0)
        a, b = ([p for p in points if p.spent <= limit] for points in (a, b))
        if a and b:
            out.append((a[-1].score, b[-1].score))
    return out


def _harm(ours: Mapping[Cell, list[float]], base: Mapping[Cell, list[float]]) -> tuple[float | None, float | None]:
    """Mean over cells of the share of runs below the twin's 5th percentile, and of what chance gives.

    Cells weigh the same. A single run of the twin has no percentile but itself: such cells tell nothing.
    """
    cells = [c for c in ours if len(base[c]) > 1]
    if not cells:
        return None, None
    shares = [percentile_harm(ours[c], base[c]) for c in cells]
    return float(np.mean(shares)), float(np.mean([_chance(len(base[c])) for c in cells]))


@cache
def _chance(runs: int) -> float:
    """How often a normal draw lies below the 5th percentile of ``runs`` others of the same distribution."""
    draws = np.random.default_rng(0).normal(size=(20000, runs + 1))
    return float((draws[:, 0] < np.percentile(draws[:, 1:], 5, axis=1)).mean())


def _budget_ratio(runs: Runs, twin: Runs) -> tuple[float | None, int]:
    """Median over cells of the mean curves' cost of the twin's final score, and in how many it was never reached.

    A method that was measured at one amount only, as much as the twin spent, could have no other ratio than 1: its cell
    is left out. One that spends nothing costs 0 wherever it was measured.
    """
    ratios, missed = [], 0
    cells = {c for c, _ in runs} & {c for c, _ in twin}
    for cell in sorted(cells):
        ours, base = _mean_curve(runs, cell), _mean_curve(twin, cell)
        if len(ours) == 1 and ours[0][0] > 0:
            continue
        goal = base[-1][1]
        cost = next((spent for spent, score in ours if score >= goal), None)
        own = next(spent for spent, score in base if score >= goal)
        if cost is None:
            missed += 1
        elif own > 0:
            ratios.append(cost / own)
    return (float(np.median(ratios)) if ratios else None), missed


def _mean_curve(runs: Runs, cell: Cell) -> list[tuple[float, float]]:
    """(spent, mean score of the seeds), from where all have begun; between two amounts a seed keeps its last score."""
    curves = []
    for points in (run for (c, _), run in runs.items() if c == cell):
        at: dict[float, list[float]] = defaultdict(list)
        for p in points:
            at[p.spent].append(p.score)
        curves.append((sorted(at), [float(np.mean(at[spent])) for spent in sorted(at)]))
    begun = max(amounts[0] for amounts, _ in curves)
    every = sorted({spent for amounts, _ in curves for spent in amounts if spent >= begun})
    return [(spent, float(np.mean([s[bisect_right(a, spent) - 1] for a, s in curves]))) for spent in every]


def _areas(runs: Runs, twin: Runs, keys, seed: int) -> Interval | None:
    """Difference of the areas under both curves, where there are two on the same sizes."""
    found = {k: _area(runs[k]) - _area(twin[k]) for k in keys if _has_curve(runs[k], twin[k])}
    return hierarchical_bootstrap(_group(found), seed) if found else None


def _has_curve(ours: Sequence[_Point], twin: Sequence[_Point]) -> bool:
    sizes = {p.size for p in ours}
    return len(sizes) > 1 and sizes == {p.size for p in twin}


def _area(points: Sequence[_Point]) -> float:
    """Mean height of the curve over log size (trapezoids), at the largest budget of each size."""
    last = {p.size: p.score for p in points}
    x, y = np.log(list(last)), np.array(list(last.values()))
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def _curve(runs: Runs, seed: int) -> dict[float, Interval]:
    sizes = sorted({p.size for points in runs.values() for p in points})
    at = {s: {k: [p.score for p in pts if p.size == s][-1:] for k, pts in runs.items()} for s in sizes}
    return {s: hierarchical_bootstrap(_group({k: v[0] for k, v in at[s].items() if v}), seed) for s in sizes}


def _by_cell(runs: Runs, pick) -> dict[Cell, list[float]]:
    return _group({key: pick(points) for key, points in runs.items()})


def _group(values: Mapping[tuple[Cell, int], float]) -> dict[Cell, list[float]]:
    out: dict[Cell, list[float]] = defaultdict(list)
    for (cell, _), value in values.items():
        out[cell].append(float(value))
    return dict(out)


def _values(rows, method, metric, skip) -> dict[tuple[Cell, int], float]:
    chosen: dict[tuple[Cell, int], list[float]] = defaultdict(list)
    for r in rows:
        if r.method == method and r.metric == metric and r.value is not None:
            chosen[_cell(r, skip), r.seed].append(r.value)
    return {k: float(np.mean(v)) for k, v in chosen.items()}


def _forgetting(rows, method, skip, seed) -> Interval | None:
    before, after = _values(rows, method, BEFORE, skip), _values(rows, method, AFTER, skip)
    lost = {k: before[k] - after[k] for k in before.keys() & after.keys()}
    return hierarchical_bootstrap(_group(lost), seed) if lost else None


def _differences(rows, method, without, skip) -> dict[str, float]:
    out = {}
    for metric in CALIBRATION:
        ours, base = _values(rows, method, metric, skip), _values(rows, without, metric, skip)
        shared = ours.keys() & base.keys()
        if shared:
            out[metric] = float(np.mean([ours[k] - base[k] for k in shared]))
    return out


def _costs(rows, method) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for r in rows:
        if r.method == method and r.metric in COSTS and r.value is not None:
            values[r.metric].append(r.value)
    return {m: float(np.mean(v)) for m, v in values.items()}


def _energy_source(rows) -> str:
    told = [_origin(r) for r in rows if r.metric == ENERGY and r.value is not None]
    return "; ".join(sorted({way for ways in told for way in ways.split("; ")} - {""}))


def _origin(row: Row) -> str:
    """How a row says that its energy came about: by its setting, or by an oracle that measured or estimated it."""
    by_oracle = row.oracle if row.oracle.startswith(("measured", "estimated")) else ""
    return str(row.settings.get(ENERGY_SOURCE, by_oracle))


def _items(correct: Correct | None, method: str, without: str, seed: int) -> dict[str, Any]:
    """McNemar's p-value and the interval of the gain over test items."""
    known = correct or {}
    seeds = sorted({s for m, s in known if m == method} & {s for m, s in known if m == without})
    if not seeds:
        return {}
    ours, base = ([_by_task(known[m, s]) for s in seeds] for m in (method, without))
    # Seeds share the test items: joined they would count an item that is hard for one of the two several times.
    gained = {t: np.mean([a[t] - b[t] for a, b in zip(ours, base, strict=True)], axis=0) for t in ours[0]}
    items = np.concatenate(list(gained.values()))
    interval = bootstrap_mean(items, seed) if len(gained) == 1 else stratified_bootstrap(gained, seed)
    return {"mcnemar_p": mcnemar(items > 0, items < 0), "gain_items": interval}


def _by_task(correct: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    tasks = correct if isinstance(correct, Mapping) else {"": correct}
    return {task: np.asarray(right, dtype=float) for task, right in tasks.items()}
