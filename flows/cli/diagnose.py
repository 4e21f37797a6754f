"""``transferopt diagnose``"""

from pathlib import Path
from typing import Annotated

import typer


def diagnose(
    config: Annotated[Path, typer.Argument(help="recipe in mergekit's YAML, with a base_model")],
    out: Annotated[Path | None, typer.Option("--out", help="folder for rows and heat maps")] = None,
    density: Annotated[float, typer.Option(help="share of the largest changes whose overlap is counted")] = 0.2,
) -> None:
    from core.merge.diagnose import diagnose as run
    from flows.cli.parameters import existing_recipe

    found = run(existing_recipe(config), density)
    print(found.summary())
    if out is not None:
        for path in found.save(out):
            print(f"wrote {path}")
