"""``transferopt flows``"""

from typing import Annotated

import typer


def flows(name: Annotated[str | None, typer.Argument(help="show the parameters of this flow")] = None) -> None:
    from rich.table import Table

    from flows.cli.show import console
    from flows.forms import meaning
    from flows.runtime import FLOWS

    if name is None:
        table = Table("flow", "level", "what it does")
        for entry in FLOWS:
            table.add_row(entry.name, entry.facts["level"], entry.summary)
        console.print(table)
        return
    flow = FLOWS.get(name)
    table = Table("parameter", "default", "meaning", title=f"{name}: {flow.title}")
    for key, field in flow.form.model_fields.items():
        table.add_row(key, str(field.get_default(call_default_factory=True)), meaning(key, field))
    console.print(table)
