"""Names of the tasks of one run: tables and heads are found by them, so each stands for one task file."""

from collections.abc import Iterable

from core.data.tasks import load_task


def check_distinct(given: Iterable[str]) -> dict[str, str]:
    """Task name -> the task as it was given.

    Raises:
        ValueError: two files of one name, naming both.
    """
    seen: dict[str, str] = {}
    for path in given:
        name = load_task(path).name
        if seen.setdefault(name, path) != path:
            raise ValueError(f"{seen[name]} and {path} are both the task {name!r}; rename one of the files")
    return seen


def check_heads(given: Iterable[str]) -> None:
    """Refuse tasks that cannot be heads of one model.

    Raises:
        ValueError: two files of one name, or a name that no head can have; and what to do.
    """
    from torch.nn import ModuleDict

    for name, path in check_distinct(given).items():
        if "." in name or hasattr(ModuleDict, name):
            raise ValueError(f"a head cannot be called {name!r} in torch; rename the task file {path}")
