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
    from rich.table import Table

    import tasks  # noqa: F401
    from core.state import write_json
    from flows.cli.show import console
    from tasks.comparison import compare as paired
    from tasks.comparison import differences, load

    loaded = [load(run) for run in runs]
    config = Table("parameter", *(r.name for r in loaded), title="configuration that differs")
    changed = differences(loaded)
    for key, values in changed.items():
        config.add_row(key, *values)
    console.print(config if changed else "configurations are equal")
    table = Table("metric", "pairs", loaded[0].name, "other", "mean difference", "95 % interval", "p", "run")
    lines = [line for other in loaded[1:] for line in paired(loaded[0], other)]
    for line in lines:
        p = "" if line.p is None else f"{line.p:.3g}"
        interval = "" if line.low is None else f"{line.low:.4g} to {line.high:.4g}"
        values = (f"{line.first:.4g}", f"{line.second:.4g}", f"{line.difference:+.4g}")
        table.add_row(line.metric, str(line.pairs), *values, interval, p, line.run)
    console.print(table)
    if json_file is not None:
        write_json(json_file, {"configuration": changed, "metrics": [vars(line) for line in lines]})
