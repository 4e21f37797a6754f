"""``transferopt merge``"""

from pathlib import Path
from typing import Annotated

import typer


def merge(
    config: Annotated[Path, typer.Argument(help="recipe in mergekit's YAML")],
    out: Annotated[Path, typer.Argument(help="folder for the merged model; must not exist")],
    plan: Annotated[bool, typer.Option("--plan", help="only say what would be read, written and needed")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="workers; default: the processors, at most 8")] = None,
    part: Annotated[str | None, typer.Option(help="i/n: compute only this share; a later run without it joins")] = None,
) -> None:
    from core.merge.plan import default_threads, describe, make_plan
    from flows.cli.parameters import existing_recipe, writable_file

    existing_recipe(config)
    writable_file(out / "config.json")
    if plan:
        print(describe(make_plan(config, out), threads or default_threads(), out))
        return
    from core.merge.engine import merge as run
    from flows.cli.holder import naming_the_holder

    with naming_the_holder(out):
        done = run(config, out, threads=threads, part=parse_part(part) if part else None)
    print(f"share {part} is in {done}" if part else f"merged model: {done}")


def parse_part(text: str) -> tuple[int, int]:
    """``i/n`` as two numbers.

    Raises:
        ValueError: not of that form.
    """
    i, slash, n = text.partition("/")
    if not slash or not i.isdigit() or not n.isdigit() or not 1 <= int(i) <= int(n):
        raise ValueError(f"--part {text!r} is not a share; write i/n with i from 1 to n, for instance 1/4")
    return int(i), int(n)
