"""``transferopt task new FILE --label COLUMN``, ``transferopt task list``, ``transferopt task show NAME``"""

from pathlib import Path
from typing import Annotated, Any

import typer


def task(
    action: Annotated[str, typer.Argument(help="new, list or show")],
    what: Annotated[str, typer.Argument(help="new: the table (csv, tsv, jsonl, parquet); show: the task")] = "",
    label: Annotated[str, typer.Option(help="new: label column")] = "",
    text: Annotated[str, typer.Option(help="new: text column (default: guessed)")] = "",
    pair: Annotated[str, typer.Option(help="new: second text column (default: guessed)")] = "",
    kind: Annotated[str, typer.Option(help="new: single, pair, regression, generation, table (default: guessed)")] = "",
    out: Annotated[Path | None, typer.Option(help="new: where to write (default: beside the table)")] = None,
    force: Annotated[bool, typer.Option(help="new: write over an existing task file")] = False,
    sep: Annotated[str, typer.Option(help="new: separator of a csv or tsv file, e.g. ';' (\\t: a tab)")] = "",
    encoding: Annotated[str, typer.Option(help="new: encoding of a csv or tsv file, e.g. latin-1")] = "",
    labels: Annotated[str, typer.Option(help="new: classes in order, as a,b,c (default: all values of --label)")] = "",
) -> None:
    from core.registry import nearest

    actions = {"new": _new, "list": _list, "show": _show}
    if action not in actions:
        raise ValueError(f"unknown action {action!r}{nearest(action, actions)} Allowed: {', '.join(actions)}")
    if action != "list" and not what:
        raise ValueError("task new needs a table, task show the name of a task")
    actions[action](what, label, text, pair, kind, out, force, sep, encoding, labels)


def _new(what: str, label: str, *options: Any) -> None:
    from core.data.check import check
    from core.data.new_task import new_task
    from core.data.tasks import load_task
    from flows.cli.show import console

    if not label:
        raise ValueError("give the label column with --label COLUMN")
    path = new_task(what, label, *options)
    console.print(path.read_text(), soft_wrap=True, markup=False, highlight=False)
    console.print("\n".join(check(load_task(path)).lines()), soft_wrap=True, markup=False, highlight=False)
    if unread := _not_read(Path(what), load_task(path)):
        console.print(
            f"  columns that no flow will read: {', '.join(unread)} (a second text is named with --pair COLUMN)",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    console.print(f"written: {path}; any flow takes it as a task", soft_wrap=True, markup=False, highlight=False)


def _not_read(file: Path, task: Any) -> list[str]:
    """Columns of a table of texts that its task leaves out: a text that nobody reads is not missed otherwise."""
    from core.data.tables import read_table

    if task.kind == "table":
        return []
    read = set(task.fields.model_dump().values())
    return [str(c) for c in read_table(file, options=task.source.options, where=file.name) if str(c) not in read]


def _list(*_: object) -> None:
    from rich.table import Table

    from core.data.assets import find_local
    from core.data.tasks import built_in, load_task
    from flows.cli.show import console

    shown = Table("task", "kind", "classes", "metric", "from", "what it is")
    for name in built_in():
        t = load_task(name)
        source = t.source.asset or t.source.bundled or t.source.hub or t.source.path
        if t.source.local:
            source = f"{t.source.local} ({'here' if find_local(t.source.local) else 'not here'})"
        shown.add_row(name, t.kind, str(t.n_classes or ""), t.metric, source, t.summary)
    console.print(shown)


def _show(what: str, *_: object) -> None:
    from core.data.tasks import TASKS, load_task
    from flows.cli.show import console

    load_task(what)
    path = TASKS.get(what) if what in TASKS else Path(what)
    console.print(path.read_text(), soft_wrap=True, markup=False, highlight=False)
