"""What the command line prints: plans, summaries, tables that fit a terminal."""

import re
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from core.evaluate.rows import Row

console = Console(highlight=False)
ROUND = (1, 5, 10, 25, 50, 100, 150, 200)
WIDEST = 5  # columns of a mean and its deviation
NAME = 18  # characters that a method's name gets before it wraps
Column = tuple[str, str]  # task and metric


def show_plan(flow, parameters) -> None:
    """Stages in order with their state and what earlier runs of them took."""
    table = Table("stage", "times", "cached", "to run", "seconds", "memory MB", "disk MB", title=f"plan of {flow.name}")
    lines = flow.plan(parameters)
    for name in dict.fromkeys(line.stage for line in lines):
        part = [line for line in lines if line.stage == name]
        todo = [line for line in part if line.state == "run"]
        known = bool(todo) and todo[0].seconds is not None
        sums = (
            (sum(t.seconds for t in todo), max(t.memory_mb for t in todo), sum(t.disk_mb for t in todo))
            if known
            else ()
        )
        cells = [f"{v:.0f}" for v in sums] if known else ["?" if todo else ""] * 3
        table.add_row(name, str(len(part)), str(len(part) - len(todo)), str(len(todo)), *cells)
    console.print(table)
    unknown = sum(line.seconds is None for line in lines)
    total = sum(line.seconds or 0 for line in lines)
    note = f", {unknown} stages without history not counted" if unknown else ""
    problem = flow.describe(parameters.resolved())
    console.print(f"expected time: {total:.0f} s{note}; budget: {problem.budget}", soft_wrap=True)


def show_summary(summary, headline: Sequence[str] = ()) -> None:
    """The result table, the budget, and where the rest lies."""
    if headline:
        along = [r for r in summary.rows if "queries" in r.settings]  # of a search; a benchmark has others beside it
        for metric in dict.fromkeys(r.metric for r in along if r.metric in headline):
            show_by_queries(along, metric)
        others = [r for r in summary.rows if "queries" not in r.settings]
        if others:
            show_by_task(others, headline)
    else:
        show_rows(summary.rows)
    spent = ", ".join(f"{amount:g} {unit}" for unit, amount in summary.budget.items()) or "none counted"
    console.print(f"budget spent: {spent}")
    report = summary.artifact.folder / "report.html"
    if report.exists():
        console.print(f"report: {report}", soft_wrap=True)
    where = summary.mlflow_run_id or "kept on disk until MLflow answers (transferopt sync)"
    if summary.refused:
        console.print(f"[yellow]MLflow refused {summary.refused} records[/]; transferopt sync lists them")
    console.print(f"MLflow run: {where}", soft_wrap=True)
    console.print(f"lineage: transferopt lineage {summary.mlflow_run_id or summary.run_id}", soft_wrap=True)


def show_rows(rows: Sequence[Row]) -> None:
    """Rows as one table: a line a method and setting, a column a metric, mean over seeds and its deviation."""
    if not rows:
        return
    import pandas as pd

    from core.evaluate.rows import frame

    table = frame(rows)
    index = ["method", *(c for c in table.columns if c.startswith("settings."))]
    for name in index[1:]:  # of a long curve the round numbers and its end
        if table[name].nunique() > 8 and pd.api.types.is_numeric_dtype(table[name]):
            ends = table.groupby([c for c in index if c != name], dropna=False)[name].transform("max")
            table = table[table[name].isin(ROUND) | (table[name] == ends)].copy()
    table[index] = table[index].fillna("").astype(str)
    order = table["method"].drop_duplicates().tolist()
    grouped = table.groupby([*index, "metric"], sort=False)["value"].agg(["mean", "std", "count"]).reset_index()
    metrics = grouped["metric"].drop_duplicates().tolist()
    fixed = [c for c in index[1:] if grouped[c].nunique() == 1]
    caption = ", ".join(f"{c.removeprefix('settings.')} {grouped[c].iloc[0]}" for c in fixed)
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption or None)
    for name in index:
        if name not in fixed:
            # a name is wrapped and never cut: two sources may begin alike
            shown.add_column(name.removeprefix("settings."), no_wrap=name == "method", overflow="fold")
    for metric in metrics:
        shown.add_column(metric.replace("_", " "), justify="right", overflow="fold")
    lines = grouped.groupby(index, sort=False)
    for names, part in sorted(lines, key=lambda item: order.index(item[0][0])):
        values = part.set_index("metric")
        kept = [n for n, column in zip(names, index, strict=True) if column not in fixed]
        shown.add_row(*kept, *(_cell(values, metric) for metric in metrics))
    console.print(shown)


def show_by_queries(rows: Sequence[Row], metric: str) -> None:
    """A table a target: a line a run, a column for round numbers of queries and the last, mean over seeds."""
    targets: dict[str, dict[str, dict[int, list[float]]]] = {}
    for r in rows:
        if r.metric == metric and r.value is not None and "queries" in r.settings:
            runs = targets.setdefault(str(r.settings.get("target", "")), {})
            run = str(r.settings.get("run", r.method))
            runs.setdefault(run, {}).setdefault(int(r.settings["queries"]), []).append(r.value)
    for target, runs in targets.items():
        every = sorted({n for curve in runs.values() for n in curve})
        columns = _spread_out([n for n in every if n in ROUND or n == every[-1]])
        console.print(f"{target}: {metric} of what is kept after so many true queries", style="italic")
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("run", no_wrap=True)
        for n in columns:
            table.add_column(str(n), justify="right", no_wrap=True)
        for run, curve in runs.items():
            table.add_row(run, *(_mean_and_deviation(curve.get(n, [])) for n in columns))
        console.print(table)


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.4g}"
    deviation = stdev(values)
    return f"{mean(values):.4g} ± {deviation:.2g}" if deviation < 10 else f"{mean(values):.4g} ± {deviation:.0f}"


def _spread_out(columns: list[int]) -> list[int]:
    """Of many columns as many as a terminal holds, the first and the last among them."""
    if len(columns) <= WIDEST:
        return columns
    return [columns[round(i * (len(columns) - 1) / (WIDEST - 1))] for i in range(WIDEST)]


def show_by_task(rows: Sequence[Row], headline: Sequence[str]) -> None:
    """A line a method (and other settings), a column a task for the first headline metric; all of them for the mean."""
    lines: dict[str, dict[Column, list[float]]] = {}
    columns: dict[Column, None] = {}
    for r in rows:
        task = str(r.settings.get("task", ""))
        if r.metric not in headline or (task not in ("", "mean") and r.metric != headline[0]):
            continue
        others = [f"{k} {v}" for k, v in sorted(r.settings.items()) if k != "task"]
        column = (task, r.metric)
        columns[column] = None
        if r.value is not None:
            lines.setdefault(", ".join([r.method, *others]), {}).setdefault(column, []).append(r.value)
    headings = {}
    for task, metric in columns:
        # names have underscores; in a narrow terminal the headings wrap, and numbers stay whole
        name = task if metric == headline[0] else f"{task} {metric}"
        headings[task, metric] = "\n".join(re.split("[_ ]", name))
    name_width = min(NAME, max(map(len, lines), default=0))
    for part in _that_fit(headings, console.width - name_width - 3):
        table = Table(title=f"{headline[0]} by task", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("method", overflow="fold", min_width=name_width)
        for column in part:
            table.add_column(headings[column], justify="right", no_wrap=True)
        for name, cells in lines.items():
            values = [cells.get(c) for c in part]
            table.add_row(name, *("" if v is None else f"{mean(v):.3g}" for v in values))
        console.print(table)


def _that_fit(headings: Mapping[Column, str], width: int) -> list[list[Column]]:
    """Columns in as many tables as a terminal of ``width`` characters beside the names needs, the last the widest."""
    tables: list[list[Column]] = [[]]
    left = width
    for column, heading in reversed(headings.items()):
        needed = max([5, *map(len, heading.splitlines())]) + 2
        if tables[0] and needed > left:
            tables.insert(0, [])
            left = width
        tables[0].insert(0, column)
        left -= needed
    return tables


def _cell(values, metric: str) -> str:
    if metric not in values.index:
        return ""
    mean, std, count = values.loc[metric, ["mean", "std", "count"]]
    if mean != mean:
        return "undefined"
    return f"{mean:.4g}" + (f" ± {std:.2g}" if count > 1 else "")
