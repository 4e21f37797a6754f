"""``transferopt cache``"""

from typing import Annotated

import typer


def cache(
    prune: Annotated[bool, typer.Option("--prune", help="remove what the limits below allow to remove")] = False,
    max_age_days: Annotated[float | None, typer.Option(min=0, help="remove what was not used for so many days")] = None,
    max_size_gb: Annotated[
        float | None, typer.Option(min=0, help="then the longest unused, until this size is kept")
    ] = None,
) -> None:
    from rich.table import Table

    import tasks  # noqa: F401
    from core.data.assets import asset_cache
    from core.state import Cache
    from flows.cli.show import console
    from tasks.pruning import entries
    from tasks.pruning import prune as remove

    found = entries([Cache(), asset_cache()])
    if prune:
        if max_age_days is None and max_size_gb is None:
            raise ValueError("--prune needs --max-age-days or --max-size-gb (0 removes all that nothing needs)")
        age = None if max_age_days is None else 86400 * max_age_days
        gone = remove(found, max_age_s=age, max_bytes=None if max_size_gb is None else int(1e9 * max_size_gb))
        console.print(f"removed {len(gone)} folders, {sum(e.bytes for e in gone) / 1e6:.1f} MB")
        found = [e for e in found if e not in gone]
    table = Table("kind", "folders", "MB", "oldest use, days", "needed by")
    for kind in sorted({e.kind for e in found}):
        part = [e for e in found if e.kind == kind]
        needed = sorted({e.needed for e in part if e.needed})
        size = sum(e.bytes for e in part) / 1e6
        table.add_row(kind, str(len(part)), f"{size:.1f}", f"{part[0].age_s / 86400:.1f}", ", ".join(needed))
    console.print(table)
    console.print(f"{len(found)} folders, {sum(e.bytes for e in found) / 1e6:.1f} MB in {Cache().root}", soft_wrap=True)
