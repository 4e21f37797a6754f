"""``transferopt assets``"""

from typing import Annotated

import typer


def assets(
    fetch: Annotated[list[str] | None, typer.Argument(help="names to fetch now; without any: the table")] = None,
) -> None:
    from rich.table import Table

    from core.data.assets import resolve, state, table
    from flows.cli.show import console

    for name in fetch or []:
        asset = resolve(name)
        console.print(f"{asset.name}: {asset.path} ({asset.where}, {asset.licence})", soft_wrap=True)
    if fetch:
        return
    shown = Table("asset", "kind", "MB", "state", "licence", "what it is")
    for name, entry in table().items():
        shown.add_row(
            name, entry.kind, f"{entry.bytes / 1e6:.0f}", state(entry), entry.licence.split(" (")[0], entry.summary
        )
    console.print(shown)
