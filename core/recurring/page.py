"""The page of trends: what changed in the last run, and every method's score over the runs so far."""

import json
from collections.abc import Sequence

import pandas as pd

from core.evaluate import plots
from core.evaluate.statistics import Interval, bootstrap_mean
from core.recurring.compare import (
    FEW,
    IMPROVEMENT,
    NEW,
    REGRESSION,
    Change,
    CompareConfig,
    differing,
    measured,
    needed_pairs,
)
from core.transfer.report import Section, Table, render

SHOWN_RUNS = 52
WORDS = (
    "Each method is compared with its own history under the same set-up, pair by pair of task and seed; seeds that the "
    "history does not have (fresh) are paired one with one. A verdict needs a p of at most {alpha:g} (two-sided paired "
    "sign-flip test, corrected over the methods of a level by turning signs for all of them together, and over the "
    "levels that differ by their number), a {level:g} % interval without zero, and an effect of {least:g} points or "
    "more. With fewer than {pairs} pairs no verdict is possible: the effect is shown, not judged."
)
TREND = (
    "Mean over tasks and seeds of each run of this set-up, the last {runs}; bands are 95 % bootstrap intervals over "
    "tasks and seeds. The spread between tasks is part of a band, so overlapping bands do not speak against a change: "
    "the paired test does not see that spread."
)


def trend_page(
    title: str,
    facts: dict[str, str],
    now: pd.DataFrame,
    history: pd.DataFrame,
    changes: Sequence[Change],
    config: CompareConfig,
) -> str:
    """One self-contained HTML page.

    Args:
        now: records of the run that is reported.
        history: records of earlier runs (the run's own may be among them).
    """
    everything = pd.concat([history[~history["run"].isin(now["run"].unique())], now], ignore_index=True)
    order = list(dict.fromkeys(everything.sort_values(["time", "run"], kind="stable")["run"]))
    number = {run: i + 1 for i, run in enumerate(order)}
    values = measured(everything)
    sections = [_verdicts(changes, config)]
    for level in dict.fromkeys(now["level"]):
        setups = now.loc[now["level"] == level, "setup"].unique()
        part = values[(values["level"] == level) & values["setup"].isin(setups)]
        if not part.empty:
            sections.append(_level(level, part, number, changes))
    sections.append(_runs(everything, number))
    return render(title, {**facts, "verdict": headline(changes)}, sections)


def headline(changes: Sequence[Change]) -> str:
    """The verdicts in one sentence."""
    worse = [c for c in changes if c.verdict == REGRESSION]
    better = [c for c in changes if c.verdict == IMPROVEMENT]
    known = [c for c in changes if c.verdict != NEW]
    if not known:
        return "no history yet: this run is the first of its set-up"
    few = sum(c.verdict == FEW for c in known)
    told = "no change shown" if few < len(known) else "no method could be judged"
    if worse or better:
        told = f"{_list('regression', worse)}; {_list('improvement', better)}"
    unjudged = f", {few} of them with too few pairs to be judged" if few else ""
    return f"{told}; {len(known)} of {len(changes)} methods have a history{unjudged}"


def _list(word: str, changes: Sequence[Change]) -> str:
    names = ", ".join(f"{c.level}: {c.method} {c.effect:+.1f}" for c in changes)
    return f"{len(changes)} {word}{'' if len(changes) == 1 else 's'}" + (f" ({names})" if names else "")


def _verdicts(changes: Sequence[Change], config: CompareConfig) -> Section:
    pairs = needed_pairs(config.alpha, len(differing(changes)))
    facts = {"alpha": config.alpha, "level": 100 * (1 - config.alpha), "pairs": pairs}
    text = WORDS.format(least=config.least_points, **facts)
    columns = ["level", "method", "verdict", "effect, points", "low", "high", "p", "before", "now", "pairs", "fresh"]
    lines = [
        [c.level, c.method, c.verdict, c.effect, c.low, c.high, c.p, c.before, c.after, c.pairs, c.fresh]
        for c in changes
    ]
    return Section("What changed", text, [Table(columns, lines)])


def _level(level: str, part: pd.DataFrame, number: dict[str, int], changes: Sequence[Change]) -> Section:
    """Trend of every method and, where there is a history, the changes as bars."""
    recent = sorted(part["run"].unique(), key=number.get)[-SHOWN_RUNS:]
    curves = {}
    for name, own in part[part["run"].isin(recent)].groupby("name", sort=True):
        points = {number[run]: bootstrap_mean(v["points"].to_numpy()) for run, v in own.groupby("run")}
        x = sorted(points)
        curves[name] = (x, [points[i] for i in x])
    figures = [plots.curves_with_bands(curves, "run", "mean score, points", f"{level}: trend")]
    mine = [c for c in changes if c.level == level and c.effect is not None]
    if mine:
        bars = {"change": {c.method: Interval(c.effect, c.low, c.high) for c in mine}}
        figures.append(
            plots.bars_with_intervals(bars, "change against history, points", f"{level}: change", reference=0)
        )
    return Section(level, TREND.format(runs=len(recent)), [], figures)


def _runs(everything: pd.DataFrame, number: dict[str, int]) -> Section:
    """Number, date and code of each run, and which libraries changed."""
    lines, before = [], {}
    first = everything.drop_duplicates("run").set_index("run")
    for run in sorted(number, key=number.get):
        line = first.loc[run]
        libraries = json.loads(line["libraries"])
        changed = [f"{k} {before[k]} -> {v}" for k, v in libraries.items() if before.get(k, v) != v]
        before = libraries
        count = int((everything["run"] == run).sum())
        lines.append([number[run], line["time"][:16], line["commit"], line["hardware"], ", ".join(changed), count])
    table = Table(["run", "started", "commit", "hardware", "libraries that changed", "rows"], lines[::-1])
    return Section("Runs", "", [table])
