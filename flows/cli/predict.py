"""``transferopt predict MODEL TEXT|FILE``"""

from pathlib import Path
from typing import Annotated

import typer

FILES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")


def predict(
    model: Annotated[str, typer.Argument(help="folder that a flow packaged, or a registered name[@alias|/version]")],
    text: Annotated[str, typer.Argument(help="a text, or a .txt / .csv / .jsonl / .parquet file of texts")],
    task: Annotated[str | None, typer.Option(help="whose head, when the model has several")] = None,
    column: Annotated[str, typer.Option(help="column that holds the texts")] = "text",
    pair: Annotated[str | None, typer.Option(help="for pair tasks: a second text, a file, or a column")] = None,
    out: Annotated[Path | None, typer.Option(help="write the answers here (csv)")] = None,
) -> None:
    import pandas as pd

    from core.data.encoded import read_text
    from core.data.tables import read_table, strings
    from core.packages import open_package
    from core.state import write_bytes
    from flows.cli.parameters import writable_file
    from flows.cli.show import console

    def texts_of(given: str, name: str) -> list[str]:
        path = Path(given)
        if path.suffix not in FILES:
            return [given]
        if not path.is_file():
            if len(given.split()) > 1:  # a sentence that happens to end so
                return [given]
            raise ValueError(f"{path} does not exist; give a text, or a file of texts ({', '.join(FILES)})")
        if path.suffix == ".txt":
            lines = read_text(path).replace("\r\n", "\n")
            return lines.removesuffix("\n").split("\n") if lines else []  # a text may hold any other separator
        table = read_table(path, where=path.name)
        if name not in table:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(map(str, table.columns))}")
        return strings(table[name])

    def second(given: str) -> list[str]:
        """A column of the first texts' table, a file of its own, or one text for all.

        Raises:
            ValueError: no column of the table; a text for all of its rows stands in a file, lest a slip pass for one.
        """
        first = Path(text)
        if first.is_file() and first.suffix in FILES[1:] and Path(given).suffix not in FILES:
            table = read_table(first, where=first.name)
            if given not in table:
                raise ValueError(
                    f"{first} has no column {given!r}; it has {', '.join(map(str, table.columns))}; give one of them, "
                    "or a .txt file of second texts (of one line: for all rows)"
                )
            return strings(table[given])
        found = texts_of(given, column)
        return found * len(texts) if len(found) == 1 else found

    if out is not None:
        writable_file(out)
    texts = texts_of(text, column)
    pairs = None if pair is None else second(pair)
    if pairs is not None and len(pairs) != len(texts):
        raise ValueError(f"{len(pairs)} second texts for {len(texts)} texts; give one for each, or one for all")
    folder = _folder(model)
    answers = open_package(folder).predict(texts, pairs, task)
    table = pd.DataFrame(
        {"label": [a.label for a in answers], "probability": [round(a.probability, 4) for a in answers]}
    )
    if out is not None:
        write_bytes(out, table.to_csv(index=False).encode())
        console.print(f"{len(table)} answers in {out}")
        return
    for answer in answers:
        console.print(f"{answer.label}\t{answer.probability:.3f}", markup=False, soft_wrap=True)


def _folder(model: str) -> Path:
    """The package's folder: a path, or the files of a registered model version."""
    if Path(model).is_dir():
        return Path(model)
    import tasks  # noqa: F401
    from tasks.serving import package_of

    return package_of(model)
