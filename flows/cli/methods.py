"""``transferopt methods``"""

from typing import Annotated

import typer

# Modules with a family of their own that are no package.
ELSEWHERE = (
    "core.data.derive",
    "core.data.normalise",
    "core.data.tasks",
    "core.distill.interface",
    "core.evaluate.metrics",
    "core.merge.basis",
    "core.merge.baselines",
    "flows.runtime",
)


def methods(
    family: Annotated[str | None, typer.Argument(help="only this family, e.g. 'merge operator'")] = None,
) -> None:
    import importlib
    import pkgutil

    from rich.table import Table

    import core
    from core.registry import FAMILIES, nearest
    from flows.cli.show import console

    for module in pkgutil.walk_packages(core.__path__, "core."):
        if module.ispkg:
            importlib.import_module(module.name)
    for name in ELSEWHERE:
        importlib.import_module(name)
    if family is not None and family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}{nearest(family, FAMILIES)} Allowed: {', '.join(sorted(FAMILIES))}")
    table = Table("family", "method", "what it is")
    for name in [family] if family else sorted(FAMILIES):
        for entry in FAMILIES[name]:
            table.add_row(name, entry.name, entry.summary)
    console.print(table)
