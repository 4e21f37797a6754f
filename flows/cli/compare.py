"""``transferopt compare RUN RUN ...``"""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[str], typer.Argument(help="two or more runs of a flow; the first is the reference")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write the comparison here")] = None,
) -> None:
    if len(runs) < 2:
        raise ValueError("compare takes at least two runs; the first is the reference")
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    import tasks  # noqa: F401
    from core.state import write_json
    from flows.cli.parameters import writable_file
    from flows.cli.show import console
    from tasks.comparison import compare as paired
    from tasks.comparison import differences, load

    writable_file(json_file)
    loaded = [load(run) for run in runs]
    config = Table("parameter", *(r.name for r in loaded), title="configuration that differs")
    changed = differences(loaded)
    for key, values in changed.items():
        config.add_row(key, *values)
    console.print(config if changed else "configurations are equal")
    lines = [line for other in loaded[1:] for line in paired(loaded[0], other)]
    several = len(loaded) > 2
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=None if several else f"other: {loaded[1].name}")
    for name in ("method", "metric"):
        table.add_column(name, overflow="fold")  # a name is wrapped and never cut
    for name in ("pairs", loaded[0].name, "other", "difference", "95 % interval", "p"):
        table.add_column(name, justify="right", overflow="fold")
    if several:
        table.add_column("run", overflow="fold")
    for line in lines:
        p = "" if line.p is None else f"{line.p:.3g}"
        interval = "" if line.low is None else f"{line.low:.4g} to {line.high:.4g}"
        values = (f"{line.first:.4g}", f"{line.second:.4g}", f"{line.difference:+.4g}")
        method, _, metric = line.metric.rpartition("/")
        told = [method, metric.replace("_", " "), str(line.pairs), *values, interval, p]
        table.add_row(*told, *([line.run] if several else []))
    console.print(table if lines else "no common measurement: the runs share no method, metric and seed to pair")
    if json_file is not None:
        write_json(json_file, {"configuration": changed, "metrics": [vars(line) for line in lines]})
