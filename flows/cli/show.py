"""What the command line prints: plans, summaries, tables that fit a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from core.evaluate.rows import Row

console = Console(highlight=False)


def show_plan(flow, parameters) -> None:
    """Stages in order with their state and what earlier runs of them took."""
    table = Table("stage", "state", "seconds", "memory MB", "disk MB", title=f"plan of {flow.name}")
    lines = flow.plan(parameters)
    for line in lines:
        cells = ["?" if v is None else f"{v:.0f}" for v in (line.seconds, line.memory_mb, line.disk_mb)]
        table.add_row(line.stage, line.state, *cells)
    console.print(table)
    unknown = sum(line.seconds is None for line in lines)
    total = sum(line.seconds or 0 for line in lines)
    note = f", {unknown} stages without history not counted" if unknown else ""
    problem = flow.describe(parameters.resolved())
    console.print(f"expected time: {total:.0f} s{note}; budget: {problem.budget}")


def show_summary(summary) -> None:
    """Where the result lies; the result table itself is printed by :func:`show_rows`."""
    show_rows(summary.rows)
    spent = ", ".join(f"{amount:g} {unit}" for unit, amount in summary.budget.items()) or "none counted"
    console.print(f"budget spent: {spent}")
    report = summary.artifact.folder / "report.html"
    if report.exists():
        console.print(f"report: {report}", soft_wrap=True)
    where = summary.mlflow_run_id or "kept on disk until MLflow answers (transferopt sync)"
    console.print(f"MLflow run: {where}   lineage: transferopt lineage {summary.mlflow_run_id or summary.run_id}")


def show_rows(rows: Sequence[Row]) -> None:
    """Rows as one table: a line a method and setting, a column a metric, mean over seeds and its deviation."""
    if not rows:
        return
    from core.evaluate.rows import frame

    table = frame(rows)
    index = ["method", *(c for c in table.columns if c.startswith("settings."))]
    table[index] = table[index].fillna("").astype(str)
    order = table["method"].drop_duplicates().tolist()
    grouped = table.groupby([*index, "metric"], sort=False)["value"].agg(["mean", "std", "count"]).reset_index()
    metrics = grouped["metric"].drop_duplicates().tolist()
    shown = Table(*(c.removeprefix("settings.") for c in index))
    for metric in metrics:
        shown.add_column(metric, justify="right")
    lines = grouped.groupby(index, sort=False)
    for names, part in sorted(lines, key=lambda item: order.index(item[0][0])):
        values = part.set_index("metric")
        shown.add_row(*names, *(_cell(values, metric) for metric in metrics))
    console.print(shown)


def _cell(values, metric: str) -> str:
    if metric not in values.index:
        return ""
    mean, std, count = values.loc[metric, ["mean", "std", "count"]]
    if mean != mean:
        return "undefined"
    return f"{mean:.4g}" + (f" ± {std:.2g}" if count > 1 else "")
